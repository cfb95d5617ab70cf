//! Regions that are too large for one call: `FFA_MEM_LEND` goes on by `FFA_MEM_FRAG_TX`, `FFA_MEM_RECLAIM` by asking again.
//! Between two calls each page is the borrower's or the lender's, and nobody has to wait for the end.

use alloc::{format, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use flexserve_abi::{ffa::NORMAL_WORLD, probe::Op, recall::Status};
use flexserve_client::{
    Registers,
    ffa::{self, Code, Error, Ffa, Function, Region, Transfer},
    probe::{self, Outcome},
    recall,
};
use flexserve_normal_runtime::{cores, exceptions, system::Smc};
use flexserve_platform::SPMC;

use super::ownership::comes_back_zero;
use crate::{
    bench::{Bench, GRANULE, begin, call, dirty_bytes, on_core, other_core},
    suite::{Cases, Failure, Verdict, ensure},
};

const RULE_2: &str = "DESIGN rule 2";
const RULE_3: &str = "DESIGN rule 3";
const RULE_5: &str = "DESIGN rule 5";
const RULE_6: &str = "DESIGN rule 6";
const TIMING: &str = "docs/abi.md, slices";
/// Calls after which a transaction that has not ended never will.
const PATIENCE: u32 = 10_000;

/// What a call left of a transaction.
enum Progress {
    Done,
    Goes,
}

pub fn cases(cases: &mut Cases) {
    cases.add("slices", "a large region is out of reach when its lend has ended", RULE_2, |bench| {
        let large = bench.large()?;
        let handle = bench.lend(&large)?;
        let open = large.iter().find(|page| exceptions::read(**page).is_ok()).copied();
        bench.reclaim(handle)?;
        ensure!(open.is_none(), "{open:x?} can be read");
        comes_back_zero(&large)
    });
    cases.add("slices", "while a reclaim goes on, a page is out of reach or zero", RULE_3, |bench| {
        let large = bench.large()?;
        let handle = bench.lend(&large)?;
        begin_reclaim(bench, handle)?;
        // What is back so far is written to, so that nothing is zeroed twice.
        let mut back = Vec::new();
        let mut calls = 1;
        loop {
            for page in large.iter().filter(|page| !back.contains(*page)).copied().collect::<Vec<_>>() {
                if exceptions::read(page).is_ok() {
                    let dirty = dirty_bytes(page);
                    ensure!(dirty == 0, "{dirty} bytes of {page:#x} are not zero after {calls} calls");
                    crate::bench::fill(page);
                    back.push(page);
                }
            }
            if calls > 1 && back.len() == large.len() {
                break;
            }
            calls += 1;
            ensure!(calls < PATIENCE, "it never ends");
            if matches!(reclaim(handle)?, Progress::Done) {
                let left = large.iter().filter(|page| exceptions::read(**page).is_err()).count();
                ensure!(left == 0, "{left} pages are missing at its end");
            }
        }
        let touched = back.iter().find(|page| dirty_bytes(**page) != GRANULE as usize).copied();
        let fresh = back.iter().filter(|page| dirty_bytes(**page) == 0).count();
        ensure!(touched.is_none() && fresh == 0, "{touched:x?} was written to after it had come back");
        Ok(())
    });
    cases.add("slices", "a reclaim goes on from another core", RULE_5, |bench| {
        let core = other_core()?;
        let large = bench.large()?;
        let handle = bench.lend(&large)?;
        begin_reclaim(bench, handle)?;
        let there = on_core(core, move || reclaim(handle))?;
        if matches!(there?, Progress::Goes) {
            bench.reclaim(handle)?;
        }
        comes_back_zero(&large)
    });
    cases.add(
        "slices",
        "of all cores that reclaim a region at once, one is told of its end",
        RULE_5,
        |bench| {
            other_core()?;
            let large = bench.large()?;
            for _ in 0..3 {
                large.iter().copied().for_each(crate::bench::fill);
                let handle = bench.lend(&large)?;
                let ends = Arc::new(AtomicU64::new(0));
                let wrong = Arc::new(AtomicBool::new(false));
                let race = |ends: Arc<AtomicU64>, wrong: Arc<AtomicBool>| {
                    move || match Ffa::new(Smc, &mut []).reclaim(handle) {
                        Ok(()) => _ = ends.fetch_add(1, SeqCst),
                        Err(Error::Code(Code::InvalidParameters)) => {}
                        Err(_) => wrong.store(true, SeqCst),
                    }
                };
                for core in 1..cores::count() {
                    begin(core, race(ends.clone(), wrong.clone()))?;
                }
                race(ends.clone(), wrong.clone())();
                (1..cores::count()).for_each(cores::wait);
                let ends = ends.load(SeqCst);
                ensure!(ends == 1 && !wrong.load(SeqCst), "{ends} cores are, or one is refused otherwise");
                comes_back_zero(&large)?;
            }
            Ok(())
        },
    );
    cases.add("slices", "another lend and reclaim go on in the middle of one", TIMING, |bench| {
        let large = bench.large()?;
        let handle = bench.lend(&large)?;
        begin_reclaim(bench, handle)?;
        let pages = bench.patterned(2)?;
        let closed = bench.lend(&pages).and_then(|other| {
            let closed = pages.iter().try_for_each(|page| bench.expect_closed(cores::current(), *page));
            bench.reclaim(other)?;
            closed
        });
        bench.reclaim(handle)?;
        closed?;
        comes_back_zero(&pages)?;
        comes_back_zero(&large)
    });
    cases.add("slices", "a page that is back can be lent before the rest is", TIMING, |bench| {
        let large = bench.large()?;
        let old = bench.lend(&large)?;
        begin_reclaim(bench, old)?;
        let back = large.iter().find(|page| exceptions::read(**page).is_ok()).copied();
        let Some(page) = back else { return Err(Failure::Wrong("none is back".into())) };
        let new = bench.lend(&[page]);
        bench.reclaim(old)?;
        let new = new?;
        let closed = bench.expect_closed(cores::current(), page);
        bench.reclaim(new)?;
        closed?;
        comes_back_zero(&large)
    });
    unfinished(cases);
}

/// Lends that do not become whole, and what partitions and other calls see of what is not whole.
fn unfinished(cases: &mut Cases) {
    cases.add(
        "slices",
        "a lend is given up in the middle, and its pages are as they were",
        RULE_6,
        |bench| {
            let large = bench.large()?;
            let handle = begin_lend(bench, &large)?;
            bench.reclaim(handle)?;
            are_as_they_were(&large)
        },
    );
    cases.add("slices", "the sender of a lend that another core gives up is refused", RULE_5, |bench| {
        let core = other_core()?;
        let large = bench.large()?;
        let handle = begin_lend(bench, &large)?;
        on_core(core, move || Ffa::new(Smc, &mut []).reclaim(handle))?
            .map_err(|e| format!("giving it up: {e}"))?;
        let answer = go_on(handle);
        let code = error(&answer);
        ensure!(code == Some(Code::InvalidParameters), "it answers {:x?}", &answer[..4]);
        are_as_they_were(&large)
    });
    cases.add("slices", "a large lend with a foreign page at its end takes nothing", RULE_2, |bench| {
        let large = bench.large()?;
        let borrower = bench.borrower()?;
        let mut regions = ffa::regions(&large);
        regions.push(Region { address: SPMC.base, page_cnt: 1 });
        let answer = bench.system()?.ffa.transfer(Transfer::Lend, borrower, &regions);
        ensure!(matches!(answer, Err(Error::Code(_))), "it answers {answer:x?}");
        are_as_they_were(&large)
    });
    cases.add("slices", "a large lend with a page that is lent already takes nothing", RULE_2, |bench| {
        let large = bench.large()?;
        let last = &large[large.len() - 1..];
        let other = bench.lend(last)?;
        let borrower = bench.borrower()?;
        let answer = bench.system()?.ffa.transfer(Transfer::Lend, borrower, &ffa::regions(&large));
        let still = bench.expect_closed(cores::current(), last[0]);
        bench.reclaim(other)?;
        ensure!(answer == Err(Error::Code(Code::Denied)), "it answers {answer:x?}");
        still?;
        are_as_they_were(&large[..large.len() - 1])
    });
    for (name, leaving) in [("arriving", false), ("being reclaimed", true)] {
        cases.add("slices", format!("a partition cannot retrieve what is {name}"), RULE_2, move |bench| {
            let hostile = bench.hostile()?;
            let large = bench.large()?;
            let handle = if leaving { lend_to_hostile(bench, &large)? } else { begin_lend(bench, &large)? };
            if leaving {
                begin_reclaim(bench, handle)?;
            }
            let ffa = &mut bench.system()?.ffa;
            let retrieved = probe::probe(ffa, hostile, Op::Retrieve, handle, &mut || {});
            let back = bench.reclaim(handle);
            ensure!(matches!(retrieved, Ok(Outcome::Answered(1..))), "it answers {retrieved:x?}");
            back?;
            if leaving { comes_back_zero(&large) } else { are_as_they_were(&large) }
        });
    }
    cases.add("slices", "what is being reclaimed counts as revoked", RULE_6, |bench| {
        let large = bench.large()?;
        let handle = bench.lend(&large)?;
        begin_reclaim(bench, handle)?;
        let answer = recall::revoke(&mut bench.system()?.ffa, handle);
        bench.reclaim(handle)?;
        match answer {
            Ok((Status::Revoked, 0)) => comes_back_zero(&large),
            Err(_) => Err(Failure::Missing("no recall service".into())),
            Ok(other) => Err(Failure::Wrong(format!("it answers {other:x?}"))),
        }
    });
}

fn lend_to_hostile(bench: &mut Bench, pages: &[u64]) -> Result<u64, Failure> {
    let hostile = bench.hostile()?;
    let handle = bench.system()?.ffa.transfer(Transfer::Lend, hostile, &ffa::regions(pages));
    Ok(handle.map_err(|e| format!("lending: {e}"))?)
}

/// The first call of a lend to the hostile partition, or to another one, which has to be followed by more.
fn begin_lend(bench: &mut Bench, pages: &[u64]) -> Result<u64, Failure> {
    let borrower = bench.hostile().or_else(|_| bench.borrower())?;
    let descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(pages));
    let length = descriptor.len() as u64;
    let ffa = &mut bench.system()?.ffa;
    // Puts the descriptor into the buffer.
    let whole = ffa.transfer_descriptor(Transfer::Lend, &descriptor, descriptor.len());
    ffa.reclaim(whole.map_err(|e| format!("in one piece: {e}"))?).map_err(|e| format!("reclaiming: {e}"))?;
    pages.iter().copied().for_each(crate::bench::fill);
    let answer = ffa.raw(Function::MemLend32, &[length, length]);
    let handle = |low: u64, high: u64| low & 0xffff_ffff | high << 32;
    if ffa::is(&answer, Function::Success32) {
        bench.reclaim(handle(answer[2], answer[3]))?;
        return Err(Failure::Missing("a lend is done in one call here".into()));
    }
    ensure!(ffa::is(&answer, Function::MemFragRx), "it answers {:x?}", &answer[..4]);
    ensure!(answer[3] <= length, "it wants what is behind the end: {}", answer[3]);
    Ok(handle(answer[1], answer[2]))
}

/// `FFA_MEM_FRAG_TX` of nothing.
fn go_on(handle: u64) -> Registers {
    let sender = u64::from(NORMAL_WORLD) << 16;
    call(Function::MemFragTx.into(), &[handle & 0xffff_ffff, handle >> 32, 0, sender])
}

/// One call of a reclaim.
fn reclaim(handle: u64) -> Result<Progress, Failure> {
    let answer = call(Function::MemReclaim.into(), &[handle & 0xffff_ffff, handle >> 32, 0]);
    match error(&answer) {
        Some(Code::Retry) => Ok(Progress::Goes),
        None if ffa::is(&answer, Function::Success32) => Ok(Progress::Done),
        _ => Err(Failure::Wrong(format!("a reclaim answers {:x?}", &answer[..4]))),
    }
}

/// The first one, which has to be followed by more.
fn begin_reclaim(bench: &mut Bench, handle: u64) -> Verdict {
    bench.system()?;
    match reclaim(handle)? {
        Progress::Goes => Ok(()),
        Progress::Done => Err(Failure::Missing("a reclaim is done in one call here".into())),
    }
}

fn error(answer: &Registers) -> Option<Code> {
    ffa::is(answer, Function::Error32).then(|| Code::try_from(answer[2] as u32 as i32).ok()).flatten()
}

/// Pages that were filled and never used hold what they held, which has no zero byte.
fn are_as_they_were(pages: &[u64]) -> Verdict {
    for page in pages {
        ensure!(exceptions::read(*page).is_ok(), "{page:#x} does not come back");
        let bytes = dirty_bytes(*page);
        ensure!(bytes == GRANULE as usize, "{} bytes of {page:#x} are zero", GRANULE as usize - bytes);
    }
    Ok(())
}
