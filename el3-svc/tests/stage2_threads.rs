//! Moves in stage-2 tables by several cores at once, with real locks and real memory.

use flexserve_abi::el3::Gpi;
use flexserve_el3_svc::{
    protection::Range,
    stage2_format::{BLOCK, Layout, Level2, PAGE},
    stage2_map,
    stage2_range::{Direction, Tables, move_ranges, owner_of},
};
use flexserve_platform::Region;
use std::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    thread,
};

const DRAM: Region = Region { base: 0x4000_0000, size: 64 << 20 };
const MEMORY: Region = Region { base: 0x4020_0000, size: 2 << 20 };
/// 20 blocks: more than there are locks.
const BANK: Region = Region { base: 0x4080_0000, size: 40 << 20 };
const LAYOUT: Layout = Layout::new(MEMORY, DRAM, &[BANK]);
const CORES: u64 = 4;
const CALLS: usize = 500;

struct Machine {
    words: Vec<AtomicU64>,
    locks: [AtomicBool; 16],
}

impl Machine {
    fn new() -> Self {
        let words = (0..MEMORY.size / 8).map(|_| AtomicU64::new(0)).collect();
        Self { words, locks: Default::default() }
    }

    fn word(&self, address: u64) -> &AtomicU64 {
        &self.words[((address - MEMORY.base) / 8) as usize]
    }

    fn locks(&self, set: u16) -> impl Iterator<Item = &AtomicBool> {
        (0..16).filter(move |i| set >> i & 1 != 0).map(|i| &self.locks[i])
    }
}

impl Tables for Machine {
    fn read(&self, address: u64) -> u64 {
        self.word(address).load(SeqCst)
    }

    fn write(&self, address: u64, entry: u64) {
        self.word(address).store(entry, SeqCst);
    }

    fn lock(&self, set: u16) {
        for lock in self.locks(set) {
            while lock.swap(true, SeqCst) {
                spin_loop();
            }
        }
    }

    fn unlock(&self, set: u16) {
        for lock in self.locks(set) {
            assert!(lock.swap(false, SeqCst), "a lock was not held");
        }
    }

    fn publish(&self) {}
    fn invalidate(&self) {}
    fn flush(&self, _: impl Iterator<Item = Range>) {}
}

/// A granule of the core's own: every fourth is.
fn granule(core: u64, random: u64) -> u64 {
    BANK.base + (random % (BANK.size / PAGE / CORES) * CORES + core) * PAGE
}

/// Xorshift.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Lends and takes back up to 16 of the core's granules, in any order, again and again.
fn work(machine: &Machine, core: u64) {
    let mut random = 0x9e37_79b9_7f4a_7c15 + core;
    for _ in 0..CALLS {
        let mut ranges = Vec::<Range>::new();
        for _ in 0..=next(&mut random) % 16 {
            let range = Range { base: granule(core, next(&mut random)), count: 1 };
            if !ranges.contains(&range) {
                ranges.push(range);
            }
        }
        for (direction, world) in [(Direction::Lend, Gpi::Secure), (Direction::GiveBack, Gpi::NonSecure)] {
            let moved = move_ranges(&LAYOUT, machine, &ranges, direction);
            assert_eq!((moved.done, moved.error), (ranges.len() as u64, None));
            for range in &ranges {
                assert_eq!(owner_of(&LAYOUT, machine, range.base), Some(world));
                let reaches = LAYOUT.reaches(range.base, |address| machine.read(address));
                assert!(reaches.is_none_or(|reaches| reaches == (world == Gpi::NonSecure)));
            }
        }
    }
}

/// Every call ends and moves what it was asked for, a fault is judged by the granule's owner or tried again, and at the
/// end every block is whole.
#[test]
fn cores_that_share_blocks_do_not_disturb_each_other() {
    let machine = Machine::new();
    stage2_map::fill(&LAYOUT, &machine, DRAM, &[]).unwrap();
    thread::scope(|scope| {
        for core in 0..CORES {
            let machine = &machine;
            scope.spawn(move || work(machine, core));
        }
    });
    for block in (BANK.base..BANK.end()).step_by(BLOCK as usize) {
        let entry = machine.read(LAYOUT.level2_entry(block).unwrap());
        assert_eq!(Level2::of(entry), Level2::Block, "{block:#x}");
    }
}
