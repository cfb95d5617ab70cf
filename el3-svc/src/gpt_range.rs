//! Moves ranges of granules in granule protection tables (Arm DDI 0487, sections D9.2 and D9.3).
//!
//! One lock, one fill, one TLB invalidation and one pass of cache maintenance for each 2 MB block that a range touches.
//! Contiguous descriptors are shattered when a part of their block moves, and made again when a block becomes uniform:
//! the same descriptors that TF-A's own library makes, which changes other granules of the same tables.
//!
//! Why the order is what it is, for caches that hold lines by physical address space:
//! - to the Secure world: once no access by the old address space can hit any more (invalidation), its lines are written
//!   back and dropped, so that none is written over the new owner's data later;
//! - to the normal world: nobody has access while the Secure lines, the zeroes of the scrub among them, are written back,
//!   so that the normal world never sees what memory held before the scrub.
#![forbid(unsafe_code)]

use crate::{
    gpt_format::{Contiguous, Layout, Level1},
    protection::{MoveError, Moved},
};
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};

const GRANULE: u64 = GRANULE_SIZE as u64;
/// Bytes that one level-1 entry covers.
const ENTRY: u64 = 16 * GRANULE;
const BLOCK: u64 = Contiguous::Block2M.bytes();

/// The tables in memory, and the instructions that make a change of theirs known.
pub trait Tables {
    /// Reads the entry at an address.
    fn read(&self, address: u64) -> u64;
    /// Writes the entry at an address.
    fn write(&self, address: u64, entry: u64);
    /// Takes the lock under which the entries for `base` change.
    fn lock(&self, base: u64);
    /// Releases it.
    fn unlock(&self, base: u64);
    /// Waits for the writes and drops what any core or device has cached of the entries for `bytes` at `base`.
    fn invalidate(&self, base: u64, bytes: u64);
    /// Writes back and drops, to the point of physical aliasing, all lines of `bytes` at `base` in one address space.
    fn flush(&self, base: u64, bytes: u64, pas: Gpi);
}

/// Moves `count` granules from `base` on, in order, until one does not belong to `from`.
pub fn move_range(
    layout: &Layout,
    tables: &impl Tables,
    (base, count): (u64, u64),
    from: Gpi,
    to: Gpi,
) -> Moved {
    let mut done = 0;
    while done < count {
        let start = base + done * GRANULE;
        let in_block = (BLOCK - start % BLOCK) / GRANULE;
        let wanted = in_block.min(count - done);
        tables.lock(start);
        let moved = layout
            .level1(start, |address| tables.read(address))
            .ok_or(MoveError::NotCovered)
            .map(|table| Block { tables, table, start }.transfer(wanted, from, to));
        tables.unlock(start);
        match moved {
            Ok(n) => {
                done += n;
                if n < wanted {
                    return Moved { done, error: Some(MoveError::NotOwned) };
                }
            }
            Err(error) => return Moved { done, error: Some(error) },
        }
    }
    Moved { done, error: None }
}

/// The granules of one 2 MB block, from `start` on.
struct Block<'a, T> {
    tables: &'a T,
    table: Level1,
    start: u64,
}

impl<T: Tables> Block<'_, T> {
    /// Moves those of the first `wanted` granules that belong to `from`, up to the first that does not.
    fn transfer(&self, wanted: u64, from: Gpi, to: Gpi) -> u64 {
        let count = self.owned(wanted, from);
        if count == 0 {
            return 0;
        }
        let bytes = count * GRANULE;
        self.shatter(bytes);
        if to == Gpi::NonSecure {
            self.fill(bytes, Gpi::NoAccess);
            self.tables.invalidate(self.start, bytes);
            self.tables.flush(self.start, bytes, from);
        }
        self.fill(bytes, to);
        let (base, changed) = self.fuse(to).unwrap_or((self.start, bytes));
        self.tables.invalidate(base, changed);
        if to != Gpi::NonSecure {
            self.tables.flush(self.start, bytes, from);
        }
        count
    }

    fn read(&self, address: u64) -> u64 {
        self.tables.read(self.table.entry(address))
    }

    /// How many of the first `wanted` granules, counted up to the first other one, belong to `owner`. At most 32 turns.
    fn owned(&self, wanted: u64, owner: Gpi) -> u64 {
        let end = self.start + wanted * GRANULE;
        let mut at = self.start;
        while at < end {
            let entry = self.read(at);
            let granules = match Contiguous::of(entry) {
                Some(_) => uniform((entry >> 4 & 0xf) as u8),
                None => entry,
            };
            let first = at / GRANULE % 16;
            let other = (granules ^ uniform(owner as u8)) >> (first * 4);
            let same = (u64::from(other.trailing_zeros()) / 4).min(16 - first);
            at += same * GRANULE;
            if same < 16 - first {
                break;
            }
        }
        (at.min(end) - self.start) / GRANULE
    }

    /// Writes `gpi` for `bytes` from the start, as granule entries. At most 32 turns.
    fn fill(&self, bytes: u64, gpi: Gpi) {
        let end = self.start + bytes;
        let mut at = self.start;
        while at < end {
            let next = (at / ENTRY + 1) * ENTRY;
            let keep = !mask(at, next.min(end));
            let old = if keep == 0 { 0 } else { self.read(at) };
            self.tables.write(self.table.entry(at), old & keep | uniform(gpi as u8) & !keep);
            at = next;
        }
    }

    /// Makes sure that no contiguous descriptor reaches past the `bytes` that will change. At most 8192 + 512 + 32 writes.
    ///
    /// What TLBs hold of the larger block stays true but for those bytes, whose invalidation drops it.
    fn shatter(&self, bytes: u64) {
        for (size, part) in [
            (Contiguous::Block512M, Some(Contiguous::Block32M)),
            (Contiguous::Block32M, Some(Contiguous::Block2M)),
            (Contiguous::Block2M, None),
        ] {
            let entry = self.read(self.start);
            if Contiguous::of(entry) != Some(size) || bytes == size.bytes() {
                continue;
            }
            let gpi = (entry >> 4 & 0xf) as u8;
            let base = self.start & !(size.bytes() - 1);
            self.write_block(base, size, part.map_or(uniform(gpi), |part| part.descriptor(gpi)));
        }
    }

    /// Replaces the entries of the block by a contiguous descriptor if all its granules are `gpi`'s, and so on upwards.
    /// Answers the base and size of the largest block that was made. At most 32 + 15 + 15 reads.
    fn fuse(&self, gpi: Gpi) -> Option<(u64, u64)> {
        let mut made = None;
        let mut whole = uniform(gpi as u8);
        let mut part = 1;
        for size in [Contiguous::Block2M, Contiguous::Block32M, Contiguous::Block512M] {
            let base = self.start & !(size.bytes() - 1);
            let entries = size.bytes() / ENTRY;
            let first = self.table.entry(base);
            if !self.table.covers(size.bytes())
                || !(0..entries).step_by(part).all(|i| self.tables.read(first + i * 8) == whole)
            {
                break;
            }
            whole = size.descriptor(gpi as u8);
            part = entries as usize;
            self.write_block(base, size, whole);
            made = Some((base, size.bytes()));
        }
        made
    }

    fn write_block(&self, base: u64, size: Contiguous, entry: u64) {
        let first = self.table.entry(base);
        for i in 0..size.bytes() / ENTRY {
            self.tables.write(first + i * 8, entry);
        }
    }
}

/// Sixteen granules of one GPI.
const fn uniform(gpi: u8) -> u64 {
    gpi as u64 * 0x1111_1111_1111_1111
}

/// The bits, within one entry, of the granules from `start` to before `end`.
const fn mask(start: u64, end: u64) -> u64 {
    let granules = (end - start) / GRANULE;
    let ones = if granules == 16 { u64::MAX } else { (1 << (granules * 4)) - 1 };
    ones << (start / GRANULE % 16 * 4)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{cell::RefCell, collections::BTreeMap, vec, vec::Vec};

    const LEVEL0: u64 = 0x1_0000;
    const LEVEL1: u64 = 0x10_0000;
    const REGION: u64 = 1 << 30;
    const MEMORY: u64 = 0x4000_0000;

    /// Tables for 1 GB at `MEMORY`, with everything that may cache them.
    struct Fake {
        entries: RefCell<Vec<u64>>,
        /// What a TLB may hold: base of the block it cached -> (bytes, GPI).
        tlb: RefCell<BTreeMap<u64, (u64, Gpi)>>,
        invalidations: RefCell<Vec<(u64, u64)>>,
        flushed: RefCell<Vec<(u64, u64, Gpi)>>,
        locked: RefCell<bool>,
    }

    impl Fake {
        /// All granules are the normal world's, in blocks of `entry`.
        fn new(entry: u64) -> Self {
            Self {
                entries: RefCell::new(vec![entry; (REGION / ENTRY) as usize]),
                tlb: RefCell::default(),
                invalidations: RefCell::default(),
                flushed: RefCell::default(),
                locked: RefCell::new(false),
            }
        }

        fn layout() -> Layout {
            Layout::new(LEVEL0 >> 12, 2)
        }

        fn owner(&self, address: u64) -> Gpi {
            Self::layout().owner(address, |a| self.read(a)).unwrap()
        }

        /// A core touches `address`: it may cache the whole block that one entry describes.
        fn touch(&self, address: u64) {
            let table = Self::layout().level1(address, |a| self.read(a)).unwrap();
            let bytes = Contiguous::of(self.read(table.entry(address))).map_or(GRANULE, Contiguous::bytes);
            self.tlb.borrow_mut().insert(address & !(bytes - 1), (bytes, self.owner(address)));
        }

        fn assert_no_stale_tlb_entry(&self) {
            for (base, (bytes, gpi)) in self.tlb.borrow().iter() {
                for granule in [*base, base + bytes / 2, base + bytes - GRANULE] {
                    assert_eq!(self.owner(granule), *gpi, "stale entry for {granule:#x}");
                }
            }
        }

        fn move_range(&self, base: u64, count: u64, to: Gpi) -> Moved {
            let from = if to == Gpi::Secure { Gpi::NonSecure } else { Gpi::Secure };
            let moved = move_range(&Self::layout(), self, (base, count), from, to);
            assert!(!*self.locked.borrow());
            moved
        }
    }

    impl Tables for Fake {
        fn read(&self, address: u64) -> u64 {
            match address {
                a if a == LEVEL0 + MEMORY / REGION * 8 => LEVEL1 | 0b0011,
                a if a < LEVEL1 => 0,
                a => self.entries.borrow()[((a - LEVEL1) / 8) as usize],
            }
        }

        fn write(&self, address: u64, entry: u64) {
            assert!(*self.locked.borrow());
            self.entries.borrow_mut()[((address - LEVEL1) / 8) as usize] = entry;
        }

        fn lock(&self, _base: u64) {
            assert!(!self.locked.replace(true));
        }

        fn unlock(&self, _base: u64) {
            assert!(self.locked.replace(false));
        }

        fn invalidate(&self, base: u64, bytes: u64) {
            self.invalidations.borrow_mut().push((base, bytes));
            self.tlb.borrow_mut().retain(|at, (size, _)| *at + *size <= base || base + bytes <= *at);
        }

        fn flush(&self, base: u64, bytes: u64, pas: Gpi) {
            for granule in (base..base + bytes).step_by(GRANULE_SIZE) {
                assert_ne!(
                    self.owner(granule),
                    pas,
                    "lines could come back while the old owner still has access"
                );
            }
            self.assert_no_stale_tlb_entry();
            self.flushed.borrow_mut().push((base, bytes, pas));
        }
    }

    const BLOCKS: u64 = Contiguous::Block512M.descriptor(Gpi::NonSecure as u8);

    #[test]
    fn a_batch_of_one_block_takes_one_invalidation_and_one_flush() {
        let fake = Fake::new(Contiguous::Block2M.descriptor(Gpi::NonSecure as u8));
        assert_eq!(fake.move_range(MEMORY, 512, Gpi::Secure), Moved { done: 512, error: None });
        assert_eq!(*fake.invalidations.borrow(), [(MEMORY, BLOCK)]);
        assert_eq!(*fake.flushed.borrow(), [(MEMORY, BLOCK, Gpi::NonSecure)]);
        assert_eq!(fake.read(LEVEL1), Contiguous::Block2M.descriptor(Gpi::Secure as u8));
    }

    #[test]
    fn large_blocks_are_shattered_and_made_again() {
        let fake = Fake::new(BLOCKS);
        let middle = MEMORY + 100 * BLOCK + 5 * GRANULE;
        assert_eq!(fake.move_range(middle, 1, Gpi::Secure).done, 1);
        let table = Fake::layout().level1(middle, |a| fake.read(a)).unwrap();
        assert_eq!(Contiguous::of(fake.read(table.entry(middle))), None);
        let size_at = |address| Contiguous::of(fake.read(table.entry(address)));
        assert_eq!(size_at(middle + BLOCK), Some(Contiguous::Block2M));
        assert_eq!(size_at(MEMORY), Some(Contiguous::Block32M));
        assert_eq!(size_at(MEMORY + (512 << 20)), Some(Contiguous::Block512M));
        assert_eq!(fake.move_range(middle, 1, Gpi::NonSecure).done, 1);
        assert!(fake.entries.borrow().iter().all(|entry| *entry == BLOCKS));
    }

    #[test]
    fn the_normal_world_gets_nothing_before_the_scrub_is_in_memory() {
        let fake = Fake::new(BLOCKS);
        fake.move_range(MEMORY, 3, Gpi::Secure);
        fake.flushed.borrow_mut().clear();
        fake.move_range(MEMORY, 3, Gpi::NonSecure);
        assert_eq!(*fake.flushed.borrow(), [(MEMORY, 3 * GRANULE, Gpi::Secure)]);
    }

    #[test]
    fn a_range_stops_at_the_first_granule_of_another_owner() {
        let fake = Fake::new(BLOCKS);
        for stranger in [0, 1, 15, 16, 511, 512, 700] {
            let at = MEMORY + stranger * GRANULE;
            fake.move_range(at, 1, Gpi::Secure);
            let moved = fake.move_range(MEMORY, 1024, Gpi::Secure);
            assert_eq!(moved, Moved { done: stranger, error: Some(MoveError::NotOwned) });
            fake.move_range(MEMORY, stranger + 1, Gpi::NonSecure);
        }
        assert!(fake.entries.borrow().iter().all(|entry| *entry == BLOCKS));
    }

    #[test]
    fn a_region_without_a_table_is_not_covered() {
        let fake = Fake::new(BLOCKS);
        let moved = fake.move_range(MEMORY + REGION, 1, Gpi::Secure);
        assert_eq!(moved, Moved { done: 0, error: Some(MoveError::NotCovered) });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn tables_and_tlbs_agree_with_a_shadow(
            moves in prop::collection::vec(
                (0..4_u64, 0..1100_u64, 1..1100_u64, any::<bool>(), prop::collection::vec(0..2048_u64, 0..4)), 1..20),
        ) {
            let fake = Fake::new(BLOCKS);
            let mut shadow = vec![Gpi::NonSecure; (REGION / GRANULE) as usize];
            for (block, offset, count, lend, touched) in moves {
                let first = block * 3 * 512 + offset;
                for granule in touched {
                    fake.touch(MEMORY + (first + granule) * GRANULE);
                }
                let (from, to) = if lend { (Gpi::NonSecure, Gpi::Secure) } else { (Gpi::Secure, Gpi::NonSecure) };
                let range = &mut shadow[first as usize..(first + count) as usize];
                let expected = range.iter().take_while(|gpi| **gpi == from).count();
                range[..expected].fill(to);
                let moved = fake.move_range(MEMORY + first * GRANULE, count, to);
                prop_assert_eq!(moved.done, expected as u64);
                prop_assert_eq!(moved.error.is_none(), expected as u64 == count);
                fake.assert_no_stale_tlb_entry();
            }
            for (i, gpi) in shadow.iter().enumerate().take(16 * 512) {
                prop_assert_eq!(fake.owner(MEMORY + i as u64 * GRANULE), *gpi);
            }
        }
    }
}
