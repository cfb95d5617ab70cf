//! The interrupt with which the Secure world's cores reach each other (GICv3, Arm IHI 0069; EL3 has set it up).

use super::registers;
use flexserve_platform::GIC_SECURE_SGI;
use flexserve_spmc::workers::Mask;

/// Interrupts other cores, and this one if it is named.
pub fn interrupt(cores: Mask) {
    // ICC_SGI1R_EL1: bits [27:24] the interrupt, [15:0] the targets, whose other affinity fields are 0.
    const INTERRUPT: u32 = 24;
    const TARGETS: u64 = 0xffff;
    if cores != 0 {
        registers::send_interrupt(GIC_SECURE_SGI << INTERRUPT | u64::from(cores) & TARGETS);
    }
}

/// Takes the Secure world's pending interrupts, which tell nothing but to look around. At most one of each kind is pending.
pub fn acknowledge() {
    const FIRST_SPECIAL: u64 = 1020;
    const KINDS: usize = 1020;
    for _ in 0..KINDS {
        let interrupt = registers::acknowledge_interrupt();
        if interrupt & 0xff_ffff >= FIRST_SPECIAL {
            return;
        }
        registers::end_interrupt(interrupt);
    }
}

/// Whether an interrupt of the normal world's (or of EL3's) is pending on this core.
pub fn normal_world_wants_attention() -> bool {
    const FIQ: u64 = 1 << 6;
    registers::isr() & FIQ != 0
}
