//! The kernels for Armv8.0-A: widening 16-bit multiply-adds.

use core::arch::aarch64::*;

use crate::format::{BLOCK, Format, GROUP, OCTETS, SCALES};
use crate::plain::Sums;

/// Sums of the 8 rows of a group for one token, 2 rows a vector.
pub(crate) type RowSums = [int64x2_t; GROUP / 2];

/// Twin of [`crate::plain::group`]. `sums` are read for `Q4Min` only.
pub(crate) fn group<const N: usize>(
    format: Format,
    blocks: &[u8],
    x: [&[i16]; N],
    sums: [&[i32]; N],
) -> Sums<N> {
    match format {
        Format::Q4 => typed::<N, false, true, false>(format, blocks, x, sums),
        Format::Q4Min => typed::<N, false, true, true>(format, blocks, x, sums),
        Format::Q8 => typed::<N, true, false, false>(format, blocks, x, sums),
        Format::W12 => typed::<N, true, true, false>(format, blocks, x, sums),
        Format::Vector => [[0; GROUP]; N],
    }
}

fn typed<const N: usize, const OCTET: bool, const NIBBLE: bool, const MINIMUM: bool>(
    format: Format,
    blocks: &[u8],
    x: [&[i16]; N],
    sums: [&[i32]; N],
) -> Sums<N> {
    // SAFETY: every AArch64 target of this crate has NEON.
    let zero = unsafe { vdupq_n_s64(0) };
    let x = x.map(|x| x.as_chunks::<BLOCK>().0);
    let mut out: [RowSums; N] = [[zero; GROUP / 2]; N];
    for (b, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        let scales = words(block);
        let minima = if MINIMUM { words(&block[SCALES..]) } else { scales };
        if N == 1 {
            // Widen and multiply quarter by quarter, in registers.
            let mut rows = [zero_words(); GROUP];
            for quarter in 0..4 {
                accumulate(&mut rows, &widen::<OCTET, NIBBLE, MINIMUM>(block, quarter), &x[0][b], quarter);
            }
            scale(&mut out[0], scales, reduce(&rows));
            if MINIMUM {
                minimum(&mut out[0], minima, sums[0][b]);
            }
            continue;
        }
        // Widen once, into memory.
        let widened: [_; 4] = core::array::from_fn(|quarter| widen::<OCTET, NIBBLE, MINIMUM>(block, quarter));
        for token in 0..N {
            let mut rows = [zero_words(); GROUP];
            for (quarter, weights) in widened.iter().enumerate() {
                accumulate(&mut rows, weights, &x[token][b], quarter);
            }
            scale(&mut out[token], scales, reduce(&rows));
            if MINIMUM {
                minimum(&mut out[token], minima, sums[token][b]);
            }
        }
    }
    out.map(|rows| store(&rows))
}

/// Weights of columns `8 * quarter ..` of a block: for 4 columns and the next 4, 8 rows of 4, 2 rows a vector.
#[inline(always)]
fn widen<const OCTET: bool, const NIBBLE: bool, const MINIMUM: bool>(
    block: &[u8],
    quarter: usize,
) -> [int16x8_t; 8] {
    let start = if MINIMUM { 2 * SCALES } else { SCALES };
    // SAFETY: NEON is there; `load` checks its bounds.
    unsafe {
        let octets = |i: usize| {
            let bytes = load(block, start + quarter * 64 + 16 * i);
            (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes))
        };
        let nibbles = |i: usize| {
            let at = if OCTET { start + OCTETS } else { start } + quarter * 32;
            let pair = load(block, at + 16 * (i % 2));
            let bytes = if i < 2 { vshlq_n_s8::<4>(pair) } else { vandq_s8(pair, vdupq_n_s8(-16)) };
            (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes))
        };
        let both = |i: usize| {
            let (o, n) = (octets(i), nibbles(i));
            let join = |o, n| vsraq_n_s16::<4>(vshlq_n_s16::<4>(o), n);
            (join(o.0, n.0), join(o.1, n.1))
        };
        let vectors: [_; 4] = core::array::from_fn(|i| match (OCTET, NIBBLE) {
            (true, true) => both(i),
            (true, false) => octets(i),
            _ => nibbles(i),
        });
        core::array::from_fn(|i| if i % 2 == 0 { vectors[i / 2].0 } else { vectors[i / 2].1 })
    }
}

/// Zeros.
#[inline(always)]
fn zero_words() -> int32x4_t {
    // SAFETY: NEON is there.
    unsafe { vdupq_n_s32(0) }
}

/// Adds the products of 8 rows with columns `8 * quarter ..` of a block. Lanes of `rows` are 4 columns of one row.
#[inline(always)]
fn accumulate(rows: &mut [int32x4_t; GROUP], weights: &[int16x8_t; 8], x: &[i16; BLOCK], quarter: usize) {
    for half in 0..2 {
        // SAFETY: NEON is there; the 8-byte read is of 4 elements of `x`.
        unsafe {
            let four = x[8 * quarter + 4 * half..][..4].as_ptr().cast::<i64>().read_unaligned();
            let four = vreinterpretq_s16_s64(vdupq_n_s64(four));
            for pair in 0..GROUP / 2 {
                let weights = weights[4 * half + pair];
                rows[2 * pair] = vmlal_s16(rows[2 * pair], vget_low_s16(weights), vget_low_s16(four));
                rows[2 * pair + 1] = vmlal_high_s16(rows[2 * pair + 1], weights, four);
            }
        }
    }
}

/// Sums the lanes of each row.
#[inline(always)]
fn reduce(rows: &[int32x4_t; GROUP]) -> [int32x4_t; 2] {
    // SAFETY: NEON is there.
    core::array::from_fn(|i| unsafe {
        let rows = &rows[4 * i..][..4];
        vpaddq_s32(vpaddq_s32(rows[0], rows[1]), vpaddq_s32(rows[2], rows[3]))
    })
}

/// Adds scale * s for 8 rows.
#[inline(always)]
pub(crate) fn scale(out: &mut RowSums, [low, high]: [int32x4_t; 2], s: [int32x4_t; 2]) {
    // SAFETY: NEON is there.
    unsafe {
        out[0] = vmlal_s32(out[0], vget_low_s32(low), vget_low_s32(s[0]));
        out[1] = vmlal_high_s32(out[1], low, s[0]);
        out[2] = vmlal_s32(out[2], vget_low_s32(high), vget_low_s32(s[1]));
        out[3] = vmlal_high_s32(out[3], high, s[1]);
    }
}

/// Adds minimum * sum for 8 rows.
#[inline(always)]
pub(crate) fn minimum(out: &mut RowSums, [low, high]: [int32x4_t; 2], sum: i32) {
    // SAFETY: NEON is there.
    unsafe {
        let sum = vdup_n_s32(sum);
        out[0] = vmlal_lane_s32::<0>(out[0], vget_low_s32(low), sum);
        out[1] = vmlal_high_lane_s32::<0>(out[1], low, sum);
        out[2] = vmlal_lane_s32::<0>(out[2], vget_low_s32(high), sum);
        out[3] = vmlal_high_lane_s32::<0>(out[3], high, sum);
    }
}

/// The first 8 i16 of `bytes`, widened.
#[inline(always)]
pub(crate) fn words(bytes: &[u8]) -> [int32x4_t; 2] {
    // SAFETY: NEON is there; `load` checks its bounds.
    unsafe {
        let words = vreinterpretq_s16_s8(load(bytes, 0));
        [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)]
    }
}

/// 16 bytes of `bytes` from `at`.
#[inline(always)]
pub(crate) fn load(bytes: &[u8], at: usize) -> int8x16_t {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("inside the block");
    // SAFETY: 16 bytes are there, and the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

/// The sums as an array.
#[inline(always)]
pub(crate) fn store(rows: &RowSums) -> [i64; GROUP] {
    let mut out = [0; GROUP];
    for (pair, out) in rows.iter().zip(out.as_chunks_mut::<2>().0) {
        // SAFETY: 16 bytes are there, and the store needs no alignment.
        unsafe { vst1q_s64(out.as_mut_ptr(), *pair) };
    }
    out
}
