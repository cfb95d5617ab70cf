//! Long words to words, under one power of 2.

use crate::isa::Isa;
use crate::matrix::ShapeError;

/// Bits of the largest magnitude that are kept.
const BITS: i32 = 30;

/// Rounds `values` to words of at most 2^30, `out[i] * 2^shift`, and answers the shift, -30..=34. The largest has 30 bits, or
/// is 2^30.
///
/// # Errors
/// [`ShapeError`] if `out` is not as long as `values`.
pub fn narrow(isa: Isa, values: &[i64], out: &mut [i32]) -> Result<i32, ShapeError> {
    if values.len() != out.len() {
        return Err(ShapeError);
    }
    let shift_of = |magnitude: u64| 64 - magnitude.leading_zeros().cast_signed() - BITS;
    #[cfg(target_arch = "aarch64")]
    if isa.has_sve2() {
        // SAFETY: the creator of `isa` promised that the CPU has the instructions; the lengths are the same.
        return unsafe {
            let shift = shift_of(crate::words_sve::magnitude(values));
            crate::words_sve::round(values, shift, out);
            Ok(shift)
        };
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = isa;
    let (fours, rest) = values.as_chunks();
    let shift = shift_of(magnitude_of(fours) | magnitude(rest));
    let (out, out_rest) = out.as_chunks_mut();
    round_all(fours, shift, out);
    round(rest, shift, out_rest);
    Ok(shift)
}

/// All bits of the magnitudes.
fn magnitude(values: &[i64]) -> u64 {
    values.iter().fold(0, |all, value| all | value.unsigned_abs())
}

/// Rounds each value, halves up.
fn round(values: &[i64], shift: i32, out: &mut [i32]) {
    for (out, value) in out.iter_mut().zip(values) {
        // Half is added behind the first shift, where it cannot overflow.
        let word = if shift > 0 { ((value >> (shift - 1)) + 1) >> 1 } else { value << -shift };
        *out = word as i32;
    }
}

#[cfg(target_arch = "aarch64")]
use neon::{magnitude as magnitude_of, round as round_all};
#[cfg(not(target_arch = "aarch64"))]
use plain::{magnitude as magnitude_of, round as round_all};

#[cfg(not(target_arch = "aarch64"))]
mod plain {
    pub(super) fn magnitude(values: &[[i64; 4]]) -> u64 {
        super::magnitude(values.as_flattened())
    }

    pub(super) fn round(values: &[[i64; 4]], shift: i32, out: &mut [[i32; 4]]) {
        super::round(values.as_flattened(), shift, out.as_flattened_mut());
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::*;

    /// Twin of [`super::magnitude`].
    pub(super) fn magnitude(values: &[[i64; 4]]) -> u64 {
        // SAFETY: every AArch64 target of this crate has NEON; the loads are of four values.
        unsafe {
            let mut all = [vdupq_n_s64(0); 2];
            for four in values {
                let four = vld1q_s64_x2(four.as_ptr());
                // The magnitude of the least number is itself, without a sign.
                all[0] = vorrq_s64(all[0], vabsq_s64(four.0));
                all[1] = vorrq_s64(all[1], vabsq_s64(four.1));
            }
            let all = vorrq_s64(all[0], all[1]);
            (vgetq_lane_s64::<0>(all) | vgetq_lane_s64::<1>(all)).cast_unsigned()
        }
    }

    /// Twin of [`super::round`].
    pub(super) fn round(values: &[[i64; 4]], shift: i32, out: &mut [[i32; 4]]) {
        // SAFETY: NEON is there; loads and stores are of four values.
        unsafe {
            let left = vdupq_n_s64(i64::from(-shift));
            for (out, four) in out.iter_mut().zip(values) {
                let four = vld1q_s64_x2(four.as_ptr());
                let word = |half| vreinterpretq_s32_s64(vrshlq_s64(half, left));
                vst1q_s32(out.as_mut_ptr(), vuzp1q_s32(word(four.0), word(four.1)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn words_are_those_of_the_plain_twin() {
        let noise = |i: i64| i.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_mul(i + 77);
        for down in 0..64 {
            for length in [0, 1, 3, 4, 5, 64, 71] {
                let values: Vec<i64> = (0..length).map(|i| noise(i + length) >> down).collect();
                let (mut out, mut plain) = (vec![7; values.len()], vec![9; values.len()]);
                let shift = narrow(Isa::BASELINE, &values, &mut out).unwrap();
                assert_eq!(shift, 34 - magnitude(&values).leading_zeros().cast_signed());
                round(&values, shift, &mut plain);
                assert_eq!(out, plain);
                assert_eq!(narrow(Isa::detect(), &values, &mut out), Ok(shift));
                assert_eq!(out, plain);
            }
        }
    }

    #[test]
    fn halves_are_rounded_up_and_extremes_fit() {
        let mut out = [0; 5];
        assert_eq!(narrow(Isa::detect(), &[1 << 30, 1, -1, 3, -3], &mut out), Ok(1));
        assert_eq!(out, [1 << 29, 1, 0, 2, -1]);
        assert_eq!(narrow(Isa::detect(), &[i64::MIN, i64::MAX, 0, 1 << 33, -1], &mut out), Ok(34));
        assert_eq!(out, [-(1 << 29), 1 << 29, 0, 1, 0]);
        assert_eq!(narrow(Isa::detect(), &[1, -1, 0, 0, 1], &mut out), Ok(-29));
        assert_eq!(out, [1 << 29, -(1 << 29), 0, 0, 1 << 29]);
        assert_eq!(narrow(Isa::detect(), &[0; 5], &mut out), Ok(-30));
        assert_eq!(narrow(Isa::detect(), &[0; 4], &mut out), Err(ShapeError));
    }
}
