//! Granule protection faults of the normal and the Realm world go through EL3, which counts them and hands them on.
//!
//! BL31 is linked with `--wrap` for two of its functions. `cm_prepare_el3_exit_ns` is the last step before a core enters the
//! normal world after it was powered on or woke up: by then the contexts are made from which BL31 sets SCR_EL3, and get the bit GPF.
//! `report_unhandled_exception` is where BL31 goes with an exception that it does not know.
//!
//! The Secure world's faults stay its own: the SPMC deals with its partitions', and an attacker has none of them.

use crate::{
    cpu::{deliver, read},
    exception::{Interrupted, Level, Taker},
    gpt_fault::Fault,
};
use core::{
    arch::global_asm,
    ffi::c_void,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

/// `NON_SECURE` and `REALM` of TF-A's `ep_info_exp.h`.
const WORLDS: [u32; 2] = [1, 2];

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// `cpu_context_t` of TF-A 2.12's `context.h`, as far as it is needed.
#[repr(C)]
struct Context {
    general: [u64; 32],
    /// What SCR_EL3 is when this world runs.
    control: u64,
    syndrome: u64,
    /// EL3's stack, from which the world was entered.
    stack: u64,
    /// SPSR_EL3 and ELR_EL3 to return with.
    state: u64,
    return_address: u64,
}

unsafe extern "C" {
    /// `include/lib/el3_runtime/context_mgmt.h`.
    fn cm_get_context(security_state: u32) -> *mut c_void;
    fn cm_get_scr_el3(security_state: u32) -> u64;
    fn cm_set_elr_spsr_el3(security_state: u32, entry: usize, state: u32);
}

// One section, so that BL31 is linked with both functions wrapped, or not at all: faults must not come where nobody expects them.
//
// BL31 branches to the second with EL3's stack pointer at the interrupted world's context, and x30 in it; if EL3 itself was
// interrupted, x30 has to be as it was for the report. MFAR_EL3, which nobody reads, keeps it.
global_asm!(
    ".pushsection .text.flexserve_reflect, \"ax\"",
    ".global __wrap_cm_prepare_el3_exit_ns",
    "__wrap_cm_prepare_el3_exit_ns:",
    "stp x29, x30, [sp, #-16]!",
    "bl __real_cm_prepare_el3_exit_ns",
    "ldp x29, x30, [sp], #16",
    "b {route}",
    ".global __wrap_report_unhandled_exception",
    "__wrap_report_unhandled_exception:",
    "msr S3_6_C6_C0_5, x30",
    "mrs x30, esr_el3",
    "ubfx x30, x30, #26, #6",     // EC: Granule Protection Check exception
    "cmp x30, #0x1e",
    "b.ne 1f",
    "mrs x30, esr_el3",
    "ubfx x30, x30, #15, #5",     // GPCSC: granule protection fault, at any level
    "cmp x30, #0b00110",
    "b.ne 1f",
    "mrs x30, spsr_el3",
    "ubfx x30, x30, #2, #3",      // M: not EL3
    "cmp x30, #0b011",
    "b.eq 1f",
    "bl prepare_el3_entry",
    "mrs x16, spsr_el3",
    "mrs x17, elr_el3",
    "stp x16, x17, [sp, #{state}]",
    "mov x0, sp",
    "ldr x1, [sp, #{stack}]",
    "msr spsel, #0",
    "mov sp, x1",
    "bl {reflect}",
    "b el3_exit",
    "1: mrs x30, S3_6_C6_C0_5",
    "b __real_report_unhandled_exception",
    ".popsection",
    route = sym route,
    reflect = sym reflect,
    state = const offset_of!(Context, state),
    stack = const offset_of!(Context, stack),
);

/// Accesses that were answered with a granule protection fault since boot.
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// From the next time on that this core enters them, the worlds' granule protection faults come to EL3.
extern "C" fn route() {
    /// SCR_EL3: granule protection faults are EL3's (GPF); what runs below EL3 is AArch64 (RW).
    const GPF: u64 = 1 << 48;
    const RW: u64 = 1 << 10;
    // Two turns.
    for world in WORLDS {
        // SAFETY: BL31's own context of this core and world, if it has one, which nobody else changes now.
        unsafe {
            let context: *mut Context = cm_get_context(world).cast();
            if !context.is_null() && is_known(world, context) && (*context).control & RW != 0 {
                (*context).control |= GPF;
            }
        }
    }
}

/// Whether this version of BL31 lays contexts out as [`Context`] says. If not, faults are the attacker's alone, uncounted.
///
/// # Safety
///
/// The context is the world's, on this core.
unsafe fn is_known(world: u32, context: *mut Context) -> bool {
    const MARKS: (usize, u32) = (0x5a5a_5a50, 0x3c5);
    // SAFETY: by the caller. Two words are changed, and put back.
    unsafe {
        let (entry, state) = ((*context).return_address, (*context).state);
        cm_set_elr_spsr_el3(world, MARKS.0, MARKS.1);
        let marked = ((*context).return_address, (*context).state) == (MARKS.0 as u64, MARKS.1.into());
        ((*context).return_address, (*context).state) = (entry, state);
        marked && (*context).control == cm_get_scr_el3(world)
    }
}

/// Makes BL31 return to the vector of the exception level that takes the fault.
extern "C" fn reflect(context: &mut Context) {
    FAULTS.fetch_add(1, Ordering::Relaxed);
    let fault = Fault {
        syndrome: read!("esr_el3"),
        address: read!("far_el3"),
        interrupted: Interrupted { state: context.state, return_address: context.return_address },
        hypervisor: read!("hcr_el2"),
    };
    let (vectors, control) = match fault.level() {
        Level::El1 => (read!("vbar_el1"), read!("sctlr_el1")),
        Level::El2 => (read!("vbar_el2"), read!("sctlr_el2")),
    };
    let exception = fault.exception(&taker(&fault, vectors, control));
    match fault.level() {
        Level::El1 => deliver!("el1", exception),
        Level::El2 => deliver!("el2", exception),
    }
    (context.return_address, context.state) = (exception.entry, exception.state);
}

fn taker(fault: &Fault, vectors: u64, control: u64) -> Taker {
    let level = fault.level();
    Taker { level, vectors, control, hypervisor: fault.hypervisor, locks: locks(level) }
}

/// `GCSCR_ELx.EXLOCKEN`, if there is one (ID_AA64PFR1_EL1.GCS).
fn locks(level: Level) -> bool {
    const EXLOCKEN: u64 = 1 << 6;
    if read!("id_aa64pfr1_el1") >> 44 & 0xf == 0 {
        return false;
    }
    let control = match level {
        Level::El1 => read!("S3_0_C2_C5_0"),
        Level::El2 => read!("S3_4_C2_C5_0"),
    };
    control & EXLOCKEN != 0
}
