//! What the protocol needs of the machine. The tests bring their own.

use flexserve_abi::{
    el3::{Gpi, Status},
    ffa::EndpointId,
};

/// Memory of the normal world could not be read or written: it has moved to another world meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreachable;

/// The machine, as the SPMC drives it.
pub trait Hardware {
    /// Asks EL3 to move `count` granules at `base` to another world (`GRANULE_SET`): its status, and how many are done.
    fn set_granules(&mut self, base: u64, count: u64, to: Gpi) -> (Status, u64);

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

    /// Passes on a piece of a partition's log.
    fn log(&mut self, partition: EndpointId, bytes: &[u8]);
}
