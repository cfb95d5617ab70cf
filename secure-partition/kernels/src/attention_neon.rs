//! Attention's inner loops for Armv8.0-A: the twins of those in [`crate::attention`].

use core::arch::aarch64::*;

use crate::attention::{DIMENSIONS, EXP2, LN_2, ONE, POSITIONS};

/// Dimensions whose products fit i32 in eight lanes: 8 * 16383^2 < 2^31.
const CHUNK: usize = 64;

/// Dot product of mantissas. `None` if there are no whole chunks.
#[inline]
pub(crate) fn dot(a: &[i16], b: &[i16]) -> Option<i64> {
    let (a, []) = a.as_chunks::<CHUNK>() else { return None };
    let mut sum = 0;
    for (a, b) in a.iter().zip(b.as_chunks::<CHUNK>().0) {
        // SAFETY: every AArch64 target of this crate has NEON; the loads are of 8 elements inside `a` and `b`.
        unsafe {
            let mut lanes = [vdupq_n_s32(0); 2];
            for at in (0..CHUNK).step_by(8) {
                let (a, b) = (vld1q_s16(a.as_ptr().add(at)), vld1q_s16(b.as_ptr().add(at)));
                lanes[0] = vmlal_s16(lanes[0], vget_low_s16(a), vget_low_s16(b));
                lanes[1] = vmlal_high_s16(lanes[1], a, b);
            }
            sum += vaddvq_s64(vpadalq_s32(vpaddlq_s32(lanes[0]), lanes[1]));
        }
    }
    Some(sum)
}

/// Four scores at a time; answers their sum, and the scores that are left.
#[inline]
pub(crate) fn soften(scores: &mut [i32], largest: i32) -> (i64, &mut [i32]) {
    let (fours, rest) = scores.as_chunks_mut::<4>();
    // SAFETY: NEON is there; loads and stores are of four scores.
    let sum = unsafe {
        let mut sums = vdupq_n_s64(0);
        let largest = vdupq_n_s32(largest);
        for four in fours {
            let powers = exp2(vsubq_s32(vld1q_s32(four.as_ptr()), largest));
            sums = vpadalq_s32(sums, powers);
            vst1q_s32(four.as_mut_ptr(), powers);
        }
        vaddvq_s64(sums)
    };
    (sum, rest)
}

/// Twin of [`crate::attention::exp2`]. `(a * b) >> 30` is SQDMULH of 2a and b, wherever 2a fits.
#[inline(always)]
unsafe fn exp2(x: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is there; the table has 64 bytes.
    unsafe {
        let table = EXP2.as_ptr().cast::<u8>();
        let table = uint8x16x4_t(
            vld1q_u8(table),
            vld1q_u8(table.add(16)),
            vld1q_u8(table.add(32)),
            vld1q_u8(table.add(48)),
        );
        // A shift of more than 31 leaves nothing; only its low byte counts.
        let whole = vmaxq_s32(vshrq_n_s32::<16>(x), vdupq_n_s32(-64));
        let x = vreinterpretq_u32_s32(x);
        let index = vandq_u32(vshrq_n_u32::<12>(x), vdupq_n_u32(15));
        // The four bytes of the entry.
        let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), index, vdupq_n_u32(0x0404_0404));
        let entry = vreinterpretq_s32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
        let below = vreinterpretq_s32_u32(vandq_u32(x, vdupq_n_u32(0xfff)));
        let y = vqdmulhq_s32(vshlq_n_s32::<15>(below), vdupq_n_s32(LN_2 as i32));
        let y2 = vqdmulhq_s32(vshlq_n_s32::<1>(y), y);
        let y3 = vqdmulhq_s32(vshlq_n_s32::<1>(y2), y);
        // y3 / 6 of y3 < 2^17: (y3 * 43691) >> 18.
        let sixth = vqdmulhq_s32(vshlq_n_s32::<13>(y3), vdupq_n_s32(43_691));
        let rest = vaddq_s32(vaddq_s32(vdupq_n_s32(ONE as i32), y), vsraq_n_s32::<1>(sixth, y2));
        let low = vshrn_n_s64::<30>(vmull_s32(vget_low_s32(entry), vget_low_s32(rest)));
        let mantissa = vshrn_high_n_s64::<30>(low, vmull_high_s32(entry, rest));
        vshlq_s32(mantissa, whole)
    }
}

/// Sums of the weighted values of 32 dimensions.
#[inline]
pub(crate) fn mix(weights: &[i16], values: &[i16], head_dim: usize, first: usize) -> [i64; DIMENSIONS] {
    let mut out = [0; DIMENSIONS];
    // SAFETY: NEON is there; the loads are of 32 elements of a position's values, the stores of 32 sums.
    unsafe {
        let mut sums = [vdupq_n_s64(0); DIMENSIONS / 2];
        for (weights, values) in weights.chunks(POSITIONS).zip(values.chunks(POSITIONS * head_dim)) {
            let mut partial = [vdupq_n_s32(0); DIMENSIONS / 4];
            for (&weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
                let values: &[i16; DIMENSIONS] =
                    values[first..].first_chunk().expect("dimensions of the head");
                let weight = vdupq_n_s16(weight);
                for (i, pair) in partial.chunks_exact_mut(2).enumerate() {
                    let values = vld1q_s16(values.as_ptr().add(8 * i));
                    pair[0] = vmlal_s16(pair[0], vget_low_s16(values), vget_low_s16(weight));
                    pair[1] = vmlal_high_s16(pair[1], values, weight);
                }
            }
            for (sums, &partial) in sums.chunks_exact_mut(2).zip(&partial) {
                sums[0] = vaddw_s32(sums[0], vget_low_s32(partial));
                sums[1] = vaddw_high_s32(sums[1], partial);
            }
        }
        for (out, sums) in out.chunks_exact_mut(2).zip(sums) {
            vst1q_s64(out.as_mut_ptr(), sums);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{self, KEY_MAX, VALUE_MAX};
    use std::vec::Vec;

    #[test]
    fn powers_are_those_of_the_plain_twin() {
        let edges =
            [0, -1, -0xfff, -0x1000, -0xffff, -0x1_0000, -31 << 16, (-31 << 16) - 1, -32 << 16, -1 << 30];
        let xs: Vec<i32> =
            (0..100_000).map(|i| -(i * 23)).chain(edges).chain([-(33 << 16), -(64 << 16)]).collect();
        let (mut vector, mut plain) = (xs.clone(), xs);
        let (sum, rest) = soften(&mut vector, 0);
        let sum = sum + attention::soften_plain(rest, 0);
        assert_eq!(sum, attention::soften_plain(&mut plain, 0));
        assert_eq!(vector, plain);
    }

    #[test]
    fn sums_are_those_of_the_plain_twin() {
        let noise = |count: usize, step: u64| -> Vec<i16> {
            (0..count as u64).map(|i| ((i * i * step + i * 977) % 16_383) as i16 - 8191).collect()
        };
        let (most, least) = (std::vec![KEY_MAX as i16; 256], std::vec![-KEY_MAX as i16; 256]);
        for (a, b) in [(noise(256, 7), noise(256, 13)), (most, least)] {
            for dims in [64, 128, 256] {
                assert_eq!(dot(&a[..dims], &b[..dims]), Some(attention::dot(&a[..dims], &b[..dims])));
            }
            assert_eq!(dot(&a[..80], &b[..80]), None);
        }
        for positions in [1, 15, 16, 17, 40] {
            let weights: Vec<i16> = (0..positions).map(|i| if i < 17 { i16::MAX } else { 77 * i }).collect();
            for values in
                [noise(positions as usize * 80, 5), std::vec![VALUE_MAX as i16; positions as usize * 80]]
            {
                for first in [0, 32, 48] {
                    let plain = attention::mix_plain::<DIMENSIONS>(&weights, &values, 80, first);
                    assert_eq!(mix(&weights, &values, 80, first), plain);
                }
            }
        }
    }
}
