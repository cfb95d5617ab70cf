//! The system counter.

use core::arch::asm;

/// Its ticks: CNTPCT_EL0, which may be read early or late by what the CPU speculates.
pub fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("mrs {}, cntpct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks
}
