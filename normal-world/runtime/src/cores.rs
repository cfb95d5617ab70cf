//! The other cores: started by PSCI, given one task at a time, lent to the secure world and taken back.

use alloc::{boxed::Box, format, string::String};
use core::{
    arch::asm,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use flexserve_abi::el3::{AFFINITY, CoreState, Status};
use flexserve_client::el3;
use smccc::{Smc, psci};
use spin::Mutex;

use crate::{gic, mmu, system};

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

/// Affinity fields of each core's MPIDR_EL1, of as many as [`find`] has found.
static MPIDRS: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];
static FOUND: AtomicUsize = AtomicUsize::new(0);
/// Cores that this program has started, the boot core included.
static STARTED: AtomicUsize = AtomicUsize::new(1);
/// Whether a core has come from its entry point since it was last turned on.
static ARRIVED: [AtomicBool; MAX_CORES] = [const { AtomicBool::new(false) }; MAX_CORES];

/// [`affinity_info`] of a core that is on (Arm DEN0022, section 5.7).
pub const ON: i64 = 0;
/// [`affinity_info`] of a core that is off.
pub const OFF: i64 = 1;
/// How often a core that turns off is asked for.
const PATIENCE: u32 = 10_000_000;

#[repr(C, align(16))]
struct Stacks([[u8; STACK_SIZE]; MAX_CORES]);

#[unsafe(link_section = ".stacks")]
static mut STACKS: Stacks = Stacks([[0; STACK_SIZE]; MAX_CORES]);

unsafe extern "C" {
    fn secondary_entry();
}

/// Affinity fields of this core's MPIDR_EL1.
fn affinity() -> u64 {
    let mpidr: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags)) };
    mpidr & AFFINITY
}

/// Numbers the machine's cores: this one is 0, the others follow in the order of the interrupt controller's redistributors, if PSCI
/// says that they are off. PSCI alone does not do: firmware may know more cores than the machine has.
pub fn find() {
    let own = affinity();
    let others = gic::affinities().filter(|&mpidr| mpidr != own && affinity_info_of(mpidr) == OFF);
    for (mpidr, slot) in core::iter::once(own).chain(others).zip(&MPIDRS) {
        slot.store(mpidr, Ordering::Relaxed);
        FOUND.fetch_add(1, Ordering::Release);
    }
}

/// The name of a core in calls to the firmware.
pub fn mpidr(core: usize) -> u64 {
    MPIDRS[core].load(Ordering::Relaxed)
}

/// Whether the machine has a core of this name.
pub fn exists(mpidr: u64) -> bool {
    gic::affinities().any(|affinity| affinity == mpidr)
}

/// Number of this core; 0 before [`find`].
pub fn current() -> usize {
    let own = affinity();
    (0..FOUND.load(Ordering::Acquire)).find(|&core| mpidr(core) == own).unwrap_or(0)
}

/// Starts the other cores, as many as this program can use.
///
/// # Errors
///
/// The firmware refuses to start one.
pub fn start_all() -> Result<(), String> {
    for core in 1..FOUND.load(Ordering::Acquire) {
        turn_on(core, entry(), stack_top(core))?;
        STARTED.store(core + 1, Ordering::Release);
    }
    Ok(())
}

/// Where a core that is turned on belongs: it expects the top of its stack in x0.
pub fn entry() -> u64 {
    secondary_entry as *const () as u64
}

/// The top of a core's stack.
pub fn stack_top(core: usize) -> u64 {
    (&raw mut STACKS).cast::<u8>().wrapping_add((core + 1) * STACK_SIZE) as u64
}

/// Turns a core that is off on, by PSCI, at `entry` with `context` in x0, and waits until it serves tasks: code at `entry`
/// that is not [`entry`] goes on there.
///
/// # Errors
///
/// The firmware refuses.
pub fn turn_on(core: usize, entry: u64, context: u64) -> Result<(), String> {
    ARRIVED[core].store(false, Ordering::Release);
    MAILBOXES[core].busy.store(false, Ordering::Release);
    psci::cpu_on::<Smc>(mpidr(core), entry, context).map_err(|e| format!("starting core {core}: {e}"))?;
    await_arrival(core);
    Ok(())
}

/// Waits until a core that comes on serves tasks.
fn await_arrival(core: usize) {
    while !ARRIVED[core].load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
}

/// Has a core turn itself off, by PSCI, and waits until it is. It counts as started all the time.
///
/// # Errors
///
/// There is no such core, or it does not turn off.
pub fn turn_off(core: usize) -> Result<(), String> {
    // `CPU_OFF` returns only if it is refused.
    begin(
        core,
        Box::new(move || {
            ARRIVED[core].store(false, Ordering::Release);
            let _ = psci::cpu_off::<Smc>();
        }),
    )?;
    for _ in 0..PATIENCE {
        if affinity_info(core) == OFF {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(format!("core {core} does not turn off"))
}

/// `AFFINITY_INFO` of a core.
pub fn affinity_info(core: usize) -> i64 {
    affinity_info_of(mpidr(core))
}

fn affinity_info_of(mpidr: u64) -> i64 {
    const AFFINITY_INFO: u32 = 0xc400_0004;
    let mut arguments = [0; 17];
    arguments[0] = mpidr;
    smccc::smc64(AFFINITY_INFO, arguments)[0].cast_signed()
}

/// Cores that this program has started.
pub fn count() -> usize {
    STARTED.load(Ordering::Acquire)
}

/// Cores that run, and are not lent.
pub fn online() -> impl Iterator<Item = usize> {
    (0..count()).filter(|&core| core == 0 || ARRIVED[core].load(Ordering::Acquire))
}

/// Turns a core off and lends it to the secure world.
///
/// # Errors
///
/// EL3 refuses.
pub fn lend(core: usize) -> Result<(), String> {
    turn_off(core)?;
    lend_to_start_at(core, entry(), stack_top(core))
}

/// Lends a core that is off, and waits until the secure world has it. When it is recalled it starts at `entry`, with `context`
/// in x0; code there that is not [`entry`] goes on there.
///
/// # Errors
///
/// EL3 refuses.
pub fn lend_to_start_at(core: usize, entry: u64, context: u64) -> Result<(), String> {
    MAILBOXES[core].busy.store(false, Ordering::Release);
    match el3::lend_core(&mut system::Smc, mpidr(core), entry, context) {
        Some(Status::Success) => {}
        other => return Err(format!("lending core {core}: {other:?}")),
    }
    loop {
        match el3::core_state(&mut system::Smc, mpidr(core)) {
            Ok(CoreState::Lending) => core::hint::spin_loop(),
            Ok(CoreState::Lent) => return Ok(()),
            other => return Err(format!("core {core} was lent and is {other:?}")),
        }
    }
}

/// Takes a lent core back and waits until it serves tasks.
///
/// # Errors
///
/// EL3 refuses.
pub fn take_back(core: usize) -> Result<(), String> {
    match el3::recall_core(&mut system::Smc, mpidr(core)) {
        Some(Status::Success) => {}
        other => return Err(format!("recalling core {core}: {other:?}")),
    }
    await_arrival(core);
    Ok(())
}

/// Gives `core` a task; answers at once.
///
/// # Errors
///
/// There is no such core.
pub fn begin(core: usize, task: Task) -> Result<(), String> {
    if core == 0 || !online().any(|online| online == core) {
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
    ARRIVED[core].store(true, Ordering::Release);
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
