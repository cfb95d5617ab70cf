//! The other cores: started by PSCI on first use, then given one task at a time.

use alloc::{boxed::Box, format, string::String};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use smccc::{Smc, psci};
use spin::Mutex;

use crate::{gic, mmu};

/// Most cores that this program uses.
pub const MAX_CORES: usize = 8;

const STACK_SIZE: usize = 64 << 10;

/// Work for another core.
pub type Task = Box<dyn FnOnce() + Send>;

struct Mailbox {
    task: Mutex<Option<Task>>,
    busy: AtomicBool,
}

static MAILBOXES: [Mailbox; MAX_CORES] =
    [const { Mailbox { task: Mutex::new(None), busy: AtomicBool::new(false) } }; MAX_CORES];

/// Cores that run, the boot core included.
static STARTED: AtomicUsize = AtomicUsize::new(1);

#[repr(C, align(16))]
struct Stacks([[u8; STACK_SIZE]; MAX_CORES]);

#[unsafe(link_section = ".stacks")]
static mut STACKS: Stacks = Stacks([[0; STACK_SIZE]; MAX_CORES]);

unsafe extern "C" {
    fn secondary_entry();
}

/// Index of this core: affinity level 0.
pub fn current() -> usize {
    let mpidr: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags)) };
    (mpidr & 0xff).min(MAX_CORES - 1)
}

/// Starts the other cores of a machine that has `cores`, as many as this program can use.
///
/// The number has to come from elsewhere: firmware may accept `CPU_ON` of a core that its port knows and the machine lacks.
///
/// # Errors
///
/// The firmware refuses to start one.
pub fn start_all(cores: usize) -> Result<(), String> {
    for core in 1..cores.min(MAX_CORES) {
        let top = (&raw mut STACKS).cast::<u8>().wrapping_add((core + 1) * STACK_SIZE);
        let entry = secondary_entry as *const () as u64;
        psci::cpu_on::<Smc>(core as u64, entry, top as u64)
            .map_err(|e| format!("starting core {core}: {e}"))?;
        while STARTED.load(Ordering::Acquire) <= core {
            core::hint::spin_loop();
        }
    }
    Ok(())
}

/// Cores that run.
pub fn count() -> usize {
    STARTED.load(Ordering::Acquire)
}

/// Gives `core` a task; answers at once.
///
/// # Errors
///
/// There is no such core.
pub fn begin(core: usize, task: Task) -> Result<(), String> {
    if core == 0 || core >= count() {
        return Err(format!("there is no core {core} to give work to"));
    }
    wait(core);
    let mailbox = &MAILBOXES[core];
    *mailbox.task.lock() = Some(task);
    mailbox.busy.store(true, Ordering::Release);
    gic::wake(core);
    Ok(())
}

/// Waits until `core` has done its task.
pub fn wait(core: usize) {
    while MAILBOXES[core].busy.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// Runs a task on `core` and waits for its end.
///
/// # Errors
///
/// There is no such core.
pub fn run<T: Send + 'static>(core: usize, task: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if core == current() {
        return Ok(task());
    }
    let result = alloc::sync::Arc::new(Mutex::new(None));
    let slot = result.clone();
    begin(core, Box::new(move || *slot.lock() = Some(task())))?;
    wait(core);
    let value = result.lock().take();
    value.ok_or_else(|| format!("core {core} answered nothing"))
}

#[unsafe(no_mangle)]
extern "C" fn secondary_main() -> ! {
    mmu::adopt();
    let core = current();
    gic::init_core(core);
    let mailbox = &MAILBOXES[core];
    STARTED.fetch_add(1, Ordering::AcqRel);
    loop {
        while !mailbox.busy.load(Ordering::Acquire) {
            // SAFETY: waits for an interrupt, which is not taken. (`wfe` would do on hardware; an emulator spins on it.)
            unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
            gic::acknowledge();
        }
        let task = mailbox.task.lock().take();
        if let Some(task) = task {
            task();
        }
        mailbox.busy.store(false, Ordering::Release);
    }
}
