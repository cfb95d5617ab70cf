//! Moves ranges of granules in the normal world's stage-2 tables (Arm DDI 0487, sections D8.13 and D8.16).
//!
//! Ranges are cut at 2 MB blocks, and the pieces move in waves: with one TLB invalidation at most for all of them, and one
//! wait for their cache maintenance. A block that belongs to one world is one level-2 entry; it is split when a part of it
//! moves, and made again when it becomes uniform.
//!
//! Which changes need an invalidation:
//! - lending makes valid entries invalid: what any core has cached of them must go before anyone may rely on it;
//! - splitting and fusing a block of the normal world's replaces a valid entry by another valid one: between them it is invalid
//!   and nothing is cached (break-before-make, D8.16.1; Armv8.0 has no FEAT_BBM). An access meanwhile faults, and is tried again.
//!   When a block is split in order to lend, this one invalidation serves both;
//! - giving back makes invalid entries valid, and TLBs hold no invalid entries: none.
//!
//! Data stays in the Non-secure physical address space, so that both worlds use the same cache lines, but the normal world may
//! have mapped a page as not cacheable, and what memory holds may differ from what a line holds. So lines are written back and
//! dropped to the point of coherency whenever a granule moves:
//! - to the Secure world: once no access can hit, so that what the Secure world checked is what it reads later;
//! - to the normal world: while nobody else has access, so that it cannot read behind the zeroes what memory held before.
#![forbid(unsafe_code)]

use crate::{
    gpt_range::{Pieces, WAVE},
    protection::{MoveError, Moved, Range},
    stage2_format::{BLOCK, GRANULES, Kind, Layout, Level2, PAGE, SECURE, UNMAPPED, owner},
};
use flexserve_abi::el3::Gpi;
use heapless::Vec;

/// The tables in memory, and the instructions that make a change of theirs known.
pub trait Tables {
    /// Reads the entry at an address.
    fn read(&self, address: u64) -> u64;
    /// Writes the entry at an address.
    fn write(&self, address: u64, entry: u64);
    /// Takes locks, in order of their bits. See [`lock_of`].
    fn lock(&self, set: u16);
    /// Releases them.
    fn unlock(&self, set: u16);
    /// Makes the writes so far visible to every core's walks before any later write.
    fn publish(&self);
    /// Waits for the writes, drops every translation that any core has cached for the normal world, and waits for the
    /// accesses that used them.
    fn invalidate(&self);
    /// Writes back and drops, to the point of coherency, all lines of these ranges, and waits for that.
    fn flush(&self, ranges: impl Iterator<Item = Range>);
}

/// The lock under which the entries for the block around `base` change: one of sixteen, neighbours have different ones.
#[must_use]
pub const fn lock_of(base: u64) -> u16 {
    1 << (base / BLOCK % 16)
}

/// Where granules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the normal to the Secure world.
    Lend,
    /// From the Secure to the normal world.
    GiveBack,
}

/// Moves granules, in order, until one does not belong to the world it should come from.
///
/// Locks are held for at most [`WAVE`] pieces at a time. How many granules those have, the caller bounds.
#[inline(always)]
pub fn move_ranges(layout: &Layout, tables: &impl Tables, ranges: &[Range], direction: Direction) -> Moved {
    let mut pieces = Pieces::of(ranges);
    let mut moved = Moved { done: 0, error: None };
    // Each turn leaves a piece behind: at most as many turns as there are pieces.
    while moved.error.is_none() && pieces.peek().is_some() {
        let mut wanted = Vec::<Range, WAVE>::new();
        let mut locks = 0;
        // At most `WAVE` turns.
        while let Some(piece) = pieces.peek()
            && wanted.push(piece).is_ok()
        {
            locks |= lock_of(piece.base);
            pieces.advance(piece.count);
        }
        tables.lock(locks);
        let mut wave = Wave { tables, pieces: Vec::new() };
        wave.take(layout, &wanted, direction, &mut moved);
        match direction {
            Direction::Lend => wave.lend(),
            Direction::GiveBack => wave.give_back(),
        }
        tables.unlock(locks);
    }
    moved
}

/// Whose the granule at `base` is. `None` where the tables do not cover it.
pub fn owner_of(layout: &Layout, tables: &impl Tables, base: u64) -> Option<Gpi> {
    let piece = Piece::of(layout, tables, Range { base, count: 1 })?;
    tables.lock(lock_of(base));
    // At most two turns.
    let owner = [Gpi::NonSecure, Gpi::Secure].into_iter().find(|world| piece.owned(*world) == 1);
    tables.unlock(lock_of(base));
    owner
}

/// Pieces that have been taken from the world they come from, up to the first granule that is not that world's.
struct Wave<'a, T> {
    tables: &'a T,
    pieces: Vec<Piece<'a, T>, WAVE>,
}

impl<'a, T: Tables> Wave<'a, T> {
    #[inline(always)]
    fn take(&mut self, layout: &Layout, wanted: &[Range], direction: Direction, moved: &mut Moved) {
        let from = match direction {
            Direction::Lend => Gpi::NonSecure,
            Direction::GiveBack => Gpi::Secure,
        };
        // At most `WAVE` turns.
        for range in wanted {
            let Some(piece) = Piece::of(layout, self.tables, *range) else {
                moved.error = Some(MoveError::NotCovered);
                return;
            };
            let count = piece.owned(from);
            if count > 0 {
                let piece = Piece { range: Range { count, ..*range }, ..piece };
                piece.take(direction);
                moved.done += count;
                // As many as there are wanted, which fit.
                let _ = self.pieces.push(piece);
            }
            if count < range.count {
                moved.error = Some(MoveError::NotOwned);
                return;
            }
        }
    }

    fn flush(&self) {
        self.tables.flush(self.pieces.iter().map(|piece| piece.range));
    }

    /// Gives the blocks between two entries their new ones. At most [`WAVE`] turns.
    fn settle(&self) {
        for piece in &self.pieces {
            if let Level2::Changing { secure } = piece.state() {
                self.tables.write(piece.entry, piece.settled(secure));
            }
        }
        self.tables.publish();
    }

    fn lend(&self) {
        if !self.pieces.is_empty() {
            self.tables.invalidate();
            self.settle();
            self.flush();
        }
    }

    fn give_back(&self) {
        if self.pieces.is_empty() {
            return;
        }
        self.flush();
        let mut broken = false;
        // At most `WAVE` turns.
        for piece in &self.pieces {
            broken |= piece.give();
        }
        if broken {
            self.tables.invalidate();
        } else {
            self.tables.publish();
        }
        self.settle();
    }
}

/// Granules of one block.
struct Piece<'a, T> {
    tables: &'a T,
    /// Address of the level-2 entry.
    entry: u64,
    /// Address of the level-3 table, whether it is in use or not.
    table: u64,
    range: Range,
}

impl<'a, T: Tables> Piece<'a, T> {
    fn of(layout: &Layout, tables: &'a T, range: Range) -> Option<Self> {
        let (entry, table) = (layout.level2_entry(range.base)?, layout.level3(range.base)?);
        Some(Self { tables, entry, table, range })
    }

    fn state(&self) -> Level2 {
        Level2::of(self.tables.read(self.entry))
    }

    fn set(&self, entry: u64) {
        self.tables.write(self.entry, entry);
    }

    /// How many of the granules, counted up to the first other one, belong to `world`. At most 512 turns.
    fn owned(&self, world: Gpi) -> u64 {
        match (self.state(), world) {
            (Level2::Block, Gpi::NonSecure) | (Level2::Secure, Gpi::Secure) => self.range.count,
            (Level2::Table { .. } | Level2::Changing { .. }, _) => {
                let first = self.level3_entry(self.range.base);
                let theirs = |i: &u64| owner(self.tables.read(first + i * 8)) == Some(world);
                (0..self.range.count).take_while(theirs).count() as u64
            }
            _ => 0,
        }
    }

    /// Takes the granules, which all belong to the world they come from: what is lent is the Secure world's, what is given back
    /// nobody's. The normal world can still have them in TLBs.
    fn take(&self, direction: Direction) {
        let count = self.range.count;
        let (own, other) = match direction {
            Direction::Lend => (Entries::Secure, Entries::NonSecure),
            Direction::GiveBack => (Entries::Unmapped, Entries::Secure),
        };
        // At least as many are Secure as are given back, and at most as many as there are others when some are lent.
        let after = |secure: u64| match direction {
            Direction::Lend => secure.wrapping_add(count),
            Direction::GiveBack => secure.wrapping_sub(count),
        };
        match self.state() {
            Level2::Table { secure } => {
                self.fill(own);
                let secure = after(secure);
                self.set(if secure == GRANULES { SECURE } else { Level2::table(self.table, secure) });
            }
            Level2::Changing { secure } => {
                self.fill(own);
                self.set(Level2::changing(after(secure)));
            }
            _ if count == GRANULES => self.set(if direction == Direction::Lend { SECURE } else { UNMAPPED }),
            _ => {
                self.split(own, other);
                self.set(Level2::changing(if direction == Direction::Lend {
                    count
                } else {
                    GRANULES - count
                }));
            }
        }
    }

    /// Gives the granules, which are nobody's, to the normal world; or leaves that to [`Wave::settle`]. Whether a valid
    /// entry has become invalid.
    fn give(&self) -> bool {
        match self.state() {
            Level2::Table { secure: 0 } => {
                self.set(Level2::changing(0));
                return true;
            }
            // All of the block goes.
            Level2::Changing { secure: 0 } => {}
            Level2::Table { .. } | Level2::Changing { .. } => self.fill(Entries::NonSecure),
            _ => self.set(self.settled(0)),
        }
        false
    }

    /// The entry of a block with so many granules Secure.
    fn settled(&self, secure: u64) -> u64 {
        match secure {
            0 => Kind::Memory.block(self.range.base & !(BLOCK - 1)),
            GRANULES => SECURE,
            _ => Level2::table(self.table, secure),
        }
    }

    fn level3_entry(&self, address: u64) -> u64 {
        self.table + address % BLOCK / PAGE * 8
    }

    /// Writes the granules' level-3 entries. At most 512 turns.
    fn fill(&self, entries: Entries) {
        self.fill_range(self.range.base, self.range.base + self.range.count * PAGE, entries);
    }

    /// Writes the whole level-3 table, which no core uses: these granules, and all others. 512 turns.
    fn split(&self, own: Entries, other: Entries) {
        let base = self.range.base & !(BLOCK - 1);
        self.fill_range(base, self.range.base, other);
        self.fill(own);
        self.fill_range(self.range.base + self.range.count * PAGE, base + BLOCK, other);
    }

    fn fill_range(&self, from: u64, to: u64, entries: Entries) {
        let (mut entry, step) = match entries {
            Entries::NonSecure => (Kind::Memory.page(from), PAGE),
            Entries::Secure => (SECURE, 0),
            Entries::Unmapped => (UNMAPPED, 0),
        };
        let first = self.level3_entry(from);
        // At most 512 turns.
        for i in 0..(to - from) / PAGE {
            self.tables.write(first + i * 8, entry);
            entry += step;
        }
    }
}

/// What level-3 entries say.
#[derive(Clone, Copy, Debug)]
enum Entries {
    NonSecure,
    Secure,
    Unmapped,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stage2_fake::{BANK, Fake, LAYOUT};
    use proptest::prelude::*;
    use std::{array, vec, vec::Vec};

    fn at(granule: u64) -> u64 {
        BANK.base + granule * PAGE
    }

    fn go(fake: &Fake, granule: u64, count: u64, direction: Direction) -> Moved {
        list(fake, &[(granule, count)], direction)
    }

    fn list(fake: &Fake, ranges: &[(u64, u64)], direction: Direction) -> Moved {
        let ranges: Vec<_> = ranges.iter().map(|(g, count)| Range { base: at(*g), count: *count }).collect();
        move_ranges(&LAYOUT, fake, &ranges, direction)
    }

    fn moved(fake: &Fake, granule: u64, count: u64, direction: Direction) {
        assert_eq!(go(fake, granule, count, direction), Moved { done: count, error: None });
    }

    /// How many invalidations a move takes.
    fn cost(fake: &Fake, granule: u64, count: u64, direction: Direction) -> u64 {
        let before = fake.invalidations.get();
        moved(fake, granule, count, direction);
        fake.invalidations.get() - before
    }

    fn level2(fake: &Fake, granule: u64) -> u64 {
        fake.raw(LAYOUT.level2_entry(at(granule)).unwrap())
    }

    #[test]
    fn one_granule_goes_and_comes_back() {
        let fake = Fake::new(&[]);
        *fake.probes.borrow_mut() = vec![at(0), at(6), at(7), at(8), at(511)];
        assert!(fake.touch(at(7)));
        moved(&fake, 7, 1, Direction::Lend);
        assert!(!fake.touch(at(7)));
        assert!(fake.touch(at(6)) && fake.touch(at(8)) && fake.touch(at(512)));
        assert_eq!(owner_of(&LAYOUT, &fake, at(7)), Some(Gpi::Secure));
        assert_eq!(owner_of(&LAYOUT, &fake, at(8)), Some(Gpi::NonSecure));
        moved(&fake, 7, 1, Direction::GiveBack);
        assert!(fake.touch(at(7)));
        assert_eq!(*fake.flushed.borrow(), [Range { base: at(7), count: 1 }; 2]);
    }

    #[test]
    fn blocks_are_split_and_made_again() {
        let fake = Fake::new(&[]);
        let whole = level2(&fake, 0);
        moved(&fake, 3, 2, Direction::Lend);
        assert_eq!(Level2::of(level2(&fake, 0)), Level2::Table { secure: 2 });
        moved(&fake, 5, 507, Direction::Lend);
        moved(&fake, 0, 3, Direction::Lend);
        assert_eq!(Level2::of(level2(&fake, 0)), Level2::Secure);
        moved(&fake, 100, 1, Direction::GiveBack);
        assert_eq!(Level2::of(level2(&fake, 0)), Level2::Table { secure: 511 });
        moved(&fake, 0, 100, Direction::GiveBack);
        moved(&fake, 101, 411, Direction::GiveBack);
        assert_eq!(level2(&fake, 0), whole);
    }

    #[test]
    fn a_wave_takes_one_invalidation_at_most() {
        let fake = Fake::new(&[]);
        assert_eq!(cost(&fake, 0, 512, Direction::Lend), 1);
        assert_eq!(cost(&fake, 0, 512, Direction::GiveBack), 0);
        assert_eq!(cost(&fake, 9, 1, Direction::Lend), 1);
        assert_eq!(cost(&fake, 10, 1, Direction::Lend), 1);
        assert_eq!(cost(&fake, 9, 1, Direction::GiveBack), 0);
        assert_eq!(cost(&fake, 10, 1, Direction::GiveBack), 1);
        assert_eq!(cost(&fake, 500, 600, Direction::Lend), 1);
        assert_eq!(cost(&fake, 500, 600, Direction::GiveBack), 1);
        let scattered: [_; 16] = array::from_fn(|i| (i as u64 * 90, 2));
        let before = fake.invalidations.get();
        assert_eq!(list(&fake, &scattered, Direction::Lend), Moved { done: 32, error: None });
        assert_eq!(fake.invalidations.get() - before, 1);
    }

    #[test]
    fn pieces_of_one_block_move_together() {
        let fake = Fake::new(&[]);
        *fake.probes.borrow_mut() = vec![at(0), at(9), at(511)];
        let halves = [(256, 256), (0, 100), (101, 155), (100, 1)];
        for direction in [Direction::Lend, Direction::GiveBack] {
            assert_eq!(list(&fake, &halves, direction), Moved { done: 512, error: None });
        }
        assert_eq!(Level2::of(level2(&fake, 0)), Level2::Block);
        for direction in [Direction::Lend, Direction::GiveBack] {
            assert_eq!(list(&fake, &halves[1..], direction), Moved { done: 256, error: None });
        }
        assert_eq!(Level2::of(level2(&fake, 0)), Level2::Block);
    }

    #[test]
    fn a_granule_named_twice_moves_once() {
        let fake = Fake::new(&[]);
        for first in [(9, 1), (0, 512), (5, 200)] {
            for direction in [Direction::Lend, Direction::GiveBack] {
                let twice = [first, (9, 1), (700, 1)];
                let stopped = Moved { done: first.1, error: Some(MoveError::NotOwned) };
                assert_eq!(list(&fake, &twice, direction), stopped, "{first:?}");
            }
            assert_eq!(Level2::of(level2(&fake, 0)), Level2::Block);
        }
    }

    #[test]
    fn a_move_stops_at_the_first_granule_of_another_world() {
        let fake = Fake::new(&[]);
        moved(&fake, 520, 1, Direction::Lend);
        let stopped = Moved { done: 20, error: Some(MoveError::NotOwned) };
        assert_eq!(go(&fake, 500, 40, Direction::Lend), stopped);
        let nothing = Moved { done: 0, error: Some(MoveError::NotOwned) };
        assert_eq!(go(&fake, 521, 1, Direction::GiveBack), nothing);
        assert!(!fake.touch(at(519)) && fake.touch(at(521)));
    }

    #[test]
    fn what_is_not_lendable_never_moves() {
        let fake = Fake::new(&[]);
        let uncovered = Moved { done: 0, error: Some(MoveError::NotCovered) };
        for base in [BANK.base - PAGE, BANK.end(), 0, 1 << 40, 1 << 60] {
            assert_eq!(
                move_ranges(&LAYOUT, &fake, &[Range { base, count: 1 }], Direction::Lend),
                uncovered,
                "{base:#x}"
            );
            assert_eq!(owner_of(&LAYOUT, &fake, base), None);
        }
    }

    #[test]
    fn a_fault_in_the_middle_of_a_change_is_tried_again() {
        let fake = Fake::new(&[]);
        let reaches = |granule| LAYOUT.reaches(at(granule), |address| fake.raw(address));
        assert_eq!(reaches(0), Some(true));
        moved(&fake, 1, 1, Direction::Lend);
        assert_eq!((reaches(0), reaches(1)), (Some(true), Some(false)));
        moved(&fake, 512, 512, Direction::Lend);
        assert_eq!((reaches(512), reaches(1023), reaches(1024)), (Some(false), Some(false), Some(true)));
        fake.write(LAYOUT.level2_entry(at(0)).unwrap(), Level2::changing(1));
        fake.publish();
        assert_eq!(reaches(0), None);
        assert_eq!(LAYOUT.reaches(BANK.end(), |_| panic!("not a table's")), Some(false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Rules 1, 2 and 3, held against a shadow of who owns what, while other cores touch pages after every write and keep
        /// what they find; the fake panics on a TLB conflict, on a page that is mapped elsewhere, and on a flush that is too
        /// early or too late.
        #[test]
        fn the_tables_say_what_a_shadow_says(
            lists in prop::collection::vec((
                prop::collection::vec(
                    (0..1536_u64, prop_oneof![1..4_u64, 1..600_u64], any::<bool>()), 1..20),
                any::<bool>()), 1..12),
            probes in prop::collection::vec(0..1536_u64, 0..3),
        ) {
            let fake = Fake::new(&[]);
            *fake.probes.borrow_mut() = probes.iter().map(|granule| at(*granule)).collect();
            let mut secure = vec![false; 1536];
            for (ranges, lend) in lists {
                let ranges: Vec<_> = ranges.into_iter().map(|(first, count, aligned)| {
                    let first = if aligned { first & !0x1ff } else { first };
                    let count = if aligned && count > 300 { 512 } else { count }.min(1536 - first);
                    (first, count)
                }).collect();
                let mut expected = Moved { done: 0, error: None };
                for granule in ranges.iter().flat_map(|(first, count)| *first..first + count) {
                    if secure[granule as usize] == lend {
                        expected.error = Some(MoveError::NotOwned);
                        break;
                    }
                    secure[granule as usize] = lend;
                    expected.done += 1;
                }
                fake.flushed.borrow_mut().clear();
                let direction = if lend { Direction::Lend } else { Direction::GiveBack };
                prop_assert_eq!(list(&fake, &ranges, direction), expected);
                let flushed: u64 = fake.flushed.borrow().iter().map(|range| range.count).sum();
                prop_assert_eq!(flushed, expected.done);
                for (granule, secure) in secure.iter().enumerate() {
                    prop_assert_eq!(fake.touch(at(granule as u64)), !secure, "granule {}", granule);
                    let owner = if *secure { Gpi::Secure } else { Gpi::NonSecure };
                    prop_assert_eq!(owner_of(&LAYOUT, &fake, at(granule as u64)), Some(owner));
                }
            }
        }
    }
}
