//! What a call may change, and what it may not.

use alloc::{format, string::String};

use flexserve_abi::el3::{Counter, Feature, fid};
use flexserve_client::{Registers, ffa::Function, registers};
use flexserve_normal_runtime::{cores, system::Smc, vectors};
use flexserve_platform::LENDABLE;

use crate::{
    observe,
    suite::{Cases, Failure, Verdict, ensure},
};

const PRESERVED: &str = "DEN0028 2.6";
/// FPCR: rounding mode, flush to zero, default NaN. FPSR: the cumulative exception flags and saturation.
const FPCR: u64 = 0b11 << 22 | 1 << 24 | 1 << 25;
const FPSR: u64 = 0x1f | 1 << 27;

/// A call, how many arguments it has, and how many registers its results may take: x0 to x3 of most (DEN0028 2.6), x0 to
/// x7 of FF-A's (DEN0077A 11.2).
#[derive(Clone, Copy)]
struct Call {
    name: &'static str,
    registers: Registers,
    arguments: usize,
    results: usize,
}

fn calls() -> [Call; 14] {
    let call = |name, function: u32, arguments: &[u64], results| Call {
        name,
        registers: registers(function, arguments),
        arguments: arguments.len(),
        results,
    };
    let own = LENDABLE[0].base;
    [
        call("SMCCC_VERSION", 0x8000_0000, &[], 4),
        call("PSCI_VERSION", 0x8400_0000, &[], 4),
        call("PSCI_FEATURES", 0x8400_000a, &[0x8400_0003], 4),
        call("an unknown call of the CPU service", 0x8100_fff0, &[], 4),
        call("EL3 VERSION", fid::VERSION, &[], 4),
        call("EL3 FEATURES", fid::FEATURES, &[Feature::Backend as u64], 4),
        call("EL3 STATS", fid::STATS, &[Counter::Refused as u64], 4),
        call("EL3 GRANULE_GET", fid::GRANULE_GET, &[own], 4),
        call("EL3 GRANULE_GET, refused", fid::GRANULE_GET, &[1], 4),
        call("EL3 GRANULE_SET, refused", fid::GRANULE_SET, &[own, 1, 8], 4),
        call("an unknown EL3 call", 0xc300_00ee, &[], 4),
        call("FFA_ID_GET", Function::IdGet.into(), &[], 8),
        call(
            "FFA_FEATURES, by the SPMC",
            Function::Features.into(),
            &[u32::from(Function::MemLend32).into()],
            8,
        ),
        call("FFA_MEM_RECLAIM, refused by the SPMC", Function::MemReclaim.into(), &[u64::MAX; 3], 8),
    ]
}

pub fn cases(cases: &mut Cases) {
    for call in calls() {
        let of = |what: &str| format!("{} changes no {what}", call.name);
        let general = move || general(&call);
        cases.add("registers", of("general register but its results, nor SP"), PRESERVED, move |_| general());
        cases.add("registers", of("SIMD register"), PRESERVED, move |_| simd(&call));
        cases.add("registers", of("FPCR or FPSR"), PRESERVED, move |_| floating_point(&call));
    }
    let world_switch = calls()[12];
    cases.add(
        "registers",
        "a call that the Secure world answers changes no system register of EL0 and EL1",
        PRESERVED,
        move |_| system(&world_switch),
    );
    cases.add("registers", "calls of two cores at once do not mix their registers", PRESERVED, |_| {
        two_cores()
    });
}

fn general(call: &Call) -> Verdict {
    let sent = observe::pattern(&call.registers, call.arguments);
    let (kept, sp) = observe::general(&sent);
    let changed = (call.results..31).find(|&i| kept[i] != sent[i]);
    if let Some(i) = changed {
        return Err(Failure::Wrong(format!("x{i} was {:#x}, is {:#x}", sent[i], kept[i])));
    }
    ensure!(sp == 0, "SP moved by {sp:#x}");
    Ok(())
}

fn simd(call: &Call) -> Verdict {
    let sent = vectors::Vectors::pattern();
    let (_, kept) = vectors::smc(&call.registers, &sent);
    match sent.first_difference(&kept) {
        Some(register) => Err(Failure::Wrong(format!("{register} changed"))),
        None => Ok(()),
    }
}

fn floating_point(call: &Call) -> Verdict {
    for (fpcr, fpsr) in [(FPCR, FPSR), (0, 0)] {
        let kept = observe::floating_point(&call.registers, fpcr, fpsr);
        ensure!(kept == [fpcr, fpsr], "set {fpcr:#x} {fpsr:#x}, found {kept:#x?}");
    }
    Ok(())
}

fn system(call: &Call) -> Verdict {
    use flexserve_client::Conduit as _;
    let [before, after] = observe::system(|| {
        Smc.call(call.registers);
    });
    for ((name, before), after) in observe::SYSTEM.iter().zip(before).zip(after) {
        ensure!(before == after, "{name} was {before:#x}, is {after:#x}");
    }
    Ok(())
}

/// Each core asks for something else, many times, and looks at every answer.
fn two_cores() -> Verdict {
    const TIMES: u32 = 2000;
    let ask = |call: Call| -> Result<(), String> {
        let sent = observe::pattern(&call.registers, call.arguments);
        let first = observe::general(&sent).0;
        for _ in 0..TIMES {
            let again = observe::general(&sent).0;
            if again != first {
                return Err(format!("{} answers {again:x?}, then {first:x?}", call.name));
            }
        }
        Ok(())
    };
    let other = crate::bench::other_core()?;
    let [theirs, ours] = [calls()[5], calls()[1]];
    let result = alloc::sync::Arc::new(spin::Mutex::new(Ok(())));
    let slot = result.clone();
    crate::bench::begin(other, move || *slot.lock() = ask(theirs))?;
    let mine = ask(ours);
    cores::wait(other);
    mine?;
    let other = result.lock().clone();
    Ok(other?)
}
