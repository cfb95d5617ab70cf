//! Faults: how an access that EL3's mechanism stops ends, and that it is counted.

use alloc::format;
use core::arch::asm;

use flexserve_abi::{
    el3::{Counter, fid},
    probe::RealmOp,
};
use flexserve_normal_runtime::{
    cores,
    exceptions::{self, level},
};
use flexserve_platform::SPMC;

use super::ownership::while_lent;
use crate::{
    bench::{Bench, GRANULE, call, other_core},
    suite::{Cases, Failure, Verdict, ensure},
    taken::{Access, Origin, Taken},
};

const COUNTED: &str = "docs/abi.md, STATS";
const ABORT: &str = "DDI 0487 D1.4.5.3, J1.1.2 TakeException";

/// ESR_ELx: the classes of an instruction and a data abort, from a lower level; of a 32-bit instruction; by a write.
const INSTRUCTION_ABORT: u64 = 0x20 << 26;
const DATA_ABORT: u64 = 0x24 << 26;
const SAME_LEVEL: u64 = 1 << 26;
const LENGTH: u64 = 1 << 25;
const WRITE: u64 = 1 << 6;

/// PSTATE: flags, TCO, UAO, PAN, SSBS, as far as the CPU has them; interrupts (I, F) are masked, D and A are not. Not DIT, which an
/// exception keeps and QEMU 10 clears.
const BUSY: u64 = 0xf << 28 | 1 << 25 | 1 << 23 | 1 << 22 | 1 << 12 | QUIET;
const QUIET: u64 = 0b0011 << 6;
/// SPSR_ELx.BTYPE, which tells how a branch was made.
const BRANCH_TYPE: u64 = 0b11 << 10;
const EL0: u64 = 0b0000;
const EL1T: u64 = 0b0100;
const EL1H: u64 = 0b0101;
/// HCR_EL2: a host's EL2 (E2H, RW), with EL1 for a guest; its granule protection faults are EL2's (GPF).
const GUEST: u64 = 1 << 34 | 1 << 31;
const GPF: u64 = 1 << 48;

const DATA: [Access; 3] = [Access::Read, Access::Write, Access::Branch];

/// Who tries. Below this level are its applications, and guests if it is EL2.
fn origins() -> [Origin; 7] {
    let here = level() << 2;
    [
        Origin { name: "this level", state: here | 1 | BUSY, guest: 0 },
        Origin { name: "this level on EL0's stack", state: here | QUIET, guest: 0 },
        Origin { name: "EL0", state: EL0 | BUSY, guest: 0 },
        Origin { name: "a guest's EL1", state: EL1H | BUSY, guest: GUEST },
        Origin { name: "a guest's EL1 on EL0's stack", state: EL1T | QUIET, guest: GUEST },
        Origin { name: "a guest's EL0", state: EL0 | QUIET, guest: GUEST },
        Origin { name: "a guest's EL1 whose faults are EL2's", state: EL1H | BUSY, guest: GUEST | GPF },
    ]
}

pub fn cases(cases: &mut Cases) {
    for origin in origins() {
        // EL0 has no access to this program's data, but may execute.
        let accesses: &[Access] = if is_el0(&origin) { &[Access::Fetch] } else { &DATA };
        for &access in accesses {
            let (what, who) = (format!("{access:?} of a lent page"), origin.name);
            let name = format!("{what} by {who} ends as the abort that it is, and counts once");
            cases.add("faults", name, ABORT, move |bench| tried(bench, &origin, access));
        }
    }
    cases.add(
        "faults",
        "a walk through a lent page ends as the abort that it is, and counts once",
        ABORT,
        walked,
    );
    cases.add("faults", "each access of another core counts once", COUNTED, |bench| {
        let core = other_core()?;
        while_lent(bench, |bench, page| counts(3, || bench.expect_closed(core, page)))
    });
    cases.add("faults", "faults count on a core that was turned off and on", COUNTED, |bench| {
        let core = other_core()?;
        cores::turn_off(core)?;
        cores::turn_on(core, cores::entry(), cores::stack_top(core))?;
        while_lent(bench, |bench, page| counts(3, || bench.expect_closed(core, page)))
    });
    cases.add("faults", "faults count on a core that was lent and came back", COUNTED, |bench| {
        let core = other_core()?;
        cores::lend(core)?;
        cores::take_back(core)?;
        while_lent(bench, |bench, page| counts(3, || bench.expect_closed(core, page)))
    });
    cases.add("faults", "a read of the SPMC's memory counts once", COUNTED, |_| {
        counts(1, || {
            ensure!(exceptions::read(SPMC.base).is_err(), "it goes through");
            Ok(())
        })
    });
    for op in [RealmOp::Read, RealmOp::Write, RealmOp::Execute] {
        cases.add(
            "faults",
            format!("{op:?} of a lent page by the Realm world counts once"),
            COUNTED,
            move |bench| while_lent(bench, |bench, page| counts(1, || bench.realm(op, &[page]).map(drop))),
        );
    }
    cases.add("faults", "what EL3 does not stop does not count", COUNTED, |bench| {
        let page = bench.patterned(1)?[0];
        counts(0, || {
            ensure!(exceptions::read(page).is_ok(), "a read of an own page faults");
            ensure!(exceptions::read(UNMAPPED).is_err(), "a read of an unmapped address goes through");
            while_lent(bench, |_, _| Ok(()))
        })
    });
}

/// Not mapped by this program, but in reach of its tables.
const UNMAPPED: u64 = 0x7f_0000_0000;

/// Checks that `f` adds a number to the faults that EL3 has counted.
fn counts(expected: u64, f: impl FnOnce() -> Verdict) -> Verdict {
    let faults = || call(fid::STATS, &[Counter::Faults as u64])[1];
    let before = faults();
    f()?;
    let after = faults();
    ensure!(after == before + expected, "{before}, then {after}");
    Ok(())
}

/// Status of an abort that EL3's mechanism makes, and of one on a walk of stage 1 at level 1.
fn statuses(bench: &Bench) -> (u64, u64) {
    // Granule protection fault: the walk's level is told. External abort: stage 2 cannot know it.
    if bench.backend() == 1 { (0b10_1000, 0b10_0101) } else { (0b01_0000, 0b01_0111) }
}

/// The syndrome of an abort.
fn syndrome(access: Access, same_level: bool, status: u64) -> u64 {
    let class = match access {
        Access::Read => DATA_ABORT,
        Access::Write => DATA_ABORT | WRITE,
        Access::Branch | Access::Fetch => INSTRUCTION_ABORT,
    };
    class | if same_level { SAME_LEVEL } else { 0 } | LENGTH | status
}

fn is_el0(origin: &Origin) -> bool {
    origin.state & 0b1100 == 0
}

/// HCR_EL2 says that EL2 takes the origin's faults.
fn is_taken_by_el2(origin: &Origin) -> bool {
    origin.guest & GPF != 0
}

fn tried(bench: &mut Bench, origin: &Origin, access: Access) -> Verdict {
    if origin.guest != 0 && level() != 2 {
        return Err(Failure::Missing("no guests: this program is not at EL2".into()));
    }
    let (status, _) = statuses(bench);
    let same_level = !is_el0(origin) && !is_taken_by_el2(origin);
    while_lent(bench, |_, page| {
        counts(1, || {
            // SAFETY: the page is lent: the access faults.
            let taken = unsafe { origin.access(access, page) };
            arrives(taken, syndrome(access, same_level, status), access, page)?;
            as_a_call(origin, taken)
        })
    })
}

/// Checks syndrome and addresses.
fn arrives(taken: Taken, syndrome: u64, access: Access, address: u64) -> Verdict {
    ensure!(taken.syndrome == syndrome, "{taken:x?}, instead of syndrome {syndrome:#x}");
    ensure!(
        taken.address & !(GRANULE - 1) == address & !(GRANULE - 1),
        "{taken:x?}, instead of {address:#x}"
    );
    let instruction = match access {
        Access::Branch | Access::Fetch => address,
        Access::Read | Access::Write => access.instruction().unwrap_or(address),
    };
    ensure!(taken.return_address == instruction, "{taken:x?}, instead of ELR {instruction:#x}");
    Ok(())
}

/// Checks that an exception arrives in the same state as a call, which goes to the same level without EL3.
fn as_a_call(origin: &Origin, taken: Taken) -> Verdict {
    let called = origin.call(is_taken_by_el2(origin));
    let told = |taken: Taken| (taken.saved_state & !BRANCH_TYPE, taken.vector, taken.state);
    ensure!(told(taken) == told(called), "{taken:x?}, by {}, but a call {called:x?}", origin.name);
    Ok(())
}

/// The table at the root of the upper half of this program's addresses lies in a lent page.
///
/// (QEMU 10.0 ends with a failed assertion if a walk meets such a page at level 2 or 3, whoever takes the fault.)
fn walked(bench: &mut Bench) -> Verdict {
    /// With a size as that of the lower half, the first address of the upper one.
    const UPPER: u64 = u64::MAX << 39;
    /// TCR_EL1: walk for it (EPD1), with these attributes of walks and this granule (T1SZ to TG1).
    const NO_WALK: u64 = 1 << 23;
    const LIKE_LOWER: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
    let (_, status) = statuses(bench);
    let origin = Origin { name: "this level", state: BUSY | 1 | level() << 2, guest: 0 };
    let old: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, tcr_el1", out(reg) old, options(nomem, nostack, preserves_flags)) };
    let set = |tcr: u64, root: u64| {
        // SAFETY: nothing of this program lies in the upper half.
        unsafe {
            asm!("msr ttbr1_el1, {root}", "msr tcr_el1, {tcr}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
                root = in(reg) root, tcr = in(reg) tcr, options(nostack, preserves_flags));
        }
    };
    while_lent(bench, |_, page| {
        set(old & !NO_WALK & !(0xffff << 16) | LIKE_LOWER, page);
        let verdict = counts(3, || {
            for access in DATA {
                // SAFETY: the walk faults.
                let taken = unsafe { origin.access(access, UPPER) };
                arrives(taken, syndrome(access, true, status), access, UPPER)?;
                as_a_call(&origin, taken)?;
            }
            Ok(())
        });
        set(old, 0);
        verdict
    })
}
