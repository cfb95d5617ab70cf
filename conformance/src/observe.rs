//! What a call leaves in registers that are not its results.

use core::arch::{asm, global_asm};

use flexserve_client::Registers;

global_asm!(include_str!("observe.S"));

/// x0..x30, and how far SP is from where it was.
#[repr(C)]
struct Observed {
    x: [u64; 31],
    sp: u64,
}

const _: () = assert!(size_of::<Observed>() == 256);

unsafe extern "C" {
    fn smc_observed(sent: *const [u64; 31], kept: *mut Observed);
    fn smc_with_fp(registers: *const Registers, fpcr: u64, fpsr: u64, kept: *mut [u64; 2]);
}

/// x0..x30 of a call: its arguments, and in all other registers a value of their own.
pub fn pattern(call: &Registers, arguments: usize) -> [u64; 31] {
    let mut sent = core::array::from_fn(|i| 0x1111_0000_0000_1000 + i as u64 * 0x0101_0101_0101);
    sent[..=arguments].copy_from_slice(&call[..=arguments]);
    sent
}

/// Makes a call with all general registers set; answers x0..x30 on return, and SP's displacement.
pub fn general(sent: &[u64; 31]) -> ([u64; 31], u64) {
    let mut kept = Observed { x: [0; 31], sp: 0 };
    // SAFETY: the routine keeps what its caller owns; the buffers are as long as it expects.
    unsafe { smc_observed(sent, &mut kept) };
    (kept.x, kept.sp)
}

/// Makes a call with all 64 bits of x0 as they are.
pub fn raw(call: &Registers) -> Registers {
    let (kept, _) = general(&pattern(call, call.len() - 1));
    core::array::from_fn(|i| kept[i])
}

/// Makes a call with FPCR and FPSR set; answers both on return.
pub fn floating_point(call: &Registers, fpcr: u64, fpsr: u64) -> [u64; 2] {
    let mut kept = [0; 2];
    // SAFETY: as above; no floating-point code runs with this FPCR.
    unsafe { smc_with_fp(call, fpcr, fpsr, &mut kept) };
    kept
}

/// System registers of EL0 and EL1 that this program does not use, each with a name.
macro_rules! unused_registers {
    ($($name:literal),+) => {
        /// Names of the system registers that [`system`] looks at.
        pub const SYSTEM: &[&str] = &[$($name),+];

        /// Sets each of them to a value of its own, runs `f`, and answers what it held before and after.
        pub fn system(f: impl FnOnce()) -> [[u64; SYSTEM.len()]; 2] {
            let mut value = 0x5a5a_0000_1230_u64;
            $(
                value += 0x1_0000_1000;
                // SAFETY: the register holds nothing that this program uses.
                unsafe { asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
            )+
            let before = read_system();
            f();
            [before, read_system()]
        }

        fn read_system() -> [u64; SYSTEM.len()] {
            [$({
                let value: u64;
                // SAFETY: reads a register.
                unsafe { asm!("isb", concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
                value
            }),+]
        }
    };
}

unused_registers!("tpidr_el0", "tpidrro_el0", "tpidr_el1", "sp_el0", "contextidr_el1", "par_el1");
