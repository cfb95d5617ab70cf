//! Exceptions at NS-EL2 or NS-EL1: the ones that a probe provokes are recorded and skipped, every other one ends the run.

use core::{
    arch::asm,
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use crate::cores::{self, MAX_CORES};

/// What `entry.S` saves on the stack.
#[repr(C)]
struct Frame {
    x: [u64; 31],
    elr: u64,
    spsr: u64,
    vector: u64,
}

const _: () = assert!(size_of::<Frame>() == 272);

/// "Synchronous, current exception level with SP_ELx" in the vector table.
const SYNCHRONOUS_CURRENT: u64 = 4;
/// ESR_ELx.EC of an instruction abort and of a data abort taken without a change of exception level.
const INSTRUCTION_ABORT: u64 = 0x21;
const DATA_ABORT: u64 = 0x25;
/// ESR_ELx.EC of an instruction that does not exist at this exception level.
const UNKNOWN: u64 = 0;
/// ESR_ELx.{DFSC, IFSC} of a granule protection fault on the access itself (Arm DDI 0615), and of an external abort.
const GRANULE_PROTECTION_FAULT: u64 = 0b10_1000;
const EXTERNAL_ABORT: u64 = 0b01_0000;

/// A fault that a probe took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// ESR_ELx.
    pub esr: u64,
    /// FAR_ELx.
    pub far: u64,
}

impl Fault {
    /// Whether this is an instruction or data abort, as opposed to the undefined instruction that executing another
    /// world's data would end in.
    pub fn is_abort(self) -> bool {
        matches!(self.esr >> 26, INSTRUCTION_ABORT | DATA_ABORT)
    }

    /// Whether this is the abort that an access ends in which EL3's mechanism stops, as `FEATURES` numbers the mechanisms
    /// (`flexserve_abi::el3::Feature::Backend`).
    pub fn is_stopped_by(self, backend: u64) -> bool {
        let status = match backend {
            1 => GRANULE_PROTECTION_FAULT,
            2 => EXTERNAL_ABORT,
            _ => return false,
        };
        self.is_abort() && self.esr & 0x3f == status
    }

    /// Whether this is an instruction that does not exist at this exception level.
    pub fn is_undefined(self) -> bool {
        self.esr >> 26 == UNKNOWN
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "esr {:#x} far {:#x}", self.esr, self.far)
    }
}

/// The exception level that this program runs at: 1 or 2. At 2 it is a host (VHE), for which the registers' EL1 names mean
/// those of EL2.
pub fn level() -> u64 {
    let current: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, CurrentEL", out(reg) current, options(nomem, nostack, preserves_flags)) };
    current >> 2
}

/// A core's probe: whether one is under way, and what it met.
struct Slot {
    armed: AtomicBool,
    taken: AtomicBool,
    esr: AtomicU64,
    far: AtomicU64,
}

static SLOTS: [Slot; MAX_CORES] = [const {
    Slot {
        armed: AtomicBool::new(false),
        taken: AtomicBool::new(false),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
    }
}; MAX_CORES];

unsafe extern "C" {
    fn probe_read(address: u64) -> u64;
    fn probe_write(address: u64, value: u64);
    fn probe_execute(address: u64);
    fn probe_hypervisor_call();
}

/// Reads 8 bytes at `address`.
///
/// # Errors
///
/// The fault that the read ended in.
pub fn read(address: u64) -> Result<u64, Fault> {
    // SAFETY: a fault is skipped by `exception`; a read that succeeds changes nothing (no device is probed).
    guarded(|| unsafe { probe_read(address) })
}

/// Writes 8 bytes at `address`.
///
/// # Safety
///
/// The address lies in memory that this program owns, or the write is expected to fault.
///
/// # Errors
///
/// The fault that the write ended in.
pub unsafe fn write(address: u64, value: u64) -> Result<(), Fault> {
    // SAFETY: passed on to the caller.
    guarded(|| unsafe { probe_write(address, value) })
}

/// Branches to `address`.
///
/// # Safety
///
/// The branch is expected to fault, or a function without arguments lies there.
///
/// # Errors
///
/// The fault that the branch ended in.
pub unsafe fn execute(address: u64) -> Result<(), Fault> {
    // SAFETY: passed on to the caller.
    guarded(|| unsafe { probe_execute(address) })
}

/// Calls EL2 (HVC), from EL1.
///
/// # Errors
///
/// The fault that the call ended in.
pub fn call_hypervisor() -> Result<(), Fault> {
    // SAFETY: x0 to x17 are the callee's to change, as in any call; a fault is skipped by `exception`.
    guarded(|| unsafe { probe_hypervisor_call() })
}

/// Makes an access that may fault: behind a load or store that did, it goes on; from any other exception it returns to the caller of the
/// routine that raised it.
///
/// # Errors
///
/// The fault.
pub fn guarded<T>(access: impl FnOnce() -> T) -> Result<T, Fault> {
    let slot = &SLOTS[cores::current()];
    slot.taken.store(false, Relaxed);
    slot.armed.store(true, Relaxed);
    let value = access();
    slot.armed.store(false, Relaxed);
    if slot.taken.load(Relaxed) {
        Err(Fault { esr: slot.esr.load(Relaxed), far: slot.far.load(Relaxed) })
    } else {
        Ok(value)
    }
}

/// Called by every vector.
#[unsafe(no_mangle)]
extern "C" fn exception(frame: &mut Frame) {
    let (esr, far): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        asm!("mrs {}, esr_el1", "mrs {}, far_el1", out(reg) esr, out(reg) far, options(nomem, nostack));
    }
    let core = cores::current();
    let slot = &SLOTS[core];
    if frame.vector != SYNCHRONOUS_CURRENT || !slot.armed.swap(false, Relaxed) {
        panic!(
            "unexpected exception {} on core {core}: esr={esr:#x} far={far:#x} elr={:#x}",
            frame.vector, frame.elr
        );
    }
    slot.esr.store(esr, Relaxed);
    slot.far.store(far, Relaxed);
    slot.taken.store(true, Relaxed);
    frame.elr = match esr >> 26 {
        // The load or store of a probe: go on behind it.
        DATA_ABORT => frame.elr + 4,
        // A branch that arrived nowhere good: go back to where it came from.
        _ => frame.x[30],
    };
}
