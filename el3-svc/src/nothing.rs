//! No mechanism: nothing moves. In place of stage-2 tables until EL3 has them.

use crate::protection::{GranuleProtection, MoveError, Moved};
use flexserve_abi::el3::Gpi;

/// Protects nothing, and therefore takes nothing.
pub struct Nothing;

impl Nothing {
    pub const fn new() -> Self {
        Self
    }
}

impl GranuleProtection for Nothing {
    const BACKEND: u64 = 0;

    fn physical_address_bits(&self) -> u64 {
        40
    }

    fn tlb_invalidations(&self) -> u64 {
        0
    }

    fn owner(&self, _base: u64) -> Option<Gpi> {
        None
    }

    fn lend(&self, _base: u64, _count: u64) -> Moved {
        Moved { done: 0, error: Some(MoveError::NotCovered) }
    }

    fn give_back(&self, _base: u64, _count: u64) -> Moved {
        Moved { done: 0, error: Some(MoveError::NotCovered) }
    }
}
