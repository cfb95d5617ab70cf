//! What the protocol needs of a machine.
#![forbid(unsafe_code)]

use flexserve_abi::el3::Gpi;

/// Why a granule did not move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveError {
    /// It does not belong to the world it should be taken from.
    NotOwned,
    /// The mechanism does not cover this address.
    NotCovered,
}

/// How far a move came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Granules that moved, from the first on.
    pub done: u64,
    /// Why the next one did not, unless all did.
    pub error: Option<MoveError>,
}

/// A mechanism that keeps worlds out of granules.
pub trait GranuleProtection {
    /// Which mechanism, as `FEATURES` reports it (`flexserve_abi::el3::Feature::Backend`).
    const BACKEND: u64;

    /// Bits in a physical address.
    fn physical_address_bits(&self) -> u64;

    /// TLB invalidations that it has made since boot.
    fn tlb_invalidations(&self) -> u64;

    /// Accesses of the normal world that it has seen stopped since boot. Zero for a mechanism that is not told of them.
    fn faults(&self) -> u64 {
        0
    }

    /// Who may access the granule at `base`. `None` where the mechanism does not cover it.
    fn owner(&self, base: u64) -> Option<Gpi>;

    /// Moves `count` granules from `base` on from the normal to the Secure world, in order, up to the first that cannot.
    /// When it returns, no observer in another world, on any core, can read, write or execute those that moved.
    fn lend(&self, base: u64, count: u64) -> Moved;

    /// Moves `count` granules from `base` on from the Secure to the normal world, in order, up to the first that cannot.
    /// What the Secure world wrote last is what the normal world reads.
    fn give_back(&self, base: u64, count: u64) -> Moved;
}
