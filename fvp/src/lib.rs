//! Facts of one platform, as constants.
//!
//! The numbers come from `fvp/<platform>/platform.toml`; the build script turns the file that the environment variable
//! `FLEXSERVE_PLATFORM` names (default `qemu-rme`) into the constants of this crate. Build scripts of other crates use
//! it as a build dependency to place their images.
#![no_std]
#![forbid(unsafe_code)]

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Region {
    /// One past the last byte.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }

    /// Whether `len` bytes at `base` lie inside. An empty or wrapping range lies nowhere.
    #[must_use]
    pub const fn contains(&self, base: u64, len: u64) -> bool {
        match base.checked_add(len) {
            Some(end) => len != 0 && base >= self.base && end <= self.end(),
            None => false,
        }
    }
}

/// What keeps the normal world from what it has lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// The granule protection table: Secure granules are in another physical address space.
    GranuleProtectionTable,
    /// Translation tables of the normal world that EL3 owns: DRAM stays in the Non-secure physical address space, and a
    /// Secure granule is one that the tables do not map.
    Stage2,
}

include!(concat!(env!("OUT_DIR"), "/facts.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_contains_its_ends_and_nothing_past_them() {
        let region = Region { base: 0x1000, size: 0x2000 };
        assert!(region.contains(0x1000, 0x2000));
        assert!(!region.contains(0x0fff, 1));
        assert!(!region.contains(0x1000, 0x2001));
        assert!(!region.contains(0x1000, 0));
        assert!(!region.contains(u64::MAX, 2));
    }
}
