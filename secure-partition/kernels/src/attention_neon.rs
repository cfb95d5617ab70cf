//! Attention's loops with Arm's vectors: the twins of those in [`crate::attention_plain`]. Groups of four positions are lanes.

use core::arch::{aarch64::*, asm};
use core::marker::PhantomData;

use crate::attention::{EXP2, Loops, ONE, Query, SCORE_MIN, Softened};
use crate::attention_plain::Plain;
use crate::cache::{CHUNK, MIXED, POSITIONS, Rows, TURNS};

/// Twin of [`crate::cache::turn`].
pub(crate) fn turn(block: &mut [[i32; 4]; MIXED]) {
    // SAFETY: NEON is there; loads and stores are of four numbers.
    unsafe {
        let mut rows = [vdupq_n_s32(0); MIXED];
        for (row, numbers) in rows.iter_mut().zip(&*block) {
            *row = vld1q_s32(numbers.as_ptr());
        }
        for (first, step) in TURNS {
            let (a, b) = (rows[first], rows[first + step]);
            let (c, d) = (rows[first + 2 * step], rows[first + 3 * step]);
            let (ab, cd) = ([vaddq_s32(a, b), vsubq_s32(a, b)], [vaddq_s32(c, d), vsubq_s32(c, d)]);
            rows[first] = vaddq_s32(ab[0], cd[0]);
            rows[first + step] = vaddq_s32(ab[1], cd[1]);
            rows[first + 2 * step] = vsubq_s32(ab[0], cd[0]);
            rows[first + 3 * step] = vsubq_s32(ab[1], cd[1]);
        }
        for (row, numbers) in rows.iter().zip(block) {
            vst1q_s32(numbers.as_mut_ptr(), *row);
        }
    }
}

/// With dot products of octets by `D`.
pub(crate) struct Vectors<D>(PhantomData<D>);

/// Dot products of four octets.
pub(crate) trait Dots {
    /// `sums` and, for each lane, its four octets times the four of lane `LANE` of `by`.
    ///
    /// # Safety
    /// The CPU has the instructions. Not both of two adjacent products are 2^14.
    unsafe fn add<const LANE: i32>(sums: int32x4_t, octets: int8x16_t, by: int8x16_t) -> int32x4_t;
}

/// `FEAT_DotProd`.
pub(crate) struct Dot;

impl Dots for Dot {
    #[inline(always)]
    unsafe fn add<const LANE: i32>(mut sums: int32x4_t, octets: int8x16_t, by: int8x16_t) -> int32x4_t {
        // SAFETY: the caller's promise; the instruction has registers as operands, and nothing else.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sums:v}.4s, {octets:v}.16b, {by:v}.4b[{lane}]",
                sums = inout(vreg) sums, octets = in(vreg) octets, by = in(vreg) by, lane = const LANE,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        sums
    }
}

/// Armv8.0-A: sums of two products fit i16, as an octet of a query or of weights is not below -128 and one of keys or values, if it
/// counts, not below -127.
pub(crate) struct Long;

impl Dots for Long {
    #[inline(always)]
    unsafe fn add<const LANE: i32>(sums: int32x4_t, octets: int8x16_t, by: int8x16_t) -> int32x4_t {
        // SAFETY: every AArch64 target of this crate has NEON.
        unsafe {
            let by = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(by)));
            let low = vmull_s8(vget_low_s8(octets), vget_low_s8(by));
            vpadalq_s16(sums, vpaddq_s16(low, vmull_high_s8(octets, by)))
        }
    }
}

/// A group of keys' chunk of columns times that of a query's octets.
#[inline(always)]
unsafe fn chunk<D: Dots>(sums: int32x4_t, keys: int8x16x4_t, query: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = D::add::<0>(sums, keys.0, query);
        let sums = D::add::<1>(sums, keys.1, query);
        let sums = D::add::<2>(sums, keys.2, query);
        D::add::<3>(sums, keys.3, query)
    }
}

/// `256 * high + low`; only the sum must fit.
#[inline(always)]
fn joined(high: int32x4_t, low: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is there.
    unsafe { vaddq_s32(vshlq_n_s32::<8>(high), low) }
}

/// [`Loops::score`], with `dots` for the sums of a group's octets.
#[inline(always)]
unsafe fn score(
    query: &Query,
    keys: &Rows,
    positions: usize,
    scores: &mut [i32],
    dots: impl Fn(*const i8) -> int32x4_t,
) -> i32 {
    // SAFETY: NEON is there; scores and scales are taken by fours, and a group's octets are at the address that is handed on.
    unsafe {
        let (shift, least) = (vdupq_n_s32(query.exponent), vdupq_n_s32(SCORE_MIN));
        let group = |octets: &[i8], scales: &[i32; POSITIONS]| {
            let scales = vld1q_s32(scales.as_ptr());
            let sums = vqrdmulhq_s32(dots(octets.as_ptr()), scales);
            vmaxq_s32(vqrshlq_s32(sums, vaddq_s32(scales, shift)), least)
        };
        let mut largest = vdupq_n_s32(i32::MIN);
        let whole = positions / POSITIONS;
        let octets = keys.octets.chunks_exact(POSITIONS * query.cols);
        let (last, scores) = {
            let (scores, last) = scores.as_chunks_mut::<POSITIONS>().0.split_at_mut(whole);
            (last.first_mut(), scores)
        };
        let scales = keys.scales.as_chunks::<POSITIONS>().0;
        for ((scores, scales), octets) in scores.iter_mut().zip(scales).zip(octets.clone()) {
            let group = group(octets, scales);
            largest = vmaxq_s32(largest, group);
            vst1q_s32(scores.as_mut_ptr(), group);
        }
        if let (Some(scores), Some(scales), Some(octets)) =
            (last, scales.get(whole), octets.clone().nth(whole))
        {
            let lanes = vld1q_s32([0, 1, 2, 3].as_ptr());
            let there = vcltq_s32(lanes, vdupq_n_s32((positions % POSITIONS) as i32));
            let group = vbslq_s32(there, group(octets, scales), vdupq_n_s32(i32::MIN));
            largest = vmaxq_s32(largest, group);
            vst1q_s32(scores.as_mut_ptr(), group);
        }
        vmaxvq_s32(largest)
    }
}

/// [`score`] of queries of `N` chunks, which stay in registers.
#[inline(always)]
unsafe fn score_chunks<D: Dots, const N: usize>(
    query: &Query,
    keys: &Rows,
    positions: usize,
    scores: &mut [i32],
) -> i32 {
    // SAFETY: the caller's promise: there are `N` chunks of the query and of each group.
    unsafe {
        let (mut high, mut low) = ([vdupq_n_s8(0); N], [vdupq_n_s8(0); N]);
        for i in 0..N {
            high[i] = vld1q_s8(query.high[i * CHUNK..][..CHUNK].as_ptr());
            low[i] = vld1q_s8(query.low[i * CHUNK..][..CHUNK].as_ptr());
        }
        score(query, keys, positions, scores, |octets| {
            let mut sums = [vdupq_n_s32(0); 2];
            for i in 0..N {
                let keys = vld1q_s8_x4(octets.add(i * POSITIONS * CHUNK));
                sums = [chunk::<D>(sums[0], keys, high[i]), chunk::<D>(sums[1], keys, low[i])];
            }
            joined(sums[0], sums[1])
        })
    }
}

/// `2^x` of four x <= 0, as [`crate::attention::exp2`] has it.
#[inline(always)]
unsafe fn exp2(x: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is there.
    unsafe {
        // A shift of more than 31 leaves nothing; only its low byte counts.
        let whole = vmaxq_s32(vshrq_n_s32::<16>(x), vdupq_n_s32(-64));
        let t = vshrq_n_u32::<1>(vreinterpretq_u32_s32(vshlq_n_s32::<16>(x)));
        let t = vreinterpretq_s32_u32(t);
        let step = |sum, factor| vaddq_s32(vdupq_n_s32(factor), vqrdmulhq_s32(sum, t));
        let [a, b, c, d, e] = EXP2;
        let sum = step(step(step(step(vdupq_n_s32(a), b), c), d), e);
        vshlq_s32(step(sum, ONE as i32), whole)
    }
}

impl<D: Dots> Loops for Vectors<D> {
    #[inline]
    unsafe fn narrow(values: &[i32], shift: i32, high: &mut [i8], low: &mut [i8]) {
        let (chunks, rest) = values.as_chunks::<CHUNK>();
        let whole = chunks.len() * CHUNK;
        let (high, rest_high) = high.split_at_mut(whole);
        let (low, rest_low) = low.split_at_mut(whole);
        let octets = high.as_chunks_mut::<CHUNK>().0.iter_mut().zip(low.as_chunks_mut::<CHUNK>().0);
        // SAFETY: NEON is there; 16 numbers are read, and 16 octets of each kind are written.
        unsafe {
            let down = vdupq_n_s32(-shift);
            for (values, (high, low)) in chunks.iter().zip(octets) {
                let words = vld1q_s32_x4(values.as_ptr());
                let pair = |a, b| {
                    let words = [a, b].map(|words| vreinterpretq_s16_s32(vrshlq_s32(words, down)));
                    vuzp1q_s16(words[0], words[1])
                };
                let (a, b) = (pair(words.0, words.1), pair(words.2, words.3));
                vst1q_s8(high.as_mut_ptr(), vrshrn_high_n_s16::<8>(vrshrn_n_s16::<8>(a), b));
                vst1q_s8(low.as_mut_ptr(), vuzp1q_s8(vreinterpretq_s8_s16(a), vreinterpretq_s8_s16(b)));
            }
            Plain::narrow(rest, shift, rest_high, rest_low);
        }
    }

    #[inline]
    unsafe fn score(query: &Query, keys: &Rows, positions: usize, scores: &mut [i32]) -> i32 {
        // SAFETY: the caller's promise.
        unsafe {
            match query.cols / CHUNK {
                4 => score_chunks::<D, 4>(query, keys, positions, scores),
                8 => score_chunks::<D, 8>(query, keys, positions, scores),
                chunks => score(query, keys, positions, scores, |octets| {
                    let mut sums = [vdupq_n_s32(0); 2];
                    for i in 0..chunks {
                        let keys = vld1q_s8_x4(octets.add(i * POSITIONS * CHUNK));
                        let load = |octets: &[i8]| vld1q_s8(octets[i * CHUNK..][..CHUNK].as_ptr());
                        let (high, low) = (load(&query.high), load(&query.low));
                        sums = [chunk::<D>(sums[0], keys, high), chunk::<D>(sums[1], keys, low)];
                    }
                    joined(sums[0], sums[1])
                }),
            }
        }
    }

    #[inline]
    unsafe fn soften(scores: &mut [i32], largest: i32, scales: &[i32], top: i32) -> Softened {
        // SAFETY: NEON is there; scores and scales are taken by fours.
        unsafe {
            let (largest, top) = (vdupq_n_s32(largest), vdupq_n_s32(-top));
            let (mut sum, mut weights) = (vdupq_n_s64(0), vdupq_n_s64(0));
            let mut most = vdupq_n_s32(0);
            let scales = scales.as_chunks::<POSITIONS>().0;
            for (scores, scales) in scores.as_chunks_mut::<POSITIONS>().0.iter_mut().zip(scales) {
                let scales = vld1q_s32(scales.as_ptr());
                let powers = exp2(vqsubq_s32(vld1q_s32(scores.as_ptr()), largest));
                let weighted = vqrshlq_s32(vqrdmulhq_s32(powers, scales), vaddq_s32(scales, top));
                sum = vpadalq_s32(sum, powers);
                weights = vpadalq_s32(weights, weighted);
                most = vmaxq_s32(most, weighted);
                vst1q_s32(scores.as_mut_ptr(), weighted);
            }
            Softened { sum: vaddvq_s64(sum), weights: vaddvq_s64(weights), largest: vmaxvq_s32(most) }
        }
    }

    #[inline(always)]
    unsafe fn mix<const N: usize>(
        [high, low]: [&[i8]; 2],
        values: &[i8],
        cols: usize,
        first: usize,
    ) -> [i32; N] {
        /// Vectors of four columns.
        const VECTORS: usize = 8;
        /// Positions whose weights fill a vector.
        const LANES: usize = 4 * POSITIONS;
        const { assert!(N.is_multiple_of(CHUNK) && N <= 4 * VECTORS) };
        let mut out = [0; N];
        // SAFETY: the caller's promise; a group's octets are (cols, 4), of which 4 * `N` are read from the first column on.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); VECTORS]; 2];
            let each = POSITIONS * cols;
            /// Adds a group of positions, whose weights are in a lane.
            macro_rules! add {
                ($lane:literal, $octets:expr, $high:ident, $low:ident) => {
                    let octets = $octets[POSITIONS * first..][..POSITIONS * N].as_ptr();
                    for i in (0..N / 4).step_by(4) {
                        let values = vld1q_s8_x4(octets.add(16 * i));
                        for (j, values) in [values.0, values.1, values.2, values.3].into_iter().enumerate() {
                            sums[0][i + j] = D::add::<$lane>(sums[0][i + j], values, $high);
                            sums[1][i + j] = D::add::<$lane>(sums[1][i + j], values, $low);
                        }
                    }
                };
            }
            let (highs, lows) = (high.as_chunks::<LANES>().0, low.as_chunks::<LANES>().0);
            let four_groups = highs.iter().zip(lows).zip(values.chunks_exact(4 * each));
            let whole = LANES * four_groups.len();
            for ((high, low), octets) in four_groups {
                let (high, low) = (vld1q_s8(high.as_ptr()), vld1q_s8(low.as_ptr()));
                add!(0, octets, high, low);
                add!(1, octets[each..], high, low);
                add!(2, octets[2 * each..], high, low);
                add!(3, octets[3 * each..], high, low);
            }
            let (highs, lows) = (high[whole..].as_chunks::<POSITIONS>().0, low[whole..].as_chunks().0);
            for ((high, low), octets) in highs.iter().zip(lows).zip(values[whole * cols..].chunks_exact(each))
            {
                let four =
                    |octets: &[i8; POSITIONS]| vreinterpretq_s8_s32(vld1q_dup_s32(octets.as_ptr().cast()));
                let (high, low) = (four(high), four(low));
                add!(0, octets, high, low);
            }
            for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                vst1q_s32(out.as_mut_ptr(), joined(sums[0][i], sums[1][i]));
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn finish(sums: &[i32], (factor, shift): (i32, i32), out: &mut [i64]) {
        let (fours, rest) = out.as_chunks_mut::<4>();
        let whole = 4 * fours.len();
        // SAFETY: NEON is there; sums are taken by fours, and as many means are written.
        unsafe {
            let up = vdupq_n_s64(shift.clamp(-63, 63).into());
            for (sums, out) in sums.as_chunks::<4>().0.iter().zip(fours) {
                let means = vqrdmulhq_n_s32(vld1q_s32(sums.as_ptr()), factor);
                vst1q_s64(out.as_mut_ptr(), vshlq_s64(vmovl_s32(vget_low_s32(means)), up));
                vst1q_s64(out.as_mut_ptr().add(2), vshlq_s64(vmovl_high_s32(means), up));
            }
            Plain::finish(&sums[whole..], (factor, shift), rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{COLS_MAX, STRIP};
    use std::vec::Vec;

    /// Octets of a kind and all of the others there are: of queries and weights down to -128, of keys and values to -127.
    fn octets(count: usize, least: i8, kind: usize) -> Vec<i8> {
        let octet = |i: usize| match kind {
            0 => least,
            1 => i8::MAX,
            2 => [least, i8::MAX][i / 3 % 2],
            _ => ((i * i * 7 + i * 77) % 255) as i8,
        };
        (0..count).map(|i| octet(i).max(least)).collect()
    }

    fn numbers(count: usize) -> Vec<i32> {
        (0..count as u32).map(|i| (i * i).wrapping_mul(0x9e37_79b9).cast_signed()).collect()
    }

    fn loops_are_those_of_the_plain_twin<L: Loops>() {
        // SAFETY: the caller has the instructions; lengths are those that the loops ask for.
        unsafe {
            for (positions, scores) in [(1, 4), (4, 4), (7, 8), (36, 36)] {
                for cols in [16, 48, 64, 128, 256, COLS_MAX] {
                    for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (3, 3), (0, 3)] {
                        let (high, low) = (octets(COLS_MAX, -127, a), octets(COLS_MAX, -128, a));
                        let (high, low) = (high.try_into().unwrap(), low.try_into().unwrap());
                        let query = Query { high, low, cols, exponent: -7 };
                        // Lower columns of long queries are of smaller numbers: see `Query`.
                        let query = if cols > 256 { Query { high: [1; COLS_MAX], ..query } } else { query };
                        let octets = octets(cols * scores, -127, b);
                        let scales: Vec<i32> =
                            (0..scores as i32).map(|i| (1 << 30) + (i << 24) + (i * 5 & 15)).collect();
                        let keys = Rows { octets: &octets, scales: &scales };
                        let run = |score: unsafe fn(&Query, &Rows, usize, &mut [i32]) -> i32| {
                            let mut out = std::vec![7; scores];
                            (score(&query, &keys, positions, &mut out), out)
                        };
                        assert_eq!(run(L::score), run(Plain::score), "{positions} x {cols}: {a}, {b}");
                    }
                }
            }
            for kinds in 0..16 {
                let (cols, positions) = (80, 36);
                let high: Vec<i8> =
                    octets(positions, -127, kinds / 4).iter().map(|o| o.saturating_abs()).collect();
                let (low, values) =
                    (octets(positions, -128, kinds / 4), octets(cols * positions, -127, kinds % 4));
                let weights = [&high[..], &low];
                let mix = (
                    L::mix::<STRIP>(weights, &values, cols, 48),
                    L::mix::<CHUNK>(weights, &values, cols, 16),
                );
                let plain = (
                    Plain::mix::<STRIP>(weights, &values, cols, 48),
                    Plain::mix::<CHUNK>(weights, &values, cols, 16),
                );
                assert_eq!(mix, plain);
            }
            for (shift, mask) in [(17, i32::MAX), (16, i32::MAX >> 1), (0, 0x7eff), (-15, 0)] {
                let values: Vec<i32> = numbers(37).iter().map(|number| number & mask).collect();
                let run = |narrow: unsafe fn(&[i32], i32, &mut [i8], &mut [i8])| {
                    let (mut high, mut low) = ([3; 37], [3; 37]);
                    narrow(&values, shift, &mut high, &mut low);
                    (high, low)
                };
                assert_eq!(run(L::narrow), run(Plain::narrow));
            }
            for shift in [-200, -64, -63, -1, 0, 1, 33] {
                let sums = numbers(32);
                let run = |finish: unsafe fn(&[i32], (i32, i32), &mut [i64])| {
                    let mut out = [3; 31];
                    finish(&sums, (i32::MAX - 5, shift), &mut out);
                    out
                };
                assert_eq!(run(L::finish), run(Plain::finish), "{shift}");
            }
        }
    }

    #[test]
    fn loops_are_those_of_armv8_0() {
        loops_are_those_of_the_plain_twin::<Vectors<Long>>();
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            loops_are_those_of_the_plain_twin::<Vectors<Dot>>();
        }
    }

    #[test]
    fn turns_are_those_of_the_plain_twin() {
        let mut block = [[0; 4]; MIXED];
        block.as_flattened_mut().copy_from_slice(&numbers(64));
        block.as_flattened_mut().iter_mut().for_each(|number| *number >>= 6);
        for mut block in [block, [[1 << 26; 4]; MIXED], [[-1 << 26; 4]; MIXED]] {
            let mut plain = block;
            turn(&mut block);
            crate::cache::turn(&mut plain);
            assert_eq!(block, plain);
        }
    }

    #[test]
    fn powers_are_those_of_the_plain_twin() {
        let edges =
            [0, -1, -0xfff, -0x1000, -0xffff, -0x1_0000, -31 << 16, (-31 << 16) - 1, -32 << 16, -64 << 16];
        let scores: Vec<i32> = (0..100_000)
            .map(|i| -(i * 23))
            .chain(edges)
            .chain([-(33 << 16), SCORE_MIN, i32::MIN, 0, 0])
            .collect();
        let scales: Vec<i32> = (0..scores.len() as i32)
            .map(|i| (1 << 30 | i.wrapping_mul(0x1234_5678) & 0x3fff_ff00) | (i % 9 - 8) & 0xff)
            .collect();
        let run = |soften: unsafe fn(&mut [i32], i32, &[i32], i32) -> Softened| {
            let mut scores = scores[..scores.len() / POSITIONS * POSITIONS].to_vec();
            // SAFETY: NEON is there; there are as many scales.
            (unsafe { soften(&mut scores, 0, &scales, 0) }, scores)
        };
        assert_eq!(run(Vectors::<Long>::soften), run(Plain::soften));
    }
}
