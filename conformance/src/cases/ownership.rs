//! Who owns a granule: rules 1 to 6 of the design, over FF-A.

use alloc::{format, string::String, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use flexserve_abi::{
    el3::{Counter, Feature, Gpi, Status, fid},
    probe::Op,
};
use flexserve_client::{
    ffa::{self, Code, Error, Ffa, Transfer},
    probe::{self, Outcome},
};
use flexserve_normal_runtime::{cores, exceptions, system::Smc};

use super::el3::FIXED;
use crate::{
    bench::{Bench, GRANULE, begin, call, dirty_bytes, fill, on_core, other_core, status},
    suite::{Cases, Failure, Verdict, ensure},
};

const RULE_1: &str = "DESIGN rule 1";
const RULE_2: &str = "DESIGN rule 2";
const RULE_3: &str = "DESIGN rule 3";
const RULE_4: &str = "DESIGN rule 4";
const RULE_5: &str = "DESIGN rule 5";
const RULE_6: &str = "DESIGN rule 6";

pub fn cases(cases: &mut Cases) {
    one_owner(cases);
    out_of_reach(cases);
    zeroed(cases);
    cases.add("ownership", "a lend longer than the batch limit takes every page", RULE_4, |bench| {
        let limit = call(fid::FEATURES, &[Feature::BatchLimit as u64])[0];
        contiguous_lend(bench, limit as usize + 100)
    });
    at_once(cases);
    cases.add("ownership", "what nobody retrieved comes back at once", RULE_6, |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        bench.reclaim(handle)
    });
}

/// Rule 1: a granule belongs to exactly one world.
fn one_owner(cases: &mut Cases) {
    for (what, transfer) in
        [("lent", Transfer::Lend), ("shared", Transfer::Share), ("donated", Transfer::Donate)]
    {
        cases.add("ownership", format!("a lent page cannot be {what}"), RULE_1, move |bench| {
            while_lent(bench, |bench, page| {
                let borrower = bench.borrower()?;
                let answer = bench.system()?.ffa.transfer(transfer, borrower, &ffa::regions(&[page]));
                ensure!(matches!(answer, Err(Error::Code(_))), "it answers {answer:x?}");
                Ok(())
            })
        });
    }
    cases.add("ownership", "a shared page cannot be lent", RULE_1, |bench| {
        let pages = bench.patterned(1)?;
        let borrower = bench.borrower()?;
        let ffa = &mut bench.system()?.ffa;
        let handle =
            ffa.transfer(Transfer::Share, borrower, &ffa::regions(&pages)).map_err(|e| format!("{e}"))?;
        let lent = bench.lend(&pages);
        bench.reclaim(handle)?;
        ensure!(lent.is_err(), "it is lent");
        Ok(())
    });
    cases.add("ownership", "the state of a lent page is denied to the normal world", RULE_1, |bench| {
        while_lent(bench, |_, page| {
            let answer = status(&call(fid::GRANULE_GET, &[page]));
            ensure!(answer == Status::Denied as i64, "GRANULE_GET answers {answer}");
            Ok(())
        })
    });
    cases.add("ownership", "the state of a page that came back is the normal world's", RULE_1, |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        bench.reclaim(handle)?;
        let answer = call(fid::GRANULE_GET, &[pages[0]]);
        ensure!(answer[..2] == [0, Gpi::NonSecure as u64], "GRANULE_GET answers {:x?}", &answer[..2]);
        Ok(())
    });
    for gpi in [Gpi::NonSecure, Gpi::Any, Gpi::NoAccess] {
        cases.add(
            "ownership",
            format!("the normal world does not set a lent page to {gpi:?}"),
            RULE_1,
            move |bench| {
                while_lent(bench, |bench, page| {
                    for (function, arguments) in [
                        (fid::GRANULE_SET, [page, 1, gpi as u64]),
                        (fid::GRANULE_SET_LIST, [gpi as u64, page | 1, 0]),
                    ] {
                        let answer = status(&call(function, &arguments));
                        ensure!(answer < 0, "{function:#x} answers {answer}");
                    }
                    bench.expect_closed(cores::current(), page)
                })
            },
        );
    }
    cases.add("ownership", "lends and reclaims are counted granule by granule", RULE_1, |bench| {
        let read = || [Counter::Lent, Counter::Returned].map(|i| call(fid::STATS, &[i as u64])[1]);
        let pages = bench.patterned(20)?;
        let [lent, returned] = read();
        let handle = bench.lend(&pages)?;
        let between = read();
        bench.reclaim(handle)?;
        ensure!(between == [lent + 20, returned], "{:?}, then {between:?}", [lent, returned]);
        ensure!(read() == [lent + 20, returned + 20], "{between:?}, then {:?}", read());
        Ok(())
    });
    for (name, address) in
        FIXED.into_iter().filter(|(name, _)| name.contains("memory") || name.contains("image"))
    {
        if name.contains("device tree") {
            continue;
        }
        cases.add("ownership", format!("{name} is out of the normal world's reach"), RULE_1, move |bench| {
            // By EL3's mechanism: an emulator has nothing there in this world, so that any abort is no sign of it.
            bench.expect_closed(cores::current(), address)
        });
    }
}

/// Rule 2: what is lent cannot be read, written or executed, on any core.
fn out_of_reach(cases: &mut Cases) {
    for core in 0..4 {
        cases.add(
            "ownership",
            format!("a lent page can be neither read, written nor executed on core {core}"),
            RULE_2,
            move |bench| {
                if core >= cores::count() {
                    return Err(Failure::Missing(format!("the machine has {} cores", cores::count())));
                }
                while_lent(bench, |bench, page| bench.expect_closed(core, page))
            },
        );
    }
    for (what, offset) in [("the last 8 bytes", GRANULE - 8), ("the middle", GRANULE / 2)] {
        cases.add(
            "ownership",
            format!("{what} of a lent page are out of reach as well"),
            RULE_2,
            move |bench| {
                while_lent(bench, |bench, page| {
                    let read = exceptions::read(page + offset).map(drop);
                    bench.expect_fault("a read", read, page + offset)
                })
            },
        );
    }
    cases.add(
        "ownership",
        "the neighbours of a lent page stay in reach, with their bytes",
        RULE_1,
        |bench| {
            let pages = bench.contiguous(3)?;
            let [before, page, after] = [pages[0], pages[1], pages[2]];
            let words = [exceptions::read(before + GRANULE - 8), exceptions::read(after)];
            let handle = bench.lend(&[page])?;
            let now = [exceptions::read(before + GRANULE - 8), exceptions::read(after)];
            bench.reclaim(handle)?;
            ensure!(words == now, "{words:x?}, while it is lent {now:x?}");
            Ok(())
        },
    );
    cases.add(
        "ownership",
        "the first, the middle and the last of 600 scattered pages are out of reach",
        RULE_2,
        |bench| {
            let pages = bench.patterned(600)?;
            let handle = bench.lend(&pages)?;
            let verdict = [pages[0], pages[300], pages[599]]
                .into_iter()
                .try_for_each(|page| bench.expect_closed(cores::current(), page));
            bench.reclaim(handle)?;
            verdict
        },
    );
    for (what, write) in [("reads", false), ("writes", true)] {
        let name =
            format!("a core that {what} a page in a loop faults from the moment that the lend returns");
        cases.add("ownership", name, RULE_2, move |bench| cached_translation(bench, write));
    }
    cases.add("ownership", "another partition cannot read a lent page", RULE_2, |bench| {
        let hostile = bench.hostile()?;
        while_lent(bench, |_, page| {
            let read = probe::probe(&mut Ffa::new(Smc, &mut []), hostile, Op::Read, page, &mut || {});
            ensure!(read == Ok(Outcome::Aborted), "it reads {read:x?}");
            Ok(())
        })
    });
    cases.add("ownership", "a partition does not retrieve what was lent to another", RULE_2, |bench| {
        let hostile = bench.hostile()?;
        if bench.borrower()? == hostile {
            return Err(Failure::Missing("no other partition".into()));
        }
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let asked = probe::probe(&mut bench.system()?.ffa, hostile, Op::Retrieve, handle, &mut || {});
        bench.reclaim(handle)?;
        ensure!(matches!(asked, Ok(Outcome::Answered(1..))), "it is answered {asked:x?}");
        Ok(())
    });
    cases.add("ownership", "a partition does not move granules by the EL3 service", RULE_1, |bench| {
        let hostile = bench.hostile()?;
        while_lent(bench, |bench, page| {
            let asked = probe::probe(&mut Ffa::new(Smc, &mut []), hostile, Op::GranuleSet, page, &mut || {});
            ensure!(asked.is_ok_and(|outcome| outcome != Outcome::Answered(0)), "it is answered {asked:x?}");
            bench.expect_closed(cores::current(), page)
        })
    });
}

/// Rule 3: what comes back is zero.
fn zeroed(cases: &mut Cases) {
    for (what, count) in [("one page", 1), ("100 scattered pages", 100), ("600 scattered pages", 600)] {
        cases.add("ownership", format!("{what} come back zero, every byte"), RULE_3, move |bench| {
            let pages = bench.patterned(count)?;
            let handle = bench.lend(&pages)?;
            bench.reclaim(handle)?;
            comes_back_zero(&pages)
        });
    }
    cases.add("ownership", "neighbouring pages come back zero, every byte", RULE_3, |bench| {
        contiguous_lend(bench, 70)
    });
    cases.add("ownership", "a page comes back zero on a core that had read it before", RULE_3, |bench| {
        let core = other_core()?;
        let pages = bench.patterned(1)?;
        let page = pages[0];
        let seen = on_core(core, move || exceptions::read(page))?;
        let handle = bench.lend(&pages)?;
        bench.reclaim(handle)?;
        let after = on_core(core, move || exceptions::read(page))?;
        ensure!(seen.is_ok_and(|word| word != 0) && after == Ok(0), "{seen:x?}, then {after:x?}");
        Ok(())
    });
    cases.add("ownership", "a page that came back can be written and lent again", RULE_1, |bench| {
        let pages = bench.patterned(1)?;
        for _ in 0..3 {
            fill(pages[0]);
            let handle = bench.lend(&pages)?;
            bench.expect_closed(cores::current(), pages[0])?;
            bench.reclaim(handle)?;
            comes_back_zero(&pages)?;
        }
        Ok(())
    });
}

/// Rule 5: on any number of cores at once.
fn at_once(cases: &mut Cases) {
    cases.add("ownership", "calls with garbage in all registers change nobody's page", RULE_5, |bench| {
        let pages = bench.patterned(1)?;
        let word = exceptions::read(pages[0]);
        for number in 0..0x40 {
            for garbage in [u64::MAX, 1 << 63, 0x5555_5555_5555_5555, pages[0]] {
                call(fid::VERSION | number, &[garbage; 17]);
            }
        }
        let after = exceptions::read(pages[0]);
        ensure!(word.is_ok() && word == after, "{word:x?}, then {after:x?}");
        Ok(())
    });
    cases.add(
        "ownership",
        "while one core lends, refused calls of another change nothing",
        RULE_5,
        |bench| {
            let core = other_core()?;
            let stop = Arc::new(AtomicBool::new(false));
            let its_stop = stop.clone();
            let pages = bench.patterned(8)?;
            let page = pages[3];
            begin(core, move || {
                while !its_stop.load(SeqCst) {
                    call(fid::GRANULE_SET, &[page, 1, Gpi::NonSecure as u64]);
                    call(fid::GRANULE_GET, &[page]);
                    call(fid::GRANULE_SET_LIST, &[Gpi::NonSecure as u64, page | 1]);
                }
            })?;
            let verdict = (0..20).try_for_each(|_| {
                let handle = bench.lend(&pages)?;
                let closed = pages.iter().try_for_each(|page| bench.expect_closed(0, *page));
                bench.reclaim(handle)?;
                closed
            });
            stop.store(true, SeqCst);
            cores::wait(core);
            verdict
        },
    );
}

/// Lends pages that follow each other, looks at each, takes them back and looks at each again.
fn contiguous_lend(bench: &mut Bench, count: usize) -> Verdict {
    let pages = bench.contiguous(count)?;
    let handle = bench.lend(&pages)?;
    let open = pages.iter().find(|page| exceptions::read(**page).is_ok()).copied();
    bench.reclaim(handle)?;
    if let Some(page) = open {
        return Err(Failure::Wrong(format!("{page:#x} could be read while it was lent")));
    }
    comes_back_zero(&pages)
}

/// Checks that pages are the normal world's again, every byte zero.
pub fn comes_back_zero(pages: &[u64]) -> Verdict {
    for page in pages {
        ensure!(exceptions::read(*page).is_ok(), "{page:#x} does not come back");
        let dirty = dirty_bytes(*page);
        ensure!(dirty == 0, "{dirty} bytes of {page:#x} are not zero");
    }
    Ok(())
}

/// Runs `f` while a page is lent, which comes back zero.
pub fn while_lent(bench: &mut Bench, f: impl Fn(&mut Bench, u64) -> Verdict) -> Verdict {
    let pages = bench.patterned(1)?;
    let handle = bench.lend(&pages)?;
    let verdict = f(bench, pages[0]);
    bench.reclaim(handle)?;
    verdict?;
    comes_back_zero(&pages)
}

/// Another core accesses a page in a loop, its translation cached, while this one lends it.
fn cached_translation(bench: &mut Bench, write: bool) -> Verdict {
    let core = other_core()?;
    let pages = bench.patterned(1)?;
    let page = pages[0];
    let (turns, lent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let outcome = Arc::new(spin::Mutex::new(None));
    let (its_turns, its_lent, its_outcome) = (turns.clone(), lent.clone(), outcome.clone());
    begin(core, move || {
        let result = loop {
            let too_late = its_lent.load(SeqCst);
            // SAFETY: a page of the suite's, or the write faults.
            let tried =
                if write { unsafe { exceptions::write(page, 1) } } else { exceptions::read(page).map(drop) };
            match tried {
                Ok(()) if too_late => {
                    break Err(String::from("an access goes through after the lend has returned"));
                }
                Ok(()) => its_turns.fetch_add(1, SeqCst),
                Err(fault) => break Ok(fault),
            };
        };
        *its_outcome.lock() = Some(result);
    })?;
    while turns.load(SeqCst) < 1000 {
        core::hint::spin_loop();
    }
    let handle = bench.lend(&pages);
    lent.store(true, SeqCst);
    cores::wait(core);
    let handle = handle?;
    let result = outcome.lock().take();
    let again = bench.system()?.ffa.reclaim(handle);
    ensure!(again != Err(Error::Code(Code::Denied)), "reclaiming what nobody retrieved is DENIED");
    let fault = result.ok_or_else(|| String::from("the other core tells nothing"))??;
    bench.expect_fault("the other core's access", Err(fault), page)
}
