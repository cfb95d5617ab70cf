//! Granule protection tables, by BL31's own library (`lib/gpt_rme`): it knows the tables' layout, flushes to the point of
//! physical aliasing, invalidates the TLBs of all cores, and holds the lock that the RMM's requests take too.

use crate::{
    gpt_format::Layout,
    protection::{GranuleProtection, MoveError},
};
use core::ffi::c_int;
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};

/// `SMC_FROM_SECURE` of TF-A's `smccc.h`: the library takes the requester's world for the target.
const FROM_SECURE: u32 = 0;
const EPERM: c_int = -1;

unsafe extern "C" {
    fn gpt_delegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
    fn gpt_undelegate_pas(base: u64, size: usize, src_sec_state: u32) -> c_int;
}

/// The tables that BL31 has set up.
#[derive(Debug)]
pub struct Tables;

impl GranuleProtection for Tables {
    const BACKEND: u64 = 1;

    fn physical_address_bits(&self) -> u64 {
        Layout::read().physical_address_bits()
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        // SAFETY: BL31 maps its tables flat; the layout comes from the registers that the hardware walks them by.
        Layout::read().owner(base, |address| unsafe { (address as *const u64).read_volatile() })
    }

    fn lend(&self, base: u64) -> Result<(), MoveError> {
        // SAFETY: the library checks the address itself and changes nothing but the granule's entry, under its lock.
        result(unsafe { gpt_delegate_pas(base, GRANULE_SIZE, FROM_SECURE) })
    }

    fn give_back(&self, base: u64) -> Result<(), MoveError> {
        // SAFETY: as above.
        result(unsafe { gpt_undelegate_pas(base, GRANULE_SIZE, FROM_SECURE) })
    }
}

fn result(code: c_int) -> Result<(), MoveError> {
    match code {
        0 => Ok(()),
        EPERM => Err(MoveError::NotOwned),
        _ => Err(MoveError::NotCovered),
    }
}

impl Layout {
    fn read() -> Self {
        let (gptbr, gpccr): (u64, u64);
        // SAFETY: reads GPTBR_EL3 and GPCCR_EL3 (Arm DDI 0615), which exist wherever this backend is used.
        unsafe {
            core::arch::asm!(
                "mrs {}, S3_6_C2_C1_4",
                "mrs {}, S3_6_C2_C1_6",
                out(reg) gptbr,
                out(reg) gpccr,
                options(nomem, nostack, preserves_flags),
            );
        }
        Self::new(gptbr, gpccr)
    }
}
