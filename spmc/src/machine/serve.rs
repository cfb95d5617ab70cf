//! The loop of every core: a call of the normal world, the partition's run that it may need, the answer.

use super::{
    boot::{Manager, Partitions, STATE, isa_features},
    context::Exit,
    gic,
    layout::CORES,
    lent,
    registers::{cntpct, smc},
    simd::Area,
};
use arm_ffa::{FfaError, FuncId};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU64, Ordering},
};
use flexserve_abi::{
    el3::fid,
    ffa::EndpointId,
    workers::{SIGNAL, WAIT},
};
use flexserve_spmc::{
    partition::{Entry, Phase, Step},
    registers::{Registers, Reply, function, halves},
};

/// Each core's place for the normal world's SIMD registers.
struct Outside([UnsafeCell<Area>; CORES]);

// SAFETY: each core uses its own.
unsafe impl Sync for Outside {}

static OUTSIDE: Outside = Outside([const { UnsafeCell::new(Area::ZERO) }; CORES]);

/// A core's place for the SIMD registers of whoever ran before.
///
/// # Safety
///
/// The calling core is this core, and has no reference to it yet.
pub unsafe fn outside(core: usize) -> &'static mut Area {
    // SAFETY: by the caller.
    unsafe { &mut *OUTSIDE.0[core].get() }
}

/// Tells the SPMD that this core is ready, and serves it for ever.
pub fn normal_world(core: usize) -> ! {
    let mut answer = one(FuncId::MsgWait32.into());
    loop {
        let call = smc(answer);
        answer = if call[0] as u32 == fid::CORE_LEND {
            lent::work(core);
            one(fid::CORE_RETURN)
        } else if function(&call) == Some(FuncId::Interrupt32) {
            // The Secure world's interrupt reached this core in the normal world: it came too late to matter. The SPMD
            // expects this answer (DEN0077A v1.2, section 9).
            gic::acknowledge();
            one(FuncId::NormalWorldResume32.into())
        } else {
            normal_call(core, &call)
        };
    }
}

/// A call without arguments.
fn one(function: u32) -> Registers {
    let mut registers = [0; 18];
    registers[0] = function.into();
    registers
}

/// Ticks of the longest section under the state's lock.
static LONGEST: AtomicU64 = AtomicU64::new(0);

/// Ticks of the longest section under the state's lock so far, waiting for it included.
pub fn longest_section() -> u64 {
    LONGEST.load(Ordering::Relaxed)
}

/// Does something with the manager's state.
fn with_manager<T>(f: impl FnOnce(&mut Manager) -> T) -> Option<T> {
    let start = cntpct();
    let result = STATE.lock().as_mut().map(f);
    LONGEST.fetch_max(cntpct().saturating_sub(start), Ordering::Relaxed);
    result
}

fn normal_call(core: usize, call: &Registers) -> Registers {
    let step = with_manager(|spmc| spmc.normal_call(call));
    if let Some(Step::Reply(reply)) = &step {
        note(call, &reply.over(call));
    }
    step.map_or(Reply::error(FfaError::NotSupported), |step| finish(core, step)).over(call)
}

/// Logs what happened to memory regions.
fn note(call: &Registers, answer: &Registers) {
    if answer[0] as u32 != u32::from(FuncId::Success32) {
        return;
    }
    match function(call) {
        Some(
            FuncId::MemShare32
            | FuncId::MemShare64
            | FuncId::MemLend32
            | FuncId::MemLend64
            | FuncId::MemDonate32
            | FuncId::MemDonate64
            | FuncId::MemFragTx,
        ) => defmt::debug!("region {=u64:#x} has arrived", halves(answer[2], answer[3])),
        Some(FuncId::MemReclaim) => {
            defmt::debug!("region {=u64:#x} is reclaimed", halves(call[1], call[2]));
        }
        _ => {}
    }
}

/// Runs partitions for as long as it takes until there is something to tell the normal world.
pub fn finish(core: usize, mut step: Step) -> Reply {
    loop {
        match step {
            Step::Reply(reply) => return reply,
            Step::Ready => return Reply::short(FuncId::MsgWait32, 0, &[]),
            Step::Run(index, entry) => step = run(core, index, entry),
        }
    }
}

fn run(core: usize, index: usize, entry: Entry) -> Step {
    // SAFETY: the state machine lets one core run a partition's main context at a time, and each core has its own area.
    let (context, outside) = unsafe { (&mut *Partitions::context(index), outside(core)) };
    let place = Partitions::place(index);
    match entry {
        Entry::Start => context.start(place.entry, isa_features()),
        Entry::Answer(registers) => context.answer(&registers),
        Entry::Resume => {}
    }
    context.run(place.ttbr0, outside, |exit| {
        match exit {
            Exit::Call(registers) if registers[0] == WAIT => {
                let answer = lent::wait_in_main(core, registers);
                return may_go_on(index).map(|()| Some(answer));
            }
            Exit::Call(registers) if registers[0] == SIGNAL => return Ok(Some(lent::signal(registers))),
            _ => {}
        }
        match serve(index, exit) {
            Step::Run(same, Entry::Answer(registers)) if same == index => Ok(Some(registers)),
            step => Err(step),
        }
    })
}

/// Whether a partition goes on that has waited for its workers: it does not if one of them has failed.
fn may_go_on(index: usize) -> Result<(), Step> {
    match STATE.lock().as_mut() {
        Some(spmc) if spmc.partition(index).failing => Err(spmc.aborted(index)),
        _ => Ok(()),
    }
}

/// What follows from a partition's exit.
fn serve(index: usize, exit: Exit) -> Step {
    let step = with_manager(|spmc| {
        if spmc.partition(index).failing {
            return spmc.aborted(index);
        }
        match exit {
            Exit::Call(registers) => called(spmc, index, &registers),
            Exit::Interrupt => spmc.interrupted(index),
            Exit::Fault { esr, far, pc } => {
                note_fault(spmc.partition(index).id, esr, far, pc);
                spmc.aborted(index)
            }
        }
    });
    step.unwrap_or(Step::Ready)
}

fn called(spmc: &mut Manager, index: usize, registers: &Registers) -> Step {
    let id = spmc.partition(index).id;
    let step = spmc.partition_call(index, registers);
    if matches!(spmc.partition(index).phase, Phase::Aborted) {
        defmt::warn!("partition {=u16:#06x} gave up", id);
    }
    step
}

/// Logs why a partition is about to end.
pub fn note_fault(partition: EndpointId, esr: u64, far: u64, pc: u64) {
    defmt::warn!(
        "partition {=u16:#06x} aborted: esr={=u64:#018x} far={=u64:#018x} elr={=u64:#018x}",
        partition,
        esr,
        far,
        pc
    );
}
