//! Time, and the timer that takes the core back from the secure world: the physical one, which is EL2's own for a program at EL2.

use core::arch::asm;

use flexserve_client::{Conduit as _, Registers};

use crate::{gic, system::Smc};

/// Lets the timer fire in `microseconds`.
pub fn arm(microseconds: u64) {
    let ticks = frequency() / 1_000_000 * microseconds;
    // SAFETY: programs this core's own timer, whose interrupt only the secure world's callers meet.
    unsafe {
        asm!("msr cntp_tval_el0, {}", "msr cntp_ctl_el0, {}", "isb", in(reg) ticks, in(reg) 1_u64, options(nostack));
    }
}

/// Stops the timer.
pub fn disarm() {
    // SAFETY: as in `arm`.
    unsafe { asm!("msr cntp_ctl_el0, {}", "isb", in(reg) 2_u64, options(nostack)) };
}

/// Makes a call that the timer's interrupt ends after `microseconds`, if nothing else does: what came back, and whether the timer
/// had fired.
pub fn slice(microseconds: u64, call: Registers) -> (Registers, bool) {
    arm(microseconds);
    let answer = Smc.call(call);
    let fired = gic::acknowledge();
    disarm();
    (answer, fired)
}

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) ticks, options(nostack, preserves_flags)) };
    (u128::from(ticks) * 1_000_000_000 / u128::from(frequency())) as u64
}

/// A moment for an emulator that counts instructions (`xtask/plugin/cores.c`).
pub fn mark() {
    // SAFETY: a hint without a meaning does nothing.
    unsafe { asm!("hint #127", options(nomem, nostack, preserves_flags)) };
}

fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack, preserves_flags)) };
    hertz.max(1)
}
