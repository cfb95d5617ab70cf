//! Descriptors with any bytes in them, in any fragments, and the life of their regions, against who owns which page.
#![no_main]

#[path = "../../spmc/tests/common/mod.rs"]
mod common;

use common::{FREE, Fake, descriptor};
use flexserve_abi::{el3::Gpi, ffa::LLM_PARTITION};
use flexserve_spmc::{
    claims::{Claims, WORDS},
    descriptor::{self as wire, Kind, RANGE_SIZE},
    hardware::Hardware as _,
    lending::{Ledger, REGIONS, Region},
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
    /// The n-th handle is reclaimed, or one that never was.
    Reclaim(u8),
    /// Bytes for every parser.
    Parse(Vec<u8>),
}

/// Live handles: their pages, whether they were lent, whether they are mapped.
type Live = BTreeMap<u64, (Vec<u64>, bool, bool)>;

fn ranges(ranges: &[(u8, u8)]) -> Vec<(u64, u32)> {
    let range =
        |(first, count): &(u8, u8)| (FREE + u64::from(*first) % PAGES * PAGE, u32::from(count % 4) + 1);
    ranges.iter().take(6).map(range).collect()
}

fn send(
    ledger: &mut Ledger,
    machine: &mut Fake,
    bytes: &[u8],
    kind: Kind,
    piece: usize,
) -> Option<(u64, Vec<u64>)> {
    let sending = wire::sending(bytes, bytes.len(), kind, 0).ok()?;
    let body = &bytes[sending.first_range..];
    let mut pages = Vec::new();
    for range in body.chunks_exact(RANGE_SIZE) {
        if let Ok((base, count)) = wire::range(range.try_into().unwrap()) {
            pages.extend((0..u64::from(count).min(4096)).map(|page| base + page * PAGE));
        }
    }
    let handle = ledger.begin(kind, 0, sending).ok()?;
    for piece in body.chunks(piece * RANGE_SIZE) {
        ledger.add(handle, 0, piece).ok()?;
    }
    assert_eq!(ledger.has_arrived(handle, 0), Ok(true));
    assert!(ledger.lent(handle, 1).is_err(), "another lender finds it");
    ledger.complete(machine, handle, 0).ok()?;
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

fn apply(ledger: &mut Ledger, machine: &mut Fake, live: &mut Live, op: &Op) {
    let pick = |live: &Live, n: u8| live.keys().nth(usize::from(n) % (live.len() + 1)).copied();
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
            if let Some((handle, pages)) = sent {
                for (other, (theirs, ..)) in live.iter() {
                    assert!(
                        !theirs.iter().any(|page| pages.contains(page)),
                        "{other} has a page of {handle}"
                    );
                }
                assert!(live.insert(handle, (pages, !share, false)).is_none(), "a handle was used again");
            }
        }
        Op::Abandon { ranges: wanted } => {
            let bytes = descriptor(LLM_PARTITION, &ranges(wanted));
            let Ok(sending) = wire::sending(&bytes, bytes.len(), Kind::Lend, 0) else { return };
            let handle = ledger.begin(Kind::Lend, 0, sending).unwrap();
            if ledger.add(handle, 0, &bytes[sending.first_range..][..RANGE_SIZE]).is_ok() {
                ledger.abandon(handle, 0).unwrap();
            }
            assert!(ledger.lent(handle, 0).is_err());
        }
        Op::Map(n, mapped) => {
            if let Some(handle) = pick(live, *n) {
                ledger.set_address(handle, mapped.then_some(1 << 36));
                live.get_mut(&handle).unwrap().2 = *mapped;
                assert_eq!(ledger.lent(handle, 0).unwrap().address().is_some(), *mapped);
            }
        }
        Op::Reclaim(n) => match pick(live, *n) {
            None => assert!(ledger.reclaim(machine, u64::MAX, 0).is_err()),
            Some(handle) if live[&handle].2 => assert!(ledger.reclaim(machine, handle, 0).is_err()),
            Some(handle) => {
                let (pages, lent, _) = live.remove(&handle).unwrap();
                assert_eq!(ledger.reclaim(machine, handle, 0), Ok(pages.len() as u32));
                for page in pages.iter().filter(|_| lent) {
                    assert_eq!(*machine.page(*page), [0; 4096], "{page:#x} came back as it was");
                    machine.memory.remove(page);
                }
            }
        },
        Op::Parse(bytes) => parse(bytes),
    }
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
    let (mut machine, mut live) = (Fake::default(), Live::new());
    for op in ops.iter().take(40) {
        apply(&mut ledger, &mut machine, &mut live, op);
        let held = |page: u64, lent_only: bool| {
            live.values().any(|(pages, lent, _)| (*lent || !lent_only) && pages.contains(&page))
        };
        for page in (0..PAGES + 4).map(|page| FREE + page * PAGE) {
            assert_eq!(ledger.claims.is_claimed(page), held(page, false), "{page:#x} after {op:?}");
            let world = if held(page, true) { Gpi::Secure } else { Gpi::NonSecure };
            assert_eq!(machine.granule(page), Some(world), "{page:#x} after {op:?}");
        }
    }
    for (handle, (_, _, mapped)) in live {
        if mapped {
            ledger.set_address(handle, None);
        }
        ledger.reclaim(&mut machine, handle, 0).unwrap();
    }
    assert_eq!(ledger.pool.available(), available, "tables were lost");
}));
