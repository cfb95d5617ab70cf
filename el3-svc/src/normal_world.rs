//! Keeps the normal world at EL1 and below, under the stage-2 tables: it never runs at EL2, whose registers are EL3's.
//!
//! EL2 holds one page of code, the stub: its vectors hand every exception to EL3, which answers in EL2's place.

use crate::{
    cpu::{deliver, read, write},
    stage2::{self, LAYOUT},
    stage2_fault::Fault,
    stage2_format::{vtcr, vttbr},
};
use core::{
    arch::{asm, global_asm},
    ffi::c_void,
    sync::atomic::{AtomicU64, Ordering},
};
use flexserve_abi::{GRANULE_SIZE, el3::fid::STAGE2_ABORT};

/// `NON_SECURE` of TF-A's `ep_info_exp.h`.
const NON_SECURE: u32 = 1;
/// SPSR: EL1 with its own stack, everything masked.
const EL1H_MASKED: u32 = 0x3c5;
/// Bytes of a vector of EL2.
const VECTOR: u64 = 0x80;

static FAULTS: AtomicU64 = AtomicU64::new(0);

/// `entry_point_info_t` of TF-A's `ep_info_exp.h`, as far as it is needed.
#[repr(C)]
struct EntryPoint {
    header: [u32; 2],
    address: usize,
    state: u32,
}

unsafe extern "C" {
    fn bl31_plat_get_next_image_ep_info(security_state: u32) -> *mut EntryPoint;
    /// `include/lib/el3_runtime/context_mgmt.h`.
    fn cm_set_elr_spsr_el3(security_state: u32, entry: usize, state: u32);
    static flexserve_el2_stub: [u8; 16 * VECTOR as usize];
}

// Sixteen vectors. TPIDR_EL2 carries the interrupted x0; EL3 returns to the interrupted code, so nothing follows the SMC.
global_asm!(
    ".pushsection .rodata.flexserve_el2_stub, \"a\"",
    ".balign 8",
    ".global flexserve_el2_stub",
    "flexserve_el2_stub:",
    ".rept 16",
    "1: msr tpidr_el2, x0",
    "movz w0, #{high}, lsl #16",
    "movk w0, #{low}",
    "smc #0",
    "b .",
    ".fill ({vector} - (. - 1b)) / 4, 4, 0",
    ".endr",
    ".popsection",
    high = const STAGE2_ABORT >> 16,
    low = const STAGE2_ABORT & 0xffff,
    vector = const VECTOR,
);

/// Prepares everything that the first entry into the normal world needs.
///
/// # Panics
///
/// See [`stage2::init`]; also if the platform has no normal world.
pub fn init() {
    stage2::init();
    install_stub();
    // SAFETY: BL31's own copy of what it enters the normal world with, which it reads later, on this core.
    unsafe {
        let entry = bl31_plat_get_next_image_ep_info(NON_SECURE).as_mut().expect("there is a normal world");
        // From this BL31 derives SCR_EL3.HCE = 0: HVC is undefined, and PSCI starts cores at EL1.
        entry.state = EL1H_MASKED;
    }
}

/// Copies the stub to its page. EL2 fetches from memory, without caches (SCTLR_EL2.I and M are zero).
fn install_stub() {
    let page = LAYOUT.stub();
    // SAFETY: the page is mapped by now, is EL3's, and nothing else refers to it.
    unsafe {
        let stub = &raw const flexserve_el2_stub;
        core::ptr::copy_nonoverlapping(stub.cast::<u8>(), page as *mut u8, size_of_val(&*stub));
        // 256 turns.
        for line in (page..page + GRANULE_SIZE as u64).step_by(16) {
            asm!("dc civac, {}", in(reg) line, options(nostack, preserves_flags));
        }
        asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags));
    }
}

/// `pubsub_cb_t` of TF-A's `pubsub.h`.
type Subscriber = extern "C" fn(*const c_void) -> *mut c_void;

/// Called on every way into the normal world, after BL31 has reset the registers of an EL2 that is not used.
#[used]
#[unsafe(link_section = ".__pubsub_cm_entering_normal_world")]
static SUBSCRIBER: Subscriber = entering;

extern "C" fn entering(_: *const c_void) -> *mut c_void {
    /// EL1 is AArch64 (RW); stage 2 is on (VM); invalidating a cache by set and way also cleans it (SWIO), so that EL1
    /// cannot drop what the Secure world wrote to a lent granule. Nothing else traps.
    const HCR: u64 = 1 << 31 | 1 << 1 | 1;
    /// Its reserved bits that are one: MMU and caches off.
    const SCTLR: u64 = 0x30c5_0830;
    write!("vttbr_el2", vttbr(&LAYOUT));
    write!("vtcr_el2", vtcr(stage2::parange()));
    write!("vbar_el2", LAYOUT.stub());
    write!("sctlr_el2", SCTLR);
    write!("hcr_el2", HCR);
    core::ptr::null_mut()
}

/// Accesses that were answered with an abort since boot.
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Relaxed)
}

/// Answers the stub: makes BL31 return to where the access was made, or to EL1's vector. The x0 to return with; `None` if the call
/// does not come from EL2. Only the stub ever runs there.
pub fn abort() -> Option<u64> {
    /// SPSR.M of EL2 with its own stack.
    const EL2H: u64 = 0b1001;
    /// Synchronous exceptions from a lower level, in AArch64 and in AArch32.
    const SYNCHRONOUS: [u64; 2] = [8, 12];
    if read!("spsr_el3") & 0x1f != EL2H {
        return None;
    }
    let vector = read!("elr_el3").wrapping_sub(LAYOUT.stub()) / VECTOR;
    let fault = Fault {
        // Nothing else is routed to EL2. If it comes nevertheless, EL1 finds an undefined instruction.
        syndrome: if SYNCHRONOUS.contains(&vector) { read!("esr_el2") } else { 0 },
        address: read!("far_el2"),
        page: read!("hpfar_el2"),
        return_address: read!("elr_el2"),
        state: read!("spsr_el2"),
        vectors: read!("vbar_el1"),
        control: read!("sctlr_el1"),
    };
    let passes = fault.untranslated().map(|ipa| LAYOUT.reaches(ipa, stage2::read));
    let (entry, state) = match passes {
        // The granule is the normal world's, or about to be seen to be or not: the access is made again.
        Some(None | Some(true)) => (fault.return_address, fault.state),
        Some(Some(false)) | None => {
            FAULTS.fetch_add(1, Ordering::Relaxed);
            let exception = fault.exception();
            deliver!("el1", exception);
            (exception.entry, exception.state)
        }
    };
    // SAFETY: the normal world made this call, so its context is the one that is returned to.
    unsafe { cm_set_elr_spsr_el3(NON_SECURE, entry as usize, state as u32) };
    Some(read!("tpidr_el2"))
}
