//! What the protocol needs of the machine. The tests bring their own.

use flexserve_abi::{
    el3::{Gpi, Status},
    ffa::EndpointId,
};

/// Memory of the normal world could not be read or written: it has moved to another world meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

/// Granules of consecutive addresses: the first one's, and how many, at most [`RANGE_MAX`].
pub type Range = (u64, u32);

/// Most granules of a range that EL3 takes in a list.
pub const RANGE_MAX: u32 = 4095;

/// The machine, as the SPMC drives it.
pub trait Hardware {
    /// Asks EL3 to move ranges, at most [`LIST_LIMIT`](flexserve_abi::el3::LIST_LIMIT) of them, to another world (`GRANULE_SET_LIST`): its status, and how many
    /// granules are done.
    fn set_granules(&mut self, ranges: &[Range], to: Gpi) -> (Status, u64);

    /// Asks EL3 whose the granule at `base` is (`GRANULE_GET`). `None` if it does not say.
    fn granule(&mut self, base: u64) -> Option<Gpi>;

    /// Copies out of the normal world's memory, each byte once.
    ///
    /// # Errors
    ///
    /// [`Unreachable`]; some bytes may have been copied.
    fn read_normal(&mut self, physical: u64, to: &mut [u8]) -> Result<(), Unreachable>;

    /// Copies into the normal world's memory.
    ///
    /// # Errors
    ///
    /// As [`Self::read_normal`].
    fn write_normal(&mut self, physical: u64, from: &[u8]) -> Result<(), Unreachable>;

    /// Copies out of a partition's memory. The range was proven to be the partition's.
    fn read_secure(&mut self, physical: u64, to: &mut [u8]);

    /// Copies into a partition's memory. The range was proven to be the partition's.
    fn write_secure(&mut self, physical: u64, from: &[u8]);

    /// Zeroes granules of the Secure world.
    fn zero(&mut self, physical: u64, pages: u32);

    /// Makes changed translation tables of an address space take effect on every core.
    fn flush(&mut self, asid: u16);

    /// Nanoseconds since some moment before the start.
    fn now_ns(&mut self) -> u64;

    /// Ticks of the system counter that the longest section took in which the manager's state was in use.
    fn longest_section(&mut self) -> u64;

    /// Lent cores work for the partition of this index from now on, starting at `entry`. `false` if they cannot.
    fn take_workers(&mut self, partition: usize, entry: u64) -> bool;

    /// Stops the workers of a partition; none runs when it returns.
    fn stop_workers(&mut self, partition: usize);

    /// Passes on a piece of a partition's log.
    fn log(&mut self, partition: EndpointId, bytes: &[u8]);
}
