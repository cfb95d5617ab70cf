//! The EL3 service's calls, and lent memory, from the Realm world: by a test RMM that does what it is asked.

use alloc::format;

use flexserve_abi::{
    el3::{self, CoreState, Counter, Feature, Gpi, Status, fid},
    probe::RealmOp,
};
use flexserve_client::ffa::Function;
use flexserve_normal_runtime::cores;
use flexserve_platform::LENDABLE;

use super::cores::{CORE, expect_state, provided};
use super::ffa::{refused, without_buffers};
use super::ownership::{comes_back_zero, while_lent};
use crate::{
    bench::{Bench, GRANULE, call, on_core, other_core},
    suite::{Cases, Failure, Verdict, ensure},
};

const ABI: &str = "docs/abi.md, EL3 service";
const CORES: &str = "docs/abi.md, Cores";
const NOT_SUPPORTED: i64 = Status::NotSupported as i64;
/// `RMI_GRANULE_DELEGATE` and `_UNDELEGATE` (Arm DEN0137): the normal world gives a granule to the Realm world and takes it back.
const RMI_GRANULE_DELEGATE: u32 = 0xc400_0151;
const RMI_GRANULE_UNDELEGATE: u32 = 0xc400_0152;

/// x0 of an EL3 call by the RMM.
fn realm_call(bench: &Bench, function: u32, arguments: &[u64]) -> Result<i64, Failure> {
    let mut all = [0; 4];
    all[0] = u64::from(function);
    all[1..=arguments.len()].copy_from_slice(arguments);
    // Without a Realm world the memory probe says so; the call alone could be mistaken for its refusal.
    bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
    Ok(bench.realm(RealmOp::Call, &all)?[0].cast_signed())
}

pub fn cases(cases: &mut Cases) {
    for (name, function, argument, expected) in [
        ("VERSION", fid::VERSION, 0, i64::from(el3::VERSION)),
        ("FEATURES of the granule's size", fid::FEATURES, Feature::GranuleSize as u64, GRANULE as i64),
        ("FEATURES of an unknown index", fid::FEATURES, u64::MAX, NOT_SUPPORTED),
        ("STATS", fid::STATS, Counter::Lent as u64, 0),
        ("STATS of an unknown index", fid::STATS, u64::MAX, Status::InvalidParameters as i64),
        ("GRANULE_GET of a granule of the normal world", fid::GRANULE_GET, LENDABLE[0].base, NOT_SUPPORTED),
        ("GRANULE_GET of an odd address", fid::GRANULE_GET, 1, NOT_SUPPORTED),
        ("CORE_LEND of 2^64 - 1", fid::CORE_LEND, u64::MAX, NOT_SUPPORTED),
        ("CORE_RECALL of the core that boots", fid::CORE_RECALL, cores::mpidr(0), NOT_SUPPORTED),
        ("CORE_RECALL of 2^64 - 1", fid::CORE_RECALL, u64::MAX, NOT_SUPPORTED),
        ("CORE_STATE of the core that boots", fid::CORE_STATE, cores::mpidr(0), NOT_SUPPORTED),
        ("CORE_STATE of 2^64 - 1", fid::CORE_STATE, u64::MAX, NOT_SUPPORTED),
        ("CORE_RETURN", fid::CORE_RETURN, 0, NOT_SUPPORTED),
        ("an undefined call", 0xc300_00ee, 0, NOT_SUPPORTED),
    ] {
        cases.add("realm", format!("{name} answers {expected} to the Realm world"), ABI, move |bench| {
            let found = realm_call(bench, function, &[argument])?;
            ensure!(found == expected, "it answers {found}");
            Ok(())
        });
    }
    cores(cases);
    for gpi in [Gpi::Secure, Gpi::NonSecure, Gpi::Realm, Gpi::Root] {
        cases.add(
            "realm",
            format!("GRANULE_SET to {gpi:?} is refused to the Realm world"),
            ABI,
            move |bench| {
                let page = bench.pages(1)?[0];
                let set = realm_call(bench, fid::GRANULE_SET, &[page, 1, gpi as u64])?;
                let list = realm_call(bench, fid::GRANULE_SET_LIST, &[gpi as u64, page | 1])?;
                ensure!([set, list] == [NOT_SUPPORTED; 2], "{set}, as a list {list}");
                let state = call(fid::GRANULE_GET, &[page]);
                ensure!(state[..2] == [0, Gpi::NonSecure as u64], "the page's state is {:x?}", &state[..2]);
                Ok(())
            },
        );
    }
    for (what, op) in [("read", RealmOp::Read), ("write", RealmOp::Write), ("execute", RealmOp::Execute)] {
        cases.add(
            "realm",
            format!("the Realm world cannot {what} a lent page"),
            "DESIGN rule 2",
            move |bench| while_lent(bench, move |bench, page| closed(bench, op, page)),
        );
    }
    cases.add("realm", "the Realm world cannot read a lent page on another core", "DESIGN rule 2", |bench| {
        let core = other_core()?;
        bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
        while_lent(bench, move |_, page| {
            use flexserve_abi::probe::REALM_PROBE;
            let [status, esr, ..] = on_core(core, move || call(REALM_PROBE, &[RealmOp::Read as u64, page]))?;
            ensure!(status == 0 && esr != 0, "status {status:#x}, syndrome {esr:#x}");
            Ok(())
        })
    });
    cases.add("realm", "a lent page is not delegated to the Realm world", "DESIGN rule 1", |bench| {
        bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let answer = call(RMI_GRANULE_DELEGATE, &pages)[0];
        // Otherwise there is no way back: the SPMC cannot reach it any more.
        ensure!(answer != 0, "RMI_GRANULE_DELEGATE succeeds");
        bench.reclaim(handle)?;
        comes_back_zero(&pages)
    });
    cases.add("realm", "a page that the Realm world has is not lent", "DESIGN rule 1", |bench| {
        bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
        let page = bench.pages(1)?[0];
        let given = call(RMI_GRANULE_DELEGATE, &[page])[0];
        ensure!(given == 0, "RMI_GRANULE_DELEGATE answers {given:#x}");
        let state = call(fid::GRANULE_GET, &[page])[0].cast_signed();
        let lent = bench.lend(&[page]);
        let back = call(RMI_GRANULE_UNDELEGATE, &[page])[0];
        ensure!(state == Status::Denied as i64, "GRANULE_GET answers {state}");
        ensure!(lent.is_err(), "it is lent all the same");
        ensure!(back == 0, "RMI_GRANULE_UNDELEGATE answers {back:#x}");
        Ok(())
    });
    cases.add(
        "realm",
        "a page that the Realm world has does not become a buffer",
        "DESIGN rule 1",
        |bench| {
            bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
            let page = bench.pages(1)?[0];
            let given = call(RMI_GRANULE_DELEGATE, &[page])[0];
            ensure!(given == 0, "RMI_GRANULE_DELEGATE answers {given:#x}");
            let verdict = without_buffers(bench, |bench, (tx, rx)| {
                refused(bench, Function::RxTxMap64, &[tx, page, 1])?;
                refused(bench, Function::RxTxMap64, &[page, rx, 1])
            });
            let back = call(RMI_GRANULE_UNDELEGATE, &[page])[0];
            ensure!(back == 0, "RMI_GRANULE_UNDELEGATE answers {back:#x}");
            verdict
        },
    );
}

/// Which cores the Secure world has is the normal world's to say.
fn cores(cases: &mut Cases) {
    cases.add("realm", "CORE_LEND of a core that is off is refused to the Realm world", CORES, |bench| {
        provided()?;
        bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
        cores::turn_off(CORE)?;
        let [entry, stack] = [cores::entry(), cores::stack_top(CORE)];
        let answer = realm_call(bench, fid::CORE_LEND, &[cores::mpidr(CORE), entry, stack]);
        if matches!(answer, Ok(0)) {
            cores::take_back(CORE)?;
        } else {
            cores::turn_on(CORE, entry, stack)?;
        }
        let answer = answer?;
        ensure!(answer == NOT_SUPPORTED, "it answers {answer}");
        Ok(())
    });
    cases.add("realm", "CORE_RECALL of a lent core is refused to the Realm world", CORES, |bench| {
        provided()?;
        bench.realm(RealmOp::Read, &[LENDABLE[0].base])?;
        cores::lend(CORE)?;
        let answer = realm_call(bench, fid::CORE_RECALL, &[cores::mpidr(CORE)]);
        let state = expect_state(CORE, CoreState::Lent);
        cores::take_back(CORE)?;
        let answer = answer?;
        ensure!(answer == NOT_SUPPORTED, "it answers {answer}");
        state
    });
}

fn closed(bench: &Bench, op: RealmOp, page: u64) -> Verdict {
    let [esr, far] = bench.realm(op, &[page])?;
    ensure!(esr != 0, "it goes through");
    ensure!(far == page, "esr {esr:#x}, but far {far:#x}");
    Ok(())
}
