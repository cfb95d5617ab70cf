//! What the service is measured against (`flexserve_abi::el3::peer`): BL31's own library, one granule a call.

use core::ffi::c_int;
use flexserve_abi::{GRANULE_SIZE, el3::peer};

/// `SMC_FROM_SECURE` of TF-A's `smccc.h`.
const FROM_SECURE: u32 = 0;

unsafe extern "C" {
    fn gpt_delegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
    fn gpt_undelegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
}

/// Answers a peer's call; whether it was one.
///
/// # Safety
///
/// `registers` points to the caller's saved x0 and x1.
pub unsafe fn handle(fid: u32, registers: *mut u64) -> bool {
    // SAFETY: by the caller; the library checks addresses itself.
    let result = unsafe {
        let base = registers.add(1).read();
        match fid {
            peer::NULL => 0,
            peer::DELEGATE => gpt_delegate_pas(base, GRANULE_SIZE, FROM_SECURE),
            peer::UNDELEGATE => gpt_undelegate_pas(base, GRANULE_SIZE, FROM_SECURE),
            _ => return false,
        }
    };
    // SAFETY: by the caller.
    unsafe { registers.write(i64::from(result).cast_unsigned()) };
    true
}
