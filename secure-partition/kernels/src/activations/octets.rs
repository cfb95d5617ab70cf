//! Rounds the values of a block to octets, and puts them where they belong.
//!
//! `plain` and `neon` do the same, but hold a block's octets in other ways.

#[cfg(target_arch = "aarch64")]
pub(super) use neon::{Octets, pair, single, store_pair, store_row, sum};
#[cfg(not(target_arch = "aarch64"))]
pub(super) use plain::{Octets, pair, single, store_pair, store_row, sum};

/// `2^31 / 255`: a quotient of at most 32512 is off by less than 2^-16, and none is nearer than 1/510 to a half.
const RECIPROCAL: i32 = ((1_u32 << 31) / super::writer::STEP.cast_unsigned()).cast_signed();

#[cfg(any(test, not(target_arch = "aarch64")))]
mod plain {
    use super::super::writer::STEP;
    use super::super::{EIGHT, Order};
    use super::RECIPROCAL;
    use crate::format::BLOCK;
    use crate::word::{high, rounded};

    /// A block's octets.
    pub(in super::super) type Octets = [i8; BLOCK];

    /// One octet a column: `value * 2^-shift`, rounded, times `factor * 2^-31`, rounded.
    #[inline]
    pub(in super::super) fn single(block: &[i32; BLOCK], shift: i32, factor: i32) -> Octets {
        let mut octets = [0; BLOCK];
        for (octet, &value) in octets.iter_mut().zip(block) {
            *octet = high(rounded(value, shift), factor) as i8;
        }
        octets
    }

    /// Two octets a column: `value * 2^-shift`, rounded to a multiple of 255 and what is left.
    #[inline]
    pub(in super::super) fn pair(block: &[i32; BLOCK], shift: i32) -> [Octets; 2] {
        let [mut first, mut second] = [[0; BLOCK]; 2];
        for ((first, second), &value) in first.iter_mut().zip(&mut second).zip(block) {
            let word = rounded(value, shift);
            let quotient = high(word, RECIPROCAL);
            *first = quotient as i8;
            *second = (word - STEP * quotient) as i8;
        }
        [first, second]
    }

    /// The sum.
    #[inline]
    pub(in super::super) fn sum(octets: &Octets) -> i32 {
        octets.iter().map(|&octet| i32::from(octet)).sum()
    }

    /// Puts them into a row in an order.
    #[inline]
    pub(in super::super) fn store_row(octets: &Octets, order: Order, out: &mut [i8; BLOCK]) {
        let fours = octets.as_chunks::<4>().0;
        for (out, four) in out.as_chunks_mut::<4>().0.iter_mut().zip(order.places()) {
            *out = fours[four];
        }
    }

    /// Puts them where the first or the second token of a pair has them. The first one clears the second one's place, as there may
    /// be none.
    #[inline]
    pub(in super::super) fn store_pair(octets: &Octets, second: usize, out: &mut [i8; 2 * BLOCK]) {
        let out = out.as_chunks_mut::<{ 2 * EIGHT }>().0;
        for (out, eight) in out.iter_mut().zip(octets.as_chunks::<EIGHT>().0) {
            if second == 0 {
                out[EIGHT..].fill(0);
            }
            out[second * EIGHT..][..EIGHT].copy_from_slice(eight);
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::super::writer::STEP;
    use super::super::{EIGHT, Order};
    use super::RECIPROCAL;
    use crate::format::BLOCK;
    use core::arch::aarch64::*;

    /// A block's octets.
    pub(in super::super) type Octets = [int8x16_t; 2];

    /// What `of` makes of the four values from each on, narrowed.
    #[inline(always)]
    fn narrowed(of: impl Fn(usize) -> int32x4_t) -> Octets {
        // SAFETY: every AArch64 target of this crate has NEON.
        let eight = |i| unsafe { vuzp1q_s16(vreinterpretq_s16_s32(of(i)), vreinterpretq_s16_s32(of(i + 4))) };
        // SAFETY: the same.
        let half =
            |i| unsafe { vuzp1q_s8(vreinterpretq_s8_s16(eight(i)), vreinterpretq_s8_s16(eight(i + 8))) };
        [half(0), half(16)]
    }

    /// `value * 2^-shift`, rounded, of the four values from `i` on.
    #[inline(always)]
    fn words(block: &[i32; BLOCK], shift: i32, i: usize) -> int32x4_t {
        let four = &block[i..][..4];
        // SAFETY: NEON is there; the load is of four values.
        unsafe { vrshlq_s32(vld1q_s32(four.as_ptr()), vdupq_n_s32(-shift)) }
    }

    /// Twin of [`super::plain::single`].
    #[inline(always)]
    pub(in super::super) fn single(block: &[i32; BLOCK], shift: i32, factor: i32) -> Octets {
        // SAFETY: NEON is there.
        narrowed(|i| unsafe { vqrdmulhq_s32(words(block, shift, i), vdupq_n_s32(factor)) })
    }

    /// Twin of [`super::plain::pair`].
    #[inline(always)]
    pub(in super::super) fn pair(block: &[i32; BLOCK], shift: i32) -> [Octets; 2] {
        // SAFETY: NEON is there.
        let quotient = |i| unsafe { vqrdmulhq_s32(words(block, shift, i), vdupq_n_s32(RECIPROCAL)) };
        // SAFETY: NEON is there.
        let rest = |i| unsafe { vmlsq_s32(words(block, shift, i), quotient(i), vdupq_n_s32(STEP)) };
        [narrowed(quotient), narrowed(rest)]
    }

    /// Twin of [`super::plain::sum`].
    #[inline(always)]
    pub(in super::super) fn sum(octets: &Octets) -> i32 {
        // SAFETY: NEON is there.
        unsafe { vaddvq_s16(vpadalq_s8(vpaddlq_s8(octets[0]), octets[1])).into() }
    }

    /// Twin of [`super::plain::store_row`].
    #[inline(always)]
    pub(in super::super) fn store_row(octets: &Octets, order: Order, out: &mut [i8; BLOCK]) {
        // SAFETY: NEON is there; the stores are of 32 octets.
        unsafe {
            let (low, high) = (vreinterpretq_s32_s8(octets[0]), vreinterpretq_s32_s8(octets[1]));
            let int32x4x2_t(low, high) = match order {
                Order::V16 => int32x4x2_t(low, high),
                Order::V32 => vuzpq_s32(low, high),
                Order::V64 => vzipq_s32(low, high),
            };
            vst1q_s8(out.as_mut_ptr(), vreinterpretq_s8_s32(low));
            vst1q_s8(out[16..].as_mut_ptr(), vreinterpretq_s8_s32(high));
        }
    }

    /// Twin of [`super::plain::store_pair`].
    #[inline(always)]
    pub(in super::super) fn store_pair(octets: &Octets, second: usize, out: &mut [i8; 2 * BLOCK]) {
        let [low, high] = *octets;
        // SAFETY: NEON is there; the stores are of 8 and of 16 octets, of 64.
        unsafe {
            if second == 0 {
                let zero = vdup_n_s8(0);
                let eights = [vget_low_s8(low), vget_high_s8(low), vget_low_s8(high), vget_high_s8(high)];
                for (out, eight) in out.as_chunks_mut::<{ 2 * EIGHT }>().0.iter_mut().zip(eights) {
                    vst1q_s8(out.as_mut_ptr(), vcombine_s8(eight, zero));
                }
            } else {
                let out = out[EIGHT..].as_mut_ptr();
                vst1_s8(out, vget_low_s8(low));
                vst1_s8(out.add(2 * EIGHT), vget_high_s8(low));
                vst1_s8(out.add(4 * EIGHT), vget_low_s8(high));
                vst1_s8(out.add(6 * EIGHT), vget_high_s8(high));
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::plain;
        use super::*;

        fn bytes(octets: &Octets) -> [i8; BLOCK] {
            let mut out = [0; BLOCK];
            store_row(octets, Order::V16, &mut out);
            out
        }

        #[test]
        fn octets_are_those_of_the_plain_twin() {
            let edges = [i32::MIN, i32::MAX, 0, 1, -1, 520_192, -520_192, 4097, 0x1234_5678];
            for round in 0..64_i32 {
                let block: [i32; BLOCK] = core::array::from_fn(|i| {
                    let noise = (i as i32 + 77 * round).wrapping_mul(0x2545_f491) >> (round % 32);
                    if i % 3 == 0 { edges[(i + round as usize) % edges.len()] } else { noise }
                });
                // Those of a token have mantissas of 19 bits; others wrap alike.
                for shift in [-18, -1, 0, 1, 5, 12, 13, 20] {
                    for factor in [0, 1 << 19, 0x2345_6789, i32::MAX] {
                        let (octets, twin) =
                            (single(&block, shift, factor), plain::single(&block, shift, factor));
                        assert_eq!(bytes(&octets), twin);
                        assert_eq!(sum(&octets), plain::sum(&twin));
                        for order in [Order::V16, Order::V32, Order::V64] {
                            let mut out = [[77; BLOCK]; 2];
                            store_row(&octets, order, &mut out[0]);
                            plain::store_row(&twin, order, &mut out[1]);
                            assert_eq!(out[0], out[1]);
                        }
                        for second in [0, 1] {
                            let mut out = [[77; 2 * BLOCK]; 2];
                            store_pair(&octets, second, &mut out[0]);
                            plain::store_pair(&twin, second, &mut out[1]);
                            assert_eq!(out[0], out[1]);
                        }
                    }
                }
                for shift in 16..24 {
                    assert_eq!(pair(&block, shift).each_ref().map(bytes), plain::pair(&block, shift));
                }
            }
        }
    }
}
