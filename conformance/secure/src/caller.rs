//! The loop of every core.

use arm_ffa::FuncId;
use core::{
    arch::{asm, global_asm},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use flexserve_abi::{
    el3::fid,
    probe::{SECURE_CALLER, SECURE_REGISTERS, SecureOp},
};
use smccc::smc64;

type Registers = [u64; 18];

/// FF-A v1.2.
const VERSION: u64 = 1 << 16 | 2;
/// `NOT_SUPPORTED` (DEN0077A v1.2, table 12.4).
const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// Framework messages of the SPMD, in w2 (DEN0077A v1.2, section 18): bit 31 and a number.
const FRAMEWORK: u64 = 1 << 31;
const POWER_REQUEST: u64 = FRAMEWORK;
const POWER_RESPONSE: u64 = FRAMEWORK | 2;
const VERSION_REQUEST: u64 = FRAMEWORK | 8;
const VERSION_RESPONSE: u64 = FRAMEWORK | 9;

global_asm!(include_str!("entry.S"), primary = sym primary, secondary = sym secondary);

unsafe extern "C" {
    fn secure_secondary();
    /// Reads or writes; answers ESR_ELx (0 if nothing faulted), and the value or FAR_ELx.
    fn secure_access(address: u64, value: u64, write: bool) -> Outcome;
}

/// What became of an access, in x0 and x1.
#[repr(C)]
struct Outcome {
    esr: u64,
    value: u64,
}

extern "C" fn primary() -> ! {
    smc(FuncId::SecondaryEpRegister64, &[secure_secondary as *const () as u64]);
    serve()
}

extern "C" fn secondary() -> ! {
    serve()
}

fn smc(function: FuncId, arguments: &[u64]) -> Registers {
    let mut rest = [0; 17];
    rest[..arguments.len()].copy_from_slice(arguments);
    smc64(function.into(), rest)
}

/// Answers the SPMD's and the suite's messages for ever.
fn serve() -> ! {
    let mut kept = [0; SECURE_REGISTERS];
    let mut call = smc(FuncId::MsgWait32, &[]);
    loop {
        if call[0] == fid::CORE_LEND.into() {
            call = work();
            continue;
        }
        call = match FuncId::try_from(call[0] as u32) {
            // A recall's interrupt that was slower than the recall: the core has left without it.
            Ok(FuncId::Interrupt32) => {
                acknowledge();
                smc(FuncId::NormalWorldResume32, &[])
            }
            Ok(FuncId::MsgSendDirectReq64) => {
                let results = act(&call, &mut kept);
                let swapped = call[1] << 16 & 0xffff_0000 | call[1] >> 16 & 0xffff;
                let [a, b, c, d] = results;
                smc(FuncId::MsgSendDirectResp64, &[swapped, 0, call[3], a, b, c, d])
            }
            Ok(FuncId::MsgSendDirectReq32) => {
                let swapped = call[1] << 16 & 0xffff_0000 | call[1] >> 16 & 0xffff;
                let (kind, value) = match call[2] & 0xffff_ffff {
                    VERSION_REQUEST => (VERSION_RESPONSE, VERSION),
                    POWER_REQUEST => (POWER_RESPONSE, 0),
                    _ => (FRAMEWORK, NOT_SUPPORTED),
                };
                smc(FuncId::MsgSendDirectResp32, &[swapped, kind, value])
            }
            _ => smc(FuncId::Error32, &[0, NOT_SUPPORTED & 0xffff_ffff]),
        };
    }
}

/// This core is lent, and works. It asks for leave at once, which is denied, and after each interrupt, until it has been recalled. Answers the
/// next message to this core, which comes when the normal world has it again.
fn work() -> Registers {
    let Work { rounds, signalled } = &WORK[number(mpidr())];
    rounds.store(0, Relaxed);
    signalled.store(0, Relaxed);
    loop {
        let answer = smc64(fid::CORE_RETURN, [0; 17]);
        if answer[0].cast_signed() >= 0 {
            return answer;
        }
        loop {
            let [own, other] = pending();
            if own {
                break;
            }
            signalled.fetch_add(other.into(), Relaxed);
            rounds.fetch_add(1, Relaxed);
        }
        acknowledge();
    }
}

/// What a core has done since it was lent last.
struct Work {
    rounds: AtomicU64,
    signalled: AtomicU64,
}

/// By number of the core; as many as `entry.S` has stacks.
static WORK: [Work; 8] = [const { Work { rounds: AtomicU64::new(0), signalled: AtomicU64::new(0) } }; 8];

fn mpidr() -> u64 {
    let mpidr;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, mpidr_el1", out(reg) mpidr, options(nomem, nostack, preserves_flags)) };
    mpidr
}

/// A core's number by its affinity fields, as `entry.S` takes it for this core's.
fn number(affinity: u64) -> usize {
    // MPIDR_EL1.MT: level 0 numbers threads, and all cores say so.
    let [core, cluster] =
        if mpidr() & 1 << 24 == 0 { [affinity, affinity >> 8] } else { [affinity >> 8, affinity >> 16] };
    ((core & 0xff) + 4 * (cluster & 0xff)) as usize % WORK.len()
}

/// Whether an interrupt of the Secure world is signalled to this core (IRQ), and whether one of another world (FIQ): ISR_EL1.
fn pending() -> [bool; 2] {
    let signalled: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mrs {}, isr_el1", out(reg) signalled, options(nomem, nostack, preserves_flags)) };
    [7, 6].map(|bit| signalled >> bit & 1 != 0)
}

/// Takes and ends the Secure world's interrupt, of which there is one kind (ICC_IAR1_EL1, ICC_EOIR1_EL1: Arm IHI 0069).
fn acknowledge() {
    const FIRST_SPECIAL: u64 = 1020;
    // SAFETY: registers of this core's own interrupt interface.
    unsafe {
        let interrupt: u64;
        asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) interrupt, options(nostack, preserves_flags));
        if interrupt & 0xff_ffff < FIRST_SPECIAL {
            asm!("msr S3_0_C12_C12_1, {}", in(reg) interrupt, options(nostack, preserves_flags));
        }
    }
}

/// Does what one message asks; answers x4 to x7.
fn act(call: &Registers, kept: &mut [u64; SECURE_REGISTERS]) -> [u64; 4] {
    let [a, b, c, d] = [call[4], call[5], call[6], call[7]];
    let index = (call[3] >> 8) as usize & 0xff;
    let four = kept.get_mut(index..).and_then(|rest| rest.first_chunk_mut::<4>());
    match (SecureOp::from_code(call[3]), four) {
        (Some(SecureOp::Hello), _) => [SECURE_CALLER, 0, 0, 0],
        (Some(SecureOp::Put), Some(four)) => {
            *four = [a, b, c, d];
            [0; 4]
        }
        (Some(SecureOp::Get), Some(four)) => *four,
        (Some(SecureOp::Call), _) => {
            let mut arguments = [0; 17];
            arguments.copy_from_slice(&kept[1..18]);
            let answer = smc64(kept[0] as u32, arguments);
            kept[..18].copy_from_slice(&answer);
            [0; 4]
        }
        (Some(op @ (SecureOp::Read | SecureOp::Write)), _) => {
            // SAFETY: none: this is the probe. A fault is answered; a write goes where the suite has memory of its own.
            let outcome = unsafe { secure_access(a, b, op == SecureOp::Write) };
            [outcome.esr, outcome.value, 0, 0]
        }
        (Some(SecureOp::Work), _) => {
            let Work { rounds, signalled } = &WORK[number(a)];
            [rounds.load(Relaxed), signalled.load(Relaxed), 0, 0]
        }
        _ => [u64::MAX; 4],
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {
        // SAFETY: a hint.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
