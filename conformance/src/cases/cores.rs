//! Cores that change worlds: `CORE_LEND`, `CORE_RECALL`, `CORE_STATE` (docs/abi.md, Cores).

use alloc::{format, sync::Arc};
use core::sync::atomic::{AtomicI64, Ordering::SeqCst};

use flexserve_abi::el3::{CoreState, Counter, Feature, Status, fid};
use flexserve_normal_runtime::cores;
use flexserve_platform::{EL3, LENDABLE, SPMC, UART_BASE};

use super::psci::{ALREADY_ON, CPU_ON, NO_CORE, STARTED_STATE, recorded};
use crate::{
    bench::{Bench, begin, call, status},
    suite::{Cases, Failure, Verdict, ensure},
};

const ABI: &str = "docs/abi.md, Cores";
const RULE_5: &str = "DESIGN rule 5";

const SUCCESS: i64 = Status::Success as i64;
const INVALID: i64 = Status::InvalidParameters as i64;
const DENIED: i64 = Status::Denied as i64;
const BUSY: i64 = Status::Busy as i64;
const NOT_SUPPORTED: i64 = Status::NotSupported as i64;

/// The core that the cases lend.
pub const CORE: usize = 1;

/// Affinities that no core has.
pub const NOBODY: [(&str, u64); 4] = [
    ("a core that does not exist", NO_CORE),
    ("a core that PSCI's port may know and the machine lacks", 7),
    ("a core with bit 31 of its MPIDR", 1 << 31 | CORE as u64),
    ("2^64 - 1", u64::MAX),
];

/// Entry points that are not the normal world's.
const ENTRIES: [(&str, u64); 7] = [
    ("that is no instruction's address", LENDABLE[0].base + 2),
    ("in EL3's memory", EL3.base),
    ("in the SPMC's memory", SPMC.base),
    ("in a device", UART_BASE),
    ("of 0", 0),
    ("behind the last bank", LENDABLE[LENDABLE.len() - 1].base + LENDABLE[LENDABLE.len() - 1].size),
    ("of 2^64 - 4", u64::MAX - 3),
];

pub fn cases(cases: &mut Cases) {
    for (function, name) in
        [(fid::CORE_LEND, "CORE_LEND"), (fid::CORE_RECALL, "CORE_RECALL"), (fid::CORE_STATE, "CORE_STATE")]
    {
        for (whom, mpidr) in NOBODY {
            cases.add("cores", format!("{name} of {whom} is INVALID_PARAMETERS"), RULE_5, move |_| {
                lacks(mpidr)?;
                answers(function, &[mpidr, cores::entry(), 0], INVALID)
            });
        }
    }
    for (what, entry) in ENTRIES {
        cases.add(
            "cores",
            format!("CORE_LEND with an entry point {what} is INVALID_PARAMETERS"),
            RULE_5,
            move |_| answers(fid::CORE_LEND, &[cores::mpidr(CORE), entry, 0], INVALID),
        );
    }
    cases.add("cores", "CORE_LEND with an entry point in a lent page is INVALID_PARAMETERS", ABI, |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let verdict = answers(fid::CORE_LEND, &[cores::mpidr(CORE), pages[0], 0], INVALID);
        bench.reclaim(handle)?;
        verdict
    });
    for (what, function, core, expected) in [
        ("CORE_LEND of the calling core is DENIED: the last one stays", fid::CORE_LEND, 0, DENIED),
        ("CORE_LEND of a core that is on is DENIED", fid::CORE_LEND, CORE, DENIED),
        ("CORE_RECALL of the calling core is DENIED", fid::CORE_RECALL, 0, DENIED),
        ("CORE_RECALL of a core that was not lent is DENIED", fid::CORE_RECALL, CORE, DENIED),
        ("CORE_RETURN is not for the normal world", fid::CORE_RETURN, CORE, NOT_SUPPORTED),
    ] {
        cases.add("cores", what, ABI, move |_| {
            answers(function, &[cores::mpidr(core), cores::entry(), 0], expected)
        });
    }
    for (what, core) in [("the calling core", 0), ("another core that is on", CORE)] {
        cases.add("cores", format!("CORE_STATE of {what} is OWNED"), ABI, move |_| {
            provided()?;
            expect_state(core, CoreState::Owned)
        });
    }
    lent(cases);
    moves(cases);
}

/// What holds while a core is lent.
fn lent(cases: &mut Cases) {
    let mut add = |name: &str, rule, check: fn(&mut Bench) -> Verdict| {
        cases.add("cores", name, rule, move |bench| {
            provided()?;
            cores::lend(CORE)?;
            let verdict = check(bench);
            cores::take_back(CORE)?;
            verdict
        });
    };
    add("CORE_STATE of a lent core is LENT", ABI, |_| expect_state(CORE, CoreState::Lent));
    add("PSCI knows a lent core as on", ABI, |_| {
        let found = cores::affinity_info(CORE);
        ensure!(found == cores::ON, "AFFINITY_INFO answers {found}");
        Ok(())
    });
    add("CPU_ON of a lent core is ALREADY_ON", ABI, |_| {
        let answer =
            call(CPU_ON, &[cores::mpidr(CORE), cores::entry(), cores::stack_top(CORE)])[0] as u32 as i32;
        ensure!(answer == ALREADY_ON, "it answers {answer}");
        Ok(())
    });
    add("a lent core cannot be lent again", ABI, |_| {
        answers(fid::CORE_LEND, &[cores::mpidr(CORE), cores::entry(), 0], DENIED)
    });
    add("while a core is lent, memory is lent and out of reach as ever", "DESIGN rule 2", |bench| {
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let closed = bench.expect_closed(0, pages[0]);
        bench.reclaim(handle)?;
        closed
    });
    add("while a core is lent, another one goes and comes as well", ABI, |_| {
        if cores::count() < 3 {
            return Err(Failure::Missing("the machine has two cores".into()));
        }
        cores::lend(2)?;
        let both = expect_state(CORE, CoreState::Lent).and_then(|()| expect_state(2, CoreState::Lent));
        cores::take_back(2)?;
        both
    });
    add("garbage to CORE_* leaves a lent core where it is", RULE_5, |_| {
        for function in [fid::CORE_LEND, fid::CORE_STATE, fid::CORE_RETURN] {
            for garbage in [u64::MAX, 1 << 63 | cores::mpidr(CORE), NO_CORE | cores::mpidr(CORE)] {
                call(function, &[garbage; 17]);
            }
        }
        expect_state(CORE, CoreState::Lent)
    });
}

/// Ways there and back.
fn moves(cases: &mut Cases) {
    cases.add("cores", "a core that is off is OWNED, and not to be recalled", ABI, |_| {
        provided()?;
        cores::turn_off(CORE)?;
        let verdict = expect_state(CORE, CoreState::Owned)
            .and_then(|()| answers(fid::CORE_RECALL, &[cores::mpidr(CORE)], DENIED));
        cores::turn_on(CORE, cores::entry(), cores::stack_top(CORE))?;
        verdict
    });
    for (what, check) in STARTED_STATE {
        cases.add("cores", format!("a core that comes back starts with {what}"), ABI, move |_| {
            provided()?;
            let started = recorded(|entry, context| {
                cores::turn_off(CORE)?;
                cores::lend_to_start_at(CORE, entry, context)?;
                cores::take_back(CORE)
            })?;
            check(&started)
        });
    }
    cases.add("cores", "a core goes and comes back ten times, and serves each time", ABI, |_| {
        provided()?;
        for turn in 0..10 {
            cores::lend(CORE)?;
            cores::take_back(CORE)?;
            expect_state(CORE, CoreState::Owned)?;
            let found = cores::run(CORE, cores::current)?;
            ensure!(found == CORE, "after turn {turn} core {CORE} calls itself {found}");
        }
        Ok(())
    });
    cases.add("cores", "lends and recalls of cores are counted once each", "docs/abi.md, STATS", |_| {
        provided()?;
        let read = || [Counter::CoresLent, Counter::CoresRecalled].map(|i| call(fid::STATS, &[i as u64])[1]);
        let [lent, recalled] = read();
        cores::lend(CORE)?;
        let between = read();
        cores::take_back(CORE)?;
        ensure!(between == [lent + 1, recalled], "{:?}, then {between:?}", [lent, recalled]);
        ensure!(read() == [lent + 1, recalled + 1], "{between:?}, then {:?}", read());
        Ok(())
    });
    cases.add(
        "cores",
        "a core that was lent sees what was lent meanwhile out of reach",
        "DESIGN rule 2",
        |bench| {
            provided()?;
            let pages = bench.patterned(1)?;
            cores::lend(CORE)?;
            let handle = bench.lend(&pages);
            cores::take_back(CORE)?;
            let handle = handle?;
            let closed = bench.expect_closed(CORE, pages[0]);
            bench.reclaim(handle)?;
            closed
        },
    );
    cases.add("cores", "of two cores that lend the same one, one succeeds", RULE_5, |_| race());
}

/// Whether cores can be lent here at all.
pub fn provided() -> Verdict {
    match call(fid::FEATURES, &[Feature::Cores as u64])[0].cast_signed() {
        ..=0 => Err(Failure::Missing("this port lends no cores".into())),
        _ if cores::count() < 2 => Err(Failure::Missing("the machine has one core".into())),
        _ => Ok(()),
    }
}

/// Whether this machine lacks a core of this name, as others do.
pub fn lacks(mpidr: u64) -> Verdict {
    if cores::exists(mpidr) {
        Err(Failure::Missing(format!("this machine has core {mpidr:#x}")))
    } else {
        Ok(())
    }
}

fn answers(function: u32, arguments: &[u64], expected: i64) -> Verdict {
    provided()?;
    let found = status(&call(function, arguments));
    ensure!(found == expected, "it answers {found}");
    Ok(())
}

pub fn expect_state(core: usize, expected: CoreState) -> Verdict {
    let answer = call(fid::CORE_STATE, &[cores::mpidr(core)]);
    ensure!(answer[..2] == [0, expected as u64], "core {core}'s state is {:x?}", &answer[..2]);
    Ok(())
}

/// Cores 0 and 2 lend core 1 at the same time, again and again.
fn race() -> Verdict {
    provided()?;
    if cores::count() < 3 {
        return Err(Failure::Missing("the machine has two cores".into()));
    }
    for _ in 0..20 {
        cores::turn_off(CORE)?;
        let lend =
            || status(&call(fid::CORE_LEND, &[cores::mpidr(CORE), cores::entry(), cores::stack_top(CORE)]));
        let (go, theirs) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(1)));
        let (its_go, its_answer) = (go.clone(), theirs.clone());
        begin(2, move || {
            its_go.store(1, SeqCst);
            its_answer.store(lend(), SeqCst);
        })?;
        while go.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
        let ours = lend();
        cores::wait(2);
        let theirs = theirs.load(SeqCst);
        while call(fid::CORE_STATE, &[cores::mpidr(CORE)])[1] == CoreState::Lending as u64 {
            core::hint::spin_loop();
        }
        cores::take_back(CORE)?;
        let well = matches!((ours, theirs), (SUCCESS, DENIED | BUSY) | (DENIED | BUSY, SUCCESS));
        ensure!(well, "one core is answered {ours}, the other {theirs}");
    }
    Ok(())
}
