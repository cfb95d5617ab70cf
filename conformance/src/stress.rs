//! All cores lend, touch, recall and call garbage at random, while a shadow says who owns what.
//!
//! Each core has pages of its own, in blocks that they share with the other cores' pages, and knows what every byte of them
//! must be: its own pattern, or zero since they came back. Some turns are races for the same page, which one core must win.
//! The seed decides what each core does; how the cores meet is the machine's.

mod race;

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Counter, Gpi, Status, fid},
    ffa::EndpointId,
};
use flexserve_client::{
    ffa::{self, Error, Ffa, Function, Transfer},
    job::Record,
};
use flexserve_normal_runtime::{
    cores, exceptions,
    random::Random,
    record,
    system::{Smc, is_zero, page_words},
};
use spin::{Mutex, MutexGuard};

use race::Race;

use crate::{
    bench::{Bench, GRANULE, call, dirty_bytes, status},
    cases::recall::Held,
    suite::{Failure, Verdict},
};

/// Pages that each core has.
const PAGES: usize = 48;
/// Most pages of one lend.
const LEND: u64 = 8;
/// Most regions that a core has lent at a time.
const REGIONS: usize = 12;
/// One turn in so many is a recall that the borrower ignores, or one of a large region: either takes milliseconds.
const RECALLS: u64 = 500;
/// Parts of the whole of which the host is told.
const PARTS: u64 = 50;

/// What the cores share.
struct Shared {
    bench: Mutex<Bench>,
    borrower: EndpointId,
    backend: u64,
    total: u64,
    seed: u64,
    /// Turns taken, of all cores.
    turns: AtomicU64,
    /// Granules that a core has lent and taken back, by the shadow.
    lent: AtomicU64,
    returned: AtomicU64,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
    race: Race,
    /// Pages that all cores take back together, a slice each call; whoever owns the race has them.
    large: Vec<u64>,
}

/// A page's shadow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// This world's; each byte follows from the number, all are zero for 0.
    Own(u64),
    Lent,
}

struct Page {
    address: u64,
    state: State,
}

/// One core's part.
struct Worker {
    shared: Arc<Shared>,
    core: usize,
    random: Random,
    pages: Vec<Page>,
    /// Handles, and the indices of their pages.
    regions: Vec<(u64, Vec<usize>)>,
    /// The last pattern that was written.
    pattern: u64,
}

/// What was wrong, in a sentence.
type Outcome = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!($($what)+));
        }
    };
}
use ensure;

/// Makes `total` turns on all cores.
///
/// # Errors
///
/// What differed from the shadow, or what is missing.
pub fn run(mut bench: Bench, total: u64, seed: u64) -> Verdict {
    let large = bench.large()?;
    let borrower = bench.borrower()?;
    let cores = cores::count();
    // Page i is core i's, modulo their number: every table entry holds pages of all of them.
    let addresses = bench.contiguous(PAGES * cores)?;
    let before = counters();
    let backend = bench.backend();
    let shared = Arc::new(Shared {
        bench: Mutex::new(bench),
        borrower,
        backend,
        total,
        seed,
        turns: AtomicU64::new(0),
        lent: AtomicU64::new(0),
        returned: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        failure: Mutex::new(None),
        race: Race::default(),
        large,
    });
    let worker = |core: usize| {
        let own = addresses.iter().skip(core).step_by(cores);
        let mut worker = Worker::new(shared.clone(), core, own.copied());
        move || worker.work()
    };
    for core in 1..cores {
        cores::begin(core, Box::new(worker(core)))?;
    }
    worker(0)();
    (1..cores).for_each(cores::wait);
    if let Some(what) = shared.failure.lock().take() {
        return Err(Failure::Wrong(what));
    }
    let moved = [shared.lent.load(SeqCst), shared.returned.load(SeqCst)];
    let after = counters();
    let counted = [after[0] - before[0], after[1] - before[1]];
    // A race or a refused lend that got half-way moves granules there and back.
    if counted[0] < moved[0] || counted[1] < moved[1] || counted[0] != counted[1] || moved[0] != moved[1] {
        return Err(Failure::Wrong(format!("the shadow counts {moved:?} moves, EL3 {counted:?}")));
    }
    record::line(&format!("# {} granules lent and back, on {cores} cores", moved[0]));
    Ok(())
}

fn counters() -> [u64; 2] {
    [Counter::Lent, Counter::Returned].map(|counter| call(fid::STATS, &[counter as u64])[1])
}

impl Worker {
    fn new(shared: Arc<Shared>, core: usize, addresses: impl Iterator<Item = u64>) -> Self {
        let random = Random::new(shared.seed.wrapping_add(core as u64));
        let pages = addresses.map(|address| Page { address, state: State::Own(0) }).collect();
        let mut this = Self { shared, core, random, pages, regions: Vec::new(), pattern: 0 };
        (0..this.pages.len()).for_each(|index| this.write(index));
        this
    }

    /// Takes turns until all are taken or somebody fails, then puts everything back and looks at every byte.
    fn work(&mut self) {
        let part = (self.shared.total / PARTS).max(1);
        let mut outcome = Ok(());
        while outcome.is_ok() && !self.shared.stop.load(SeqCst) {
            let turn = self.shared.turns.fetch_add(1, SeqCst);
            if turn >= self.shared.total {
                break;
            }
            if turn.is_multiple_of(part) {
                let what = format!("stress, seed {:#x}", self.shared.seed);
                record::emit(&Record::Progress { what, done: turn, total: self.shared.total });
            }
            outcome = self.turn().map_err(|what| format!("operation {turn}, core {}: {what}", self.core));
        }
        let outcome = outcome.and_then(|()| self.finish());
        if let Err(what) = outcome {
            self.shared.stop.store(true, SeqCst);
            self.shared.failure.lock().get_or_insert(what);
        }
    }

    fn turn(&mut self) -> Outcome {
        self.join_race();
        if self.random.below(RECALLS) == 0 {
            return if self.random.below(2) == 0 { self.recall() } else { self.recall_large() };
        }
        match self.random.below(100) {
            0..25 => self.check_and_write(),
            25..50 => self.lend(),
            50..70 => self.take_back(),
            70..82 => self.touch(),
            82..87 => self.ask(),
            87..96 => self.garbage(),
            96..98 => self.broken_lend(),
            _ => self.race(),
        }
    }

    fn finish(&mut self) -> Outcome {
        // The others may still be in a race that this core could have joined: they do not wait for it.
        while !self.regions.is_empty() {
            self.take_back()?;
        }
        (0..self.pages.len()).try_for_each(|index| self.check(index))
    }

    /// A page of this world's, if there is one.
    fn own(&mut self) -> Option<usize> {
        self.page(false)
    }

    fn lent(&mut self) -> Option<usize> {
        self.page(true)
    }

    /// A page that is lent or not, if there is one.
    fn page(&mut self, lent: bool) -> Option<usize> {
        let count = self.pages.len();
        let first = self.random.below(count as u64) as usize;
        (0..count).map(|i| (first + i) % count).find(|&i| (self.pages[i].state == State::Lent) == lent)
    }

    fn write(&mut self, index: usize) {
        self.pattern = self.random.next() | 1;
        let page = &mut self.pages[index];
        page.state = State::Own(self.pattern);
        // SAFETY: the page is this core's and not lent.
        let words = unsafe { page_words(page.address) };
        words.iter_mut().enumerate().for_each(|(i, word)| *word = word_of(self.pattern, i));
    }

    /// Every byte of a page of this world's must be what was written last, or zero since it came back.
    fn check(&self, index: usize) -> Outcome {
        let page = &self.pages[index];
        let State::Own(pattern) = page.state else { return Ok(()) };
        // SAFETY: the page is this core's and not lent.
        let words = unsafe { page_words(page.address) };
        let wrong = words.iter().enumerate().find(|(i, word)| **word != word_of(pattern, *i));
        match wrong {
            None => Ok(()),
            Some((i, word)) => Err(format!(
                "{:#x} holds {word:#x} instead of {:#x}",
                page.address + 8 * i as u64,
                word_of(pattern, i)
            )),
        }
    }

    fn check_and_write(&mut self) -> Outcome {
        let Some(index) = self.own() else { return Ok(()) };
        self.check(index)?;
        self.write(index);
        Ok(())
    }

    /// Some of the pages that are this world's, whose bytes are looked at for the last time.
    fn choose(&mut self, count: u64) -> Result<Vec<usize>, String> {
        let mut chosen: Vec<usize> = Vec::new();
        for _ in 0..count {
            let Some(index) = self.own() else { break };
            if !chosen.contains(&index) {
                self.check(index)?;
                chosen.push(index);
            }
        }
        Ok(chosen)
    }

    fn descriptor(&self, pages: &[usize]) -> Vec<u8> {
        let addresses: Vec<u64> = pages.iter().map(|&index| self.pages[index].address).collect();
        ffa::descriptor(Transfer::Lend, self.shared.borrower, &ffa::regions(&addresses))
    }

    fn lend(&mut self) -> Outcome {
        if self.regions.len() == REGIONS {
            return self.take_back();
        }
        let count = 1 + self.random.below(LEND);
        let pages = self.choose(count)?;
        if pages.is_empty() {
            return Ok(());
        }
        let descriptor = self.descriptor(&pages);
        match self.send(&descriptor)? {
            Ok(handle) => self.note(handle, pages),
            Err(error) => Err(format!("lending {} pages: {error}", pages.len())),
        }
    }

    /// Waits until no other core is in the Secure world with a call for memory, and keeps it so but for races and some reclaims.
    /// Meanwhile this core does something else: where cores share a processor, as emulated ones do, one that only waits holds
    /// up the one that it waits for.
    fn alone<'a>(&mut self, shared: &'a Shared) -> Result<MutexGuard<'a, Bench>, String> {
        loop {
            if let Some(bench) = shared.bench.try_lock() {
                return Ok(bench);
            }
            self.touch()?;
            self.join_race();
        }
    }

    /// Sends a descriptor; a Secure world that is busy is asked again.
    fn send(&mut self, descriptor: &[u8]) -> Result<Result<u64, Error>, String> {
        let shared = self.shared.clone();
        loop {
            let mut bench = self.alone(&shared)?;
            let ffa = &mut bench.system().map_err(|_| "no FF-A")?.ffa;
            let answer = ffa.transfer_descriptor(Transfer::Lend, descriptor, descriptor.len());
            if answer != Err(Error::Code(ffa::Code::Busy)) {
                return Ok(answer);
            }
            self.join_race();
        }
    }

    fn note(&mut self, handle: u64, pages: Vec<usize>) -> Outcome {
        self.shared.lent.fetch_add(pages.len() as u64, SeqCst);
        pages.iter().for_each(|&index| self.pages[index].state = State::Lent);
        self.regions.push((handle, pages));
        Ok(())
    }

    /// Takes a region back: all of its bytes must be zero.
    fn take_back(&mut self) -> Outcome {
        if self.regions.is_empty() {
            return Ok(());
        }
        let which = self.random.below(self.regions.len() as u64) as usize;
        let (handle, pages) = self.regions.swap_remove(which);
        let shared = self.shared.clone();
        let waits = self.random.below(8) != 0;
        let mut ffa = Ffa::new(Smc, &mut []);
        loop {
            let _alone = waits.then(|| self.alone(&shared)).transpose()?;
            match ffa.reclaim(handle) {
                Ok(()) => break,
                Err(Error::Code(ffa::Code::Busy)) => self.join_race(),
                Err(error) => return Err(format!("reclaiming {handle:#x}: {error}")),
            }
        }
        self.came_back(&pages)
    }

    fn came_back(&mut self, pages: &[usize]) -> Outcome {
        self.shared.returned.fetch_add(pages.len() as u64, SeqCst);
        for &index in pages {
            self.pages[index].state = State::Own(0);
            self.check(index)?;
            self.write(index);
        }
        Ok(())
    }

    /// A lent page must fault, wherever and however it is touched.
    fn touch(&mut self) -> Outcome {
        let Some(index) = self.lent() else { return Ok(()) };
        let address = self.pages[index].address + 8 * self.random.below(GRANULE / 8);
        let outcome = match self.random.below(3) {
            0 => exceptions::read(address).map(drop),
            // SAFETY: the page is lent: the write faults, or the run fails.
            1 => unsafe { exceptions::write(address, 0x6661_756c_7421) },
            // SAFETY: likewise.
            _ => unsafe { exceptions::execute(address) },
        };
        let Err(fault) = outcome else { return Err(format!("{address:#x} is lent and can be touched")) };
        ensure!(fault.is_stopped_by(self.shared.backend), "touching {address:#x}, which is lent: {fault}");
        Ok(())
    }

    /// EL3 must know the owner of a page as the shadow does.
    fn ask(&mut self) -> Outcome {
        let index = self.random.below(self.pages.len() as u64) as usize;
        let page = &self.pages[index];
        let answer = call(fid::GRANULE_GET, &[page.address]);
        let well = match page.state {
            State::Own(_) => answer[..2] == [0, Gpi::NonSecure as u64],
            State::Lent => status(&answer) == Status::Denied as i64,
        };
        ensure!(well, "GRANULE_GET of {:#x} answers {:x?}", page.address, &answer[..2]);
        Ok(())
    }

    /// A call that must be refused, or change nothing.
    fn garbage(&mut self) -> Outcome {
        let index = self.random.below(self.pages.len() as u64) as usize;
        let target = self.pages[index].address;
        let mut arguments: [u64; 17] = core::array::from_fn(|_| self.random.argument());
        let number = self.random.below(0x40) as u32;
        match self.random.below(4) {
            0 => {
                let to = [Gpi::Secure, Gpi::NonSecure, Gpi::Any][self.random.below(3) as usize];
                let (function, list) = (fid::GRANULE_SET + self.random.below(2) as u32, to as u64);
                let arguments =
                    if function == fid::GRANULE_SET { [target, 1, to as u64] } else { [list, target | 1, 0] };
                let answer = status(&call(function, &arguments));
                ensure!(answer < 0, "{function:#x} of {target:#x} answers {answer} to the normal world");
            }
            1 => {
                // CORE_* of a core that is off would be obeyed; all cores are on, and a lent one answers nobody.
                let core_call = (0x10..0x13).contains(&number);
                call(fid::VERSION | if core_call { 0 } else { number }, &arguments);
            }
            2 => {
                // A handle that nobody was given.
                arguments[1] |= 1 << 31;
                let answer = call(Function::MemReclaim.into(), &arguments[..3]);
                ensure!(ffa::is(&answer, Function::Error32), "a reclaim of nothing: {:x?}", &answer[..4]);
            }
            _ => {
                let function = [
                    Function::Features,
                    Function::IdGet,
                    Function::PartitionInfoGetRegs,
                    Function::MemFragTx,
                ];
                let function = function[self.random.below(4) as usize];
                // Handles of fragments have bit 63 here, which none has.
                arguments[1] |= 1 << 31;
                call(function.into(), &arguments[..7]);
            }
        }
        Ok(())
    }

    /// A descriptor with a wrong byte: refused, or as good as before.
    fn broken_lend(&mut self) -> Outcome {
        if self.regions.len() == REGIONS {
            return Ok(());
        }
        let pages = self.choose(2)?;
        if pages.is_empty() {
            return Ok(());
        }
        let mut descriptor = self.descriptor(&pages);
        // Of the head, which names no page.
        let at = self.random.below(80) as usize;
        descriptor[at] ^= 1 << self.random.below(8);
        match self.send(&descriptor)? {
            Ok(handle) => self.note(handle, pages),
            Err(Error::Code(_)) => pages.iter().try_for_each(|&index| self.check(index)),
            Err(error) => Err(format!("a lend with byte {at} changed: {error}")),
        }
    }

    /// Lends a page to a partition that holds on to it, and takes it back at the deadline.
    fn recall(&mut self) -> Outcome {
        let Some(mut bench) = self.shared.bench.try_lock() else { return Ok(()) };
        let bench = &mut *bench;
        let recalled = Held::start(bench).and_then(|mut held| held.take_back(bench).map(|()| held.page));
        match recalled {
            Ok(page) => {
                let dirty = dirty_bytes(page);
                ensure!(dirty == 0, "{dirty} bytes of {page:#x}, which was recalled, are not zero");
                Ok(())
            }
            Err(Failure::Missing(_)) => Ok(()),
            Err(Failure::Wrong(what)) => Err(format!("a recall: {what}")),
        }
    }

    /// Opens a race for a lend, then for the reclaim of what was lent: each must be won exactly once.
    fn race(&mut self) -> Outcome {
        let shared = self.shared.clone();
        let Some(_owner) = shared.race.owner.try_lock() else { return Ok(()) };
        let pages = self.choose(1)?;
        if pages.is_empty() || self.regions.len() == REGIONS {
            return Ok(());
        }
        let descriptor = self.descriptor(&pages);
        let length = descriptor.len() as u64;
        let [low, high] = {
            let mut bench = self.alone(&shared)?;
            let ffa = &mut bench.system().map_err(|_| "no FF-A")?.ffa;
            // Leaves the descriptor in the buffer, by a transfer that ends at once.
            let handle = ffa.transfer_descriptor(Transfer::Lend, &descriptor, descriptor.len());
            ffa.reclaim(handle.map_err(|e| format!("before a race: {e}"))?)
                .map_err(|e| format!("before a race: {e}"))?;
            shared.race.run([u32::from(Function::MemLend32).into(), length, length, 0])?
        };
        self.note(low | high << 32, pages)?;
        let (handle, pages) = self.regions.pop().ok_or("the region was just noted")?;
        shared.race.run([u32::from(Function::MemReclaim).into(), handle & 0xffff_ffff, handle >> 32, 0])?;
        self.came_back(&pages)
    }

    /// Lends a large region, which all cores then take back together.
    fn recall_large(&mut self) -> Outcome {
        let shared = self.shared.clone();
        let Some(_owner) = shared.race.owner.try_lock() else { return Ok(()) };
        let pages = &shared.large;
        for page in pages {
            let at = self.random.below(GRANULE / 8) as usize;
            // SAFETY: the page is the race's owner's, and not lent.
            unsafe { page_words(*page)[at] = 0xa5 };
        }
        let handle = {
            let mut bench = self.alone(&shared)?;
            let ffa = &mut bench.system().map_err(|_| "no FF-A")?.ffa;
            let handle = ffa.transfer(Transfer::Lend, shared.borrower, &ffa::regions(pages));
            handle.map_err(|e| format!("lending a large region: {e}"))?
        };
        let page = pages[self.random.below(pages.len() as u64) as usize];
        ensure!(exceptions::read(page).is_err(), "{page:#x} of a large region is lent and can be read");
        shared.race.run([u32::from(Function::MemReclaim).into(), handle & 0xffff_ffff, handle >> 32, 0])?;
        for counter in [&shared.lent, &shared.returned] {
            counter.fetch_add(pages.len() as u64, SeqCst);
        }
        // SAFETY: all of them are back.
        match pages.iter().find(|page| unsafe { !is_zero(**page) }) {
            None => Ok(()),
            Some(page) => Err(format!("{page:#x} of a large region comes back with contents")),
        }
    }

    /// Calls along if a race is open.
    fn join_race(&mut self) {
        self.shared.race.join();
    }
}

/// Word `i` of a page with this pattern.
fn word_of(pattern: u64, i: usize) -> u64 {
    if pattern == 0 { 0 } else { pattern.wrapping_mul(2 * i as u64 + 1).rotate_left(17) }
}

const _: () = assert!(GRANULE_SIZE as u64 == GRANULE);
