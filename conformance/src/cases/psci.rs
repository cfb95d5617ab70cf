//! Power: PSCI as far as every port needs it (Arm DEN0022).

use alloc::{format, string::String};
use core::arch::{asm, global_asm};

use flexserve_abi::el3::AFFINITY;
use flexserve_normal_runtime::cores;
use flexserve_platform::PAYLOAD_BASE;

use crate::{
    bench::{call, other_core},
    suite::{Cases, Failure, Verdict, ensure},
};

const VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0xc400_0001;
const CPU_OFF: u32 = 0x8400_0002;
pub const CPU_ON: u32 = 0xc400_0003;
const CPU_ON_32: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0xc400_0004;
const AFFINITY_INFO_32: u32 = 0x8400_0004;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const FEATURES: u32 = 0x8400_000a;
const SMCCC_VERSION: u32 = 0x8000_0000;

const INVALID_PARAMETERS: i32 = -2;
pub const ALREADY_ON: i32 = -4;
const NOT_SUPPORTED: i32 = -1;
/// `AFFINITY_INFO`'s answers.
const ON: i32 = 0;

/// No core has this affinity level 3.
pub const NO_CORE: u64 = 0xff_0000_0000;

fn answer(function: u32, arguments: &[u64]) -> i32 {
    call(function, arguments)[0] as u32 as i32
}

/// A table: what must hold, where it is written, the call, its arguments, and the one answer.
const TABLE: &[(&str, &str, u32, &[u64], i32)] = &[
    (
        "CPU_ON of a core that does not exist is INVALID_PARAMETERS",
        "DEN0022 5.4",
        CPU_ON,
        &[NO_CORE, PAYLOAD_BASE, 0],
        INVALID_PARAMETERS,
    ),
    (
        "the SMC32 form of CPU_ON checks its core alike",
        "DEN0022 5.4",
        CPU_ON_32,
        &[0x00ff_ff00, PAYLOAD_BASE, 0],
        INVALID_PARAMETERS,
    ),
    (
        "AFFINITY_INFO of a core that does not exist is INVALID_PARAMETERS",
        "DEN0022 5.7",
        AFFINITY_INFO,
        &[NO_CORE, 0],
        INVALID_PARAMETERS,
    ),
    (
        "AFFINITY_INFO of affinity level 4 is INVALID_PARAMETERS",
        "DEN0022 5.7",
        AFFINITY_INFO,
        &[0, 4],
        INVALID_PARAMETERS,
    ),
    (
        "PSCI_FEATURES does not know an undefined call",
        "DEN0022 5.15",
        FEATURES,
        &[0x8400_001f],
        NOT_SUPPORTED,
    ),
    (
        "PSCI_FEATURES does not know another owner's call",
        "DEN0022 5.15",
        FEATURES,
        &[0xc300_0000],
        NOT_SUPPORTED,
    ),
    (
        "CPU_SUSPEND to a state that does not exist is INVALID_PARAMETERS",
        "DEN0022 5.1",
        CPU_SUSPEND,
        &[0x00ff_ff33, PAYLOAD_BASE, 0],
        INVALID_PARAMETERS,
    ),
];

pub fn cases(cases: &mut Cases) {
    cases.add("psci", "VERSION is at least 1.0", "DEN0022 5.3", |_| {
        let version = answer(VERSION, &[]);
        ensure!(version >= 1 << 16, "{version:#x}");
        Ok(())
    });
    for (name, function) in [
        ("PSCI_VERSION", VERSION),
        ("CPU_SUSPEND", CPU_SUSPEND),
        ("CPU_OFF", CPU_OFF),
        ("CPU_ON", CPU_ON),
        ("AFFINITY_INFO", AFFINITY_INFO),
        ("SYSTEM_OFF", SYSTEM_OFF),
        ("SYSTEM_RESET", SYSTEM_RESET),
        ("PSCI_FEATURES", FEATURES),
        ("SMCCC_VERSION", SMCCC_VERSION),
    ] {
        let what = format!("PSCI_FEATURES says that {name} is there");
        cases.add("psci", what, "DEN0022 5.15, 6.5", move |_| {
            let found = answer(FEATURES, &[function.into()]);
            ensure!(found >= 0, "it answers {found}");
            Ok(())
        });
    }
    for (name, rule, function, expected) in [
        ("CPU_ON of the core that calls is ALREADY_ON", "DEN0022 5.4", CPU_ON, ALREADY_ON),
        ("AFFINITY_INFO of the core that calls is ON", "DEN0022 5.7", AFFINITY_INFO, ON),
        ("AFFINITY_INFO by its SMC32 form is ON", "DEN0022 5.7", AFFINITY_INFO_32, ON),
    ] {
        cases.add("psci", name, rule, move |_| {
            let entry = if function == CPU_ON { cores::entry() } else { 0 };
            let found = answer(function, &[cores::mpidr(0), entry, 0]);
            ensure!(found == expected, "it answers {found}");
            Ok(())
        });
    }
    for &(name, rule, function, arguments, expected) in TABLE {
        cases.add("psci", name, rule, move |_| {
            let found = answer(function, arguments);
            ensure!(found == expected, "it answers {found}");
            Ok(())
        });
    }
    cases.add("psci", "CPU_ON of another core that runs is ALREADY_ON", "DEN0022 5.4", |_| {
        let found = answer(CPU_ON, &[cores::mpidr(other_core()?), cores::entry(), 0]);
        ensure!(found == ALREADY_ON, "it answers {found}");
        Ok(())
    });
    cases.add("psci", "AFFINITY_INFO of another core that runs is ON", "DEN0022 5.7", |_| {
        let found = answer(AFFINITY_INFO, &[cores::mpidr(other_core()?), 0]);
        ensure!(found == ON, "it answers {found}");
        Ok(())
    });
    // PSCI promises nothing of SIMD registers: a core that was lent does.
    for (what, check) in STARTED_STATE.into_iter().filter(|(what, _)| !what.contains("SIMD")) {
        cases.add("psci", format!("a core that was off starts with {what}"), "DEN0022 6.4", move |_| {
            check(&restarted()?)
        });
    }
    cases.add("psci", "CPU_OFF turns a core off, and AFFINITY_INFO says so", "DEN0022 5.5, 5.7", |_| {
        let core = other_core()?;
        cores::turn_off(core)?;
        Ok(cores::turn_on(core, cores::entry(), cores::stack_top(core))?)
    });
    cases.add(
        "psci",
        "a second CPU_ON of a core that was just turned on is refused",
        "DEN0022 5.4, 6.6",
        |_| {
            let core = other_core()?;
            cores::turn_off(core)?;
            cores::turn_on(core, cores::entry(), cores::stack_top(core))?;
            let again = answer(CPU_ON, &[cores::mpidr(core), cores::entry(), cores::stack_top(core)]);
            ensure!(again == ALREADY_ON, "it answers {again}");
            Ok(())
        },
    );
}

/// What a core finds when it starts, in the order in which `start.S` stores it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Default)]
pub struct Started {
    stack_top: u64,
    go_on: u64,
    context: u64,
    current_el: u64,
    daif: u64,
    sctlr: u64,
    mpidr: u64,
    simd: u64,
}

pub type Check = fn(&Started) -> Verdict;

/// What must hold of it (DEN0022, section 6.4).
pub const STARTED_STATE: [(&str, Check); 6] = [
    ("its context in x0", |started| {
        ensure!(started.context == &raw const RECORD as u64, "x0 = {:#x}", started.context);
        Ok(())
    }),
    ("the exception level of its caller", |started| {
        let own = current_el();
        ensure!(started.current_el == own, "CurrentEL = {:#x}, here {own:#x}", started.current_el);
        Ok(())
    }),
    ("interrupts and errors masked", |started| {
        ensure!(started.daif == 0x3c0, "DAIF = {:#x}", started.daif);
        Ok(())
    }),
    ("MMU and data cache off", |started| {
        ensure!(started.sctlr & 0b101 == 0, "SCTLR = {:#x}", started.sctlr);
        Ok(())
    }),
    ("its SIMD registers zero", |started| {
        ensure!(started.simd == 0, "all of them together hold {:#x}", started.simd);
        Ok(())
    }),
    ("the MPIDR that it was turned on by", |started| {
        ensure!(started.mpidr & AFFINITY == cores::mpidr(1), "MPIDR = {:#x}", started.mpidr);
        Ok(())
    }),
];

static mut RECORD: Started =
    Started { stack_top: 0, go_on: 0, context: 0, current_el: 0, daif: 0, sctlr: 0, mpidr: 0, simd: 0 };

global_asm!(include_str!("start.S"));

unsafe extern "C" {
    fn recorded_start();
}

/// Turns core 1 off and on, by way of code that records what it finds.
fn restarted() -> Result<Started, Failure> {
    let core = other_core()?;
    cores::turn_off(core)?;
    recorded(|entry, context| cores::turn_on(core, entry, context))
}

/// Has core 1 started at an entry point and with a context; answers what it found there.
pub fn recorded(start: impl FnOnce(u64, u64) -> Result<(), String>) -> Result<Started, Failure> {
    let record = &raw mut RECORD;
    let sent = Started { stack_top: cores::stack_top(1), go_on: cores::entry(), ..Started::default() };
    // SAFETY: nobody else uses the record; the core that is off writes it later, past the caches.
    unsafe {
        record.write_volatile(sent);
        asm!("dc civac, {}", "dsb sy", in(reg) record, options(nostack, preserves_flags));
    }
    start(recorded_start as *const () as u64, record as u64)?;
    // SAFETY: as above; the core has gone on.
    unsafe {
        asm!("dc ivac, {}", "dsb sy", in(reg) record, options(nostack, preserves_flags));
        Ok(record.read_volatile())
    }
}

fn current_el() -> u64 {
    let level;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) level, options(nomem, nostack, preserves_flags)) };
    level
}
