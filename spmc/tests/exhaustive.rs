//! Every order of the calls that lend, use and take back three pages, by the manager as it ships.
//!
//! The manager serves one call at a time: its state is locked. So a step is a call: of the normal world, which lends, recalls and
//! reclaims, and whose calls do no more than a page at a time; of one of two partitions, which retrieve, write, relinquish or crash; or of the Realm world, which takes a page of the normal
//! world's away. A state is the calls that lead to it, made anew for each step. Two states are one if they differ in
//! names only: the numbers of handles, tables and addresses.
//!
//! TLBs keep every translation that there was when a call ended, until the manager flushes them.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{Bench, FREE, Flaw, HOSTILE, LLM, Storage, descriptor, request};
use flexserve_abi::{
    el3::Gpi,
    ffa::HOSTILE_PARTITION,
    recall::{NOTICE_NS, Status},
};
use flexserve_spmc::{
    lending::Slice,
    partition::{Entry, Phase, Step},
    tables::{PAGE, TableId, bits},
};
use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    hash::{Hash, Hasher},
};

const PAGES: usize = 3;
/// What is lent together: pages alone, in a row, which are one range, and downwards, which are two.
const LENDS: [&[usize]; 5] = [&[0], &[1], &[2], IN_A_ROW, &[2, 1]];
const IN_A_ROW: &[usize] = &[0, 1];
/// How much a call does.
const SLICE: Slice = Slice { pages: 1, ranges: 1 };
/// What the Realm world may take.
const REALMS: usize = 1;
/// What a partition writes, at both ends of a page.
const SECRET: u8 = 0x5e;
/// Tables that two partitions and three regions need, and some.
const TABLES: usize = 16;

/// A call. Regions are named by their place in the sorted list of those that live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The first call of a lend.
    Lend(&'static [usize], usize),
    /// The next one: what the manager has asked for, which may be nothing.
    Continue(usize),
    Retrieve(usize, usize),
    Write(usize),
    /// The borrower gives a region back, perhaps to be zeroed, and asks again for what of that is left.
    Relinquish(usize, bool),
    /// A partition touches what it must not, or gives up.
    Crash(usize),
    /// A request starts it anew.
    Restart,
    /// The normal world asks to have a region revoked.
    Revoke(usize),
    /// All notices that were given end.
    Deadline,
    Reclaim(usize),
    /// The Realm world takes its page, or gives it back.
    Realm(Gpi),
}

mod rule {
    pub const ONE_OWNER: &str = "a page is in one region, and Secure, or in none, and not (1)";
    pub const REACH: &str = "a partition reaches what it borrows, and nothing else (1, 2)";
    pub const SCRUBBED: &str = "the normal world finds nothing of a partition's (3)";
    pub const SLICED: &str = "no call does more than a slice (4)";
    pub const STATUS: &str = "every call has its status (5)";
    pub const ASKED: &str = "a partition has the time that it was given (6)";
    pub const RECALLED: &str = "what was lent comes back, whatever its borrower does (6)";
    pub const LEAK: &str = "nothing is left of what came back (1)";
}

/// How far a region has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Arriving,
    /// It did not become whole, or was given up, and its pages go back.
    Failing,
    Held,
    Mapped,
    /// Its borrower has given it back, to be zeroed, and not all is.
    Zeroing,
    /// It is being reclaimed.
    Leaving,
}

/// What should be true of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Region {
    /// What was lent.
    lent: &'static [usize],
    /// What of that is in it.
    pages: &'static [usize],
    /// Of these, so many at the beginning are Secure.
    secure: usize,
    borrower: usize,
    stage: Stage,
    /// Its borrower was given notice; and that has ended.
    notice: Option<bool>,
}

impl Region {
    fn mapped(&self) -> bool {
        self.stage == Stage::Mapped
    }

    fn is_whole(&self) -> bool {
        !matches!(self.stage, Stage::Arriving | Stage::Failing)
    }

    /// A page goes back. Whether it was the last one.
    fn shrink(&mut self, stage: Stage) -> bool {
        self.stage = stage;
        self.pages = &self.pages[1..];
        self.secure = self.secure.saturating_sub(1);
        self.pages.is_empty()
    }
}

/// The descriptor of a lend.
fn lend(borrower: u16, pages: &[usize]) -> Vec<u8> {
    let ranges: Vec<_> = match pages {
        IN_A_ROW => vec![(address(pages[0]), 2)],
        _ => pages.iter().map(|page| (address(*page), 1)).collect(),
    };
    descriptor(borrower, &ranges)
}

/// What tells states apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    regions: Vec<Region>,
    /// World, a partition's contents, and claim of each page.
    pages: [(u8, bool, bool); PAGES],
    /// What a partition's translations, cached ones too, reach.
    tlb: BTreeSet<(usize, usize)>,
    /// A partition serves a request.
    serving: [bool; 2],
    broken: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct State {
    calls: Vec<Action>,
    key: Key,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

fn address(page: usize) -> u64 {
    FREE + page as u64 * PAGE
}

/// A manager, and what should be true of it.
struct Run<'a> {
    bench: Bench<'a>,
    /// Those that live, with their handles.
    regions: Vec<(u64, Region)>,
    tlb: BTreeSet<(usize, usize)>,
    tables: usize,
}

type Checked = Result<(), &'static str>;

fn ensure(holds: bool, rule: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(rule) }
}

impl<'a> Run<'a> {
    /// Both partitions serve a request.
    fn new(storage: &'a mut Storage, flaw: Option<Flaw>) -> Self {
        let mut bench = Bench::within(storage);
        bench.map(1).unwrap();
        for partition in [LLM, HOSTILE] {
            bench.request(partition);
            bench.map_secure(partition);
        }
        bench.spmc.hardware.flaw = flaw;
        bench.spmc.ledger.slice = SLICE;
        let tables = bench.spmc.ledger.pool.available();
        Self { bench, regions: Vec::new(), tlb: BTreeSet::new(), tables }
    }

    fn world(&self, page: usize) -> Gpi {
        self.bench.spmc.hardware.world(address(page))
    }

    fn is_secret(&mut self, page: usize) -> bool {
        let bytes = self.bench.spmc.hardware.page(address(page));
        bytes[0] == SECRET || bytes[PAGE as usize - 1] == SECRET
    }

    fn any_secret(&mut self, pages: &[usize]) -> bool {
        pages.iter().any(|page| self.is_secret(*page))
    }

    fn is_taken(&self, page: usize) -> bool {
        self.regions.iter().any(|(_, region)| region.pages.contains(&page))
    }

    fn serves(&self, partition: usize) -> bool {
        self.bench.spmc.partition(partition).phase == Phase::Serving
    }

    /// Pages that a partition's tables lead to.
    fn walk(&self, partition: usize) -> impl Iterator<Item = usize> + use<> {
        fn below(bench: &Bench, table: TableId, level: u32, found: &mut Vec<u64>) {
            let pool = &bench.spmc.ledger.pool;
            for entry in (0..512).map(|index| pool.table(table).get(index)) {
                match pool.target(entry) {
                    Some(next) if level < 3 => below(bench, next, level + 1, found),
                    _ if level == 3 && entry & bits::VALID != 0 => found.push(entry & bits::ADDRESS),
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        below(&self.bench, self.bench.spmc.partition(partition).space.root(), 1, &mut found);
        (0..PAGES).filter(move |page| found.contains(&address(*page)))
    }

    /// Makes a call, and checks everything.
    fn apply(&mut self, action: Action) -> Checked {
        // This is what TLBs hold while no rule is broken.
        let mapped = self.regions.iter().filter(|(_, region)| region.mapped());
        self.tlb = mapped.flat_map(|(_, r)| r.pages.iter().map(|page| (r.borrower, *page))).collect();
        self.bench.spmc.hardware.flushed.clear();
        (self.bench.spmc.hardware.moved, self.bench.spmc.hardware.zeroed) = (0, 0);
        self.call(action)?;
        let work = [self.bench.spmc.hardware.moved, self.bench.spmc.hardware.zeroed];
        ensure(work.iter().all(|pages| *pages <= SLICE.pages), rule::SLICED)?;
        for asid in &self.bench.spmc.hardware.flushed {
            self.tlb.retain(|(partition, _)| partition + 1 != usize::from(*asid));
        }
        for partition in [LLM, HOSTILE] {
            let reached = self.walk(partition);
            self.tlb.extend(reached.map(|page| (partition, page)));
        }
        self.check()
    }

    /// Makes a call, and checks its answer.
    fn call(&mut self, action: Action) -> Checked {
        let result = self.answer(action);
        self.regions.sort_by_key(|(_, region)| *region);
        result
    }

    fn answer(&mut self, action: Action) -> Checked {
        let bench = &mut self.bench;
        match action {
            Action::Lend(pages, borrower) => {
                let taken = self.is_taken(pages[0]);
                let own = self.world(pages[0]) == Gpi::NonSecure;
                let bytes = lend(self.bench.spmc.partition(borrower).id, pages);
                let sent = self.bench.send_first(FuncId::MemLend64, &bytes);
                let Ok((handle, more)) = sent else { return ensure(taken, rule::STATUS) };
                let (stage, offset) = match pages {
                    // It is recorded, and the slice is used up.
                    _ if !own => (Stage::Failing, Some(bytes.len())),
                    [_] => (Stage::Held, None),
                    _ => (Stage::Arriving, Some(bytes.len() - if pages == IN_A_ROW { 0 } else { 16 })),
                };
                let secure = usize::from(own);
                let region =
                    Region { lent: pages, pages: &pages[..1], secure, borrower, stage, notice: None };
                self.regions.push((handle, region));
                ensure(!taken && more == offset, rule::STATUS)
            }
            Action::Continue(index) => {
                let (handle, mut region) = self.regions[index];
                let bytes = lend(0, region.lent);
                let next = matches!((region.stage, region.lent), (Stage::Arriving, [2, 1]));
                let rest = bytes.len() - if next { 16 } else { 0 };
                // What comes of it, if anything is left of the region.
                let expected = match region.stage {
                    Stage::Arriving => {
                        let page = region.lent[1];
                        let taken = self.is_taken(page);
                        match self.world(page) {
                            // The slice had not begun: the page before is back already.
                            _ if taken && !next => Err(FfaError::Denied),
                            _ if taken => {
                                region.stage = Stage::Failing;
                                Ok(Some(bytes.len()))
                            }
                            Gpi::NonSecure => {
                                (region.stage, region.pages, region.secure) = (Stage::Held, region.lent, 2);
                                Ok(None)
                            }
                            // It is recorded, and leaves with the other one.
                            _ => {
                                (region.stage, region.pages) = (Stage::Failing, region.lent);
                                Ok(Some(bytes.len()))
                            }
                        }
                    }
                    Stage::Failing => match region.shrink(Stage::Failing) {
                        true => Err(FfaError::Denied),
                        false => Ok(Some(bytes.len())),
                    },
                    _ => Err(FfaError::InvalidParameters),
                };
                match expected {
                    Err(FfaError::Denied) => _ = self.regions.remove(index),
                    _ => self.regions[index].1 = region,
                }
                let sent = self.bench.send_next(handle, &bytes[rest..]);
                ensure(sent == expected.map(|offset| (handle, offset)), rule::STATUS)
            }
            Action::Retrieve(partition, index) => {
                let (handle, region) = &mut self.regions[index];
                let id = bench.spmc.partition(partition).id;
                let retrieved =
                    bench.retrieve(partition, &request(id, *handle)).map(|(_, pages)| pages as usize);
                let expected = match *region {
                    _ if region.borrower != partition => Err(FfaError::InvalidParameters),
                    Region { stage: Stage::Mapped, .. } => Err(FfaError::Denied),
                    // Of two pages that are to be zeroed, one is left.
                    Region { stage: Stage::Held | Stage::Zeroing, .. } => Ok(region.pages.len()),
                    _ => Err(FfaError::InvalidParameters),
                };
                let zeroed = region.stage == Stage::Zeroing;
                let pages = region.pages;
                if expected.is_ok() {
                    (region.stage, region.notice) = (Stage::Mapped, None);
                }
                ensure(retrieved == expected, rule::STATUS)?;
                ensure(!zeroed || expected.is_err() || !self.any_secret(pages), rule::SCRUBBED)
            }
            Action::Write(index) => {
                for page in self.regions[index].1.pages {
                    let bytes = bench.spmc.hardware.page(address(*page));
                    (bytes[0], bytes[PAGE as usize - 1]) = (SECRET, SECRET);
                }
                Ok(())
            }
            Action::Relinquish(index, zero) => {
                let (handle, region) = &mut self.regions[index];
                let stage = match (zero, region.stage, region.pages.len()) {
                    (true, Stage::Mapped, 2) => Stage::Zeroing,
                    _ => Stage::Held,
                };
                let expected = if stage == Stage::Zeroing { Err(FfaError::Retry) } else { Ok(()) };
                let relinquished = bench.relinquish(region.borrower, *handle, zero.into());
                (region.stage, region.notice) = (stage, None);
                let pages = region.pages;
                ensure(relinquished == expected, rule::STATUS)?;
                ensure(!zero || stage == Stage::Zeroing || !self.any_secret(pages), rule::SCRUBBED)
            }
            Action::Crash(partition) => {
                bench.spmc.aborted(partition);
                for (_, region) in
                    self.regions.iter_mut().filter(|(_, r)| r.borrower == partition && r.mapped())
                {
                    (region.stage, region.notice) = (Stage::Held, None);
                }
                Ok(())
            }
            Action::Restart => {
                let asked = bench.normal(FuncId::MsgSendDirectReq64_2, &[HOSTILE_PARTITION.into()]);
                let started = bench.secure(HOSTILE, FuncId::MsgWait32, &[]);
                bench.map_secure(HOSTILE);
                let served = matches!(started, Step::Run(HOSTILE, Entry::Answer(_)));
                ensure(asked == Step::Run(HOSTILE, Entry::Start) && served, rule::STATUS)
            }
            Action::Revoke(index) => {
                let (handle, region) = &mut self.regions[index];
                let answer = bench.revoke(*handle);
                let ended = region.notice == Some(true);
                match answer {
                    (Status::BadHandle, 0) if !region.is_whole() => Ok(()),
                    (Status::Revoked, 0) if region.is_whole() && !region.mapped() => Ok(()),
                    (Status::Revoked, _) if ended => {
                        (region.stage, region.notice) = (Stage::Held, None);
                        Ok(())
                    }
                    (Status::Noticed, left) if region.mapped() && !ended => {
                        region.notice = Some(false);
                        ensure((1..=NOTICE_NS).contains(&left), rule::STATUS)
                    }
                    _ => Err(if ended { rule::RECALLED } else { rule::ASKED }),
                }
            }
            Action::Deadline => {
                bench.spmc.hardware.now_ns += NOTICE_NS;
                for (_, Region { notice, .. }) in &mut self.regions {
                    *notice = notice.map(|_| true);
                }
                Ok(())
            }
            Action::Reclaim(index) => {
                let (handle, region) = &mut self.regions[index];
                let (handle, stage) =
                    (*handle, if region.is_whole() { Stage::Leaving } else { Stage::Failing });
                let expected = if region.mapped() {
                    Err(FfaError::Denied)
                } else if region.shrink(stage) {
                    Ok(())
                } else {
                    Err(FfaError::Retry)
                };
                if expected.is_ok() {
                    self.regions.remove(index);
                }
                ensure(bench.reclaim_slice(handle) == expected, rule::RECALLED)
            }
            Action::Realm(to) => {
                bench.spmc.hardware.worlds.insert(address(REALMS), to);
                Ok(())
            }
        }
    }

    fn check(&mut self) -> Checked {
        for page in 0..PAGES {
            let mut regions = self.regions.iter().filter(|(_, region)| region.pages.contains(&page));
            let (region, second) = (regions.next().map(|(_, region)| *region), regions.next());
            let claimed = self.bench.spmc.ledger.claims.is_claimed(address(page));
            let (held, secure) = (region.is_some(), self.world(page) == Gpi::Secure);
            let moved = region.is_some_and(|region| region.pages[..region.secure].contains(&page));
            ensure(second.is_none() && secure == moved && claimed == held, rule::ONE_OWNER)?;
            for partition in [LLM, HOSTILE] {
                let borrows = region.is_some_and(|region| region.mapped() && region.borrower == partition);
                ensure(self.tlb.contains(&(partition, page)) == borrows, rule::REACH)?;
            }
            ensure(secure || !self.is_secret(page), rule::SCRUBBED)?;
        }
        Ok(())
    }

    /// The normal world wants everything back, now: it gets it, and nobody else reaches it.
    fn recall_everything(&mut self) -> Checked {
        while !self.regions.is_empty() {
            if self.regions[0].1.mapped() {
                [Action::Revoke(0), Action::Deadline, Action::Revoke(0)]
                    .into_iter()
                    .try_for_each(|action| self.call(action))?;
            }
            self.call(Action::Reclaim(0))?;
        }
        ensure([LLM, HOSTILE].iter().all(|partition| self.walk(*partition).next().is_none()), rule::REACH)?;
        let clean = (0..PAGES).all(|page| self.world(page) != Gpi::Secure && !self.is_secret(page));
        ensure(clean, rule::SCRUBBED)?;
        // Each partition's window keeps a table.
        ensure(self.bench.spmc.ledger.pool.available() + 2 >= self.tables, rule::LEAK)
    }

    fn key(&mut self) -> Key {
        let regions = self.regions.iter().map(|(_, region)| *region).collect();
        let pages = core::array::from_fn(|page| {
            let claimed = self.bench.spmc.ledger.claims.is_claimed(address(page));
            (self.world(page) as u8, self.is_secret(page), claimed)
        });
        let serving = [LLM, HOSTILE].map(|partition| self.serves(partition));
        Key { regions, pages, tlb: self.tlb.clone(), serving, broken: None }
    }
}

thread_local! {
    static STORAGE: RefCell<Storage> = RefCell::new(Storage::new(TABLES));
}

/// An exploration, perhaps on a machine that is not as it should be.
#[derive(Clone, Copy)]
struct Exploration(Option<Flaw>);

impl Exploration {
    /// The state after these calls, of which the last is new.
    fn after(&self, calls: Vec<Action>) -> State {
        STORAGE.with_borrow_mut(|storage| {
            let mut run = Run::new(storage, self.0);
            // What came before the last was checked when it was the last.
            let applied = calls.split_last().map_or(Ok(()), |(last, before)| {
                before.iter().try_for_each(|action| run.call(*action)).and_then(|()| run.apply(*last))
            });
            let mut key = run.key();
            key.broken = applied.and_then(|()| run.recall_everything()).err();
            State { calls, key }
        })
    }
}

impl Model for Exploration {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.after(Vec::new())]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let key = &state.key;
        if key.broken.is_some() {
            return;
        }
        for borrower in [LLM, HOSTILE] {
            actions.extend(LENDS.map(|pages| Action::Lend(pages, borrower)));
            if key.serving[borrower] {
                actions.push(Action::Crash(borrower));
            }
        }
        if !key.serving[HOSTILE] {
            actions.push(Action::Restart);
        }
        for (index, region) in key.regions.iter().enumerate() {
            let retrieve = |partition: &usize| key.serving[*partition];
            let retrieve = [LLM, HOSTILE].into_iter().filter(retrieve);
            actions.extend(retrieve.map(|partition| Action::Retrieve(partition, index)));
            if region.mapped() {
                actions.extend([Action::Write(index), Action::Relinquish(index, false)]);
            }
            if (region.mapped() || region.stage == Stage::Zeroing) && key.serving[region.borrower] {
                actions.push(Action::Relinquish(index, true));
            }
            actions.extend([Action::Continue(index), Action::Revoke(index), Action::Reclaim(index)]);
        }
        if key.regions.iter().any(|region| region.notice == Some(false)) {
            actions.push(Action::Deadline);
        }
        match key.pages[REALMS].0 {
            world if world == Gpi::NonSecure as u8 => actions.push(Action::Realm(Gpi::Realm)),
            world if world == Gpi::Realm as u8 => actions.push(Action::Realm(Gpi::NonSecure)),
            _ => {}
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut calls = last.calls.clone();
        calls.push(action);
        Some(self.after(calls))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, state: &State| state.key.broken.is_none()),
            Property::sometimes("both partitions have mapped memory", |_, state: &State| {
                let has = |borrower| state.key.regions.iter().any(|r| r.mapped() && r.borrower == borrower);
                has(LLM) && has(HOSTILE)
            }),
            Property::sometimes("a partition is gone, and its secret is still there", |_, state: &State| {
                !state.key.serving[LLM] && state.key.pages[0].1
            }),
            Property::sometimes(
                "a page is lent anew while its region is being reclaimed",
                |_, state: &State| {
                    let regions = &state.key.regions;
                    regions
                        .iter()
                        .filter(|region| region.stage == Stage::Leaving)
                        .any(|old| regions.iter().any(|new| new.mapped() && old.lent.contains(&new.pages[0])))
                },
            ),
            Property::sometimes("one region arrives while others go", |_, state: &State| {
                let has = |stage| state.key.regions.iter().any(|region| region.stage == stage);
                has(Stage::Arriving) && has(Stage::Failing) && has(Stage::Leaving)
            }),
            Property::sometimes("notices run and have ended", |_, state: &State| {
                let has = |ended| state.key.regions.iter().any(|region| region.notice == Some(ended));
                has(false) && has(true)
            }),
        ]
    }
}

#[test]
fn three_pages_and_two_partitions() {
    let checker = Exploration(None).checker().threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 5_000, "hardly anything was explored");
}

#[test]
fn each_flaw_is_noticed() {
    for flaw in Flaw::ALL {
        let checker = Exploration(Some(flaw))
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        let path = checker.discovery("no rule is broken");
        let path = path.unwrap_or_else(|| panic!("{flaw:?} is not noticed"));
        let State { calls, key } = path.last_state();
        println!("{flaw:?}: \"{}\" after {calls:?}", key.broken.expect("the rule is named"));
    }
}
