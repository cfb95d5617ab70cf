//! The EL3 service's calls from the Secure world, by the caller that stands in the SPMC's place (docs/abi.md).

use alloc::{boxed::Box, format, sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use flexserve_abi::el3::{self, Counter, Feature, Gpi, LIST_LIMIT, Status, fid};
use flexserve_normal_runtime::{cores, exceptions};
use flexserve_platform::LENDABLE;

use super::el3::{FIXED, OUTSIDE};
use crate::{
    bench::{Bench, GRANULE, begin, call, fill, on_core, other_core, status},
    proxy::Proxy,
    suite::{Cases, Failure, Verdict, ensure},
};

const ABI: &str = "docs/abi.md, GRANULE_SET";
const LIST: &str = "docs/abi.md, GRANULE_SET_LIST";
const RULE_1: &str = "DESIGN rule 1";
const RULE_2: &str = "DESIGN rule 2";
const RULE_4: &str = "DESIGN rule 4";
const RULE_5: &str = "DESIGN rule 5";

const SUCCESS: i64 = Status::Success as i64;
const NOT_SUPPORTED: i64 = Status::NotSupported as i64;
const INVALID: i64 = Status::InvalidParameters as i64;
const INCOMPLETE: i64 = Status::Incomplete as i64;
const DENIED: i64 = Status::Denied as i64;

/// What the suite does with the Secure world's caller and some pages of the normal world's.
type Body = fn(&Bench, Proxy, &[u64]) -> Verdict;

/// Cases with so many patterned pages, next to each other, which all are the normal world's again afterwards.
const WITH_PAGES: &[(&str, &str, usize, Body)] = &[
    ("a granule moves to the Secure world, and its state says so", ABI, 1, |_, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        expect_state(proxy, pages[0], Gpi::Secure)
    }),
    ("a granule moves back, and its state says so", ABI, 1, |_, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        moved(proxy, pages[0], 1, Gpi::NonSecure, (SUCCESS, 1))?;
        expect_state(proxy, pages[0], Gpi::NonSecure)
    }),
    ("the normal world cannot reach what has moved", RULE_2, 1, |bench, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        bench.expect_closed(cores::current(), pages[0])
    }),
    ("another core cannot reach it either", RULE_2, 1, |bench, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        bench.expect_closed(other_core()?, pages[0])
    }),
    ("every granule of a range is out of reach", RULE_2, 40, |bench, proxy, pages| {
        moved(proxy, pages[0], 40, Gpi::Secure, (SUCCESS, 40))?;
        pages.iter().try_for_each(|page| bench.expect_closed(cores::current(), *page))
    }),
    ("the granules around a range stay in reach", RULE_1, 42, |bench, proxy, pages| {
        moved(proxy, pages[1], 40, Gpi::Secure, (SUCCESS, 40))?;
        for neighbour in [pages[0], pages[41]] {
            let read = exceptions::read(neighbour);
            ensure!(read.is_ok(), "{neighbour:#x} reads {read:x?}");
        }
        bench.expect_closed(cores::current(), pages[1])?;
        bench.expect_closed(cores::current(), pages[40])
    }),
    ("the Secure world reads what the normal world wrote", ABI, 1, |_, proxy, pages| {
        let written = exceptions::read(pages[0]).map_err(|fault| format!("{fault}"))?;
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        let read = proxy.read(pages[0]);
        ensure!(read == Ok(written), "{written:#x} was written, {read:x?} is read");
        Ok(())
    }),
    ("the normal world reads what the Secure world wrote last", ABI, 1, |_, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        let written = proxy.write(pages[0], 0x0123_4567_89ab_cdef);
        ensure!(written.is_ok(), "the write ends in {written:x?}");
        moved(proxy, pages[0], 1, Gpi::NonSecure, (SUCCESS, 1))?;
        let read = exceptions::read(pages[0]);
        ensure!(read == Ok(0x0123_4567_89ab_cdef), "it reads {read:x?}");
        Ok(())
    }),
    ("the Secure world cannot reach a granule of the normal world", RULE_1, 1, |bench, proxy, pages| {
        if bench.backend() != 1 {
            return Err(Failure::Missing("stage-2 tables confine the normal world only".into()));
        }
        let (read, written) = (proxy.read(pages[0]), proxy.write(pages[0], 1));
        ensure!(read.is_err() && written.is_err(), "read {read:x?}, write {written:x?}");
        Ok(())
    }),
    ("the Secure world cannot reach a granule that it gave back", RULE_1, 1, |bench, proxy, pages| {
        if bench.backend() != 1 {
            return Err(Failure::Missing("stage-2 tables confine the normal world only".into()));
        }
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        let read = proxy.read(pages[0]);
        ensure!(read.is_ok(), "it was not the Secure world's: {read:x?}");
        moved(proxy, pages[0], 1, Gpi::NonSecure, (SUCCESS, 1))?;
        let read = proxy.read(pages[0]);
        ensure!(read.is_err(), "it still reads {read:x?}");
        Ok(())
    }),
    ("a granule does not move to the Secure world twice", RULE_1, 1, |_, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
        moved(proxy, pages[0], 1, Gpi::Secure, (DENIED, 0))
    }),
    ("a granule of the normal world does not move to it", RULE_1, 1, |_, proxy, pages| {
        moved(proxy, pages[0], 1, Gpi::NonSecure, (DENIED, 0))
    }),
    (
        "a range stops at the first granule of another owner, and says how far it came",
        ABI,
        8,
        |_, proxy, pages| {
            moved(proxy, pages[5], 1, Gpi::Secure, (SUCCESS, 1))?;
            moved(proxy, pages[0], 8, Gpi::Secure, (DENIED, 5))?;
            expect_state(proxy, pages[4], Gpi::Secure)?;
            expect_state(proxy, pages[6], Gpi::NonSecure)
        },
    ),
    (
        "a return stops at the first granule of another owner, and says how far it came",
        ABI,
        8,
        |_, proxy, pages| {
            moved(proxy, pages[0], 3, Gpi::Secure, (SUCCESS, 3))?;
            moved(proxy, pages[0], 8, Gpi::NonSecure, (DENIED, 3))?;
            expect_state(proxy, pages[2], Gpi::NonSecure)
        },
    ),
    ("one call moves as many granules as the batch limit", RULE_4, 512, |_, proxy, pages| {
        let limit = batch_limit(pages)?;
        moved(proxy, pages[0], limit, Gpi::Secure, (SUCCESS, limit))?;
        moved(proxy, pages[0], limit, Gpi::NonSecure, (SUCCESS, limit))
    }),
    (
        "a longer range is INCOMPLETE after the batch limit, and goes on from there",
        RULE_4,
        520,
        |_, proxy, pages| {
            let limit = batch_limit(pages)?;
            moved(proxy, pages[0], limit + 7, Gpi::Secure, (INCOMPLETE, limit))?;
            expect_state(proxy, pages[limit as usize], Gpi::NonSecure)?;
            moved(proxy, pages[limit as usize], 7, Gpi::Secure, (SUCCESS, 7))?;
            moved(proxy, pages[0], limit + 7, Gpi::NonSecure, (INCOMPLETE, limit))?;
            moved(proxy, pages[limit as usize], 7, Gpi::NonSecure, (SUCCESS, 7))
        },
    ),
    (
        "a block of which the first and last granules moved keeps those between",
        RULE_1,
        1024,
        |_, proxy, pages| {
            let Some(at) = pages.iter().position(|page| page.is_multiple_of(512 * GRANULE)) else {
                return Err(Failure::Wrong("1024 pages without a block".into()));
            };
            let block = &pages[at..at + 512];
            moved(proxy, block[0], 16, Gpi::Secure, (SUCCESS, 16))?;
            moved(proxy, block[496], 16, Gpi::Secure, (SUCCESS, 16))?;
            [block[16], block[200], block[495]]
                .into_iter()
                .try_for_each(|page| expect_state(proxy, page, Gpi::NonSecure))?;
            let between = exceptions::read(block[100]);
            ensure!(between.is_ok(), "between them it reads {between:x?}");
            Ok(())
        },
    ),
    ("a list moves its ranges in order", LIST, 12, |bench, proxy, pages| {
        listed(proxy, Gpi::Secure, &[pages[7] | 2, pages[1] | 1, pages[3] | 3], (SUCCESS, 6))?;
        for (i, page) in pages.iter().enumerate() {
            let moved = [1, 3, 4, 5, 7, 8].contains(&i);
            expect_state(proxy, *page, if moved { Gpi::Secure } else { Gpi::NonSecure })?;
        }
        bench.expect_closed(cores::current(), pages[8])
    }),
    ("a list of sixteen ranges moves them all", LIST, 2 * LIST_LIMIT, |_, proxy, pages| {
        let ranges: Vec<u64> = pages.iter().step_by(2).map(|page| page | 1).collect();
        listed(proxy, Gpi::Secure, &ranges, (SUCCESS, LIST_LIMIT as u64))?;
        expect_state(proxy, pages[2 * LIST_LIMIT - 2], Gpi::Secure)?;
        listed(proxy, Gpi::NonSecure, &ranges, (SUCCESS, LIST_LIMIT as u64))
    }),
    ("a zero ends a list", LIST, 4, |_, proxy, pages| {
        listed(proxy, Gpi::Secure, &[pages[0] | 1, 0, pages[2] | 1], (SUCCESS, 1))?;
        expect_state(proxy, pages[2], Gpi::NonSecure)
    }),
    ("a list with one bad range moves nothing", LIST, 2, |_, proxy, pages| {
        for bad in [FIXED[0].1 | 1, OUTSIDE[1].1 | 1, pages[1], 1] {
            listed(proxy, Gpi::Secure, &[pages[0] | 1, bad], (INVALID, 0))?;
        }
        expect_state(proxy, pages[0], Gpi::NonSecure)
    }),
    (
        "a list stops at the first granule of another owner, and says how far it came",
        LIST,
        6,
        |_, proxy, pages| {
            moved(proxy, pages[3], 1, Gpi::Secure, (SUCCESS, 1))?;
            listed(proxy, Gpi::Secure, &[pages[0] | 2, pages[2] | 2, pages[5] | 1], (DENIED, 3))?;
            expect_state(proxy, pages[2], Gpi::Secure)?;
            expect_state(proxy, pages[5], Gpi::NonSecure)
        },
    ),
    ("the same granule twice in a list is denied the second time", LIST, 1, |_, proxy, pages| {
        listed(proxy, Gpi::Secure, &[pages[0] | 1, pages[0] | 1], (DENIED, 1))
    }),
    ("a list is INCOMPLETE after the batch limit", RULE_4, 600, |_, proxy, pages| {
        let limit = batch_limit(pages)?;
        listed(proxy, Gpi::Secure, &[pages[0] | 300, pages[300] | 300], (INCOMPLETE, limit))?;
        expect_state(proxy, pages[limit as usize - 1], Gpi::Secure)?;
        expect_state(proxy, pages[limit as usize], Gpi::NonSecure)
    }),
    ("lent and returned granules are counted once each", "docs/abi.md, STATS", 5, |_, proxy, pages| {
        let read = || [Counter::Lent, Counter::Returned].map(|i| call(fid::STATS, &[i as u64])[1]);
        let [lent, returned] = read();
        moved(proxy, pages[0], 5, Gpi::Secure, (SUCCESS, 5))?;
        ensure!(read() == [lent + 5, returned], "{:?} after {:?}", read(), [lent, returned]);
        moved(proxy, pages[0], 3, Gpi::NonSecure, (SUCCESS, 3))?;
        ensure!(read() == [lent + 5, returned + 3], "{:?} after {:?}", read(), [lent, returned]);
        Ok(())
    }),
    (
        "the normal world is denied the state of what has moved",
        "docs/abi.md, GRANULE_GET",
        1,
        |_, proxy, pages| {
            moved(proxy, pages[0], 1, Gpi::Secure, (SUCCESS, 1))?;
            let answer = status(&call(fid::GRANULE_GET, &[pages[0]]));
            ensure!(answer == DENIED, "it answers {answer}");
            Ok(())
        },
    ),
    (
        "a core that walks a page while it moves faults from the return on",
        RULE_2,
        1,
        |bench, proxy, pages| walked_while_moved(bench, proxy, pages[0]),
    ),
    ("of two cores that move the same granule one succeeds", RULE_5, 1, |_, proxy, pages| {
        race(proxy, pages[0])
    }),
    ("two cores that move granules of one block both succeed", RULE_5, 64, |_, proxy, pages| {
        neighbours(proxy, pages)
    }),
];

pub fn cases(cases: &mut Cases) {
    for &(name, rule, count, body) in WITH_PAGES {
        cases.add("secure", name, rule, move |bench| {
            let proxy = bench.proxy()?;
            let pages = bench.contiguous(count)?;
            let verdict = body(bench, proxy, &pages);
            // Whatever is left in the Secure world comes back, one by one.
            for page in &pages {
                proxy.call(fid::GRANULE_SET, &[*page, 1, Gpi::NonSecure as u64]);
            }
            verdict
        });
    }
    what_never_moves(cases);
    arguments(cases);
}

/// Rule 1, from the only world whose calls move anything.
fn what_never_moves(cases: &mut Cases) {
    for (name, address) in FIXED {
        for to in [Gpi::Secure, Gpi::NonSecure] {
            cases.add("secure", format!("{name} does not move to {to:?}"), RULE_1, move |bench| {
                let proxy = bench.proxy()?;
                moved(proxy, address, 1, to, (INVALID, 0))?;
                listed(proxy, to, &[address | 1], (INVALID, 0))
            });
        }
        cases.add("secure", format!("GRANULE_GET of {name} is INVALID_PARAMETERS"), RULE_1, move |bench| {
            answers(bench, fid::GRANULE_GET, &[address], INVALID)
        });
    }
    for (name, address) in OUTSIDE {
        cases.add("secure", format!("{name} does not move"), RULE_5, move |bench| {
            moved(bench.proxy()?, address, 1, Gpi::Secure, (INVALID, 0))
        });
    }
    cases.add("secure", "a range that begins before a bank does not move", RULE_1, |bench| {
        moved(bench.proxy()?, LENDABLE[0].base - GRANULE, 2, Gpi::Secure, (INVALID, 0))
    });
    cases.add("secure", "a range that ends behind a bank does not move", RULE_1, |bench| {
        moved(bench.proxy()?, LENDABLE[0].end() - GRANULE, 2, Gpi::Secure, (INVALID, 0))
    });
}

/// Malformed arguments.
fn arguments(cases: &mut Cases) {
    for attributes in [0, 1, 7, 10, 11, 15, 16, 0x18, 0x108, 1 << 32 | 8, 1 << 63 | 8, u64::MAX] {
        let name = format!("attributes {attributes:#x} are INVALID_PARAMETERS");
        cases.add("secure", name, ABI, move |bench| {
            let page = bench.contiguous(1)?[0];
            answers(bench, fid::GRANULE_SET, &[page, 1, attributes], INVALID)?;
            answers(bench, fid::GRANULE_SET_LIST, &[attributes, page | 1], INVALID)
        });
    }
    for (name, count) in [
        ("0", 0),
        ("2^32", 1 << 32),
        ("2^51", 1 << 51),
        ("2^52", 1 << 52),
        ("2^52 + 1", (1 << 52) + 1),
        ("2^64 - 1", u64::MAX),
    ] {
        cases.add("secure", format!("a count of {name} is INVALID_PARAMETERS"), RULE_5, move |bench| {
            let page = bench.contiguous(1)?[0];
            answers(bench, fid::GRANULE_SET, &[page, count, Gpi::Secure as u64], INVALID)
        });
    }
    cases.add("secure", "an empty list is INVALID_PARAMETERS", LIST, |bench| {
        answers(bench, fid::GRANULE_SET_LIST, &[Gpi::Secure as u64], INVALID)
    });
    cases.add("secure", "a list of garbage is INVALID_PARAMETERS", RULE_5, |bench| {
        answers(bench, fid::GRANULE_SET_LIST, &[u64::MAX; 17], INVALID)
    });
    cases.add("secure", "VERSION is the one that the normal world sees", ABI, |bench| {
        answers(bench, fid::VERSION, &[], el3::VERSION.into())
    });
    for number in [0x05, 0x1f, 0x21, 0xf1] {
        let name = format!("undefined call {:#x} is NOT_SUPPORTED", fid::VERSION | number);
        cases.add("secure", name, RULE_5, move |bench| {
            answers(bench, fid::VERSION | number, &[LENDABLE[0].base, 1, 8], NOT_SUPPORTED)
        });
    }
    cases.add("secure", "a call changes none of x2 to x17", "DEN0028 2.6", |bench| {
        let proxy = bench.proxy()?;
        let page = bench.contiguous(1)?[0];
        let mut sent: Vec<u64> = vec![page, 1, Gpi::Secure as u64];
        sent.extend((4..18).map(|i| i * 0x1111_2222_3333));
        let answer = proxy.call(fid::GRANULE_SET, &sent);
        proxy.call(fid::GRANULE_SET, &[page, 1, Gpi::NonSecure as u64]);
        ensure!(answer[2..] == sent[1..], "{:x?} came back of {:x?}", &answer[2..], &sent[1..]);
        Ok(())
    });
}

fn batch_limit(pages: &[u64]) -> Result<u64, Failure> {
    let limit = call(fid::FEATURES, &[Feature::BatchLimit as u64])[0];
    if limit + 7 < 600 && limit as usize <= pages.len() {
        return Ok(limit);
    }
    Err(Failure::Missing(format!("the batch limit is {limit}, these cases know up to 512")))
}

/// `GRANULE_SET` must answer this status and count.
fn moved(proxy: Proxy, base: u64, count: u64, to: Gpi, expected: (i64, u64)) -> Verdict {
    let answer = proxy.call(fid::GRANULE_SET, &[base, count, to as u64]);
    let found = (status(&answer), answer[1]);
    ensure!(found == expected, "{count} from {base:#x} to {to:?}: {found:?} instead of {expected:?}");
    Ok(())
}

/// `GRANULE_SET_LIST` likewise.
fn listed(proxy: Proxy, to: Gpi, ranges: &[u64], expected: (i64, u64)) -> Verdict {
    let mut arguments = vec![to as u64];
    arguments.extend(ranges);
    let answer = proxy.call(fid::GRANULE_SET_LIST, &arguments);
    let found = (status(&answer), answer[1]);
    ensure!(found == expected, "{ranges:x?} to {to:?}: {found:?} instead of {expected:?}");
    Ok(())
}

fn expect_state(proxy: Proxy, page: u64, expected: Gpi) -> Verdict {
    let answer = proxy.call(fid::GRANULE_GET, &[page]);
    ensure!(answer[..2] == [0, expected as u64], "{page:#x} should be {expected:?}: {:x?}", &answer[..2]);
    Ok(())
}

/// A call from the Secure world must answer this in x0.
pub fn answers(bench: &Bench, function: u32, arguments: &[u64], expected: i64) -> Verdict {
    let found = status(&bench.proxy()?.call(function, arguments));
    ensure!(found == expected, "it answers {found}");
    Ok(())
}

/// Another core reads a page in a loop while this one has it moved.
fn walked_while_moved(bench: &Bench, proxy: Proxy, page: u64) -> Verdict {
    let core = other_core()?;
    let (moved_at, reading) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let outcome = Arc::new(spin::Mutex::new(None));
    let (its_moved, its_reading, its_outcome) = (moved_at.clone(), reading.clone(), outcome.clone());
    begin(core, move || {
        let fault = loop {
            let too_late = its_moved.load(SeqCst);
            match exceptions::read(page) {
                Ok(_) if too_late => break None,
                Ok(_) => its_reading.store(true, SeqCst),
                Err(fault) => break Some(fault),
            }
        };
        *its_outcome.lock() = fault;
    })?;
    while !reading.load(SeqCst) {
        core::hint::spin_loop();
    }
    let verdict = moved(proxy, page, 1, Gpi::Secure, (SUCCESS, 1));
    moved_at.store(true, SeqCst);
    cores::wait(core);
    verdict?;
    let fault = outcome.lock().take();
    bench.expect_fault("the other core's read", fault.map_or(Ok(()), Err), page)
}

/// Two cores move one granule there and back, over and over: each move is one core's, and the other is denied.
fn race(proxy: Proxy, page: u64) -> Verdict {
    const TIMES: i64 = 300;
    let core = other_core()?;
    let balance = Arc::new(AtomicI64::new(0));
    let strange = Arc::new(AtomicI64::new(0));
    let work = move |balance: &AtomicI64, strange: &AtomicI64| {
        for _ in 0..TIMES {
            for (to, change) in [(Gpi::Secure, 1), (Gpi::NonSecure, -1)] {
                let answer = proxy.call(fid::GRANULE_SET, &[page, 1, to as u64]);
                match (status(&answer), answer[1]) {
                    (SUCCESS, 1) => drop(balance.fetch_add(change, SeqCst)),
                    (DENIED, 0) => {}
                    (other, _) => strange.store(other, SeqCst),
                }
            }
        }
    };
    let theirs = (balance.clone(), strange.clone());
    begin(core, Box::new(move || work(&theirs.0, &theirs.1)))?;
    work(&balance, &strange);
    cores::wait(core);
    let (balance, strange) = (balance.load(SeqCst), strange.load(SeqCst));
    ensure!(strange == 0, "a call was answered {strange}");
    let is_secure = i64::from(status(&call(fid::GRANULE_GET, &[page])) == DENIED);
    ensure!(balance == is_secure, "moved there {balance} times more than back, and is there: {is_secure}");
    Ok(())
}

/// Two cores move granules of their own that share every table entry.
fn neighbours(proxy: Proxy, pages: &[u64]) -> Verdict {
    const TIMES: usize = 50;
    let core = other_core()?;
    let work = move |pages: Vec<u64>| -> Result<(), alloc::string::String> {
        for _ in 0..TIMES {
            for to in [Gpi::Secure, Gpi::NonSecure] {
                for page in &pages {
                    let answer = proxy.call(fid::GRANULE_SET, &[*page, 1, to as u64]);
                    if answer[..2] != [0, 1] {
                        return Err(format!("{page:#x} to {to:?}: {:x?}", &answer[..2]));
                    }
                }
            }
        }
        Ok(())
    };
    let (even, odd): (Vec<u64>, Vec<u64>) = pages.iter().partition(|page| *page / GRANULE % 2 == 0);
    let theirs = Arc::new(spin::Mutex::new(Ok(())));
    let slot = theirs.clone();
    begin(core, move || *slot.lock() = work(odd))?;
    let ours = work(even);
    cores::wait(core);
    ours?;
    let theirs = theirs.lock().clone();
    theirs?;
    pages.iter().copied().for_each(fill);
    on_core(core, || ())
}
