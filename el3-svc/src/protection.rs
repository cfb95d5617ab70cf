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

/// A mechanism that keeps worlds out of granules.
pub trait GranuleProtection {
    /// Which mechanism, as `FEATURES` reports it (`flexserve_abi::el3::Feature::Backend`).
    const BACKEND: u64;

    /// Bits in a physical address.
    fn physical_address_bits(&self) -> u64;

    /// Who may access the granule at `base`. `None` where the mechanism does not cover it.
    fn owner(&self, base: u64) -> Option<Gpi>;

    /// Moves the granule at `base` from the normal to the Secure world. When it returns, no observer in another world,
    /// on any core, can read, write or execute it.
    ///
    /// # Errors
    ///
    /// [`MoveError`]; the granule is then as it was.
    fn lend(&self, base: u64) -> Result<(), MoveError>;

    /// Moves the granule at `base` from the Secure to the normal world. Its contents are the caller's concern.
    ///
    /// # Errors
    ///
    /// [`MoveError`]; the granule is then as it was.
    fn give_back(&self, base: u64) -> Result<(), MoveError>;
}
