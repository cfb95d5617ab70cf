//! Moves ranges of granules in the normal world's stage-2 tables (Arm DDI 0487, sections D8.13 and D8.16).
//!
//! One lock and at most one TLB invalidation for each 2 MB block that a range touches. A block that belongs to one world is
//! one level-2 entry; it is split when a part of it moves, and made again when it becomes uniform.
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
    protection::{MoveError, Moved},
    stage2_format::{BLOCK, CHANGING, GRANULES, Kind, Layout, Level2, PAGE, SECURE, owner},
};
use flexserve_abi::el3::Gpi;

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
    /// Makes the writes so far visible to every core's walks before any later write.
    fn publish(&self);
    /// Waits for the writes, drops every translation that any core has cached for the normal world, and waits for the
    /// accesses that used them.
    fn invalidate(&self);
    /// Writes back and drops, to the point of coherency, all lines of `bytes` at `base`.
    fn flush(&self, base: u64, bytes: u64);
}

/// Where granules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the normal to the Secure world.
    Lend,
    /// From the Secure to the normal world.
    GiveBack,
}

impl Direction {
    const fn from(self) -> Gpi {
        match self {
            Self::Lend => Gpi::NonSecure,
            Self::GiveBack => Gpi::Secure,
        }
    }
}

/// Moves `count` granules from `base` on, in order, until one does not belong to the world it should come from.
pub fn move_range(
    layout: &Layout,
    tables: &impl Tables,
    (base, count): (u64, u64),
    direction: Direction,
) -> Moved {
    let mut done = 0;
    while done < count {
        let start = base + done * PAGE;
        let wanted = ((BLOCK - start % BLOCK) / PAGE).min(count - done);
        let Some(block) = Block::of(layout, tables, start) else {
            return Moved { done, error: Some(MoveError::NotCovered) };
        };
        tables.lock(start);
        let moved = block.transfer(wanted, direction);
        tables.unlock(start);
        done += moved;
        if moved < wanted {
            return Moved { done, error: Some(MoveError::NotOwned) };
        }
    }
    Moved { done, error: None }
}

/// Whose the granule at `base` is. `None` where the tables do not cover it.
pub fn owner_of(layout: &Layout, tables: &impl Tables, base: u64) -> Option<Gpi> {
    let block = Block::of(layout, tables, base)?;
    tables.lock(base);
    let owner = [Gpi::NonSecure, Gpi::Secure].into_iter().find(|world| block.owned(1, *world) == 1);
    tables.unlock(base);
    owner
}

/// The granules of one 2 MB block, from `start` on.
struct Block<'a, T> {
    tables: &'a T,
    /// Address of the level-2 entry.
    entry: u64,
    /// Address of the level-3 table, whether it is in use or not.
    table: u64,
    start: u64,
}

impl<'a, T: Tables> Block<'a, T> {
    fn of(layout: &Layout, tables: &'a T, start: u64) -> Option<Self> {
        Some(Self { tables, entry: layout.level2_entry(start)?, table: layout.level3(start)?, start })
    }

    fn state(&self) -> Level2 {
        Level2::of(self.tables.read(self.entry))
    }

    /// Moves those of the first `wanted` granules that belong to the world they come from, up to the first that does not.
    fn transfer(&self, wanted: u64, direction: Direction) -> u64 {
        let count = self.owned(wanted, direction.from());
        if count == 0 {
            return 0;
        }
        match direction {
            Direction::Lend => {
                self.lend(count);
                self.tables.flush(self.start, count * PAGE);
            }
            Direction::GiveBack => {
                self.tables.flush(self.start, count * PAGE);
                self.give_back(count);
            }
        }
        count
    }

    /// How many of the first `wanted` granules, counted up to the first other one, belong to `world`. At most 512 turns.
    fn owned(&self, wanted: u64, world: Gpi) -> u64 {
        match (self.state(), world) {
            (Level2::Block, Gpi::NonSecure) | (Level2::Secure, Gpi::Secure) => wanted,
            (Level2::Table { .. }, _) => {
                let first = self.level3_entry(self.start);
                let theirs = |i: &u64| owner(self.tables.read(first + i * 8)) == Some(world);
                (0..wanted).take_while(theirs).count() as u64
            }
            _ => 0,
        }
    }

    fn lend(&self, count: u64) {
        match self.state() {
            Level2::Table { secure } => {
                self.fill(count, Gpi::Secure);
                self.tables.write(self.entry, self.level2(secure + count));
                self.tables.invalidate();
            }
            _ if count == GRANULES => {
                self.tables.write(self.entry, SECURE);
                self.tables.invalidate();
            }
            _ => {
                self.split(count, Gpi::Secure);
                self.tables.publish();
                self.break_entry();
                self.tables.write(self.entry, self.level2(count));
                self.tables.publish();
            }
        }
    }

    fn give_back(&self, count: u64) {
        match self.state() {
            Level2::Table { secure } if secure == count => {
                self.break_entry();
                self.tables.write(self.entry, self.level2(0));
            }
            Level2::Table { secure } => {
                self.fill(count, Gpi::NonSecure);
                self.tables.write(self.entry, self.level2(secure - count));
            }
            _ if count == GRANULES => self.tables.write(self.entry, self.level2(0)),
            _ => {
                self.split(count, Gpi::NonSecure);
                self.tables.publish();
                self.tables.write(self.entry, self.level2(GRANULES - count));
            }
        }
        self.tables.publish();
    }

    /// Between two valid entries, none (break-before-make).
    fn break_entry(&self) {
        self.tables.write(self.entry, CHANGING);
        self.tables.invalidate();
    }

    /// The level-2 entry with so many granules Secure.
    fn level2(&self, secure: u64) -> u64 {
        match secure {
            0 => Kind::Memory.block(self.start & !(BLOCK - 1)),
            GRANULES => SECURE,
            _ => Level2::table(self.table, secure),
        }
    }

    fn level3_entry(&self, address: u64) -> u64 {
        self.table + address % BLOCK / PAGE * 8
    }

    /// Writes the level-3 entries of the first `count` granules. At most 512 turns.
    fn fill(&self, count: u64, world: Gpi) {
        self.fill_range(self.start, self.start + count * PAGE, world);
    }

    /// Writes the whole level-3 table, which no core uses: the first `count` granules are `world`'s, the others the other's. 512
    /// turns.
    fn split(&self, count: u64, world: Gpi) {
        let base = self.start & !(BLOCK - 1);
        let end = self.start + count * PAGE;
        let other = if world == Gpi::Secure { Gpi::NonSecure } else { Gpi::Secure };
        self.fill_range(base, self.start, other);
        self.fill_range(self.start, end, world);
        self.fill_range(end, base + BLOCK, other);
    }

    fn fill_range(&self, from: u64, to: u64, world: Gpi) {
        let (first, step) = match world {
            Gpi::NonSecure => (Kind::Memory.page(from), PAGE),
            _ => (SECURE, 0),
        };
        let mut entry = first;
        for i in 0..(to - from) / PAGE {
            self.tables.write(self.level3_entry(from) + i * 8, entry);
            entry += step;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stage2_fake::{BANK, Fake, LAYOUT};
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn at(granule: u64) -> u64 {
        BANK.base + granule * PAGE
    }

    fn go(fake: &Fake, granule: u64, count: u64, direction: Direction) -> Moved {
        move_range(&LAYOUT, fake, (at(granule), count), direction)
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
        assert_eq!(*fake.flushed.borrow(), [(at(7), PAGE), (at(7), PAGE)]);
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
    fn a_move_takes_one_invalidation_for_each_block_at_most() {
        let fake = Fake::new(&[]);
        assert_eq!(cost(&fake, 0, 512, Direction::Lend), 1);
        assert_eq!(cost(&fake, 0, 512, Direction::GiveBack), 0);
        assert_eq!(cost(&fake, 9, 1, Direction::Lend), 1);
        assert_eq!(cost(&fake, 10, 1, Direction::Lend), 1);
        assert_eq!(cost(&fake, 9, 1, Direction::GiveBack), 0);
        assert_eq!(cost(&fake, 10, 1, Direction::GiveBack), 1);
        assert_eq!(cost(&fake, 500, 600, Direction::Lend), 3);
        assert_eq!(cost(&fake, 500, 600, Direction::GiveBack), 2);
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
        for base in [BANK.base - PAGE, BANK.end(), 0, 1 << 40, !(PAGE - 1)] {
            assert_eq!(move_range(&LAYOUT, &fake, (base, 1), Direction::Lend), uncovered, "{base:#x}");
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
        fake.write(LAYOUT.level2_entry(at(0)).unwrap(), CHANGING);
        fake.publish();
        assert_eq!(reaches(0), None);
        assert_eq!(LAYOUT.reaches(BANK.end(), |_| panic!("not a table's")), Some(false));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        /// Rules 1, 2 and 3, held against a shadow of who owns what, while other cores touch pages after every write and keep
        /// what they find; the fake panics on a TLB conflict, on a page that is mapped elsewhere, and on a flush that is too
        /// early or too late.
        #[test]
        fn the_tables_say_what_a_shadow_says(
            moves in prop::collection::vec(
                (0..1536_u64, prop_oneof![1..4_u64, 1..600_u64], any::<bool>(), any::<bool>()), 1..24),
            probes in prop::collection::vec(0..1536_u64, 0..3),
        ) {
            let fake = Fake::new(&[]);
            *fake.probes.borrow_mut() = probes.iter().map(|granule| at(*granule)).collect();
            let mut secure = vec![false; 1536];
            for (first, count, lend, aligned) in moves {
                let first = if aligned { first & !0x1ff } else { first };
                let count = if aligned && count > 300 { 512 } else { count }.min(1536 - first);
                let range = first as usize..(first + count) as usize;
                let expected = secure[range.clone()].iter().take_while(|s| **s != lend).count() as u64;
                let direction = if lend { Direction::Lend } else { Direction::GiveBack };
                let before = fake.flushed.borrow().len();
                let result = go(&fake, first, count, direction);
                let error = (expected < count).then_some(MoveError::NotOwned);
                prop_assert_eq!(result, Moved { done: expected, error });
                let flushed: u64 = fake.flushed.borrow()[before..].iter().map(|(_, bytes)| bytes / PAGE).sum();
                prop_assert_eq!(flushed, expected);
                secure[range][..expected as usize].fill(lend);
                for (granule, secure) in secure.iter().enumerate() {
                    prop_assert_eq!(fake.touch(at(granule as u64)), !secure, "granule {}", granule);
                }
                let owners: Vec<_> = (0..1536).map(|g| owner_of(&LAYOUT, &fake, at(g))).collect();
                for (owner, secure) in owners.iter().zip(&secure) {
                    prop_assert_eq!(*owner, Some(if *secure { Gpi::Secure } else { Gpi::NonSecure }));
                }
            }
        }
    }
}
