//! Cores that the normal world has lent: each runs a worker of the partition that takes workers, until it is recalled.
//!
//! Nothing of this takes the lock of the manager's state while a worker is registered as running: who holds that lock may
//! be waiting for the worker's end.

use super::{
    boot::{Partitions, STATE, isa_features},
    context::{Context, Exit},
    gic,
    hardware::call,
    layout::CORES,
    registers,
    serve::{note_fault, outside},
    simd,
};
use arm_ffa::{FfaError, FuncId};
use core::cell::UnsafeCell;
use flexserve_abi::{
    el3::{CoreState, Status, fid},
    workers::{SIGNAL, WAIT},
};
use flexserve_spmc::{
    registers::{Registers, Reply, function},
    workers::{Start, Workers},
};

/// Who works where.
pub static WORKERS: Workers = Workers::new();

/// Each core's worker, while it is one.
struct Contexts([UnsafeCell<Context>; CORES]);

// SAFETY: each core uses its own.
unsafe impl Sync for Contexts {}

static CONTEXTS: Contexts = Contexts([const { UnsafeCell::new(Context::NEW) }; CORES]);

/// Why a worker's run has ended.
enum End {
    /// The core was recalled, or the partition is gone.
    Stopped,
    /// The worker did what it must not; the whole partition pays.
    Failed,
}

/// Works until the core is recalled.
pub fn work(core: usize) {
    defmt::info!("core {=usize} is lent", core);
    while !recalled() {
        match WORKERS.begin(core) {
            Some(start) => {
                let end = run(core, &start);
                gic::interrupt(WORKERS.end(core));
                if matches!(end, End::Failed)
                    && let Some(spmc) = STATE.lock().as_mut()
                {
                    spmc.worker_failed(start.partition);
                }
            }
            None => sleep(),
        }
    }
    WORKERS.leave(core);
    simd::clear();
    defmt::info!("core {=usize} goes back", core);
}

/// Waits for an interrupt of the Secure world's.
fn sleep() {
    registers::wait_for_interrupt();
    gic::acknowledge();
}

/// Whether the normal world wants this core back.
fn recalled() -> bool {
    let (status, state) = call(fid::CORE_STATE, &[registers::affinity()]);
    // No answer is an EL3 that lends no cores: then this core must not be here.
    status != Some(Status::Success) || CoreState::from_code(state) != Some(CoreState::Lent)
}

fn run(core: usize, start: &Start) -> End {
    // SAFETY: each core has its own.
    let (context, outside) = unsafe { (&mut *CONTEXTS.0[core].get(), outside(core)) };
    context.start_worker(start.entry, [core as u64, isa_features().bits(), start.incarnation]);
    let ttbr0 = Partitions::place(start.partition).ttbr0;
    let end = context.run(ttbr0, outside, |exit| serve(core, start, exit));
    *context = Context::NEW;
    end
}

/// What follows from a worker's exit: registers for it, none if it goes on as it was, or its end.
fn serve(core: usize, start: &Start, exit: Exit) -> Result<Option<Registers>, End> {
    match exit {
        Exit::Call(registers) => match registers[0] {
            WAIT => wait(core, start, registers).map(Some),
            SIGNAL => Ok(Some(signal(registers))),
            _ if function(&registers) == Some(FuncId::Error32) => Err(End::Failed),
            _ => Ok(Some(Reply::error(FfaError::Denied).over(&registers))),
        },
        Exit::Interrupt => {
            gic::acknowledge();
            go_on(start).map(|()| None)
        }
        Exit::Fault { esr, far, pc } => {
            note_fault(Partitions::place(start.partition).id, esr, far, pc);
            Err(End::Failed)
        }
    }
}

/// Whether a worker may go on: after every interrupt.
fn go_on(start: &Start) -> Result<(), End> {
    if WORKERS.may_run(start) && !recalled() { Ok(()) } else { Err(End::Stopped) }
}

fn wait(core: usize, start: &Start, registers: Registers) -> Result<Registers, End> {
    while WORKERS.sleep(core, registers[1]) {
        sleep();
        WORKERS.wake(core);
        go_on(start)?;
    }
    Ok(answer(registers))
}

/// `WAIT` of a partition's main context. An interrupt of the normal world ends it, so that the partition can be preempted.
pub fn wait_in_main(core: usize, registers: Registers) -> Registers {
    while WORKERS.sleep(core, registers[1]) {
        sleep();
        WORKERS.wake(core);
        if gic::normal_world_wants_attention() {
            break;
        }
    }
    answer(registers)
}

/// `SIGNAL`.
pub fn signal(registers: Registers) -> Registers {
    gic::interrupt(WORKERS.signal());
    answer(registers)
}

fn answer(mut registers: Registers) -> Registers {
    let answer = WORKERS.answer().registers();
    registers[..answer.len()].copy_from_slice(&answer);
    registers
}

/// Stops all workers of a partition. Bounded: they stop at an interrupt, and nothing masks it for longer than a call.
pub fn dismiss(partition: usize) {
    let cores = WORKERS.dismiss(partition);
    gic::interrupt(cores);
    while WORKERS.running() & cores != 0 {
        core::hint::spin_loop();
    }
}
