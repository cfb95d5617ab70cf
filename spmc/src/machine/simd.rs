//! SIMD registers: the normal world's, kept while a partition runs, and a partition's, kept while it does not.

use super::registers::{id_aa64pfr0, isb, set_zcr, zcr};
use core::arch::global_asm;

global_asm!(include_str!("simd.S"));

unsafe extern "C" {
    fn simd_save_neon(area: *mut Area);
    fn simd_restore_neon(area: *const Area);
    fn simd_save_sve(area: *mut Area);
    fn simd_restore_sve(area: *const Area);
}

/// As long as EL3 allows.
const LONGEST_VECTORS: u64 = 0xf;

/// All SIMD registers of one context, at the longest vector length: 32 vectors, 16 predicates and FFR, two words.
#[repr(C, align(16))]
pub struct Area([u8; 8752]);

impl Area {
    /// All zeroes.
    pub const ZERO: Self = Self([0; 8752]);
}

/// Whether the CPU has SVE.
pub fn has_sve() -> bool {
    id_aa64pfr0() >> 32 & 0xf != 0
}

/// Zeroes all SIMD registers.
pub fn clear() {
    static ZERO: Area = Area::ZERO;
    // SAFETY: vector registers are not used by this code, and the area has room for all of them at the longest length.
    unsafe {
        if has_sve() {
            let length = zcr();
            set_zcr(LONGEST_VECTORS);
            isb();
            simd_restore_sve(&ZERO);
            set_zcr(length);
            isb();
        } else {
            simd_restore_neon(&ZERO);
        }
    }
}

/// Exchanges the registers for a while.
pub struct Swap<'a> {
    outside: &'a mut Area,
    inside: &'a mut Area,
    vector_length: Option<u64>,
}

impl<'a> Swap<'a> {
    /// Puts the registers away to `outside` and takes those of `inside`, until [`Self::end`].
    pub fn begin(outside: &'a mut Area, inside: &'a mut Area) -> Self {
        let vector_length = has_sve().then(|| {
            let length = zcr();
            // SAFETY: vector registers are not used by this code.
            unsafe { set_zcr(LONGEST_VECTORS) };
            isb();
            length
        });
        // SAFETY: an area has room for all registers at the longest length; FP and, if there is, SVE are enabled.
        unsafe {
            if vector_length.is_some() {
                simd_save_sve(outside);
                simd_restore_sve(inside);
            } else {
                simd_save_neon(outside);
                simd_restore_neon(inside);
            }
        }
        Self { outside, inside, vector_length }
    }

    /// Exchanges them back.
    pub fn end(self) {
        // SAFETY: as in `begin`.
        unsafe {
            if let Some(length) = self.vector_length {
                simd_save_sve(self.inside);
                simd_restore_sve(self.outside);
                set_zcr(length);
                isb();
            } else {
                simd_save_neon(self.inside);
                simd_restore_neon(self.outside);
            }
        }
    }
}
