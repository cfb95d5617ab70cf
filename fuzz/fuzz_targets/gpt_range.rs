//! Any moves, with translations cached in between, against a shadow.
#![no_main]

use flexserve_abi::el3::Gpi;
use flexserve_el3_svc::{
    gpt_format::{Contiguous, Layout},
    gpt_range::{Tables, move_ranges},
    protection::Range,
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use std::cell::{Cell, RefCell};

const LEVEL0: u64 = 0x1_0000;
const LEVEL1: u64 = 0x10_0000;
const REGION: u64 = 1 << 30;
const MEMORY: u64 = 0x4000_0000;
const GRANULE: u64 = 4096;

#[derive(Arbitrary, Debug)]
struct Move {
    /// Near which multiple of 2 MB, or which of 32 MB.
    block: u8,
    large: bool,
    offset: u16,
    count: u16,
    lend: bool,
    /// The range's granules are a list of ranges of this length, and each second one stays.
    list: Option<u8>,
    /// Granules from the first on that cores touch before.
    touched: [u16; 2],
}

struct Fake {
    entries: RefCell<Vec<u64>>,
    /// Cached blocks: base, bytes, who.
    tlb: RefCell<Vec<(u64, u64, Gpi)>>,
    locked: Cell<bool>,
}

fn layout() -> Layout {
    Layout::new(LEVEL0 >> 12, 2)
}

impl Fake {
    fn owner(&self, address: u64) -> Gpi {
        layout().owner(address, |at| self.read(at)).expect("the tables are well-formed")
    }

    fn touch(&self, address: u64) {
        let table = layout().level1(address, |at| self.read(at)).expect("covered");
        let bytes = Contiguous::of(self.read(table.entry(address))).map_or(GRANULE, Contiguous::bytes);
        self.tlb.borrow_mut().push((address & !(bytes - 1), bytes, self.owner(address)));
    }

    /// No cached block says anything else than the tables, at its ends and where the last move was.
    fn check_tlb(&self, first: u64, last: u64) {
        for (base, bytes, gpi) in self.tlb.borrow().iter() {
            for granule in [*base, base + bytes - GRANULE, first, last] {
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
            a if a == LEVEL0 + MEMORY / REGION * 8 => LEVEL1 | 0b0011,
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

    fn invalidate(&self, ranges: impl ExactSizeIterator<Item = Range>) {
        for Range { base, count } in ranges {
            let bytes = count * GRANULE;
            self.tlb.borrow_mut().retain(|(at, size, _)| at + size <= base || base + bytes <= *at);
        }
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi) {
        for Range { base, count } in ranges {
            let last = base + (count - 1) * GRANULE;
            for granule in [base, last] {
                assert_ne!(self.owner(granule), space, "lines could come back");
            }
            self.check_tlb(base, last);
        }
    }
}

/// Whose each granule is, four bits each.
struct Shadow(Vec<u64>);

impl Shadow {
    const GRANULES: u64 = REGION / GRANULE;

    fn get(&self, granule: u64) -> Gpi {
        Gpi::from_bits((self.0[granule as usize / 16] >> (granule % 16 * 4) & 0xf) as u8).expect("a GPI")
    }

    fn set(&mut self, granule: u64, gpi: Gpi) {
        let (word, shift) = (&mut self.0[granule as usize / 16], granule % 16 * 4);
        *word = *word & !(0xf << shift) | (gpi as u64) << shift;
    }
}

fuzz_target!(|input: (u8, Vec<Move>)| {
    let (blocks, moves) = input;
    // The largest take most time, and show least.
    let blocks = match blocks % 16 {
        0 => Contiguous::Block512M,
        1..4 => Contiguous::Block32M,
        _ => Contiguous::Block2M,
    };
    let fake = Fake {
        entries: RefCell::new(vec![blocks.descriptor(Gpi::NonSecure as u8); (REGION >> 16) as usize]),
        tlb: RefCell::default(),
        locked: Cell::new(false),
    };
    let mut shadow = Shadow(vec![0x9999_9999_9999_9999; (REGION >> 16) as usize]);
    for step in moves.iter().take(24) {
        let start = if step.large { u64::from(step.block % 32) * 8192 } else { u64::from(step.block) * 512 };
        let first = start + u64::from(step.offset % 1024);
        let count = (u64::from(step.count) % if step.large { 9000 } else { 1100 })
            .max(1)
            .min(Shadow::GRANULES - first);
        for granule in step.touched {
            fake.touch(MEMORY + (first + u64::from(granule)).min(Shadow::GRANULES - 1) * GRANULE);
        }
        let (from, to) =
            if step.lend { (Gpi::NonSecure, Gpi::Secure) } else { (Gpi::Secure, Gpi::NonSecure) };
        let ranges: Vec<Range> = match step.list.map(u64::from) {
            Some(length @ 1..) => (0..count.min(32 * length))
                .step_by(2 * length as usize)
                .map(|at| Range { base: MEMORY + (first + at) * GRANULE, count: length.min(count - at) })
                .collect(),
            _ => vec![Range { base: MEMORY + first * GRANULE, count }],
        };
        let named = ranges.iter().flat_map(|range| {
            let first = (range.base - MEMORY) / GRANULE;
            first..first + range.count
        });
        let wanted = named.clone().count() as u64;
        let taken: Vec<u64> = named.take_while(|granule| shadow.get(*granule) == from).collect();
        taken.iter().for_each(|granule| shadow.set(*granule, to));
        let (base, expected) = (MEMORY + first * GRANULE, taken.len() as u64);
        let moved = move_ranges(&layout(), &fake, &ranges, from, to);
        assert_eq!((moved.done, moved.error.is_none()), (expected, expected == wanted));
        assert!(!fake.locked.get());
        fake.check_tlb(base, base + count * GRANULE - GRANULE);
        for i in
            [first.saturating_sub(1), first, first + count - 1, (first + count).min(Shadow::GRANULES - 1)]
        {
            assert_eq!(fake.owner(MEMORY + i * GRANULE), shadow.get(i), "granule {i} after {step:?}");
        }
    }
    for (i, expected) in shadow.0.iter().enumerate() {
        let entry = fake.entries.borrow()[i];
        let granules = match Contiguous::of(entry) {
            Some(_) => (entry >> 4 & 0xf) * 0x1111_1111_1111_1111,
            None => entry,
        };
        assert_eq!(granules, *expected, "entry {i}");
    }
});
