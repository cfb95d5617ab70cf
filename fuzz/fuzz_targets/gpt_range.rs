//! Any moves, with translations cached in between, against a shadow.
#![no_main]

use flexserve_abi::el3::Gpi;
use flexserve_el3_svc::{
    gpt_fake::{Fake, MEMORY, SIZE},
    gpt_format::Contiguous,
    protection::Range,
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

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

/// Whose each granule is, four bits each.
struct Shadow(Vec<u64>);

impl Shadow {
    const GRANULES: u64 = SIZE / GRANULE;

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
    let fake = Fake::new(blocks);
    let mut shadow = Shadow(vec![0x9999_9999_9999_9999; (SIZE >> 16) as usize]);
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
        let moved = fake.move_ranges(&ranges, from, to);
        assert_eq!((moved.done, moved.error.is_none()), (expected, expected == wanted));
        fake.check_tlb([base, base + count * GRANULE - GRANULE]);
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
