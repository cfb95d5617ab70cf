//! What the service is measured against (`flexserve_abi::el3::peer`): a call that returns at once, and, where there are granule
//! protection tables, BL31's own library, one granule a call.

use core::ffi::c_int;
use flexserve_abi::el3::peer;

/// Answers a peer's call; whether it was one.
///
/// # Safety
///
/// `registers` points to the caller's saved x0 and x1.
pub unsafe fn handle(fid: u32, registers: *mut u64) -> bool {
    // SAFETY: by the caller.
    let base = unsafe { registers.add(1).read() };
    let result = match fid {
        peer::NULL => 0,
        _ => match library(fid, base) {
            Some(result) => result,
            None => return false,
        },
    };
    // SAFETY: by the caller.
    unsafe { registers.write(i64::from(result).cast_unsigned()) };
    true
}

#[cfg(isolation = "gpt")]
fn library(fid: u32, base: u64) -> Option<c_int> {
    use flexserve_abi::GRANULE_SIZE;

    /// `SMC_FROM_SECURE` of TF-A's `smccc.h`.
    const FROM_SECURE: u32 = 0;

    unsafe extern "C" {
        fn gpt_delegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
        fn gpt_undelegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
    }

    // SAFETY: the library checks addresses itself.
    unsafe {
        match fid {
            peer::DELEGATE => Some(gpt_delegate_pas(base, GRANULE_SIZE, FROM_SECURE)),
            peer::UNDELEGATE => Some(gpt_undelegate_pas(base, GRANULE_SIZE, FROM_SECURE)),
            _ => None,
        }
    }
}

#[cfg(isolation = "stage-2")]
fn library(_fid: u32, _base: u64) -> Option<c_int> {
    None
}
