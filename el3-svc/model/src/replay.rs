//! The shipped code, one effect at a time.
//!
//! A call is a function of what it reads. So a core in the middle of one is: the call, what it has read, and how many effects
//! it has had. To take the next step it runs again from the start, reads what it read before, and goes on from the
//! present tables up to its next effect; what it does after that goes to a copy, and is forgotten.

use crate::{
    defect::{Defect, Defective},
    explore::rule::{BOUNDED, LOCKED},
    library,
    machine::{BANK, ENTRIES, GRANULE, GRANULES, Machine, entry_index, is_watched, layout, read},
};
use flexserve_abi::el3::{Gpi, Status};
use flexserve_el3_svc::{
    gpt_range::{Tables, for_each_joined, move_ranges},
    protection::{GranuleProtection, Moved, Range},
    protocol::{Call, Caller, Reply, Service},
};
use std::cell::RefCell;

/// A call to EL3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Function identifier.
    pub fid: u32,
    /// The first of x1 to x17; the others are zero.
    pub args: [u64; 3],
    /// The granules that it names, in its order; the first `count` of these.
    pub order: [u8; GRANULES],
    /// How many.
    pub count: u8,
    /// They are lent, not returned.
    pub lend: bool,
}

impl Request {
    /// Whether it is one that TF-A's own library serves, for the Realm world.
    #[must_use]
    pub fn is_the_librarys(&self) -> bool {
        [library::fid::DELEGATE, library::fid::UNDELEGATE].contains(&self.fid)
    }

    /// The granules, in the order in which they move.
    pub fn granules(&self) -> impl Iterator<Item = usize> {
        self.order.into_iter().take(usize::from(self.count)).map(usize::from)
    }
}

/// Most effects of a call: it takes and releases the lock, writes each of the two entries that the model watches at most four times (shatter, take,
/// give, fuse), and invalidates each of two pieces at most twice and flushes it once. To wait for the lock is no effect.
const MOST_EFFECTS: u16 = 2 + 2 * 4 + 2 * 3;

/// How far a core is in a call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Progress {
    /// The call.
    pub request: Request,
    /// What it has read, and how often in a row.
    pub reads: Vec<(u64, u16)>,
    /// Effects that it has had.
    pub effects: u16,
}

/// What others can observe of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It takes the lock.
    Lock,
    /// It releases the lock.
    Unlock,
    /// It writes the entry with this index.
    Write(usize, u64),
    /// It drops translations of a range.
    Invalidate {
        /// First byte.
        base: u64,
        /// Length.
        bytes: u64,
        /// On all cores.
        everywhere: bool,
    },
    /// It writes back and drops the lines of a range.
    Flush {
        /// First byte.
        base: u64,
        /// Length.
        bytes: u64,
        /// By which address space.
        space: Gpi,
    },
}

/// One step of a call.
#[derive(Debug)]
pub enum Next {
    /// It has an effect.
    Effect(Effect),
    /// It is over.
    Reply(Reply),
}

/// Tables that hand out what was read before, and record what happens then.
pub struct Recorder<'a>(RefCell<Inner<'a>>);

struct Inner<'a> {
    /// What was read in the steps before, and is still to be read again.
    before: &'a [(u64, u16)],
    used: u16,
    /// Effects of the steps before that are still to come.
    skip: u16,
    /// The tables, with what this step writes.
    entries: [u64; ENTRIES],
    /// What this step reads.
    reads: Vec<u64>,
    /// Entries that no walk looks at, written in this step.
    quiet: Vec<(usize, u64)>,
    effect: Option<Effect>,
    /// An entry was accessed in this step.
    accessed: bool,
}

impl Inner<'_> {
    /// This step is under way: what came before is over, and the effect that ends it has not happened.
    fn is_live(&self) -> bool {
        self.skip == 0 && self.effect.is_none()
    }

    fn effect(&mut self, effect: Effect) {
        if self.skip != 0 {
            self.skip -= 1;
        } else if self.effect.is_none() {
            self.effect = Some(effect);
        }
    }

    /// What a step before read at this point.
    fn read_before(&mut self) -> Option<u64> {
        let (value, times) = *self.before.first()?;
        self.used += 1;
        if self.used == times {
            self.before = &self.before[1..];
            self.used = 0;
        }
        Some(value)
    }
}

impl Tables for Recorder<'_> {
    fn read(&self, address: u64) -> u64 {
        let inner = &mut *self.0.borrow_mut();
        if let Some(value) = inner.read_before() {
            return value;
        }
        let value = read(&inner.entries, address);
        if inner.is_live() {
            inner.accessed |= entry_index(address).is_some();
            inner.reads.push(value);
        }
        value
    }

    fn write(&self, address: u64, entry: u64) {
        let inner = &mut *self.0.borrow_mut();
        let index = entry_index(address).expect("only entries of the bank are written");
        if is_watched(index) {
            inner.accessed |= inner.is_live();
            inner.effect(Effect::Write(index, entry));
        } else if inner.is_live() {
            inner.accessed = true;
            inner.quiet.push((index, entry));
        }
        if inner.skip == 0 {
            inner.entries[index] = entry;
        }
    }

    fn lock(&self, _base: u64) {
        self.0.borrow_mut().effect(Effect::Lock);
    }

    fn unlock(&self, _base: u64) {
        self.0.borrow_mut().effect(Effect::Unlock);
    }

    fn invalidate(&self, stale: impl Iterator<Item = Range>) {
        self.forget(stale, true);
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi) {
        for Range { base, count } in ranges {
            self.0.borrow_mut().effect(Effect::Flush { base, bytes: count * GRANULE, space });
        }
    }
}

impl Recorder<'_> {
    /// As `invalidate`, on this core only.
    pub fn invalidate_locally(&self, stale: impl Iterator<Item = Range>) {
        self.forget(stale, false);
    }

    fn forget(&self, stale: impl Iterator<Item = Range>, everywhere: bool) {
        for_each_joined(stale, |Range { base, count }| {
            let effect = Effect::Invalidate { base, bytes: count * GRANULE, everywhere };
            self.0.borrow_mut().effect(effect);
        });
    }
}

/// The mechanism over such tables, as the backend of the hardware composes it.
struct Protection<'r, 'a>(Defective<'r, 'a>);

impl GranuleProtection for Protection<'_, '_> {
    const BACKEND: u64 = 1;

    fn physical_address_bits(&self) -> u64 {
        layout().physical_address_bits()
    }

    fn tlb_invalidations(&self) -> u64 {
        0
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        layout().owner(base, |address| self.0.read(address))
    }

    fn lend(&self, ranges: &[Range]) -> Moved {
        move_ranges(&layout(), &self.0, ranges, Gpi::NonSecure, Gpi::Secure)
    }

    fn give_back(&self, ranges: &[Range]) -> Moved {
        move_ranges(&layout(), &self.0, ranges, Gpi::Secure, Gpi::NonSecure)
    }
}

fn run(recorder: &Recorder, defect: Defect, caller: Caller, request: &Request) -> Reply {
    static LENDABLE: [flexserve_platform::Region; 1] = [BANK];
    let library = request.is_the_librarys();
    let tables = Defective { recorder, defect, library };
    if library {
        let moved = library::serve(&tables, request.fid, request.args[0]);
        return if moved { Reply(0, 1) } else { Status::Denied.into() };
    }
    let service = Service::new(Protection(tables), &LENDABLE);
    let mut args = [0; 17];
    args[..3].copy_from_slice(&request.args);
    service.handle(caller, Call { fid: request.fid, args: &args })
}

fn recorder<'a>(entries: &[u64; ENTRIES], before: &'a [(u64, u16)], skip: u16) -> Recorder<'a> {
    Recorder(RefCell::new(Inner {
        before,
        used: 0,
        skip,
        entries: *entries,
        reads: Vec::new(),
        quiet: Vec::new(),
        effect: None,
        accessed: false,
    }))
}

/// A call from start to end that should not change anything: its reply, unless it has an effect.
#[must_use]
pub fn harmless(machine: &Machine, caller: Caller, request: &Request) -> Option<Reply> {
    let recorder = recorder(&machine.entries, &[], 0);
    let reply = run(&recorder, Defect::None, caller, request);
    let inner = recorder.0.into_inner();
    (inner.effect.is_none() && inner.quiet.is_empty()).then_some(reply)
}

/// Takes the next step of a core's call up to its next effect or its end, and answers that; the effect itself is the
/// caller's to apply. `None` if the core is in no call.
pub fn step(machine: &mut Machine, core: usize, defect: Defect) -> Option<Next> {
    let mut progress = machine.cores[core].call.take()?;
    let recorder = recorder(&machine.entries, &progress.reads, progress.effects);
    let reply = run(&recorder, defect, Caller::Secure, &progress.request);
    let inner = recorder.0.into_inner();
    if inner.accessed && !machine.cores[core].locked {
        machine.broken = Some(LOCKED);
    }
    for (index, entry) in inner.quiet {
        machine.entries[index] = entry;
    }
    let Some(effect) = inner.effect else { return Some(Next::Reply(reply)) };
    for value in inner.reads {
        match progress.reads.last_mut() {
            Some((last, times)) if *last == value => *times += 1,
            _ => progress.reads.push((value, 1)),
        }
    }
    progress.effects += 1;
    if progress.effects > MOST_EFFECTS {
        machine.broken = Some(BOUNDED);
    }
    machine.cores[core].call = Some(progress);
    Some(Next::Effect(effect))
}
