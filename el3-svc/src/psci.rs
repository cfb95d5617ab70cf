//! Cores on the hardware: BL31's PSCI, its GIC driver, and its SPMD.
//!
//! BL31 is linked with `--wrap=psci_warmboot_entrypoint`: every core that is powered on passes here when PSCI has finished with
//! it, holds none of its locks any more, and would leave for the normal world. A lent core enters the SPMC instead,
//! which sits in `FFA_MSG_WAIT` on this core as on any other, and leaves when the SPMC has handed it back. The normal
//! world's context that PSCI has prepared stays as it is in memory meanwhile.

use crate::{
    cores::{Arrival, CoreControl, PowerError},
    tfa::SERVICE,
};
use core::{arch::asm, ffi::c_void};
use flexserve_abi::el3::{AFFINITY, MAX_CORES, fid};
use flexserve_platform as platform;

/// `SECURE` of TF-A's `ep_info_exp.h`.
const SECURE: u32 = 0;

/// Errors of `CPU_ON` (DEN0022, section 5.2.2).
const INVALID_PARAMETERS: i32 = -2;
const ALREADY_ON: i32 = -4;
const ON_PENDING: i32 = -5;
const INVALID_ADDRESS: i32 = -9;

unsafe extern "C" {
    /// `include/plat/common/platform.h` of TF-A.
    fn plat_core_pos_by_mpidr(mpidr: u64) -> i32;
    fn plat_my_core_pos() -> u32;
    fn plat_ic_raise_s_el1_sgi(sgi: i32, target: u64);
    /// `include/lib/psci/psci.h`.
    fn psci_cpu_on(target: u64, entry: usize, context: u64) -> i32;
    /// What the linker has left of `psci_warmboot_entrypoint`.
    fn __real_psci_warmboot_entrypoint();
    /// `include/lib/el3_runtime/context_mgmt.h`.
    fn cm_get_context(security_state: u32) -> *mut c_void;
    fn cm_prepare_el3_exit_ns();
    /// `services/std_svc/spmd/spmd_private.h`.
    fn spmd_get_context() -> *mut c_void;
    fn spmd_spm_core_sync_entry(context: *mut c_void) -> u64;
    fn spmd_spm_core_sync_exit(result: u64) -> !;
}

/// The cores that BL31 knows and the machine has.
#[derive(Debug)]
pub struct Psci;

impl CoreControl for Psci {
    const PROVIDED: bool = true;

    fn index(&self, mpidr: u64) -> Option<usize> {
        if mpidr & !AFFINITY != 0 {
            return None;
        }
        // SAFETY: takes any number.
        let position = unsafe { plat_core_pos_by_mpidr(mpidr) };
        usize::try_from(position).ok().filter(|&index| index < MAX_CORES && exists(mpidr))
    }

    fn current(&self) -> Option<usize> {
        // SAFETY: reads MPIDR_EL1.
        let position = unsafe { plat_my_core_pos() };
        Some(position as usize).filter(|&index| index < MAX_CORES)
    }

    fn power_on(&self, mpidr: u64, entry: u64, context: u64) -> Result<(), PowerError> {
        // SAFETY: BL31's own implementation of the call, of which any arguments may come from the normal world.
        match unsafe { psci_cpu_on(mpidr, entry as usize, context) } {
            0 => Ok(()),
            INVALID_PARAMETERS | INVALID_ADDRESS => Err(PowerError::Invalid),
            ALREADY_ON => Err(PowerError::On),
            ON_PENDING => Err(PowerError::Pending),
            _ => Err(PowerError::Failed),
        }
    }

    fn interrupt(&self, mpidr: u64) {
        // SAFETY: the core exists, and the GIC driver has configured this SGI as a Secure one.
        unsafe { plat_ic_raise_s_el1_sgi(platform::GIC_SECURE_SGI as i32, mpidr) };
    }
}

/// Whether the machine has this core: a GIC redistributor names it. BL31's port may know more cores than there are, and
/// PSCI answers that it turns them on.
fn exists(mpidr: u64) -> bool {
    const TYPER: u64 = 8;
    const VIRTUAL_LPIS: u64 = 1 << 1;
    const LAST: u64 = 1 << 4;
    const FRAMES: u64 = 0x2_0000;
    /// More than any platform's table of cores.
    const MOST: usize = 512;
    let affinity = mpidr >> 8 & 0xff00_0000 | mpidr & 0xff_ffff;
    let mut frame = platform::GIC_REDISTRIBUTOR;
    // As many turns as the GIC has redistributors, and at most `MOST`.
    for _ in 0..MOST {
        // SAFETY: BL31 maps the GIC flat; frames follow each other up to the last (Arm IHI 0069, GICR_TYPER).
        let typer = unsafe { ((frame + TYPER) as *const u64).read_volatile() };
        if typer >> 32 == affinity {
            return true;
        }
        if typer & LAST != 0 {
            return false;
        }
        frame += if typer & VIRTUAL_LPIS == 0 { FRAMES } else { 2 * FRAMES };
    }
    false
}

/// In the place of BL31's function of this name.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_psci_warmboot_entrypoint() {
    // SAFETY: as BL31 would.
    unsafe { __real_psci_warmboot_entrypoint() };
    // Ends when the `CORE_LEND` that names this core ends: its core is at EL3 with interrupts masked, between its first step
    // and the answer of `psci_cpu_on`, which takes the locks of PSCI only (this core has left them), and so goes on whatever
    // this one does. After that there is one more turn at most, for a recall that was faster. Nobody else makes a core wait:
    // a second `CORE_LEND` of a core that is on is refused by PSCI before this core has come up, or after it has gone on.
    loop {
        match SERVICE.arrive() {
            Arrival::Wait => core::hint::spin_loop(),
            Arrival::NormalWorld => return,
            Arrival::SecureWorld => break,
        }
    }
    work();
}

/// Enters the SPMC, and is back when that has handed the core back.
fn work() {
    deafen();
    // SAFETY: PSCI has finished: the SPMD's context of this core is set up and waits for a message; nothing else refers
    // to it. The general registers lie first in a context (`CTX_GPREGS_OFFSET` is 0). `cm_prepare_el3_exit_ns` restores
    // what PSCI has prepared, which nobody has saved over.
    unsafe {
        let registers = &mut *cm_get_context(SECURE).cast::<[u64; 18]>();
        *registers = [0; 18];
        registers[0] = fid::CORE_LEND.into();
        spmd_spm_core_sync_entry(spmd_get_context());
        cm_prepare_el3_exit_ns();
    }
}

/// No interrupt of the normal world is signalled to this core, until that enables its own again: as after a reset.
fn deafen() {
    const NON_SECURE: u64 = 1 << 0;
    // SAFETY: ICC_IGRPEN1_EL3 (Arm IHI 0069) enables groups of interrupts; EL3 itself takes none.
    unsafe {
        let enabled: u64;
        asm!("mrs {}, S3_6_C12_C12_7", out(reg) enabled, options(nomem, nostack, preserves_flags));
        asm!("msr S3_6_C12_C12_7, {}", "isb", in(reg) enabled & !NON_SECURE, options(nostack, preserves_flags));
    }
}

/// Leaves the SPMC for where [`work`] entered it.
///
/// # Safety
///
/// The calling core was entered there, and the handler of an SMC of the Secure world calls.
pub unsafe fn leave() -> ! {
    // SAFETY: by the caller.
    unsafe { spmd_spm_core_sync_exit(0) }
}
