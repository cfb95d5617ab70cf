//! What both mechanisms ask of the CPU: the system counter, its data cache lines, and system registers.

use core::arch::asm;

/// Ticks of the system counter: CNTPCT_EL0, which may be read early or late by what the CPU speculates.
pub fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter.
    unsafe { asm!("mrs {}, cntpct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks
}

/// log2 of the bytes of the smallest data cache line (CTR_EL0.DminLine); 8 for a larger one.
pub fn line_shift() -> u32 {
    let ctr: u64;
    // SAFETY: reads CTR_EL0.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    (2 + (ctr >> 16 & 0xf) as u32).min(8)
}

/// Begins to write back and drop the lines, of `1 << shift` bytes each, of `count` granules, which are some, from `at` on, by an
/// instruction that takes the address in `{at}`. Sixteen lines a turn.
macro_rules! flush_lines {
    ($instruction:literal, $at:expr, $count:expr, $shift:expr) => {
        core::arch::asm!(
            "2:",
            ".rept 16",
            $instruction,
            "add {at}, {at}, {bytes}",
            ".endr",
            "subs {turns}, {turns}, #1",
            "b.ne 2b",
            at = inout(reg) $at => _,
            turns = inout(reg) $count << (flexserve_abi::GRANULE_SIZE.trailing_zeros() - 4 - $shift) => _,
            bytes = in(reg) 1_u64 << $shift,
            options(nostack),
        )
    };
}
pub(crate) use flush_lines;

/// Reads a system register that exists at EL3.
macro_rules! read {
    ($register:expr) => {{
        let value: u64;
        // SAFETY: reads a register that exists at EL3.
        unsafe {
            core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nostack, preserves_flags));
        }
        value
    }};
}
pub(crate) use read;

/// Writes a system register of EL2 or EL1.
macro_rules! write {
    ($register:expr, $value:expr) => {
        // SAFETY: registers of EL2 and EL1, under which EL3 does not run.
        unsafe {
            core::arch::asm!(concat!("msr ", $register, ", {}"), in(reg) $value, options(nostack, preserves_flags));
        }
    };
}
pub(crate) use write;

/// Writes the registers in which an exception level, `"el1"` or `"el2"`, finds an exception that it has taken.
macro_rules! deliver {
    ($level:literal, $exception:expr) => {{
        $crate::cpu::write!(concat!("esr_", $level), $exception.syndrome);
        $crate::cpu::write!(concat!("far_", $level), $exception.address);
        $crate::cpu::write!(concat!("elr_", $level), $exception.return_address);
        $crate::cpu::write!(concat!("spsr_", $level), $exception.saved_state);
    }};
}
pub(crate) use deliver;
