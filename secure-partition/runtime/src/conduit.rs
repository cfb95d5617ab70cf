//! The calls themselves: FF-A over SVC.

use crate::message::{Error, Registers, Request, call, check};
use arm_ffa::FuncId;
use core::arch::asm;

/// One FF-A call. x18 and above keep their values; memory may change under it only where the SPMC was told to write.
pub(crate) fn svc(mut registers: Registers) -> Registers {
    // SAFETY: SVC enters the SPMC, which changes x0 to x17 and, of this partition's memory, the RX buffer alone;
    // `memory` reads that only after the call. No memory option: the buffers' contents must be in place by then.
    unsafe {
        asm!("svc #0",
            inout("x0") registers[0], inout("x1") registers[1], inout("x2") registers[2],
            inout("x3") registers[3], inout("x4") registers[4], inout("x5") registers[5],
            inout("x6") registers[6], inout("x7") registers[7], inout("x8") registers[8],
            inout("x9") registers[9], inout("x10") registers[10], inout("x11") registers[11],
            inout("x12") registers[12], inout("x13") registers[13], inout("x14") registers[14],
            inout("x15") registers[15], inout("x16") registers[16], inout("x17") registers[17],
            options(nostack));
    }
    registers
}

/// A call that answers `FFA_SUCCESS`.
pub(crate) fn simple(function: FuncId, args: &[u64]) -> Result<Registers, Error> {
    let answer = svc(call(function, args));
    check(&answer, &[FuncId::Success32, FuncId::Success64])?;
    Ok(answer)
}

/// Ends the start-up phase and sleeps until the first request (`FFA_MSG_WAIT`).
///
/// # Panics
///
/// If the SPMC delivers anything but a direct request, which it never does to a partition of these manifests.
#[must_use]
pub fn wait() -> Request {
    expect_request(svc(call(FuncId::MsgWait32, &[])))
}

impl Request {
    /// Answers this request (`FFA_MSG_SEND_DIRECT_RESP2`, x4 to x17) and sleeps until the next one.
    ///
    /// # Panics
    ///
    /// As [`wait`].
    #[must_use]
    pub fn respond_and_wait(self, reply: [u64; 14]) -> Request {
        expect_request(svc(self.response(&reply)))
    }
}

fn expect_request(registers: Registers) -> Request {
    Request::from_registers(&registers).expect("the SPMC delivers direct requests")
}

/// Any other function than FF-A's over the partition's conduit: what an attacker in a partition would try. The SPMC
/// answers x0 = `NOT_SUPPORTED` (-1).
#[must_use]
pub fn raw_call(function: u64, args: [u64; 3]) -> u64 {
    let mut registers = [0; 18];
    registers[0] = function;
    registers[1..4].copy_from_slice(&args);
    svc(registers)[0]
}
