//! The calling convention: who answers what nobody owns, and how function identifiers are read (Arm DEN0028).

use alloc::format;

use flexserve_abi::el3::fid;
use flexserve_client::{Conduit as _, ffa::Function};
use flexserve_normal_runtime::{gic, system::Smc, timer};

use crate::{
    bench::{call, status},
    observe,
    suite::{Cases, Verdict, ensure},
};

const UNKNOWN: &str = "DEN0028 5.2";
const IDENTIFIER: &str = "DEN0028 2.5";
const SVE_HINT: &str = "DEN0028 2.5.2";

/// Bit 31 of a function identifier: a fast call. Bit 30: SMC64. Bit 16: no SVE state is live.
const FAST: u32 = 1 << 31;
const SMC64: u32 = 1 << 30;
const HINT: u32 = 1 << 16;

const SMCCC_VERSION: u32 = 0x8000_0000;
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
const PSCI_VERSION: u32 = 0x8400_0000;

/// Owning entities (DEN0028, table 6-2) and a function number that none of their services defines.
const OWNERS: [(&str, u32, u32); 16] = [
    ("the Arm architecture", 0, 0x7ff0),
    ("the CPU", 1, 0xfff0),
    ("the silicon's vendor", 2, 0xfef0),
    ("the OEM", 3, 0x00ee),
    ("the standard secure service", 4, 0xfff0),
    ("the standard hypervisor service", 5, 0x0010),
    ("the vendor's hypervisor service", 6, 0x0010),
    ("the vendor's EL3 service", 7, 0xfff0),
    ("reserved owner 8", 8, 0),
    ("reserved owner 31", 31, 0),
    ("reserved owner 47", 47, 0xffff),
    ("trusted application 48", 48, 0),
    ("trusted application 49", 49, 0xffff),
    ("trusted OS 50", 50, 0),
    ("trusted OS 60", 60, 0xff00),
    ("trusted OS 63", 63, 0xffff),
];

pub fn cases(cases: &mut Cases) {
    for (owner, number, function) in OWNERS {
        for (width, bit) in [("SMC32", 0), ("SMC64", SMC64)] {
            let name = format!("an unknown fast {width} call to {owner} answers -1");
            cases.add("smccc", name, UNKNOWN, move |_| unknown(FAST | bit | number << 24 | function));
        }
    }
    for (what, function) in [
        ("an unknown yielding call of a trusted application", 0x3000_0000),
        ("an unknown yielding SMC64 call of a trusted application", 0x7100_0001),
        ("an unknown yielding call of a trusted OS", 0x3200_0000),
        ("an unknown yielding SMC64 call of a trusted OS", 0x7f00_ffff),
        ("a yielding call of the OEM", 0x0300_0000),
        ("a yielding SMC64 call with the number of VERSION", fid::VERSION & !FAST),
    ] {
        cases.add("smccc", format!("{what} answers -1"), UNKNOWN, move |_| unknown(function));
    }
    for bit in 17..24 {
        let name = format!("a fast call with reserved bit {bit} of its identifier set is unknown");
        cases.add("smccc", name, IDENTIFIER, move |_| unknown(fid::VERSION | 1 << bit));
    }
    for (name, function) in [
        ("VERSION", fid::VERSION),
        ("FEATURES", fid::FEATURES),
        ("GRANULE_SET", fid::GRANULE_SET),
        ("GRANULE_SET_LIST", fid::GRANULE_SET_LIST),
        ("GRANULE_GET", fid::GRANULE_GET),
        ("STATS", fid::STATS),
    ] {
        let what = format!("{name} is an SMC64 call: its SMC32 form is unknown");
        cases.add("smccc", what, "DEN0028 2.5, docs/abi.md", move |_| unknown(function & !SMC64));
    }
    identifiers(cases);
    architecture(cases);
    cases.add(
        "smccc",
        "a pending interrupt neither cuts a fast call short nor is lost",
        "DEN0028 2.4",
        |_| pending_interrupt(fid::GRANULE_GET),
    );
    cases.add("smccc", "the same of a PSCI call", "DEN0028 2.4", |_| pending_interrupt(PSCI_VERSION));
}

/// How the function identifier is read from x0.
fn identifiers(cases: &mut Cases) {
    cases.add("smccc", "bits 63 to 32 of x0 are ignored in an SMC64 call", "DEN0028 2.5, 3.1", |_| {
        same_with(fid::VERSION, 0xdead_beef << 32)
    });
    cases.add("smccc", "bits 63 to 32 of x0 are ignored in an SMC32 call", "DEN0028 2.5, 3.1", |_| {
        same_with(PSCI_VERSION, u64::MAX << 32)
    });
    for (name, function) in [
        ("an EL3 call", fid::VERSION),
        ("a PSCI call", PSCI_VERSION),
        ("SMCCC_VERSION", SMCCC_VERSION),
        ("FFA_ID_GET", u32::from(Function::IdGet)),
        ("FFA_SPM_ID_GET", u32::from(Function::SpmIdGet)),
    ] {
        let what = format!("{name} answers the same with the SVE hint bit");
        cases.add("smccc", what, SVE_HINT, move |_| same_with(function, HINT.into()));
    }
    cases.add(
        "smccc",
        "FFA_FEATURES, by the SPMC, answers the same with the SVE hint bit",
        SVE_HINT,
        |bench| {
            let ffa = &mut bench.system()?.ffa;
            let function = u32::from(Function::Features);
            let mut ask = |x0: u32| {
                let lend = u64::from(u32::from(Function::MemLend32));
                ffa.conduit().call(flexserve_client::registers(x0, &[lend]))
            };
            let (plain, hinted) = (ask(function), ask(function | HINT));
            ensure!(plain[..8] == hinted[..8], "{:x?}, with the hint {:x?}", &plain[..8], &hinted[..8]);
            Ok(())
        },
    );
    cases.add("smccc", "an unknown call with the SVE hint bit answers -1", SVE_HINT, |_| {
        unknown(0xc300_00ee | HINT)
    });
}

/// The Arm architecture's own calls.
fn architecture(cases: &mut Cases) {
    cases.add("smccc", "SMCCC_VERSION is at least 1.1", "DEN0028 7.2", |_| {
        let version = call(SMCCC_VERSION, &[])[0];
        ensure!((0x1_0001..1 << 31).contains(&version), "{version:#x}");
        Ok(())
    });
    for (what, function, known) in [
        ("knows itself", SMCCC_ARCH_FEATURES, true),
        ("knows SMCCC_VERSION", SMCCC_VERSION, true),
        ("does not know an undefined call", 0x8000_7ff0, false),
        ("does not know another owner's call", PSCI_VERSION, false),
    ] {
        cases.add("smccc", format!("SMCCC_ARCH_FEATURES {what}"), "DEN0028 7.3", move |_| {
            let answer = call(SMCCC_ARCH_FEATURES, &[function.into()])[0] as u32 as i32;
            ensure!((answer >= 0) == known, "it answers {answer}");
            Ok(())
        });
    }
}

/// Checks that nobody knows a call: w0 of an SMC32 call, x0 of an SMC64 one is -1, or FF-A's way to say so.
fn unknown(function: u32) -> Verdict {
    let answer = call(function, &[1, 2, 3]);
    let refused = if function & SMC64 == 0 { answer[0] as u32 == u32::MAX } else { answer[0] == u64::MAX };
    ensure!(refused, "{function:#x} answers {:#x}", answer[0]);
    Ok(())
}

/// Checks that other bits of x0 change nothing of an answer.
fn same_with(function: u32, bits: u64) -> Verdict {
    let mut registers = flexserve_client::registers(function, &[]);
    let plain = Smc.call(registers);
    registers[0] |= bits;
    let marked = observe::raw(&registers);
    ensure!(plain[..4] == marked[..4], "{:x?}, marked {:x?}", &plain[..4], &marked[..4]);
    ensure!(plain[0] as u32 != u32::MAX, "{function:#x} is unknown");
    Ok(())
}

/// Makes a call while the timer's interrupt is pending.
fn pending_interrupt(function: u32) -> Verdict {
    gic::acknowledge();
    timer::arm(0);
    let asked = timer::now_ns();
    while timer::now_ns() < asked + 1000 {
        core::hint::spin_loop();
    }
    let own = flexserve_platform::LENDABLE[0].base;
    let answer = call(function, &[own]);
    let fired = gic::acknowledge();
    timer::disarm();
    ensure!(status(&answer) >= 0, "the call answers {:#x}", answer[0]);
    ensure!(fired, "the interrupt was not pending afterwards");
    Ok(())
}
