//! Cores that work for the secure world.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};
use core::{
    arch::{asm, global_asm},
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use flexserve_abi::el3::{CoreState, Status, fid};
use flexserve_client::{Conduit, el3, registers};
use flexserve_platform::{EL3, LENDABLE, LLM_PARTITION, SECURE_UART_BASE, SPMC};

use super::{
    Bench, ensure,
    inference::{CALM, HECTIC, answer, is_calm, question},
};
use crate::{
    cores::{self, OFF, ON},
    gic, prompt,
    system::Smc,
    timer,
};

/// PSCI (Arm DEN0022): `CPU_ON`, and its answer for a core that is on.
const CPU_ON: u32 = 0xc400_0003;
const ALREADY_ON: u64 = -4_i32 as u32 as u64;
/// Longest that a core may take to come back while it computes: an emulator's threads may not run for a while.
const PATIENCE_NS: u64 = 10_000_000_000;

fn call(function: u32, arguments: &[u64]) -> u64 {
    Smc.call(registers(function, arguments))[0]
}

fn lend(core: u64, entry: u64) -> Option<Status> {
    el3::lend_core(&mut Smc, core, entry, 0)
}

fn needs(count: usize) -> Result<(), String> {
    ensure!(cores::count() >= count, "this test needs {count} cores: --smp {count}");
    Ok(())
}

/// A core that is lent comes back, as often as one likes, and takes tasks as before.
pub fn a_core_goes_and_comes_back(_: &mut Bench) -> Result<(), String> {
    needs(2)?;
    for _ in 0..3 {
        cores::lend(1)?;
        let state = el3::core_state(&mut Smc, 1);
        ensure!(state == Ok(CoreState::Lent), "a lent core is {state:?}");
        cores::take_back(1)?;
        let state = el3::core_state(&mut Smc, 1);
        ensure!(state == Ok(CoreState::Owned), "a core that is back is {state:?}");
        let ran_on = cores::run(1, cores::current)?;
        ensure!(ran_on == 1, "its task ran on core {ran_on}");
    }
    Ok(())
}

/// What PSCI and EL3 say of core 1. What would change it if it were not refused is asked too, unless it is off.
fn agree(when: &str, state: CoreState, info: i64, lend_status: Option<Status>) -> Result<(), String> {
    let found = el3::core_state(&mut Smc, 1);
    ensure!(found == Ok(state), "{when}, CORE_STATE is {found:?}");
    let found = cores::affinity_info(1);
    ensure!(found == info, "{when}, AFFINITY_INFO is {found}");
    if let Some(status) = lend_status {
        let found = lend(1, cores::entry());
        ensure!(found == Some(status), "{when}, CORE_LEND is {found:?}");
        let found = call(CPU_ON, &[1, cores::entry(), cores::stack_top(1)]) & 0xffff_ffff;
        ensure!(found == ALREADY_ON, "{when}, CPU_ON is {found:#x}");
    }
    if state != CoreState::Lent {
        let found = el3::recall_core(&mut Smc, 1);
        ensure!(found == Some(Status::Denied), "{when}, CORE_RECALL is {found:?}");
    }
    Ok(())
}

/// `CPU_ON`, `AFFINITY_INFO` and `CORE_*` agree on a core that is on, off, lent, and back.
pub fn psci_and_el3_agree(_: &mut Bench) -> Result<(), String> {
    needs(2)?;
    agree("on", CoreState::Owned, ON, Some(Status::Denied))?;
    cores::turn_off(1)?;
    agree("off", CoreState::Owned, OFF, None)?;
    cores::lend_to_start_at(1, cores::entry(), cores::stack_top(1))?;
    agree("lent", CoreState::Lent, ON, Some(Status::Denied))?;
    cores::take_back(1)?;
    agree("back", CoreState::Owned, ON, Some(Status::Denied))?;
    cores::turn_off(1)?;
    agree("off again", CoreState::Owned, OFF, None)?;
    cores::turn_on(1, cores::entry(), cores::stack_top(1))?;
    agree("on again", CoreState::Owned, ON, Some(Status::Denied))
}

/// Cores that do not exist or are on, and entry points that are not the normal world's, are refused; nothing changes.
pub fn bad_lends_are_refused(bench: &mut Bench) -> Result<(), String> {
    needs(2)?;
    let own = lend(0, cores::entry());
    ensure!(own == Some(Status::Denied), "lending the own core is {own:?}");
    let absent = cores::count() as u64;
    for core in [absent, 0x100, 0x1_0000, 1 << 31, 1 | 1 << 31, 1 << 32, 1 << 40 | 1, u64::MAX] {
        let answers = [lend(core, cores::entry()), el3::recall_core(&mut Smc, core)];
        ensure!(answers == [Some(Status::InvalidParameters); 2], "core {core:#x}: {answers:?}");
        let state = el3::core_state(&mut Smc, core);
        ensure!(state == Err(Some(Status::InvalidParameters)), "core {core:#x} is {state:?}");
    }
    cores::turn_off(1)?;
    let partition = bench.system.llm_partition()?;
    let pages = bench.system.pages.allocate(1).map_err(|e| format!("{e}"))?;
    let lent = bench.system.lend(partition, pages).map_err(|e| format!("lending a page: {e}"))?;
    let hostile = [
        ("not a multiple of 4", cores::entry() + 2),
        ("odd", cores::entry() + 1),
        ("zero", 0),
        ("no address", !3),
        ("EL3's", EL3.base),
        ("the SPMC's", SPMC.base),
        ("the partition's", LLM_PARTITION.base + 0x4000),
        ("a device", SECURE_UART_BASE),
        ("below the bank", LENDABLE[0].base - 4),
        ("behind the bank", LENDABLE[0].end()),
        ("lent", lent.pages[0]),
        ("in a lent granule", lent.pages[0] + 0xffc),
    ];
    let refused = hostile.iter().try_for_each(|(what, entry)| {
        let answer = lend(1, *entry);
        ensure!(answer == Some(Status::InvalidParameters), "an entry that is {what}: {answer:?}");
        agree(what, CoreState::Owned, OFF, None)
    });
    cores::turn_on(1, cores::entry(), cores::stack_top(1))?;
    bench.system.reclaim(&lent).map_err(|e| format!("reclaiming: {e}"))?;
    refused?;
    // Handing a core back is the SPMC's alone.
    let status = Status::from_code(call(fid::CORE_RETURN, &[]));
    ensure!(status == Some(Status::NotSupported), "CORE_RETURN of the normal world is {status:?}");
    Ok(())
}

/// All cores but the last are lent at once; the last stays. An interrupt that this world sends to a lent core waits until it is back.
pub fn all_but_the_last_are_lent(_: &mut Bench) -> Result<(), String> {
    needs(2)?;
    let others = 1..cores::count();
    others.clone().try_for_each(cores::lend)?;
    let last = lend(0, cores::entry());
    let rung = interrupt(others.clone());
    others.clone().try_for_each(cores::take_back)?;
    ensure!(last == Some(Status::Denied), "lending the last core is {last:?}");
    for (core, before) in rung? {
        takes_its_interrupt(core, before)?;
        let ran_on = cores::run(core, cores::current)?;
        ensure!(ran_on == core, "the task of core {core} ran on {ran_on}");
    }
    Ok(())
}

/// Sends an interrupt to each of these lent cores, and answers how many it had taken before. None takes it, or is not lent any more.
fn interrupt(lent: Range<usize>) -> Result<Vec<(usize, u64)>, String> {
    let taken: Vec<_> = lent.map(|core| (core, gic::rung(core))).collect();
    taken.iter().for_each(|&(core, _)| gic::ring(core));
    still_lent(&taken)?;
    Ok(taken)
}

fn still_lent(taken: &[(usize, u64)]) -> Result<(), String> {
    for &(core, before) in taken {
        let state = el3::core_state(&mut Smc, core as u64);
        ensure!(state == Ok(CoreState::Lent), "core {core} has an interrupt pending and is {state:?}");
        ensure!(gic::rung(core) == before, "core {core} took an interrupt of this world while it was lent");
    }
    Ok(())
}

/// A core that is back takes the interrupt that was sent to it, once.
fn takes_its_interrupt(core: usize, before: u64) -> Result<(), String> {
    let asked = timer::now_ns();
    while gic::rung(core) == before {
        ensure!(timer::now_ns() - asked < PATIENCE_NS, "core {core} is back, and never took its interrupt");
        core::hint::spin_loop();
    }
    ensure!(
        gic::rung(core) == before + 1,
        "core {core} took its interrupt {} times",
        gic::rung(core) - before
    );
    Ok(())
}

/// Lent cores that have an interrupt of this world pending work on: the answer, of which each computes a part, is the same.
pub fn interrupts_do_not_disturb_workers(bench: &mut Bench) -> Result<(), String> {
    needs(2)?;
    bench.load()?;
    let others = 1..cores::count();
    others.clone().try_for_each(cores::lend)?;
    let rung = interrupt(others.clone());
    let figures = answer(bench, CALM);
    let lent = rung.as_ref().map_or(Ok(()), |rung| still_lent(rung));
    others.clone().try_for_each(cores::take_back)?;
    lent?;
    rung?.into_iter().try_for_each(|(core, before)| takes_its_interrupt(core, before))?;
    is_calm(bench, &figures?)
}

/// Lends a core, lets it work for a while, and takes it back.
fn toggle(core: usize, rounds: &AtomicU64, longest_ns: &AtomicU64) -> Result<(), String> {
    const WORK_NS: u64 = 2_000_000;
    cores::lend(core)?;
    let lent = timer::now_ns();
    while timer::now_ns() - lent < WORK_NS {
        core::hint::spin_loop();
    }
    let asked = timer::now_ns();
    cores::take_back(core)?;
    longest_ns.fetch_max(timer::now_ns() - asked, Ordering::Relaxed);
    rounds.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// Cores come and go while the partition computes, and it is preempted all the time: the answer is the same, the cores are back
/// in time.
pub fn recalls_do_not_change_the_answer(bench: &mut Bench) -> Result<(), String> {
    needs(3)?;
    // Core 1 recalls the others, while core 0 runs the partition.
    let stop = Arc::new(AtomicBool::new(false));
    let (rounds, longest_ns) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let failure = Arc::new(spin::Mutex::new(None));
    bench.load()?;
    for mode in [CALM, HECTIC] {
        stop.store(false, Ordering::Release);
        let (its_stop, its_rounds, its_longest) = (stop.clone(), rounds.clone(), longest_ns.clone());
        let its_failure = failure.clone();
        cores::begin(
            1,
            Box::new(move || {
                for core in (2..cores::count()).cycle() {
                    let outcome = toggle(core, &its_rounds, &its_longest);
                    if let Err(error) = outcome {
                        *its_failure.lock() = Some(error);
                    }
                    if its_stop.load(Ordering::Acquire) {
                        return;
                    }
                }
            }),
        )?;
        let figures = answer(bench, mode);
        stop.store(true, Ordering::Release);
        cores::wait(1);
        if let Some(error) = failure.lock().take() {
            return Err(error);
        }
        is_calm(bench, &figures?)?;
    }
    let rounds = rounds.load(Ordering::Relaxed);
    ensure!(rounds >= 4, "only {rounds} recalls took place");
    let longest_ns = longest_ns.load(Ordering::Relaxed);
    ensure!(longest_ns < PATIENCE_NS, "a recall took {longest_ns} ns");
    Ok(())
}

/// A core is recalled in the middle of a part: the main context is preempted, its workers are not. The answer is the same.
pub fn a_preempted_partition_loses_its_workers(bench: &mut Bench) -> Result<(), String> {
    needs(2)?;
    let (system, session, ring) = bench.load()?;
    let others = 1..cores::count();
    others.clone().try_for_each(cores::lend)?;
    let taken = prompt::answer(system, session, ring, &question(), HECTIC, |_, _| {
        others.clone().try_for_each(cores::take_back)
    });
    let figures = taken?;
    is_calm(bench, &figures)
}

global_asm!(include_str!("clean_start.S"));

unsafe extern "C" {
    fn clean_start();
}

/// Bytes of 32 vectors and 16 predicates of SVE at their longest.
const VECTOR_BYTES: usize = 32 * 256 + 16 * 32;

/// What `clean_start` finds. It is written with the MMU off.
#[repr(C, align(4096))]
struct Found {
    stack: u64,
    entry: u64,
    context: u64,
    level: u64,
    masks: u64,
    fpcr: u64,
    fpsr: u64,
    sve: u64,
    vectors: [u8; VECTOR_BYTES],
}

impl Found {
    /// Makes memory and caches agree.
    fn flush(&self) {
        for line in (core::ptr::from_ref(self) as usize..).step_by(16).take(size_of::<Self>() / 16) {
            // SAFETY: cache maintenance of this object's memory.
            unsafe { asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags)) };
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy", options(nostack, preserves_flags)) };
    }
}

/// A recalled core starts at its entry with its context, masked, at this world's level, and every vector and predicate register is
/// zero, whatever it has computed.
pub fn a_recalled_core_starts_clean(bench: &mut Bench) -> Result<(), String> {
    needs(2)?;
    bench.load()?;
    let found = Box::leak(Box::new(Found {
        stack: cores::stack_top(1),
        entry: cores::entry(),
        context: 0,
        level: 0,
        masks: 0,
        fpcr: u64::MAX,
        fpsr: u64::MAX,
        sve: 0,
        vectors: [0xa5; VECTOR_BYTES],
    }));
    found.flush();
    cores::turn_off(1)?;
    let context = core::ptr::from_ref(found) as u64;
    cores::lend_to_start_at(1, clean_start as *const () as u64, context)?;
    let figures = answer(bench, CALM);
    cores::take_back(1)?;
    is_calm(bench, &figures?)?;
    found.flush();
    // SAFETY: the core wrote it behind the compiler's back, and does not any more.
    let found = unsafe { core::ptr::from_ref(found).read_volatile() };
    ensure!(found.context == context, "x0 is {:#x}", found.context);
    let level = crate::exceptions::level();
    ensure!(found.level >> 2 == level, "it starts at EL{}", found.level >> 2);
    ensure!(found.masks == 0xf << 6, "its masks are {:#x}", found.masks);
    ensure!(found.fpcr == 0 && found.fpsr == 0, "FPCR and FPSR are {:#x}, {:#x}", found.fpcr, found.fpsr);
    let written = found.vectors.iter().filter(|&&byte| byte != 0xa5).count();
    ensure!(written >= 32 * 16, "only {written} bytes of vectors were seen");
    let dirty = found.vectors.iter().position(|&byte| byte != 0 && byte != 0xa5);
    ensure!(dirty.is_none(), "a vector register holds {dirty:?}");
    Ok(())
}
