//! Where a program spends its instructions: loops, found in the blocks that it executed.
//!
//! A loop is what lies between a branch backwards and its target. Which loops there are, how often each is gone through, and
//! what one turn executes, are read from counts of executed blocks: neither symbols nor addresses need be known, and what the
//! compiler has inlined where makes no difference. Of loops inside each other the outermost counts whose turn is not too long.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, ops::RangeInclusive};

/// Loops with a smaller part of all instructions are left out: one in so many.
const WORTH_IT: u64 = 100;
/// The longest turn, in instructions: long enough for a row of blocks.
const LONGEST: u64 = 4096;

/// A block as the emulator's plugin writes it: how often it was executed, its address, its instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    executed: u64,
    address: u64,
    code: Vec<u32>,
}

/// A loop.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Loop {
    /// How often it was gone through.
    pub turns: u64,
    /// The instructions of one turn, in their order. Those that most turns leave out are not there; those of a loop inside
    /// are there as often as it turns.
    pub code: Vec<u32>,
}

impl Block {
    /// Reads a line of the plugin's.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix('\t')?.split(' ');
        let executed = words.next()?.parse().ok()?;
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let code = words.map(|word| u32::from_str_radix(word, 16)).collect::<Result<_, _>>().ok()?;
        Some(Self { executed, address, code })
    }
}

/// The loops that matter, none inside another, those with the most instructions first.
pub fn find(blocks: &[Block]) -> Vec<Loop> {
    // A block may have been translated several times, and from several addresses on.
    let mut code: BTreeMap<u64, (u32, u64)> = BTreeMap::new();
    for block in blocks {
        for (address, &word) in (block.address..).step_by(4).zip(&block.code) {
            code.entry(address).or_insert((word, 0)).1 += block.executed;
        }
    }
    let all: u64 = code.values().map(|(_, executed)| executed).sum();
    let branches = code.iter().filter_map(|(&at, &(word, turns))| Some((target(at, word)?..=at, turns)));
    let mut loops: Vec<(RangeInclusive<u64>, Loop)> = branches
        .filter_map(|(range, turns)| Some((range.clone(), Loop { turns, code: turn(&code, range, turns)? })))
        .filter(|(_, found)| found.instructions() * WORTH_IT >= all)
        .collect();
    loops.sort_by_key(|(_, found)| std::cmp::Reverse(found.instructions()));
    let mut apart: Vec<(RangeInclusive<u64>, Loop)> = Vec::new();
    for (range, found) in loops {
        if apart.iter().all(|(other, _)| range.end() < other.start() || other.end() < range.start()) {
            apart.push((range, found));
        }
    }
    apart.into_iter().map(|(_, found)| found).collect()
}

impl Loop {
    /// Instructions of all turns.
    pub fn instructions(&self) -> u64 {
        self.turns * self.code.len() as u64
    }
}

/// The instructions of one turn. `None` if there are too many, or none, or if some of them are elsewhere, as functions are called.
fn turn(code: &BTreeMap<u64, (u32, u64)>, range: RangeInclusive<u64>, turns: u64) -> Option<Vec<u32>> {
    // Runs of instructions that are executed equally often.
    let mut runs: Vec<(u64, Vec<u32>)> = Vec::new();
    for &(word, executed) in code.range(range).map(|(_, instruction)| instruction) {
        let times = (executed + turns / 2).checked_div(turns)?;
        if leaves(word) && times > 0 {
            return None;
        }
        match runs.last_mut() {
            Some((same, run)) if *same == times => run.push(word),
            _ => runs.push((times, vec![word])),
        }
    }
    let length = runs.iter().map(|(times, run)| times.saturating_mul(run.len() as u64));
    let length = length.fold(0, u64::saturating_add);
    let repeated = runs.iter().flat_map(|(times, run)| std::iter::repeat_n(run, *times as usize));
    (1..=LONGEST).contains(&length).then(|| repeated.flatten().copied().collect())
}

/// Whether it is BL, BR, BLR or RET (Arm DDI 0487, C4.1.66).
fn leaves(word: u32) -> bool {
    word >> 26 == 0b100_101 || word & 0xff9f_fc1f == 0xd61f_0000
}

/// Where a branch backwards at `at` goes to, if that is one (Arm DDI 0487, C4.1.66): B, B.cond, CBZ, CBNZ, TBZ, TBNZ.
fn target(at: u64, word: u32) -> Option<u64> {
    let offset = |shift: u32, bits: u32| i64::from((word << (32 - bits - shift)) as i32 >> (32 - bits)) * 4;
    let offset = match word {
        _ if word >> 26 == 0b000_101 => offset(0, 26),
        _ if word >> 24 == 0b0101_0100 || word >> 25 & 0x3f == 0b01_1010 => offset(5, 19),
        _ if word >> 25 & 0x3f == 0b01_1011 => offset(5, 14),
        _ => return None,
    };
    (offset <= 0).then(|| at.wrapping_add_signed(offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOP: u32 = 0xd503_201f;

    fn block(executed: u64, address: u64, code: &[u32]) -> Block {
        Block { executed, address, code: code.into() }
    }

    /// `b.ne` back by so many instructions.
    fn back(instructions: i32) -> u32 {
        0x5400_0001 | ((-instructions as u32) & 0x7_ffff) << 5
    }

    #[test]
    fn lines_are_counts_addresses_and_instructions() {
        assert_eq!(Block::parse("\t12 1000 d503201f 54ffffe1"), Some(block(12, 0x1000, &[NOP, back(1)])));
        for line in ["12 1000 1", "\t12", "\tx 1000 1", "\t1 1000 x", ""] {
            assert_eq!(Block::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_loop_is_what_lies_between_a_branch_and_its_target() {
        let blocks = [
            block(1, 0x1000, &[1, 2, 3]),
            // The first turn is translated together with what comes before.
            block(1, 0x100c, &[4, 5, 6, back(2)]),
            block(99, 0x1010, &[5, 6, back(2)]),
            block(1, 0x101c, &[7]),
        ];
        assert_eq!(find(&blocks), [Loop { turns: 100, code: vec![5, 6, back(2)] }]);
    }

    #[test]
    fn blocks_that_end_where_a_page_does_are_one_loop() {
        let blocks = [block(50, 0x1ff8, &[1, 2]), block(50, 0x2000, &[3, back(3)])];
        assert_eq!(find(&blocks)[0].code, [1, 2, 3, back(3)]);
    }

    #[test]
    fn a_loop_inside_is_unrolled_and_rare_paths_are_left_out() {
        let blocks = [
            block(10, 0x1000, &[1]),
            block(40, 0x1004, &[2, back(1)]),
            block(10, 0x100c, &[3, 0x5400_0040]),
            block(1, 0x1014, &[4]),
            block(10, 0x1018, &[back(6)]),
        ];
        let outer = [&[1][..], &[2, back(1)].repeat(4), &[3, 0x5400_0040, back(6)]].concat();
        assert_eq!(find(&blocks), [Loop { turns: 10, code: outer }]);
    }

    #[test]
    fn loops_inside_a_long_one_are_found_by_themselves() {
        let long = [&[NOP; 5000][..], &[back(5010)]].concat();
        let blocks =
            [block(90, 0x1000, &[1, 2, back(2)]), block(200, 0x100c, &[3, back(1)]), block(2, 0x1014, &long)];
        let turns: Vec<u64> = find(&blocks).iter().map(|found| found.turns).collect();
        assert_eq!(turns, [200, 90]);
    }

    #[test]
    fn what_takes_next_to_nothing_is_no_loop_that_matters() {
        let blocks = [block(1000, 0x1000, &[1, back(1)]), block(4, 0x2000, &[2, back(1)])];
        assert_eq!(find(&blocks).len(), 1);
        assert!(find(&[block(9, 0x1000, &[NOP; 5000])]).is_empty());
        let long = [&[NOP; 5000][..], &[back(5000)]].concat();
        assert!(find(&[block(9, 0x1000, &long)]).is_empty());
        assert!(find(&[block(0, 0x1000, &[1, back(1)])]).is_empty());
        assert!(find(&[]).is_empty());
    }

    #[test]
    fn a_loop_that_calls_is_left_for_those_inside_it() {
        // bl, br x8, blr x8, ret
        for call in [0x9400_0002, 0xd61f_0100, 0xd63f_0100, 0xd65f_03c0] {
            let blocks = [
                block(10, 0x1000, &[1, call]),
                block(40, 0x1008, &[2, back(1)]),
                block(10, 0x1010, &[3, back(5)]),
            ];
            assert_eq!(find(&blocks), [Loop { turns: 40, code: vec![2, back(1)] }], "{call:x}");
        }
    }

    #[test]
    fn branches_of_every_kind_are_read() {
        // b.ne, cbnz x1, tbnz w1 #0, b: each two instructions back; forwards; calls.
        for word in [back(2), 0xb5ff_ffc1, 0x3707_ffc1, 0x17ff_fffe] {
            assert_eq!(target(0x1000, word), Some(0xff8), "{word:x}");
        }
        for word in [0x5400_0041, 0xb500_0041, 0x1400_0002, 0x9400_0002, 0xd65f_03c0] {
            assert_eq!(target(0x1000, word), None, "{word:x}");
        }
    }
}
