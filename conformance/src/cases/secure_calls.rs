//! The EL3 service's calls from the Secure world that move no granule: `FEATURES`, `STATS`, `CORE_*` (docs/abi.md).

use alloc::format;

use flexserve_abi::el3::{CoreState, Counter, Feature, Gpi, Status, fid};
use flexserve_normal_runtime::{cores, gic};

use super::{
    cores::{CORE, NOBODY, expect_state, lacks, provided},
    secure::answers,
};
use crate::{
    bench::{Bench, GRANULE, call, on_core, status},
    proxy::Proxy,
    suite::{Cases, Verdict, ensure},
};

const ABI: &str = "docs/abi.md, EL3 service";
const STATS: &str = "docs/abi.md, STATS";
const CORES: &str = "docs/abi.md, Cores";
const RULE_5: &str = "DESIGN rule 5";

const NOT_SUPPORTED: i64 = Status::NotSupported as i64;
const INVALID: i64 = Status::InvalidParameters as i64;
const DENIED: i64 = Status::Denied as i64;

/// Indices far behind the last feature and the last counter, also one whose lower half would be valid.
const BEYOND: [u64; 3] = [1 << 16, 1 << 32, u64::MAX];

/// The calls that only the normal world may make.
const CORE_CALLS: [(&str, u32); 2] = [("CORE_LEND", fid::CORE_LEND), ("CORE_RECALL", fid::CORE_RECALL)];

pub fn cases(cases: &mut Cases) {
    features(cases);
    statistics(cases);
    refused(cases);
    states(cases);
    returns(cases);
    cases.add(
        "secure",
        "a lent core hears no interrupt of the normal world, works on, and takes it when it is back",
        CORES,
        deaf,
    );
}

fn features(cases: &mut Cases) {
    for (name, index) in [
        ("the granule's size", Feature::GranuleSize),
        ("bits of a physical address", Feature::PhysicalAddressBits),
        ("the backend", Feature::Backend),
        ("the batch limit", Feature::BatchLimit),
        ("cores", Feature::Cores),
    ] {
        cases.add(
            "secure",
            format!("FEATURES tells {name} as it does the normal world"),
            ABI,
            move |bench| {
                answers(bench, fid::FEATURES, &[index as u64], status(&call(fid::FEATURES, &[index as u64])))
            },
        );
    }
    for index in [Feature::Cores as u64 + 1].into_iter().chain(BEYOND) {
        cases.add("secure", format!("FEATURES of index {index:#x} is NOT_SUPPORTED"), RULE_5, move |bench| {
            answers(bench, fid::FEATURES, &[index], NOT_SUPPORTED)
        });
    }
}

fn statistics(cases: &mut Cases) {
    for (counter, name) in Counter::ALL {
        cases.add("secure", format!("STATS tells {name}"), STATS, move |bench| {
            answers(bench, fid::STATS, &[counter as u64], 0)
        });
    }
    cases.add("secure", "STATS tells what the normal world is told", STATS, |bench| {
        let (proxy, page) = (bench.proxy()?, bench.contiguous(1)?[0]);
        let read =
            || Counter::ALL.map(|(counter, _)| counter as u64).map(|i| proxy.call(fid::STATS, &[i])[1]);
        let before = read();
        for to in [Gpi::Secure, Gpi::NonSecure] {
            proxy.call(fid::GRANULE_SET, &[page, 1, to as u64]);
        }
        let after = read();
        ensure!(after[0] == before[0] + 1, "one granule was lent: {before:?}, then {after:?}");
        for (told, (counter, name)) in after.into_iter().zip(Counter::ALL) {
            let here = call(fid::STATS, &[counter as u64])[1];
            ensure!(told == here, "{name} is {told}, and {here} for the normal world");
        }
        Ok(())
    });
    for index in [Counter::ALL.len() as u64].into_iter().chain(BEYOND) {
        cases.add(
            "secure",
            format!("STATS of index {index:#x} is INVALID_PARAMETERS"),
            RULE_5,
            move |bench| answers(bench, fid::STATS, &[index], INVALID),
        );
    }
}

/// Which cores the Secure world has is the normal world's to say, whatever the arguments.
fn refused(cases: &mut Cases) {
    for (name, function) in CORE_CALLS {
        for (whom, mpidr) in NOBODY {
            cases.add("secure", format!("{name} of {whom} is NOT_SUPPORTED"), RULE_5, move |bench| {
                answers(bench, function, &[mpidr, cores::entry(), 0], NOT_SUPPORTED)
            });
        }
        cases.add("secure", format!("{name} of a core that is on is NOT_SUPPORTED"), CORES, move |bench| {
            answers(bench, function, &core_arguments(), NOT_SUPPORTED)?;
            provided()?;
            expect_state(CORE, CoreState::Owned)
        });
        cases.add("secure", format!("{name} with garbage is NOT_SUPPORTED"), RULE_5, move |bench| {
            answers(bench, function, &[u64::MAX - GRANULE; 17], NOT_SUPPORTED)
        });
    }
    cases.add(
        "secure",
        "CORE_LEND of a core that is off is NOT_SUPPORTED, and it stays off",
        CORES,
        |bench| {
            provided()?;
            cores::turn_off(CORE)?;
            let verdict = answers(bench, fid::CORE_LEND, &core_arguments(), NOT_SUPPORTED)
                .and_then(|()| expect_state(CORE, CoreState::Owned));
            let off = cores::affinity_info(CORE);
            if off == cores::OFF {
                cores::turn_on(CORE, cores::entry(), cores::stack_top(CORE))?;
            } else {
                cores::take_back(CORE)?;
            }
            ensure!(off == cores::OFF, "AFFINITY_INFO answers {off}");
            verdict
        },
    );
    while_lent(cases, "CORE_RECALL of a lent core is NOT_SUPPORTED, and it stays lent", |bench| {
        answers(bench, fid::CORE_RECALL, &core_arguments(), NOT_SUPPORTED)?;
        expect_state(CORE, CoreState::Lent)
    });
}

/// What `CORE_LEND` of that core takes.
fn core_arguments() -> [u64; 3] {
    [cores::mpidr(CORE), cores::entry(), cores::stack_top(CORE)]
}

fn states(cases: &mut Cases) {
    for (whom, mpidr) in NOBODY {
        cases.add("secure", format!("CORE_STATE of {whom} is INVALID_PARAMETERS"), RULE_5, move |bench| {
            provided()?;
            lacks(mpidr)?;
            answers(bench, fid::CORE_STATE, &[mpidr], INVALID)
        });
    }
    for (whom, core) in [("the calling core", 0), ("another core that is on", CORE)] {
        cases.add("secure", format!("CORE_STATE of {whom} is OWNED"), CORES, move |bench| {
            provided()?;
            expect_told(bench.proxy()?, core, CoreState::Owned)
        });
    }
    cases.add("secure", "CORE_STATE of a core that is off is OWNED", CORES, |bench| {
        let proxy = bench.proxy()?;
        provided()?;
        cores::turn_off(CORE)?;
        let verdict = expect_told(proxy, CORE, CoreState::Owned);
        cores::turn_on(CORE, cores::entry(), cores::stack_top(CORE))?;
        verdict
    });
    while_lent(cases, "CORE_STATE of a lent core is LENT", |bench| {
        expect_told(bench.proxy()?, CORE, CoreState::Lent)
    });
}

fn expect_told(proxy: Proxy, core: usize, expected: CoreState) -> Verdict {
    let answer = proxy.call(fid::CORE_STATE, &[cores::mpidr(core)]);
    ensure!(answer[..2] == [0, expected as u64], "core {core}'s state is {:x?}", &answer[..2]);
    Ok(())
}

fn returns(cases: &mut Cases) {
    for (what, arguments) in [("", [0; 17]), (" with garbage", [u64::MAX; 17])] {
        let name = format!("CORE_RETURN{what} on a core that was not lent is DENIED");
        cases.add("secure", name, CORES, move |bench| {
            provided()?;
            answers(bench, fid::CORE_RETURN, &arguments, DENIED)
        });
    }
    // The Secure world's caller asks for leave as soon as it has the core.
    cases.add(
        "secure",
        "CORE_RETURN of a core that was not recalled is DENIED, and it stays lent",
        CORES,
        |_| {
            provided()?;
            let refusals = || call(fid::STATS, &[Counter::Refused as u64])[1];
            let before = refusals();
            cores::lend(CORE)?;
            let denied = (0..PATIENCE).any(|_| refusals() > before);
            let state = expect_state(CORE, CoreState::Lent);
            cores::take_back(CORE)?;
            ensure!(denied, "it was not refused");
            state
        },
    );
    cases.add(
        "secure",
        "CORE_RETURN of a recalled core succeeds, and it serves both worlds",
        CORES,
        |bench| {
            let proxy = bench.proxy()?;
            provided()?;
            for turn in 0..3 {
                cores::lend(CORE)?;
                cores::take_back(CORE)?;
                let version = on_core(CORE, move || proxy.call(fid::VERSION, &[])[0])?;
                ensure!(
                    version == call(fid::VERSION, &[])[0],
                    "after turn {turn} VERSION there is {version:#x}"
                );
            }
            expect_told(proxy, CORE, CoreState::Owned)
        },
    );
}

/// How often a lent core's first call, its work, or an interrupt taken by it is looked for.
const PATIENCE: u32 = 10_000_000;

/// An interrupt is sent to a lent core; looked at is what the core's own interrupt status register says while it works.
fn deaf(bench: &mut Bench) -> Verdict {
    const ROUNDS: u64 = 10_000;
    let proxy = bench.proxy()?;
    provided()?;
    let rung = || gic::rung(CORE);
    let before = rung();
    cores::lend(CORE)?;
    let works = |until: u64| (0..PATIENCE).any(|_| proxy.work(cores::mpidr(CORE))[0] >= until);
    let worked = works(1);
    gic::ring(CORE);
    let went_on = works(proxy.work(cores::mpidr(CORE))[0] + ROUNDS);
    let ([_, signalled], taken, state) =
        (proxy.work(cores::mpidr(CORE)), rung(), expect_state(CORE, CoreState::Lent));
    cores::take_back(CORE)?;
    let heard = (0..PATIENCE).any(|_| rung() != before);
    ensure!(worked && went_on, "it worked before: {worked}, and afterwards: {went_on}");
    ensure!(signalled == 0, "the interrupt was signalled to it in {signalled} rounds of its work");
    ensure!(taken == before, "the normal world took the interrupt on a core that it had lent");
    state?;
    ensure!(heard && rung() == before + 1, "back, it took the interrupt {} times", rung() - before);
    Ok(())
}

fn while_lent(cases: &mut Cases, name: &str, check: fn(&Bench) -> Verdict) {
    cases.add("secure", name, CORES, move |bench| {
        bench.proxy()?;
        provided()?;
        cores::lend(CORE)?;
        let verdict = check(bench);
        cores::take_back(CORE)?;
        verdict
    });
}
