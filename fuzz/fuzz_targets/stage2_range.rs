//! Any lists of moves, with translations cached after every write, against a shadow.
#![no_main]

use flexserve_abi::{GRANULE_SIZE, el3::Gpi};
use flexserve_el3_svc::{
    protection::{MoveError, Range},
    stage2_fake::{BANK, Fake, LAYOUT},
    stage2_range::{Direction, move_ranges, owner_of},
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const GRANULE: u64 = GRANULE_SIZE as u64;
const GRANULES: u64 = BANK.size / GRANULE;

#[derive(Arbitrary, Debug)]
struct Piece {
    first: u16,
    count: u16,
    /// How large counts are: a whole block, a few hundred, a few.
    size: u8,
}

impl Piece {
    /// First granule and count.
    fn range(&self) -> (u64, u64) {
        let first = u64::from(self.first) % GRANULES;
        let (first, count) = match self.size % 8 {
            0 => (first & !511, 512),
            1 => (first, u64::from(self.count) % 1100),
            _ => (first, u64::from(self.count) % 8),
        };
        (first, count.max(1).min(GRANULES - first))
    }
}

#[derive(Arbitrary, Debug)]
struct Step {
    lend: bool,
    pieces: Vec<Piece>,
}

fn address(granule: u64) -> u64 {
    BANK.base + granule * GRANULE
}

fuzz_target!(|input: ([u16; 2], Vec<Step>)| {
    let (probes, steps) = input;
    let fake = Fake::new(&[]);
    fake.probes.borrow_mut().extend(probes.map(|probe| address(u64::from(probe) % GRANULES)));
    let mut secure = vec![false; GRANULES as usize];
    for step in steps.iter().take(16) {
        let pieces: Vec<_> = step.pieces.iter().take(20).map(Piece::range).collect();
        let mut done = 0;
        let mut error = None;
        for granule in pieces.iter().flat_map(|(first, count)| *first..first + count) {
            if secure[granule as usize] == step.lend {
                error = Some(MoveError::NotOwned);
                break;
            }
            secure[granule as usize] = step.lend;
            done += 1;
        }
        let ranges: Vec<_> =
            pieces.iter().map(|(first, count)| Range { base: address(*first), count: *count }).collect();
        let direction = if step.lend { Direction::Lend } else { Direction::GiveBack };
        fake.flushed.borrow_mut().clear();
        let moved = move_ranges(&LAYOUT, &fake, &ranges, direction);
        assert_eq!((moved.done, moved.error), (done, error));
        assert_eq!(fake.flushed.borrow().iter().map(|range| range.count).sum::<u64>(), done);
    }
    for (granule, secure) in secure.iter().enumerate() {
        let owner = if *secure { Gpi::Secure } else { Gpi::NonSecure };
        assert_eq!(owner_of(&LAYOUT, &fake, address(granule as u64)), Some(owner));
        assert_eq!(fake.touch(address(granule as u64)), !secure);
    }
});
