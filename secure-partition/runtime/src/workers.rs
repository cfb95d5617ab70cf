//! Workers on lent cores: their entry, their stacks, and how contexts sleep and wake each other.

use crate::{
    conduit::{simple, svc},
    message::Error,
    team::{self, Events, Team},
};
use arm_ffa::FuncId;
use core::{
    arch::{asm, global_asm},
    cell::UnsafeCell,
};
use flexserve_abi::{
    el3::MAX_CORES,
    workers::{Answer, SIGNAL, WAIT},
};

/// Bytes of a worker's stack. The lowest page is made read-only.
const STACK: usize = 64 << 10;
const PAGE: usize = 4096;
/// `FFA_MEM_PERM_SET` (DEN0140 v1.2, table 2.37): read-only, never executed.
const READ_ONLY: u64 = 0b111;
/// Turns for which a context looks before it sleeps: some microseconds, as a job follows the last one.
const PATIENCE: usize = 200;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_CORES]>);

// SAFETY: a core's stack is used by its worker alone, and by nobody in Rust's sense.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_CORES]));
static TEAM: Team = Team::new();

// x0 = number of the core, x1 = ISA features, x2 = incarnation. TPIDR_EL0 says that this is a worker: the number, plus one.
global_asm!(
    ".pushsection .text.worker_entry, \"ax\"",
    "worker_entry:",
    "mov x29, xzr",
    "mov x30, xzr",
    "add x3, x0, #1",
    "msr tpidr_el0, x3",
    "adrp x4, {stacks}",
    "add x4, x4, :lo12:{stacks}",
    "mov x5, #{size}",
    "madd x4, x3, x5, x4",
    "mov sp, x4",
    "b {worker}",
    ".popsection",
    stacks = sym STACKS,
    size = const STACK,
    worker = sym worker,
);

unsafe extern "C" {
    fn worker_entry();
}

extern "C" fn worker(core: usize, _isa: u64, incarnation: u64) -> ! {
    TEAM.work(&Spmc, core, incarnation)
}

/// Whether a worker, not the main context, runs this.
pub(crate) fn is_worker() -> bool {
    let thread: u64;
    // SAFETY: reads a register; zero in the main context, where nobody writes it.
    unsafe { asm!("mrs {}, tpidr_el0", out(reg) thread, options(nomem, nostack, preserves_flags)) };
    thread != 0
}

/// The SPMC's calls.
struct Spmc;

impl Events for Spmc {
    fn wait(&self, seen: u64) -> Answer {
        call(WAIT, seen)
    }

    fn signal(&self) -> Answer {
        call(SIGNAL, 0)
    }

    fn spin(&self, done: impl Fn() -> bool) -> bool {
        team::spin(PATIENCE, done)
    }
}

fn call(function: u64, argument: u64) -> Answer {
    let mut registers = [0; 18];
    registers[..2].copy_from_slice(&[function, argument]);
    // An SPMC without these calls has no workers either.
    Answer::from_registers(&svc(registers)).unwrap_or_default()
}

/// The cores that work for this partition, the main context's among them.
#[derive(Clone, Copy, Debug)]
pub struct Cores(());

impl Cores {
    /// Lets lent cores work from now on (`FFA_SECONDARY_EP_REGISTER`); before the first [`crate::wait`].
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refuses: there will be no workers.
    pub fn employ() -> Result<Self, Error> {
        for core in 0..MAX_CORES {
            let guard = STACKS.0.get() as usize + core * STACK;
            simple(FuncId::MemPermSet64, &[guard as u64, 1, READ_ONLY])?;
        }
        simple(FuncId::SecondaryEpRegister64, &[worker_entry as *const () as u64])?;
        Ok(Self(()))
    }

    /// How many there are, as far as is known here.
    #[must_use]
    pub fn count(self) -> usize {
        TEAM.cores()
    }

    /// Has `work` done for each part of `0..parts`, on all cores; a part whose core was recalled in the middle of it is begun
    /// again. Called by the main context only.
    ///
    /// # Panics
    ///
    /// With more than [`PARTS`] parts.
    pub fn run(self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        TEAM.run(&Spmc, parts, work);
    }
}

/// Most parts of one job.
pub const PARTS: usize = team::PARTS;

const _: () = assert!(STACK.is_multiple_of(PAGE));
