//! Stage 2 as a test sees it: memory, a walker that knows the architecture but not our format, and cores that cache every
//! translation they can get, after every single write. For tests and fuzzing only.
#![forbid(unsafe_code)]
extern crate std;

use crate::{protection::Range, stage2_format::Layout, stage2_map, stage2_range::Tables};
use flexserve_platform::Region;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

/// The machine's memory.
pub const DRAM: Region = Region { base: 0x4000_0000, size: 16 << 20 };
/// Where the tables lie.
pub const MEMORY: Region = Region { base: 0x4020_0000, size: 2 << 20 };
/// What can be lent: three blocks.
pub const BANK: Region = Region { base: 0x4040_0000, size: 6 << 20 };
/// The tables.
pub const LAYOUT: Layout = Layout::new(MEMORY, DRAM, &[BANK]);

/// What memory holds where nothing was written: a valid page that is not the normal world's.
const GARBAGE: u64 = 0x0e10_07ff;

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// First address that it covers.
    pub base: u64,
    /// Bytes that it covers.
    pub size: u64,
    /// Where that lies.
    pub output: u64,
    /// Whether it may be executed.
    pub executable: bool,
}

/// The machine.
#[derive(Default)]
pub struct Fake {
    memory: RefCell<BTreeMap<u64, u64>>,
    /// Writes that other cores need not see yet, or see in any order; and the last of them.
    pending: RefCell<BTreeMap<u64, u64>>,
    last: Cell<Option<(u64, u64)>>,
    /// Pages that other cores touch after every write.
    pub probes: RefCell<Vec<u64>>,
    /// Size and base of what is cached.
    tlb: RefCell<BTreeSet<(u64, u64)>>,
    locked: Cell<u16>,
    /// How many there were.
    pub invalidations: Cell<u64>,
    /// What was.
    pub flushed: RefCell<Vec<Range>>,
}

impl Fake {
    /// Tables as they are at boot, with some devices.
    pub fn new(devices: &[Region]) -> Self {
        let fake = Self::default();
        stage2_map::fill(&LAYOUT, &fake, DRAM, devices).unwrap();
        fake.publish();
        fake
    }

    /// What a walk finds if the other cores see all writes, or (`reordered`) of those that are pending only the last.
    pub fn walk(&self, ipa: u64, reordered: bool) -> Option<Translation> {
        let pending = self.pending.borrow();
        let read = |address: u64| {
            let seen = if reordered {
                self.last.get().filter(|(a, _)| *a == address).map(|(_, entry)| entry)
            } else {
                pending.get(&address).copied()
            };
            seen.unwrap_or_else(|| self.raw(address))
        };
        assert!(ipa < 1 << 40, "translation fault at level 0");
        let mut table = LAYOUT.level1();
        for (level, shift) in [(1, 30), (2, 21), (3, 12)] {
            let size = 1_u64 << shift;
            let index = if level == 1 { ipa >> shift } else { ipa >> shift & 0x1ff };
            let entry = read(table + index * 8);
            let address = entry & 0x0000_ffff_ffff_f000;
            match (entry & 3, level) {
                (0b01, 1 | 2) | (0b11, 3) => {
                    assert_eq!(entry & 1 << 10, 1 << 10, "no access flag");
                    assert_eq!(address % size, 0, "a block that is not aligned");
                    let executable = entry >> 54 & 1 == 0;
                    return Some(Translation { base: ipa & !(size - 1), size, output: address, executable });
                }
                (0b11, _) => table = address,
                _ => return None,
            }
        }
        None
    }

    /// An access by some core: by what it has cached, or by a walk, which it caches. Whether it passes.
    pub fn touch(&self, ipa: u64) -> bool {
        for reordered in [false, true] {
            if let Some(found) = self.walk(ipa, reordered) {
                assert_eq!(found.output, found.base, "{ipa:#x} is mapped elsewhere");
                self.tlb.borrow_mut().insert((found.size, found.base));
            }
        }
        let tlb = self.tlb.borrow();
        let hits = [1 << 12, 1 << 21, 1 << 30].map(|size: u64| tlb.contains(&(size, ipa & !(size - 1))));
        let hits = hits.iter().filter(|hit| **hit).count();
        assert!(hits <= 1, "TLB conflict at {ipa:#x}");
        hits == 1
    }

    /// Every core sees every write.
    fn settle(&self) {
        self.memory.borrow_mut().extend(core::mem::take(&mut *self.pending.borrow_mut()));
        self.last.set(None);
    }

    fn touch_all(&self) {
        for ipa in self.probes.borrow().iter() {
            self.touch(*ipa);
        }
    }

    /// What memory holds, without what is pending.
    pub fn raw(&self, address: u64) -> u64 {
        self.memory.borrow().get(&address).copied().unwrap_or(GARBAGE)
    }
}

impl Tables for Fake {
    fn read(&self, address: u64) -> u64 {
        self.pending.borrow().get(&address).copied().unwrap_or_else(|| self.raw(address))
    }

    fn write(&self, address: u64, entry: u64) {
        assert!(MEMORY.contains(address, 8), "a write to {address:#x}");
        self.pending.borrow_mut().insert(address, entry);
        self.last.set(Some((address, entry)));
        self.touch_all();
    }

    fn lock(&self, set: u16) {
        assert_eq!(self.locked.replace(set), 0, "locked twice");
    }

    fn unlock(&self, set: u16) {
        assert_eq!(self.locked.replace(0), set);
        assert!(self.pending.borrow().is_empty(), "unlocked before the writes are known");
    }

    fn publish(&self) {
        self.settle();
        self.touch_all();
    }

    fn invalidate(&self) {
        self.settle();
        self.tlb.borrow_mut().clear();
        self.invalidations.set(self.invalidations.get() + 1);
        self.touch_all();
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>) {
        for range in ranges {
            for ipa in (0..range.count).map(|i| range.base + i * 4096) {
                assert!(!self.touch(ipa), "{ipa:#x} is flushed while the normal world has it");
            }
            self.flushed.borrow_mut().push(range);
        }
    }
}
