//! What the protocol needs of a machine.
#![forbid(unsafe_code)]

use flexserve_abi::el3::Gpi;

/// Whole granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Address of the first.
    pub base: u64,
    /// How many.
    pub count: u64,
}

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

    /// Accesses of the normal and the Realm world that it has seen stopped since boot. Zero for a mechanism that is not told of them.
    fn faults(&self) -> u64 {
        0
    }

    /// Ticks of the system counter.
    fn ticks(&self) -> u64 {
        0
    }

    /// Who may access the granule at `base`. `None` where the mechanism does not cover it.
    fn owner(&self, base: u64) -> Option<Gpi>;

    /// Moves ranges from the normal to the Secure world, in order, up to the first granule that cannot.
    /// When it returns, no observer in another world, on any core, can read, write or execute those that moved.
    fn lend(&self, ranges: &[Range]) -> Moved;

    /// Moves ranges from the Secure to the normal world, in order, up to the first granule that cannot.
    /// What the Secure world wrote last is what the normal world reads.
    fn give_back(&self, ranges: &[Range]) -> Moved;
}
