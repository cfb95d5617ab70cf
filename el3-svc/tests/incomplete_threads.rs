//! Calls that stop at the batch limit while others move the same granules: `done` is exact, with real locks and real memory.

use flexserve_abi::el3::{BATCH_LIMIT, Counter, Gpi, LIST_LIMIT, Status, fid};
use flexserve_el3_svc::{
    gpt_format, gpt_range,
    protection::{GranuleProtection, Moved, Range},
    protocol::{Call, Caller, Reply, Service},
    stage2_format, stage2_map, stage2_range,
};
use flexserve_platform::Region;
use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
};

const PAGE: u64 = 4096;
const DRAM: Region = Region { base: 0x4000_0000, size: 64 << 20 };
static BANK: [Region; 1] = [Region { base: 0x4080_0000, size: 40 << 20 }];
/// Granules that are moved, from an odd place on: six batches, in seven blocks.
const FIRST: u64 = 100;
const GRANULES: u64 = 6 * BATCH_LIMIT;

fn address(granule: u64) -> u64 {
    BANK[0].base + (FIRST + granule) * PAGE
}

/// Memory with tables, and the locks for them.
struct Memory {
    base: u64,
    words: Vec<AtomicU64>,
    locks: [AtomicBool; 16],
    reads: AtomicU64,
}

impl Memory {
    fn new(base: u64, size: u64) -> Self {
        let words = (0..size / 8).map(|_| AtomicU64::new(0)).collect();
        Self { base, words, locks: Default::default(), reads: AtomicU64::new(0) }
    }

    fn word(&self, address: u64) -> &AtomicU64 {
        &self.words[((address - self.base) / 8) as usize]
    }

    /// Reads, and now and then lets another core go on between this and what is done with it.
    fn read(&self, address: u64) -> u64 {
        let value = self.word(address).load(SeqCst);
        if self.reads.fetch_add(1, SeqCst).is_multiple_of(61) {
            thread::yield_now();
        }
        value
    }

    fn take(&self, lock: usize) {
        while self.locks[lock].swap(true, SeqCst) {
            thread::yield_now();
        }
    }

    fn release(&self, lock: usize) {
        assert!(self.locks[lock].swap(false, SeqCst), "a lock was not held");
    }
}

/// Granule protection tables: one level-1 table, for the gigabyte that DRAM begins.
struct GranuleTables(Memory);

impl GranuleTables {
    const LEVEL0: u64 = 0x1_0000;
    const LEVEL1: u64 = 0x10_0000;

    fn new() -> Self {
        let memory = Memory::new(0, Self::LEVEL1 + (128 << 10));
        memory.word(Self::LEVEL0 + 8).store(Self::LEVEL1 | 0b11, SeqCst);
        for word in &memory.words[Self::LEVEL1 as usize / 8..] {
            word.store(gpt_format::Contiguous::Block512M.descriptor(Gpi::NonSecure as u8), SeqCst);
        }
        Self(memory)
    }

    fn layout() -> gpt_format::Layout {
        gpt_format::Layout::new(Self::LEVEL0 >> 12, 2)
    }
}

impl gpt_range::Tables for GranuleTables {
    fn read(&self, address: u64) -> u64 {
        self.0.read(address)
    }

    fn write(&self, address: u64, entry: u64) {
        self.0.word(address).store(entry, SeqCst);
    }

    fn lock(&self, base: u64) {
        self.0.take((base >> 29) as usize % 16);
    }

    fn unlock(&self, base: u64) {
        self.0.release((base >> 29) as usize % 16);
    }

    fn invalidate(&self, _: impl Iterator<Item = Range>) {}
    fn flush(&self, _: impl Iterator<Item = Range>, _: Gpi) {}
}

impl GranuleProtection for GranuleTables {
    const BACKEND: u64 = 1;

    fn physical_address_bits(&self) -> u64 {
        40
    }

    fn tlb_invalidations(&self) -> u64 {
        0
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        Self::layout().owner(base, |address| gpt_range::Tables::read(self, address))
    }

    fn lend(&self, ranges: &[Range]) -> Moved {
        gpt_range::move_ranges(&Self::layout(), self, ranges, Gpi::NonSecure, Gpi::Secure)
    }

    fn give_back(&self, ranges: &[Range]) -> Moved {
        gpt_range::move_ranges(&Self::layout(), self, ranges, Gpi::Secure, Gpi::NonSecure)
    }
}

/// Stage-2 tables.
struct Stage2Tables(Memory);

impl Stage2Tables {
    const MEMORY: Region = Region { base: 0x4020_0000, size: 2 << 20 };
    const LAYOUT: stage2_format::Layout = stage2_format::Layout::new(Self::MEMORY, DRAM, &BANK);

    fn new() -> Self {
        let tables = Self(Memory::new(Self::MEMORY.base, Self::MEMORY.size));
        stage2_map::fill(&Self::LAYOUT, &tables, DRAM, &[]).unwrap();
        tables
    }
}

impl stage2_range::Tables for Stage2Tables {
    fn read(&self, address: u64) -> u64 {
        self.0.read(address)
    }

    fn write(&self, address: u64, entry: u64) {
        self.0.word(address).store(entry, SeqCst);
    }

    fn lock(&self, set: u16) {
        (0..16).filter(|i| set >> i & 1 != 0).for_each(|i| self.0.take(i));
    }

    fn unlock(&self, set: u16) {
        (0..16).filter(|i| set >> i & 1 != 0).for_each(|i| self.0.release(i));
    }

    fn publish(&self) {}
    fn invalidate(&self) {}
    fn flush(&self, _: impl Iterator<Item = Range>) {}
}

impl GranuleProtection for Stage2Tables {
    const BACKEND: u64 = 2;

    fn physical_address_bits(&self) -> u64 {
        40
    }

    fn tlb_invalidations(&self) -> u64 {
        0
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        stage2_range::owner_of(&Self::LAYOUT, self, base)
    }

    fn lend(&self, ranges: &[Range]) -> Moved {
        stage2_range::move_ranges(&Self::LAYOUT, self, ranges, stage2_range::Direction::Lend)
    }

    fn give_back(&self, ranges: &[Range]) -> Moved {
        stage2_range::move_ranges(&Self::LAYOUT, self, ranges, stage2_range::Direction::GiveBack)
    }
}

/// What one caller wants: granules, in the order of its ranges.
type Wanted = Vec<Range>;

/// Cuts the granules that are done with off the front.
fn advance(wanted: &mut Wanted, mut done: u64) {
    while let Some(range) = wanted.first_mut() {
        let count = done.min(range.count);
        *range = Range { base: range.base + count * PAGE, count: range.count - count };
        done -= count;
        if range.count != 0 {
            break;
        }
        wanted.remove(0);
    }
    assert_eq!(done, 0, "more is done than was asked for");
}

/// The addresses of the granules that the next `count` are.
fn front(wanted: &Wanted, count: u64) -> Vec<u64> {
    let granules = wanted.iter().flat_map(|range| (0..range.count).map(|i| range.base + i * PAGE));
    granules.take(count as usize).collect()
}

/// What a caller was told.
#[derive(Default)]
struct Told {
    /// The granules that its `done`s count.
    moved: Vec<u64>,
    /// Calls that were answered INCOMPLETE.
    incomplete: usize,
    /// Granules that others have moved before.
    denied: usize,
}

/// Calls until all granules are moved, by this caller or another. Each call begins together with the other callers'.
fn call_on<P: GranuleProtection>(
    service: &Service<P>,
    start: &Barrier,
    mut wanted: Wanted,
    to: Gpi,
    rounds: usize,
) -> Told {
    let mut told = Told::default();
    for _ in 0..rounds {
        start.wait();
        if wanted.is_empty() {
            continue;
        }
        let mut args = [0; 17];
        let function = if let [Range { base, count }] = wanted[..] {
            args[..3].copy_from_slice(&[base, count, to as u64]);
            fid::GRANULE_SET
        } else {
            args[0] = to as u64;
            for (word, Range { base, count }) in args[1..].iter_mut().zip(&wanted) {
                *word = base | count;
            }
            fid::GRANULE_SET_LIST
        };
        let Reply(status, done) = service.handle(Caller::Secure, Call { fid: function, args: &args });
        assert!(done <= BATCH_LIMIT);
        told.moved.extend(front(&wanted, done));
        advance(&mut wanted, done);
        match Status::from_code(status) {
            Some(Status::Incomplete) => {
                assert_eq!(done, BATCH_LIMIT, "it stops before the batch limit");
                told.incomplete += 1;
            }
            Some(Status::Denied) => {
                told.denied += 1;
                advance(&mut wanted, 1);
            }
            Some(Status::Success) => advance(&mut wanted, 0),
            other => panic!("{other:?}"),
        }
    }
    assert!(wanted.is_empty(), "{} ranges are left", wanted.len());
    told
}

/// All callers move what they want, at once; each granule that anybody wants has moved once, for the caller that was told so.
fn move_all<P: GranuleProtection + Sync>(service: &Service<P>, callers: &[Wanted], to: Gpi) {
    let counter = if to == Gpi::Secure { Counter::Lent } else { Counter::Returned };
    let count = || {
        let mut args = [0; 17];
        args[0] = counter as u64;
        service.handle(Caller::Secure, Call { fid: fid::STATS, args: &args }).1
    };
    let before = count();
    let start = Barrier::new(callers.len());
    // A call moves a batch, or ends at a granule of the other's, of which there are as many as there are.
    let rounds = 2 * GRANULES as usize;
    let told: Vec<Told> = thread::scope(|scope| {
        let run = |wanted: &Wanted| {
            let (start, wanted) = (&start, wanted.clone());
            scope.spawn(move || call_on(service, start, wanted, to, rounds))
        };
        let threads: Vec<_> = callers.iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut movers = HashMap::new();
    for (caller, told) in told.iter().enumerate() {
        for granule in &told.moved {
            let other = movers.insert(*granule, caller);
            assert_eq!(other, None, "{granule:#x} has moved for {caller} too");
        }
    }
    for granule in callers.iter().flat_map(|wanted| front(wanted, u64::MAX)) {
        assert!(movers.contains_key(&granule), "{granule:#x} has moved for nobody");
        assert_eq!(service_owner(service, granule), to as u64);
    }
    assert_eq!(count() - before, movers.len() as u64, "what is counted is not what was told");
    let apart = told.iter().all(|told| told.denied == 0);
    for told in &told {
        assert!(told.incomplete > 0 || !apart, "all was done in one call");
    }
    assert!(told.iter().any(|told| told.incomplete > 0), "no call was INCOMPLETE");
}

fn service_owner<P: GranuleProtection>(service: &Service<P>, granule: u64) -> u64 {
    let mut args = [0; 17];
    args[0] = granule;
    service.handle(Caller::Secure, Call { fid: fid::GRANULE_GET, args: &args }).1
}

fn range(first: u64, count: u64) -> Range {
    Range { base: address(first), count }
}

/// Ranges of 96 granules, each second one of the two callers'.
fn interleaved(caller: u64) -> Wanted {
    const COUNT: u64 = 96;
    (0..LIST_LIMIT as u64).map(|i| range((2 * i + caller) * COUNT, COUNT)).collect()
}

fn run<P: GranuleProtection + Sync>(protection: impl Fn() -> P) {
    let batch = BATCH_LIMIT;
    let cases: [[Wanted; 2]; 5] = [
        // Apart, but for the block in which one ends and the other begins.
        [vec![range(0, 3 * batch)], vec![range(3 * batch, 3 * batch)]],
        [interleaved(0), interleaved(1)],
        // They overlap: each begins where the other will come to.
        [vec![range(0, 4 * batch)], vec![range(2 * batch, 4 * batch)]],
        [vec![range(0, 3 * batch)], interleaved(1)],
        [vec![range(0, 3 * batch)], vec![range(0, 3 * batch)]],
    ];
    for callers in cases {
        let service = Service::new(protection(), &BANK);
        for _ in 0..2 {
            move_all(&service, &callers, Gpi::Secure);
            move_all(&service, &callers, Gpi::NonSecure);
        }
    }
}

#[test]
fn done_is_exact_in_granule_protection_tables() {
    run(GranuleTables::new);
}

#[test]
fn done_is_exact_in_stage_2_tables() {
    run(Stage2Tables::new);
}
