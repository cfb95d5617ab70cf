//! The interrupt controller: the timer's interrupt on the boot core, a software-generated one to wake the others.
//!
//! Interrupts are never *taken* here: PSTATE masks them. They end a `wfi`, or take a core back from the secure world.

use core::{arch::asm, ptr::NonNull};

use arm_gic::{
    IntId, InterruptGroup, UniqueMmioPointer,
    gicv3::{
        GicCpuInterface, GicV3, SgiTarget, SgiTargetGroup,
        registers::{Gicd, GicrSgi},
    },
};
use flexserve_platform::{GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR};
use spin::Mutex;

use crate::{cores::MAX_CORES, exceptions};

/// The physical timer's interrupt (Arm BSA, PPI assignment): at EL2 the one of EL2's timer, INTID 26, at EL1 INTID 30.
pub fn timer() -> IntId {
    IntId::ppi(if exceptions::level() == 2 { 10 } else { 14 })
}
/// Wakes a core that waits for work.
const WAKE: IntId = IntId::sgi(0);
const PRIORITY: u8 = 0x80;

static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);

/// Takes the GIC and sets its distributor and the boot core up; once.
///
/// # Panics
///
/// Panics if the platform has no GICv3 or no redistributor for this core.
pub fn init() {
    let gicd = NonNull::new(GIC_DISTRIBUTOR as *mut Gicd).expect("the distributor is not at address 0");
    let gicr =
        NonNull::new(GIC_REDISTRIBUTOR as *mut GicrSgi).expect("the redistributor is not at address 0");
    // SAFETY: the platform's GICv3 lies there, mapped as device memory; this is its only driver.
    let gic = unsafe { GicV3::new(UniqueMmioPointer::new(gicd), gicr, MAX_CORES) };
    let mut gic = gic.expect("the platform has a GICv3");
    gic.distributor().configure_default_settings();
    *GIC.lock() = Some(gic);
    init_core(0);
}

/// Sets up the core that calls it.
///
/// # Panics
///
/// Panics if the core has no redistributor, or before [`init`].
pub fn init_core(core: usize) {
    let mut lock = GIC.lock();
    let gic = lock.as_mut().expect("the boot core has taken the GIC");
    gic.init_cpu(core);
    let mut redistributor = gic.redistributor(core).expect("every core has a redistributor");
    redistributor.configure_default_settings();
    for interrupt in [timer(), WAKE] {
        redistributor.set_interrupt_priority(interrupt, PRIORITY).expect("a private interrupt");
        redistributor.enable_interrupt(interrupt, true).expect("a private interrupt");
    }
    GicCpuInterface::enable_group1(true);
    GicCpuInterface::set_priority_mask(0xff);
}

/// Wakes `core`.
///
/// # Panics
///
/// Never: the interrupt is a software-generated one.
pub fn wake(core: usize) {
    let target = SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: 1 << core };
    // SAFETY: a barrier: what this core has written is there before the other one wakes.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    GicCpuInterface::send_sgi(WAKE, target, SgiTargetGroup::CurrentGroup1).expect("WAKE is an SGI");
}

/// Takes and ends what is pending for this core; answers whether the timer was among it.
pub fn acknowledge() -> bool {
    let (mut fired, timer) = (false, timer());
    while let Some(interrupt) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) {
        if interrupt == timer {
            // The line is level-triggered: it stays pending until the timer is quiet.
            crate::timer::disarm();
            fired = true;
        }
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
    }
    fired
}
