//! Moves ranges of granules in granule protection tables (Arm DDI 0487, sections D9.2 to D9.5).
//!
//! Ranges are cut at 2 MB blocks, and the pieces move in waves: under one lock, with one TLB invalidation for neighbouring
//! pieces of one block and one wait for all of them, and one pass of cache maintenance. Contiguous descriptors are shattered when a part of their
//! block moves, and made again when a block becomes uniform: the same descriptors that TF-A's own library makes, which
//! changes other granules of the same tables.
//!
//! Why the order is what it is, for caches that hold lines by physical address space (what is written through one space shows through
//! the others only past the point of physical aliasing: D7.5.8):
//! - to the Secure world: once no access by the old address space can hit any more (invalidation), its lines are written
//!   back and dropped, so that none is written over the new owner's data later;
//! - to the normal world: nobody has access while the Secure lines, the zeroes of the scrub among them, are written back,
//!   so that the normal world never sees what memory held before the scrub, and no line is left that could be written
//!   over its data, or a Realm's, later.
//!
//! A line of an address space is made only by an access that its GPI permits. So a granule has no lines but its owner's: none
//! of the space that it moves *to*, which needs no maintenance. A move to the normal world takes two invalidations: TLBs may
//! hold a "no access" like any valid entry (D9.5, rules QBKYP and JMYRB), and would fault accesses of the new owner.
#![forbid(unsafe_code)]

use crate::{
    gpt_format::{Contiguous, Layout, Level1},
    protection::{MoveError, Moved, Range},
};
use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Gpi, LIST_LIMIT},
};
use heapless::Vec;

const GRANULE: u64 = GRANULE_SIZE as u64;
/// Bytes that one level-1 entry covers.
const ENTRY: u64 = 16 * GRANULE;
const BLOCK: u64 = Contiguous::Block2M.bytes();
/// Bytes whose entries change under one lock, at least.
const LOCKED: u64 = Contiguous::Block512M.bytes();
/// Most pieces that move together.
pub(crate) const WAVE: usize = LIST_LIMIT;

/// The tables in memory, and the instructions that make a change of theirs known.
pub trait Tables {
    /// Reads the entry at an address.
    fn read(&self, address: u64) -> u64;
    /// Writes the entry at an address.
    fn write(&self, address: u64, entry: u64);
    /// Takes the lock under which the entries for the 512 MB around `base` change.
    fn lock(&self, base: u64);
    /// Releases it.
    fn unlock(&self, base: u64);
    /// Waits for the writes, drops what any core or device has cached of the entries for these ranges, each
    /// [joined][for_each_joined] with its neighbours, and waits for that.
    fn invalidate(&self, stale: impl Iterator<Item = Range>);
    /// Writes back and drops, to the point of physical aliasing, all lines of these ranges in one address space, and waits
    /// for that.
    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi);
}

/// Moves granules, in order, until one does not belong to `from`.
///
/// The lock of a region is held for at most [`WAVE`] pieces at a time. How many granules those have, the caller bounds.
#[inline(always)]
pub fn move_ranges(layout: &Layout, tables: &impl Tables, ranges: &[Range], from: Gpi, to: Gpi) -> Moved {
    let mut pieces = Pieces::of(ranges);
    let mut moved = Moved { done: 0, error: None };
    // Each turn leaves a piece behind, or meets an error and is the last: at most as many turns as there are pieces.
    while let (Some(Range { base, .. }), None) = (pieces.peek(), moved.error) {
        tables.lock(base);
        match layout.level1(base, |address| tables.read(address)) {
            Some(table) => Region { tables, table, base }.transfer(&mut pieces, from, to, &mut moved),
            None => moved.error = Some(MoveError::NotCovered),
        }
        tables.unlock(base);
    }
    moved
}

/// Ranges, cut at the ends of 2 MB blocks.
pub(crate) struct Pieces<'a> {
    /// What is left of the present range.
    current: Range,
    rest: core::slice::Iter<'a, Range>,
}

impl<'a> Pieces<'a> {
    pub(crate) fn of(ranges: &'a [Range]) -> Self {
        let mut pieces = Self { current: Range { base: 0, count: 0 }, rest: ranges.iter() };
        pieces.advance(0);
        pieces
    }

    /// The next piece.
    pub(crate) fn peek(&self) -> Option<Range> {
        let Range { base, count } = self.current;
        (count != 0).then(|| Range { base, count: count.min((BLOCK - base % BLOCK) / GRANULE) })
    }

    /// Leaves `count` granules, at most the next piece, behind.
    pub(crate) fn advance(&mut self, count: u64) {
        self.current.base += count * GRANULE;
        self.current.count -= count;
        if self.current.count == 0 {
            self.current = self.rest.next().copied().unwrap_or(self.current);
        }
    }
}

/// A piece that is no longer its old owner's.
struct Taken {
    range: Range,
    /// What TLBs may hold entries for that are not true any more.
    stale: Range,
}

/// Calls `each` with what is stale. Neighbours in one 2 MB block become the whole block, or the larger block that one of them is: to
/// forget more than has changed is always correct (Arm DDI 0487, D9.5, statement ZZJVG).
///
/// Ranges may come in any order, and only neighbours are compared, so that the work grows with their number alone: a list that
/// goes back and forth between blocks takes an invalidation each time that it comes to another.
#[inline(always)]
pub fn for_each_joined(mut stale: impl Iterator<Item = Range>, mut each: impl FnMut(Range)) {
    let Some(mut joined) = stale.next() else { return };
    // As many turns as there are ranges.
    for next in stale {
        let (large, small) = if next.count > joined.count { (next, joined) } else { (joined, next) };
        if large.count > BLOCK / GRANULE && holds(large, small) {
            joined = large;
        } else if (joined.base ^ next.base) < BLOCK {
            joined = Range { base: next.base & !(BLOCK - 1), count: BLOCK / GRANULE };
        } else {
            each(joined);
            joined = next;
        }
    }
    each(joined);
}

/// Whether a range's first granule lies in a block.
const fn holds(block: Range, range: Range) -> bool {
    range.base.wrapping_sub(block.base) < block.count * GRANULE
}

const fn block_around(address: u64, size: Contiguous) -> Range {
    Range { base: address & !(size.bytes() - 1), count: size.bytes() / GRANULE }
}

/// Those that have become part of a larger block are stale as that.
#[cold]
#[inline(never)]
fn widen(taken: &mut [Taken], made: Range) {
    // At most `WAVE` turns.
    for piece in taken {
        if holds(made, piece.range) && piece.stale.count < made.count {
            piece.stale = made;
        }
    }
}

/// 512 MB under one lock, which is held.
struct Region<'a, T> {
    tables: &'a T,
    table: Level1,
    /// An address in it.
    base: u64,
}

impl<T: Tables> Region<'_, T> {
    /// Moves pieces, up to the first that another region has, or up to a granule that does not belong to `from`.
    #[inline(always)]
    fn transfer(&self, pieces: &mut Pieces, from: Gpi, to: Gpi, moved: &mut Moved) {
        let to_normal = to == Gpi::NonSecure;
        let mut taken = Vec::<Taken, WAVE>::new();
        // Each turn takes a piece, or is the last: at most `WAVE` turns.
        while let Some(piece) = pieces.peek().filter(|piece| piece.base / LOCKED == self.base / LOCKED) {
            let (count, shattered) = self.take(piece, from, if to_normal { Gpi::NoAccess } else { to });
            let range = Range { base: piece.base, count };
            if count != 0 && taken.push(Taken { range, stale: shattered.unwrap_or(range) }).is_ok() {
                moved.done += count;
                pieces.advance(count);
            }
            if count < piece.count {
                moved.error = Some(MoveError::NotOwned);
            }
            if count < piece.count || taken.is_full() {
                break;
            }
        }
        if taken.is_empty() {
            return;
        }
        if to_normal {
            self.tables.invalidate(taken.iter().map(|piece| piece.stale));
            self.tables.flush(taken.iter().map(|piece| piece.range), from);
            // At most `WAVE` turns, as the next loop.
            for piece in &taken {
                self.give(piece.range, to);
            }
        }
        let mut next = 0;
        while let Some(base) = taken.get(next).map(|piece| piece.range.base) {
            next += 1;
            if let Some(made) = self.fuse(base, to) {
                widen(&mut taken, made);
            }
        }
        self.tables.invalidate(taken.iter().map(|piece| piece.stale));
        if !to_normal {
            self.tables.flush(taken.iter().map(|piece| piece.range), from);
        }
    }

    /// Gives those granules of a piece that belong to `from`, up to the first that does not, to `to`, as granule entries.
    /// Answers how many, and the block whose descriptor had to go. At most 32 turns.
    fn take(&self, piece: Range, from: Gpi, to: Gpi) -> (u64, Option<Range>) {
        let first = self.tables.read(self.table.entry(piece.base));
        let mut shattered = None;
        if let Some(size) = Contiguous::of(first) {
            if first >> 4 & 0xf != from as u64 {
                return (0, None);
            }
            self.shatter(piece.base);
            shattered = Some(block_around(piece.base, size));
        }
        let difference = uniform(from as u8 ^ to as u8);
        let end = piece.base + piece.count * GRANULE;
        let mut at = piece.base;
        while at < end {
            let next = ((at / ENTRY + 1) * ENTRY).min(end);
            let address = self.table.entry(at);
            let entry = self.tables.read(address);
            let wanted = mask(at, next);
            let other = (entry ^ uniform(from as u8)) & wanted;
            if other == 0 {
                self.tables.write(address, entry ^ difference & wanted);
                at = next;
                continue;
            }
            // Up to the first granule that is not `from`'s.
            let below = other.trailing_zeros() & !3;
            self.tables.write(address, entry ^ difference & wanted & ((1 << below) - 1));
            at = (at & !(ENTRY - 1)) + u64::from(below / 4) * GRANULE;
            break;
        }
        ((at - piece.base) / GRANULE, shattered)
    }

    /// Gives a piece that is nobody's to `to`. At most 32 turns.
    fn give(&self, piece: Range, to: Gpi) {
        let end = piece.base + piece.count * GRANULE;
        let mut at = piece.base;
        while at < end {
            let next = ((at / ENTRY + 1) * ENTRY).min(end);
            let address = self.table.entry(at);
            self.tables.write(address, self.tables.read(address) | uniform(to as u8) & mask(at, next));
            at = next;
        }
    }

    /// Leaves no contiguous descriptor at `address`. At most 8192 + 512 + 32 writes.
    ///
    /// What TLBs hold of the larger block stays true but for the granules that move. To invalidate these would not be sure to drop it: only
    /// the whole block is (Arm DDI 0487, D9.6.4, rule SSKBB).
    #[inline(never)]
    fn shatter(&self, address: u64) {
        // Three turns.
        for (size, part) in [
            (Contiguous::Block512M, Some(Contiguous::Block32M)),
            (Contiguous::Block32M, Some(Contiguous::Block2M)),
            (Contiguous::Block2M, None),
        ] {
            let entry = self.tables.read(self.table.entry(address));
            if Contiguous::of(entry) == Some(size) {
                let gpi = (entry >> 4 & 0xf) as u8;
                let base = address & !(size.bytes() - 1);
                self.write_block(base, size, part.map_or(uniform(gpi), |part| part.descriptor(gpi)));
            }
        }
    }

    /// Replaces the entries of the block around `address` by a contiguous descriptor if all its granules are `gpi`'s, and so
    /// on upwards. Answers the largest block that was made. At most 2 + 32 + 16 + 16 reads and 32 + 512 + 8192 writes.
    fn fuse(&self, address: u64, gpi: Gpi) -> Option<Range> {
        // These two say no most of the time. Moves mostly go upwards: what still differs is at the end of the block.
        let whole = |address| self.tables.read(self.table.entry(address)) == uniform(gpi as u8);
        if whole(address) && whole(address | (BLOCK - 1)) { self.fuse_blocks(address, gpi) } else { None }
    }

    #[inline(never)]
    fn fuse_blocks(&self, address: u64, gpi: Gpi) -> Option<Range> {
        let mut whole = uniform(gpi as u8);
        let mut made = None;
        let mut part = 1;
        // Three turns.
        for size in [Contiguous::Block2M, Contiguous::Block32M, Contiguous::Block512M] {
            let base = address & !(size.bytes() - 1);
            let entries = size.bytes() / ENTRY;
            let first = self.table.entry(base);
            if !self.table.covers(size.bytes())
                || !(0..entries / part).all(|i| self.tables.read(first + i * part * 8) == whole)
            {
                break;
            }
            whole = size.descriptor(gpi as u8);
            part = entries;
            self.write_block(base, size, whole);
            made = Some(block_around(address, size));
        }
        made
    }

    fn write_block(&self, base: u64, size: Contiguous, entry: u64) {
        let first = self.table.entry(base);
        // At most 8192 turns.
        for i in 0..size.bytes() / ENTRY {
            self.tables.write(first + i * 8, entry);
        }
    }
}

/// Sixteen granules of one GPI, or sixteen differences of two.
const fn uniform(gpi: u8) -> u64 {
    gpi as u64 * 0x1111_1111_1111_1111
}

/// The bits, within one entry, of the granules from `start` to before `end`: at least one, at most sixteen.
const fn mask(start: u64, end: u64) -> u64 {
    u64::MAX >> (64 - (end - start) / GRANULE * 4) << (start / GRANULE % 16 * 4)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::gpt_fake::{Fake, LEVEL1, MEMORY, SIZE, layout};
    use proptest::prelude::*;
    use std::vec;

    /// Moves one range.
    fn move_range(fake: &Fake, base: u64, count: u64, to: Gpi) -> Moved {
        let from = if to == Gpi::Secure { Gpi::NonSecure } else { Gpi::Secure };
        fake.move_ranges(&[Range { base, count }], from, to)
    }

    const BLOCKS: u64 = Contiguous::Block512M.descriptor(Gpi::NonSecure as u8);

    #[test]
    fn a_batch_of_one_block_takes_one_invalidation_and_one_flush() {
        let fake = Fake::new(Contiguous::Block2M);
        assert_eq!(move_range(&fake, MEMORY, 512, Gpi::Secure), Moved { done: 512, error: None });
        assert_eq!(*fake.invalidations.borrow(), [(MEMORY, BLOCK)]);
        assert_eq!(*fake.flushed.borrow(), [(MEMORY, BLOCK, Gpi::NonSecure)]);
        assert_eq!(fake.read(LEVEL1), Contiguous::Block2M.descriptor(Gpi::Secure as u8));
    }

    #[test]
    fn a_list_moves_in_waves_and_what_it_completes_becomes_a_block() {
        let fake = Fake::new(Contiguous::Block512M);
        let granule = |i: u64| Range { base: MEMORY + i * GRANULE, count: 1 };
        let odd: std::vec::Vec<_> = (0..20).map(|i| granule(2 * i + 1)).collect();
        assert_eq!(fake.move_ranges(&odd, Gpi::NonSecure, Gpi::Secure), Moved { done: 20, error: None });
        assert_eq!(*fake.invalidations.borrow(), [(MEMORY, LOCKED), (MEMORY, BLOCK)]);
        assert_eq!(fake.owner(MEMORY + GRANULE), Gpi::Secure);
        assert_eq!(fake.owner(MEMORY), Gpi::NonSecure);
        let stops = [granule(41), granule(3), granule(43)];
        let moved = fake.move_ranges(&stops, Gpi::NonSecure, Gpi::Secure);
        assert_eq!(moved, Moved { done: 1, error: Some(MoveError::NotOwned) });
        move_range(&fake, MEMORY + 41 * GRANULE, 1, Gpi::NonSecure);
        let back: std::vec::Vec<_> = odd.iter().rev().copied().collect();
        assert_eq!(fake.move_ranges(&back, Gpi::Secure, Gpi::NonSecure).done, 20);
        assert!(fake.entries.borrow().iter().all(|entry| *entry == BLOCKS));
    }

    #[test]
    fn neighbours_of_one_block_are_forgotten_at_once() {
        let joined = |ranges: &[(u64, u64)]| {
            let mut joined = vec![];
            let stale = ranges.iter().map(|&(first, count)| Range { base: MEMORY + first * GRANULE, count });
            for_each_joined(stale, |range| joined.push(((range.base - MEMORY) / GRANULE, range.count)));
            joined
        };
        assert_eq!(joined(&[]), []);
        assert_eq!(joined(&[(7, 3)]), [(7, 3)]);
        assert_eq!(joined(&[(0, 1), (511, 1)]), [(0, 512)]);
        assert_eq!(joined(&[(9, 2), (3, 1), (5, 2)]), [(0, 512)]);
        assert_eq!(joined(&[(511, 1), (512, 1), (1023, 1), (513, 1)]), [(511, 1), (512, 512)]);
        assert_eq!(joined(&[(0, 1), (512, 1), (1, 1)]), [(0, 1), (512, 1), (1, 1)]);
        assert_eq!(joined(&[(0, 8192), (0, 8192), (8192, 1)]), [(0, 8192), (8192, 1)]);
        assert_eq!(joined(&[(0, 8192), (512, 512), (8191, 1)]), [(0, 8192)]);
        assert_eq!(joined(&[(1024, 512), (0, 8192), (8192, 8192)]), [(0, 8192), (8192, 8192)]);
    }

    #[test]
    fn a_list_takes_an_invalidation_for_each_block_and_pass() {
        let fake = Fake::new(Contiguous::Block2M);
        let list: std::vec::Vec<_> = (0..16)
            .map(|i| Range { base: MEMORY + i / 4 * BLOCK + (7 - i % 4) * 3 * GRANULE, count: 2 })
            .collect();
        assert_eq!(fake.move_ranges(&list, Gpi::NonSecure, Gpi::Secure).done, 32);
        let blocks: std::vec::Vec<_> = (0..4).map(|i| (MEMORY + i * BLOCK, BLOCK)).collect();
        assert_eq!(fake.invalidations.take(), blocks);
        assert_eq!(fake.move_ranges(&list, Gpi::Secure, Gpi::NonSecure).done, 32);
        let whole = (MEMORY, Contiguous::Block32M.bytes());
        assert_eq!(fake.invalidations.take(), [&*blocks, &[whole]].concat());
        assert_eq!(fake.read(LEVEL1), Contiguous::Block32M.descriptor(Gpi::NonSecure as u8));
    }

    #[test]
    fn a_block_that_is_shattered_is_forgotten_whole() {
        for size in [Contiguous::Block2M, Contiguous::Block32M, Contiguous::Block512M] {
            let fake = Fake::new(size);
            let granule = MEMORY + size.bytes() / 2;
            fake.touch(MEMORY);
            assert_eq!(move_range(&fake, granule, 1, Gpi::Secure).done, 1);
            assert_eq!(fake.invalidations.take(), [(MEMORY, size.bytes())]);
            fake.check_tlb([granule; 2]);
            assert_eq!(move_range(&fake, granule + GRANULE, 1, Gpi::Secure).done, 1);
            assert_eq!(fake.invalidations.take(), [(granule + GRANULE, GRANULE)]);
        }
    }

    #[test]
    fn another_owners_block_stays_a_block() {
        let realm = Contiguous::Block2M.descriptor(Gpi::Realm as u8);
        let fake = Fake::new(Contiguous::Block2M);
        fake.entries.borrow_mut().fill(realm);
        let moved = move_range(&fake, MEMORY + GRANULE, 1, Gpi::Secure);
        assert_eq!(moved, Moved { done: 0, error: Some(MoveError::NotOwned) });
        assert!(fake.entries.borrow().iter().all(|entry| *entry == realm));
        assert!(fake.invalidations.borrow().is_empty());
    }

    #[test]
    fn large_blocks_are_shattered_and_made_again() {
        let fake = Fake::new(Contiguous::Block512M);
        let middle = MEMORY + 100 * BLOCK + 5 * GRANULE;
        assert_eq!(move_range(&fake, middle, 1, Gpi::Secure).done, 1);
        let table = layout().level1(middle, |a| fake.read(a)).unwrap();
        assert_eq!(Contiguous::of(fake.read(table.entry(middle))), None);
        let size_at = |address| Contiguous::of(fake.read(table.entry(address)));
        assert_eq!(size_at(middle + BLOCK), Some(Contiguous::Block2M));
        assert_eq!(size_at(MEMORY), Some(Contiguous::Block32M));
        assert_eq!(size_at(MEMORY + (512 << 20)), Some(Contiguous::Block512M));
        assert_eq!(move_range(&fake, middle, 1, Gpi::NonSecure).done, 1);
        assert!(fake.entries.borrow().iter().all(|entry| *entry == BLOCKS));
    }

    #[test]
    fn the_normal_world_gets_nothing_before_the_scrub_is_in_memory() {
        let fake = Fake::new(Contiguous::Block512M);
        move_range(&fake, MEMORY, 3, Gpi::Secure);
        fake.flushed.borrow_mut().clear();
        move_range(&fake, MEMORY, 3, Gpi::NonSecure);
        assert_eq!(*fake.flushed.borrow(), [(MEMORY, 3 * GRANULE, Gpi::Secure)]);
    }

    #[test]
    fn a_range_stops_at_the_first_granule_of_another_owner() {
        let fake = Fake::new(Contiguous::Block512M);
        for stranger in [0, 1, 15, 16, 511, 512, 700] {
            let at = MEMORY + stranger * GRANULE;
            move_range(&fake, at, 1, Gpi::Secure);
            let moved = move_range(&fake, MEMORY, 1024, Gpi::Secure);
            assert_eq!(moved, Moved { done: stranger, error: Some(MoveError::NotOwned) });
            move_range(&fake, MEMORY, stranger + 1, Gpi::NonSecure);
        }
        assert!(fake.entries.borrow().iter().all(|entry| *entry == BLOCKS));
    }

    #[test]
    fn a_region_without_a_table_is_not_covered() {
        let fake = Fake::new(Contiguous::Block512M);
        let moved = move_range(&fake, MEMORY + SIZE, 1, Gpi::Secure);
        assert_eq!(moved, Moved { done: 0, error: Some(MoveError::NotCovered) });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn tables_and_tlbs_agree_with_a_shadow(
            moves in prop::collection::vec(
                (0..4_u64, 0..1100_u64, 1..1100_u64, any::<bool>(), prop::collection::vec(0..2048_u64, 0..4)), 1..20),
        ) {
            let fake = Fake::new(Contiguous::Block512M);
            let mut shadow = vec![Gpi::NonSecure; (SIZE / GRANULE) as usize];
            for (block, offset, count, lend, touched) in moves {
                let first = block * 3 * 512 + offset;
                for granule in touched {
                    fake.touch(MEMORY + (first + granule) * GRANULE);
                }
                let (from, to) = if lend { (Gpi::NonSecure, Gpi::Secure) } else { (Gpi::Secure, Gpi::NonSecure) };
                let range = &mut shadow[first as usize..(first + count) as usize];
                let expected = range.iter().take_while(|gpi| **gpi == from).count();
                range[..expected].fill(to);
                let moved = move_range(&fake, MEMORY + first * GRANULE, count, to);
                prop_assert_eq!(moved.done, expected as u64);
                prop_assert_eq!(moved.error.is_none(), expected as u64 == count);
                fake.check_tlb([MEMORY + first * GRANULE, MEMORY + (first + count - 1) * GRANULE]);
            }
            for (i, gpi) in shadow.iter().enumerate().take(16 * 512) {
                prop_assert_eq!(fake.owner(MEMORY + i as u64 * GRANULE), *gpi);
            }
        }
    }
}
