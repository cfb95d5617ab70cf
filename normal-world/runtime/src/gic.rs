//! The interrupt controller: the timer's interrupt on the boot core, a software-generated one to wake the others.
//!
//! Interrupts are never *taken* here: PSTATE masks them. They end a `wfi`, or take a core back from the secure world.

use core::{
    arch::asm,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use arm_gic::{
    IntId, InterruptGroup, UniqueMmioPointer,
    gicv3::{
        GicCpuInterface, GicV3, SgiTarget, SgiTargetGroup,
        registers::{Gicd, GicrSgi},
    },
};
use flexserve_platform::{GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR};
use spin::Mutex;

use crate::{
    cores::{self, MAX_CORES},
    exceptions,
};

/// The physical timer's interrupt (Arm BSA, PPI assignment): at EL2 the one of EL2's timer, INTID 26, at EL1 INTID 30.
pub fn timer() -> IntId {
    IntId::ppi(if exceptions::level() == 2 { 10 } else { 14 })
}
/// Wakes a core that waits for work.
const WAKE: IntId = IntId::sgi(0);
/// Means nothing, and is counted by the core that takes it.
const RING: IntId = IntId::sgi(1);
const PRIORITY: u8 = 0x80;

static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);
/// How often each core has taken [`RING`].
static RUNG: [AtomicU64; MAX_CORES] = [const { AtomicU64::new(0) }; MAX_CORES];

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

/// Affinity fields, as MPIDR_EL1 has them, of the cores that have a redistributor, in the order of those (GICv3, frames of 128 KiB).
pub fn affinities() -> impl Iterator<Item = u64> {
    /// GICR_TYPER: the last frame of the series (Arm IHI 0069, 12.11).
    const TYPER: u64 = 8;
    const LAST: u64 = 1 << 4;
    const FRAME: u64 = 0x2_0000;
    let mut last = false;
    (0..MAX_CORES as u64).map_while(move |index| {
        if last {
            return None;
        }
        // SAFETY: a register of the platform's GIC, mapped as device memory, which exists up to the last frame; reading changes nothing.
        let typer = unsafe { ((GIC_REDISTRIBUTOR + index * FRAME + TYPER) as *const u64).read_volatile() };
        last = typer & LAST != 0;
        let affinity = typer >> 32;
        Some((affinity & 0xff00_0000) << 8 | affinity & 0xff_ffff)
    })
}

/// Sets up the core that calls it.
///
/// # Panics
///
/// Panics if the core has no redistributor, or before [`init`].
pub fn init_core(core: usize) {
    with(core, |gic, frame| {
        gic.init_cpu(frame);
        gic.redistributor(frame).expect(FRAME).configure_default_settings();
    });
    enable(core, &[timer(), WAKE, RING]);
    GicCpuInterface::enable_group1(true);
    GicCpuInterface::set_priority_mask(0xff);
}

/// Why a core's redistributor is there.
const FRAME: &str = "every core has a redistributor";

fn with<T>(core: usize, act: impl FnOnce(&mut GicV3<'static>, usize) -> T) -> T {
    let frame = affinities().position(|mpidr| mpidr == cores::mpidr(core)).expect(FRAME);
    act(GIC.lock().as_mut().expect("the boot core has taken the GIC"), frame)
}

/// Enables private interrupts in a core's redistributor.
fn enable(core: usize, interrupts: &[IntId]) {
    with(core, |gic, frame| {
        let mut redistributor = gic.redistributor(frame).expect(FRAME);
        for &interrupt in interrupts {
            redistributor.set_interrupt_priority(interrupt, PRIORITY).expect("a private interrupt");
            redistributor.enable_interrupt(interrupt, true).expect("a private interrupt");
        }
    });
}

/// Wakes `core`.
pub fn wake(core: usize) {
    send(core, WAKE);
}

/// Sends `core` an interrupt that means nothing. It stays pending until the core takes it, once, however often it was sent.
///
/// # Panics
///
/// Panics if the core has no redistributor, or before [`init`].
pub fn ring(core: usize) {
    // Any core reaches any redistributor, that of a core which is lent too: there the firmware had disabled it.
    enable(core, &[RING]);
    send(core, RING);
}

/// How often `core` has taken an interrupt of [`ring`].
pub fn rung(core: usize) -> u64 {
    RUNG[core].load(Ordering::Acquire)
}

fn send(core: usize, interrupt: IntId) {
    let [affinity0, affinity1, affinity2, _, affinity3, ..] = cores::mpidr(core).to_le_bytes();
    // A core whose affinity level 0 is 16 or more is not in reach of the list, and the platform is none that this program knows.
    let target_list = 1 << (affinity0 & 0xf);
    let target = SgiTarget::List { affinity3, affinity2, affinity1, target_list };
    // SAFETY: a barrier: what this core has written is there before the other one wakes.
    unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) };
    GicCpuInterface::send_sgi(interrupt, target, SgiTargetGroup::CurrentGroup1).expect("both are SGIs");
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
        if interrupt == RING {
            RUNG[cores::current()].fetch_add(1, Ordering::AcqRel);
        }
        GicCpuInterface::end_interrupt(interrupt, InterruptGroup::Group1);
    }
    fired
}
