//! The loop of every core: a call of the normal world, the partition's run that it may need, the answer.

use super::{
    boot::{Partitions, STATE, isa_features},
    context::Exit,
    layout::CORES,
    registers::smc,
    simd::Area,
};
use arm_ffa::{FfaError, FuncId};
use core::cell::UnsafeCell;
use flexserve_spmc::{
    partition::{Entry, Phase, Step},
    registers::{Registers, Reply, function, halves},
};

/// Each core's place for the normal world's SIMD registers.
struct Outside([UnsafeCell<Area>; CORES]);

// SAFETY: each core uses its own.
unsafe impl Sync for Outside {}

static OUTSIDE: Outside = Outside([const { UnsafeCell::new(Area::ZERO) }; CORES]);

/// Tells the SPMD that this core is ready, and serves it for ever.
pub fn normal_world(core: usize) -> ! {
    let mut answer = [0; 18];
    answer[0] = u32::from(FuncId::MsgWait32).into();
    loop {
        let call = smc(answer);
        let step = STATE.lock().as_mut().map(|spmc| spmc.normal_call(&call));
        if let Some(Step::Reply(reply)) = &step {
            note(&call, &reply.over(&call));
        }
        let reply = step.map_or(Reply::error(FfaError::NotSupported), |step| finish(core, step));
        answer = reply.over(&call);
    }
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
    // SAFETY: the state machine lets one core run a partition at a time, and each core has its own area.
    let (context, outside) = unsafe { (&mut *Partitions::context(index), &mut *OUTSIDE.0[core].get()) };
    let (start, ttbr0) = Partitions::place(index);
    match entry {
        Entry::Start => context.start(start, isa_features()),
        Entry::Answer(registers) => context.answer(&registers),
        Entry::Resume => {}
    }
    context.run(ttbr0, outside, |exit| match serve(index, exit) {
        Step::Run(same, Entry::Answer(registers)) if same == index => Ok(registers),
        step => Err(step),
    })
}

/// What follows from a partition's exit.
fn serve(index: usize, exit: Exit) -> Step {
    let mut state = STATE.lock();
    let Some(spmc) = state.as_mut() else { return Step::Ready };
    match exit {
        Exit::Call(registers) => called(spmc, index, &registers),
        Exit::Interrupt => spmc.interrupted(index),
        Exit::Fault { esr, far, pc } => {
            defmt::warn!(
                "partition {=u16:#06x} aborted: esr={=u64:#018x} far={=u64:#018x} elr={=u64:#018x}",
                spmc.partition(index).id,
                esr,
                far,
                pc
            );
            spmc.aborted(index)
        }
    }
}

fn called(spmc: &mut super::boot::Manager, index: usize, registers: &Registers) -> Step {
    let id = spmc.partition(index).id;
    let step = spmc.partition_call(index, registers);
    if matches!(spmc.partition(index).phase, Phase::Aborted) {
        defmt::warn!("partition {=u16:#06x} gave up", id);
    }
    step
}
