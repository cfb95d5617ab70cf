//! Granule protection tables as a test sees them: 1 GB of granules, and TLBs that hold what they were shown. For tests and
//! fuzzing only.
#![forbid(unsafe_code)]
extern crate std;

use crate::{
    gpt_format::{Contiguous, Layout},
    gpt_range::{Tables, for_each_joined, move_ranges},
    protection::{Moved, Range},
};
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};
use std::{
    cell::{Cell, RefCell},
    vec,
    vec::Vec,
};

/// First byte of the memory that the tables describe.
pub const MEMORY: u64 = 0x4000_0000;
/// Bytes of it: those of one level-0 entry.
pub const SIZE: u64 = 1 << 30;
/// Address of the level-1 table.
pub const LEVEL1: u64 = 0x10_0000;
const LEVEL0: u64 = 0x1_0000;
const GRANULE: u64 = GRANULE_SIZE as u64;

/// 1 TB of protected addresses, 1 GB for each level-0 entry.
pub fn layout() -> Layout {
    Layout::new(LEVEL0 >> 12, 2)
}

/// The tables, with everything that may cache them.
pub struct Fake {
    /// The level-1 entries, sixteen granules each.
    pub entries: RefCell<Vec<u64>>,
    /// What was invalidated: base and bytes.
    pub invalidations: RefCell<Vec<(u64, u64)>>,
    /// What was flushed: base, bytes, address space.
    pub flushed: RefCell<Vec<(u64, u64, Gpi)>>,
    /// Cached blocks: base, bytes, who may access them.
    tlb: RefCell<Vec<(u64, u64, Gpi)>>,
    locked: Cell<bool>,
}

impl Fake {
    /// All granules are the normal world's, in blocks of this size.
    pub fn new(blocks: Contiguous) -> Self {
        let entries = vec![blocks.descriptor(Gpi::NonSecure as u8); (SIZE >> 16) as usize];
        Self {
            entries: RefCell::new(entries),
            invalidations: RefCell::default(),
            flushed: RefCell::default(),
            tlb: RefCell::default(),
            locked: Cell::new(false),
        }
    }

    /// Who may access a granule.
    ///
    /// # Panics
    ///
    /// If the tables are malformed.
    pub fn owner(&self, address: u64) -> Gpi {
        layout().owner(address, |at| self.read(at)).expect("the tables are well-formed")
    }

    /// A core touches `address`: it caches the whole block that one entry describes.
    ///
    /// # Panics
    ///
    /// If the tables do not cover it.
    pub fn touch(&self, address: u64) {
        let table = layout().level1(address, |at| self.read(at)).expect("covered");
        let bytes = Contiguous::of(self.read(table.entry(address))).map_or(GRANULE, Contiguous::bytes);
        self.tlb.borrow_mut().push((address & !(bytes - 1), bytes, self.owner(address)));
    }

    /// Moves granules, and sees that the lock is free afterwards.
    ///
    /// # Panics
    ///
    /// If it is not, or on what the tables and caches were not expected to see.
    pub fn move_ranges(&self, ranges: &[Range], from: Gpi, to: Gpi) -> Moved {
        let moved = move_ranges(&layout(), self, ranges, from, to);
        assert!(!self.locked.get());
        moved
    }

    /// No cached block says anything else than the tables: at its ends, in its middle, and at these granules.
    ///
    /// # Panics
    ///
    /// If one does.
    pub fn check_tlb(&self, granules: [u64; 2]) {
        for (base, bytes, gpi) in self.tlb.borrow().iter() {
            for granule in [*base, base + bytes / 2, base + bytes - GRANULE].into_iter().chain(granules) {
                if (*base..base + bytes).contains(&granule) {
                    assert_eq!(self.owner(granule), *gpi, "stale for {granule:#x}");
                }
            }
        }
    }
}

impl Tables for Fake {
    fn read(&self, address: u64) -> u64 {
        match address {
            a if a == LEVEL0 + MEMORY / SIZE * 8 => LEVEL1 | 0b0011,
            a if a < LEVEL1 => 0,
            a => self.entries.borrow()[((a - LEVEL1) / 8) as usize],
        }
    }

    fn write(&self, address: u64, entry: u64) {
        assert!(self.locked.get());
        self.entries.borrow_mut()[((address - LEVEL1) / 8) as usize] = entry;
    }

    fn lock(&self, _base: u64) {
        assert!(!self.locked.replace(true));
    }

    fn unlock(&self, _base: u64) {
        assert!(self.locked.replace(false));
    }

    /// A cached block goes only if all of it is named (Arm DDI 0487, D9.6.4, rule SSKBB).
    fn invalidate(&self, stale: impl Iterator<Item = Range>) {
        for_each_joined(stale, |Range { base, count }| {
            let bytes = count * GRANULE;
            self.invalidations.borrow_mut().push((base, bytes));
            self.tlb.borrow_mut().retain(|(at, size, _)| *at < base || base + bytes < at + size);
        });
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi) {
        for Range { base, count } in ranges {
            let last = base + (count - 1) * GRANULE;
            // All of a few granules, some of many.
            let step = (count.div_ceil(64) * GRANULE) as usize;
            for granule in (base..=last).step_by(step).chain([last]) {
                assert_ne!(
                    self.owner(granule),
                    space,
                    "lines could come back while the old owner still has access"
                );
            }
            self.check_tlb([base, last]);
            self.flushed.borrow_mut().push((base, count * GRANULE, space));
        }
    }
}
