//! One wrapper an instruction. Names of EL1 mean those of EL2 at S-EL2 with E2H = 1.

use core::arch::asm;
use flexserve_abi::el3::AFFINITY;
use flexserve_spmc::{registers::Registers, tables::PAGE};

/// Defines readers of system registers.
macro_rules! readers {
    ($($(#[$doc:meta])* $read:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        pub fn $read() -> u64 {
            let value;
            // SAFETY: reading a system register that this exception level has.
            unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }
    )*};
}

/// Defines writers of system registers.
macro_rules! writers {
    ($($(#[$doc:meta])* $write:ident = $name:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        ///
        /// The caller keeps what it needs for its own memory accesses and control flow.
        pub unsafe fn $write(value: u64) {
            // SAFETY: by the caller.
            unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
        }
    )*};
}

readers! {
    /// Instruction set attributes.
    id_aa64isar0 = "id_aa64isar0_el1";
    /// Instruction set attributes.
    id_aa64isar1 = "id_aa64isar1_el1";
    /// Memory model features.
    id_aa64mmfr1 = "id_aa64mmfr1_el1";
    /// Processor features.
    id_aa64pfr0 = "id_aa64pfr0_el1";
    /// SVE features (reads as zero without SVE).
    id_aa64zfr0 = "s3_0_c0_c4_4";
    /// Size of the block that DC ZVA zeroes.
    dczid = "dczid_el0";
    /// Physical counter.
    cntpct = "cntpct_el0";
    /// Its ticks a second.
    cntfrq = "cntfrq_el0";
    /// Tables of the lower addresses, and ASID.
    ttbr0 = "ttbr0_el1";
    /// Which core this is.
    mpidr = "mpidr_el1";
    /// Pending interrupts.
    isr = "isr_el1";
    /// Length of SVE vectors.
    zcr = "s3_0_c1_c2_0";
    /// System control.
    sctlr = "sctlr_el1";
    /// What EL0 may do with the timers (CNTHCTL_EL2 at S-EL2).
    cntkctl = "cntkctl_el1";
    /// Debug features.
    id_aa64dfr0 = "id_aa64dfr0_el1";
    /// What EL0 may do with the performance counters. The CPU has some.
    pmuserenr = "pmuserenr_el0";
    /// Thread pointer of EL0.
    tpidr_el0 = "tpidr_el0";
    /// Thread pointer of EL0, which EL0 only reads.
    tpidrro_el0 = "tpidrro_el0";
}

writers! {
    /// System control.
    set_sctlr = "sctlr_el1";
    /// What EL0 may do with the timers (CNTHCTL_EL2 at S-EL2).
    set_cntkctl = "cntkctl_el1";
    /// What EL0 may do with the performance counters. The CPU has some.
    set_pmuserenr = "pmuserenr_el0";
    /// Tables of the lower addresses, and ASID.
    set_ttbr0 = "ttbr0_el1";
    /// Tables of the upper addresses.
    set_ttbr1 = "ttbr1_el1";
    /// Length of SVE vectors.
    set_zcr = "s3_0_c1_c2_0";
    /// Thread pointer of EL0.
    set_tpidr_el0 = "tpidr_el0";
    /// Thread pointer of EL0, which EL0 only reads.
    set_tpidrro_el0 = "tpidrro_el0";
}

/// Sets PSTATE.PAN: loads and stores do not reach what EL0 reaches. The CPU has FEAT_PAN.
pub fn set_pan() {
    // SAFETY: the SPMC never accesses memory at a partition's addresses.
    unsafe { asm!(".arch armv8.1-a", "msr pan, #1", ".arch armv8-a", options(nomem, nostack)) };
}

/// Instruction synchronisation barrier.
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

/// Makes writes to tables visible to the walkers of all cores.
pub fn publish_tables() {
    // SAFETY: barriers.
    unsafe { asm!("dsb ishst", "isb", options(nostack, preserves_flags)) };
}

/// Forgets all that the TLBs of all cores know of this regime.
pub fn flush_all() {
    // SAFETY: TLB maintenance changes no mapping.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Forgets what the TLBs of all cores know of one ASID.
pub fn flush_asid(asid: u16) {
    // SAFETY: TLB maintenance changes no mapping.
    unsafe {
        asm!("dsb ishst", "tlbi aside1is, {}", "dsb ish", "isb", in(reg) u64::from(asid) << 48,
            options(nostack, preserves_flags));
    };
}

/// Forgets all instructions that the caches of all cores hold.
pub fn flush_instructions() {
    // SAFETY: cache maintenance.
    unsafe { asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack, preserves_flags)) };
}

/// Zeroes whole pages from `start` to before `end`, in blocks of `block` bytes (`DC ZVA`), a power of two up to 2048.
///
/// # Safety
///
/// They are mapped memory that nobody references.
pub unsafe fn zero_blocks(start: u64, end: u64, block: u64) {
    const AT_ONCE: u64 = 16;
    let mut at = start;
    // Blocks of more than 256 bytes are rare, and one page of them fewer.
    while at < end && block * AT_ONCE > PAGE {
        // SAFETY: by the caller.
        unsafe { asm!("dc zva, {}", in(reg) at, options(nostack, preserves_flags)) };
        at += block;
    }
    if at < end {
        // SAFETY: by the caller; sixteen blocks divide a page.
        unsafe {
            asm!(
                "2:",
                ".rept 16",
                "dc zva, {at}",
                "add {at}, {at}, {block}",
                ".endr",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) at => _,
                block = in(reg) block,
                end = in(reg) end,
                options(nostack),
            );
        }
    }
}

/// Affinity fields of this core's MPIDR_EL1.
pub fn affinity() -> u64 {
    mpidr() & AFFINITY
}

/// Waits for an interrupt, masked or not.
pub fn wait_for_interrupt() {
    // SAFETY: a hint; no `nomem`, since others write meanwhile. What this core wrote is complete before it sleeps.
    unsafe { asm!("dsb ish", "wfi", options(nostack, preserves_flags)) };
}

/// Sends a Secure SGI (ICC_SGI1R_EL1). What this core wrote is visible to whoever takes it.
pub fn send_interrupt(value: u64) {
    // SAFETY: the SPMC of every core takes that interrupt.
    unsafe {
        asm!("dsb ish", "msr s3_0_c12_c11_5, {}", "isb", in(reg) value, options(nostack, preserves_flags))
    };
}

/// Acknowledges the pending Secure interrupt of the highest priority (ICC_IAR1_EL1); 1023 if there is none.
pub fn acknowledge_interrupt() -> u64 {
    let interrupt;
    // SAFETY: `end_interrupt` follows.
    unsafe {
        asm!("mrs {}, s3_0_c12_c12_0", "dsb sy", out(reg) interrupt, options(nostack, preserves_flags))
    };
    interrupt
}

/// Ends an interrupt that was acknowledged (ICC_EOIR1_EL1).
pub fn end_interrupt(interrupt: u64) {
    // SAFETY: drops its priority.
    unsafe { asm!("msr s3_0_c12_c12_1, {}", "isb", in(reg) interrupt, options(nostack, preserves_flags)) };
}

/// Waits for nothing, for ever.
pub fn sleep() -> ! {
    loop {
        // SAFETY: a hint.
        unsafe { asm!("wfi", options(nomem, nostack, preserves_flags)) };
    }
}

/// A call to EL3, or through EL3 to the normal world.
pub fn smc(mut r: Registers) -> Registers {
    // SAFETY: EL3 changes x0 to x17 and no memory that Rust knows of; no `nomem`, since others may run meanwhile.
    unsafe {
        asm!("smc #0",
            inout("x0") r[0], inout("x1") r[1], inout("x2") r[2], inout("x3") r[3], inout("x4") r[4],
            inout("x5") r[5], inout("x6") r[6], inout("x7") r[7], inout("x8") r[8], inout("x9") r[9],
            inout("x10") r[10], inout("x11") r[11], inout("x12") r[12], inout("x13") r[13],
            inout("x14") r[14], inout("x15") r[15], inout("x16") r[16], inout("x17") r[17],
            options(nostack));
    }
    r
}
