//! Descriptors with any bytes in them, in any fragments, and the life of their regions, call by call, against who owns which
//! page.
#![no_main]

#[path = "../../spmc/tests/common/mod.rs"]
mod common;

use common::{FREE, Fake, descriptor};
use flexserve_abi::{el3::Gpi, ffa::LLM_PARTITION};
use flexserve_spmc::{
    claims::{Claims, WORDS},
    descriptor::{self as wire, Kind, RANGE_SIZE},
    hardware::Hardware as _,
    lending::{Arrival, Error, Ledger, REGIONS, Region, Slice},
    manifest,
    tables::{PAGE, Pool, Table},
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use std::{cell::RefCell, collections::BTreeMap};

const PAGES: u64 = 24;
const TABLES: usize = 8;

#[derive(Arbitrary, Debug)]
enum Op {
    /// A lend or share of some ranges, some bytes of which are changed, in pieces of so many ranges.
    Send { share: bool, ranges: Vec<(u8, u8)>, changes: Vec<(u8, u8)>, piece: u8, refused: Option<u8> },
    /// The same, given up before its end.
    Abandon { ranges: Vec<(u8, u8)> },
    /// The n-th handle is mapped, or no longer.
    Map(u8, bool),
    /// A call to reclaim the n-th handle, or one that never was; or as many as it takes.
    Reclaim(u8, bool),
    /// What a call does at most, from now on.
    Slice(u8, u8),
    /// Bytes for every parser.
    Parse(Vec<u8>),
}

/// A live region.
struct Live {
    pages: Vec<u64>,
    lent: bool,
    mapped: bool,
    leaving: bool,
}

fn ranges(ranges: &[(u8, u8)]) -> Vec<(u64, u32)> {
    let range =
        |(first, count): &(u8, u8)| (FREE + u64::from(*first) % PAGES * PAGE, u32::from(count % 4) + 1);
    ranges.iter().take(6).map(range).collect()
}

/// Sends pieces of so many ranges, and what is asked for again; answers what was read as pages.
fn send(
    ledger: &mut Ledger,
    machine: &mut Fake,
    bytes: &[u8],
    kind: Kind,
    piece: usize,
) -> Option<(u64, Vec<u64>)> {
    let sending = wire::sending(bytes, bytes.len(), kind, 0).ok()?;
    assert_eq!(sending.length() as usize, bytes.len());
    let mut pages = Vec::new();
    for range in bytes[sending.first_range..].chunks_exact(RANGE_SIZE) {
        if let Ok((base, count)) = wire::range(range.try_into().unwrap()) {
            pages.extend((0..u64::from(count).min(4096)).map(|page| base + page * PAGE));
        }
    }
    let handle = ledger.begin(kind, 0, sending).ok()?;
    let mut at = sending.first_range;
    loop {
        let fragment = &bytes[at..bytes.len().min(at + piece * RANGE_SIZE)];
        let before = machine.moved;
        let arrival = ledger.receive(machine, handle, 0, fragment.len(), fragment);
        assert!(machine.moved - before <= ledger.slice.pages, "a call without bound");
        match arrival {
            Ok(Arrival::Whole) => break,
            Ok(Arrival::From(offset)) => at = offset as usize,
            Err(_) => {
                assert!(ledger.lent(handle, 0).is_err());
                return None;
            }
        }
    }
    assert!(ledger.lent(handle, 1).is_err(), "another lender finds it");
    assert!(ledger.receive(machine, handle, 0, 0, &[]).is_err(), "it is whole");
    Some((handle, pages))
}

fn parse(bytes: &[u8]) {
    let _ = wire::sending(bytes, bytes.len(), Kind::Donate, 0);
    let _ = wire::retrieving(bytes);
    let _ = manifest::package(bytes);
    let _ = manifest::places::<4>(bytes);
    if let Some(bytes) = bytes.first_chunk() {
        let _ = wire::relinquishing(bytes);
    }
    if let Some(bytes) = bytes.first_chunk() {
        let _ = wire::range(bytes);
    }
}

fn apply(ledger: &mut Ledger, machine: &mut Fake, live: &mut BTreeMap<u64, Live>, op: &Op) {
    let pick = |live: &BTreeMap<u64, Live>, n: u8| live.keys().nth(usize::from(n) % (live.len() + 1)).copied();
    match op {
        Op::Send { share, ranges: wanted, changes, piece, refused } => {
            let mut bytes = descriptor(LLM_PARTITION, &ranges(wanted));
            for (at, value) in changes.iter().take(4) {
                let at = usize::from(*at) % bytes.len();
                bytes[at] = *value;
            }
            let kind = if *share { Kind::Share } else { Kind::Lend };
            machine.refused = refused.map(|page| FREE + u64::from(page) % PAGES * PAGE);
            let sent = send(ledger, machine, &bytes, kind, usize::from(piece % 6) + 1);
            machine.refused = None;
            if sent.is_none() {
                // Some may have been zeroed, as their lender has asked.
                machine.memory.clear();
            }
            if let Some((handle, pages)) = sent {
                for (other, theirs) in live.iter() {
                    assert!(
                        !theirs.pages.iter().any(|page| pages.contains(page)),
                        "{other} has a page of {handle}"
                    );
                }
                let region = Live { pages, lent: !share, mapped: false, leaving: false };
                assert!(live.insert(handle, region).is_none(), "a handle was used again");
            }
        }
        Op::Abandon { ranges: wanted } => {
            let bytes = descriptor(LLM_PARTITION, &ranges(wanted));
            let Ok(sending) = wire::sending(&bytes, bytes.len(), Kind::Lend, 0) else { return };
            let handle = ledger.begin(Kind::Lend, 0, sending).unwrap();
            let range = &bytes[sending.first_range..][..RANGE_SIZE];
            let arrival = ledger.receive(machine, handle, 0, RANGE_SIZE, range);
            while ledger.reclaim(machine, handle, 0, false) == Err(Error::Unfinished) {}
            assert!(ledger.lent(handle, 0).is_err());
            // One that became whole may have been a borrower's.
            if arrival != Ok(Arrival::Whole) {
                for page in ranges(wanted).iter().map(|(base, _)| base).filter(|page| !held(live, **page)) {
                    assert_ne!(*machine.page(*page), [0; 4096], "{page:#x} lost its contents");
                }
            } else {
                machine.memory.clear();
            }
        }
        Op::Map(n, mapped) => {
            let Some(handle) = pick(live, *n) else { return };
            let region = live.get_mut(&handle).unwrap();
            // The descriptor may name any borrower.
            let borrower = ledger.lent(handle, 0).unwrap().sending.borrower;
            assert_eq!(ledger.borrowed(handle, borrower).is_err(), region.leaving);
            if !region.leaving {
                ledger.set_address(handle, mapped.then_some(1 << 36));
                region.mapped = *mapped;
                assert_eq!(ledger.lent(handle, 0).unwrap().address().is_some(), *mapped);
            }
        }
        Op::Reclaim(n, all) => {
            let Some(handle) = pick(live, *n) else {
                return assert!(ledger.reclaim(machine, u64::MAX, 0, false).is_err());
            };
            let mut region = live.remove(&handle).unwrap();
            loop {
                let before = (machine.moved, machine.zeroed);
                let answer = ledger.reclaim(machine, handle, 0, false);
                let most = ledger.slice.pages;
                assert!(machine.moved - before.0 <= most && machine.zeroed - before.1 <= most);
                if region.mapped {
                    assert_eq!(answer, Err(Error::State));
                    break;
                }
                region.leaving = true;
                let left = ledger.lent(handle, 0).map_or(0, |region| region.pages.len() as usize);
                let gone: Vec<_> = region.pages.drain(..region.pages.len() - left).collect();
                assert!(!gone.is_empty(), "a call that did nothing");
                for page in gone.iter().filter(|_| region.lent) {
                    assert_eq!(*machine.page(*page), [0; 4096], "{page:#x} came back as it was");
                    machine.memory.remove(page);
                }
                if left == 0 {
                    return assert_eq!(answer, Ok(()));
                }
                assert_eq!(answer, Err(Error::Unfinished));
                if !all {
                    break;
                }
            }
            live.insert(handle, region);
        }
        Op::Slice(pages, ranges) => {
            let (pages, ranges) = (u32::from(pages % 8) + 1, u32::from(ranges % 4) + 1);
            ledger.slice = Slice { pages, ranges };
        }
        Op::Parse(bytes) => parse(bytes),
    }
}

/// Whether a page is in a region.
fn held(live: &BTreeMap<u64, Live>, page: u64) -> bool {
    live.values().any(|region| region.pages.contains(&page))
}

thread_local! {
    /// Memory that is made once: claims of all banks, and tables.
    static STORAGE: RefCell<(Box<[u64; WORDS]>, Vec<Table>)> =
        RefCell::new((Box::new([0; WORDS]), (0..TABLES).map(|_| Table::new()).collect()));
}

fuzz_target!(|ops: Vec<Op>| STORAGE.with_borrow_mut(|(words, tables)| {
    let mut links = [0; TABLES];
    let mut regions: heapless::Vec<Region, REGIONS> = heapless::Vec::new();
    let pool = Pool::new(tables, &mut links, 0x0e20_0000);
    let mut ledger = Ledger::new(pool, Claims::new(words), &mut regions);
    let available = ledger.pool.available();
    let (mut machine, mut live) = (Fake::default(), BTreeMap::new());
    for op in ops.iter().take(40) {
        apply(&mut ledger, &mut machine, &mut live, op);
        let mut owners = [(false, Gpi::NonSecure); PAGES as usize + 4];
        for region in live.values() {
            for page in &region.pages {
                let place = page.checked_sub(FREE).map(|offset| (offset / PAGE) as usize);
                if let Some(owner) = place.and_then(|place| owners.get_mut(place)) {
                    *owner = (true, if region.lent { Gpi::Secure } else { Gpi::NonSecure });
                }
            }
        }
        for (page, (claimed, world)) in (0..).map(|page| FREE + page * PAGE).zip(owners) {
            assert_eq!(ledger.claims.is_claimed(page), claimed, "{page:#x} after {op:?}");
            assert_eq!(machine.granule(page), Some(world), "{page:#x} after {op:?}");
        }
    }
    for (handle, region) in live {
        if region.mapped {
            ledger.set_address(handle, None);
        }
        while ledger.reclaim(&mut machine, handle, 0, false) == Err(Error::Unfinished) {}
        assert!(ledger.lent(handle, 0).is_err());
    }
    assert_eq!(ledger.pool.available(), available, "tables were lost");
}));
