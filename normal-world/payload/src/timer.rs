//! Time, and the interrupt that takes the core back from the secure world: the EL2 physical timer through the GIC.
//!
//! Interrupts are never *taken* here: PSTATE masks them, and `FFA_INTERRUPT` says that one is pending.

use core::{arch::asm, ptr::NonNull};

use arm_gic::{
    IntId, InterruptGroup, UniqueMmioPointer,
    gicv3::{
        GicCpuInterface, GicV3,
        registers::{Gicd, GicrSgi},
    },
};
use flexserve_platform::{GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR};

/// The EL2 physical timer's interrupt (Arm BSA, PPI assignment: INTID 26).
const TIMER: IntId = IntId::ppi(10);
const PRIORITY: u8 = 0x80;

/// Sets up the GIC for the boot core and the timer's interrupt.
///
/// # Panics
///
/// Panics if the GIC has no redistributor for this core.
pub fn init() {
    let gicd = NonNull::new(GIC_DISTRIBUTOR as *mut Gicd).expect("the distributor is not at address 0");
    let gicr =
        NonNull::new(GIC_REDISTRIBUTOR as *mut GicrSgi).expect("the redistributor is not at address 0");
    // SAFETY: the platform's GICv3 lies there, mapped as device memory; this is its only driver, dropped below.
    let mut gic =
        unsafe { GicV3::new(UniqueMmioPointer::new(gicd), gicr, 1) }.expect("the platform has a GICv3");
    gic.setup(0);
    GicCpuInterface::set_priority_mask(0xff);
    gic.set_interrupt_priority(TIMER, Some(0), PRIORITY).expect("core 0 has a redistributor");
    gic.enable_interrupt(TIMER, Some(0), true).expect("core 0 has a redistributor");
}

/// Lets the timer fire in `microseconds`.
pub fn arm(microseconds: u64) {
    let ticks = frequency() / 1_000_000 * microseconds;
    // SAFETY: programs this core's own timer, whose interrupt only the secure world's callers meet.
    unsafe {
        asm!("msr cnthp_tval_el2, {}", "msr cnthp_ctl_el2, {}", "isb", in(reg) ticks, in(reg) 1_u64, options(nostack));
    }
}

/// Stops the timer.
pub fn disarm() {
    // SAFETY: as in `arm`.
    unsafe { asm!("msr cnthp_ctl_el2, {}", "isb", in(reg) 2_u64, options(nostack)) };
}

/// Takes what is pending at the GIC. Answers whether the timer was among it (it is disarmed then).
pub fn acknowledge() -> bool {
    let mut fired = false;
    while let Some(interrupt) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) {
        if interrupt == TIMER {
            disarm();
            fired = true;
        }
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
    }
    fired
}

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) ticks, options(nostack, preserves_flags)) };
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency())) as u64
}

fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags)) };
    hertz.max(1)
}
