//! The kernels for `FEAT_DotProd`: the mantissas as two planes of bytes, four columns of four rows an instruction.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::format::{BLOCK, Format, GROUP, OCTETS, SCALES};
use crate::neon::{RowSums, load, minimum, scale, store, words};
use crate::plain::Sums;

/// Twin of [`crate::plain::group`], on [`crate::activations::Layout::Planes`]. `sums` are read for `Q4Min` only.
#[target_feature(enable = "dotprod")]
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

#[target_feature(enable = "dotprod")]
fn typed<const N: usize, const OCTET: bool, const NIBBLE: bool, const MINIMUM: bool>(
    format: Format,
    blocks: &[u8],
    x: [&[i16]; N],
    sums: [&[i32]; N],
) -> Sums<N> {
    let start = if MINIMUM { 2 * SCALES } else { SCALES };
    let x = x.map(|x| x.as_chunks::<BLOCK>().0);
    let mut out: [RowSums; N] = [[vdupq_n_s64(0); GROUP / 2]; N];
    for (b, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        let scales = words(block);
        let minima = if MINIMUM { words(&block[SCALES..]) } else { scales };
        let octets = if OCTET { octets(&block[start..]) } else { NO_WEIGHTS };
        let nibbles =
            if NIBBLE { nibbles(&block[start + if OCTET { OCTETS } else { 0 }..]) } else { NO_WEIGHTS };
        for token in 0..N {
            let x = planes(&x[token][b]);
            let s = match (OCTET, NIBBLE) {
                (true, false) => block_dot(&octets, &x),
                (false, true) => block_dot(&nibbles, &x),
                _ => {
                    let (o, n) = (block_dot(&octets, &x), block_dot(&nibbles, &x));
                    [join(o[0], n[0]), join(o[1], n[1])]
                }
            };
            scale(&mut out[token], scales, s);
            if MINIMUM {
                minimum(&mut out[token], minima, sums[token][b]);
            }
        }
    }
    let mut stored = [[0; GROUP]; N];
    for (stored, out) in stored.iter_mut().zip(&out) {
        *stored = store(out);
    }
    stored
}

/// A block's weights: for each 4 columns, rows 0..4 and rows 4..8.
type Weights = [[int8x16_t; 2]; BLOCK / 4];

/// What a format does not have.
// SAFETY: a vector of integers may be zero.
const NO_WEIGHTS: Weights = unsafe { core::mem::zeroed() };

// No closures below: they would not have the feature, so nothing could be inlined into them.

#[inline]
#[target_feature(enable = "dotprod")]
fn octets(bytes: &[u8]) -> Weights {
    let mut weights = NO_WEIGHTS;
    for (columns, weights) in weights.iter_mut().enumerate() {
        *weights = [load(bytes, 32 * columns), load(bytes, 32 * columns + 16)];
    }
    weights
}

/// Nibbles, times 16.
#[inline]
#[target_feature(enable = "dotprod")]
fn nibbles(bytes: &[u8]) -> Weights {
    let mask = vdupq_n_s8(-16);
    let mut weights = NO_WEIGHTS;
    for pair in 0..BLOCK / 8 {
        for half in 0..2 {
            let both = load(bytes, 32 * pair + 16 * half);
            weights[2 * pair][half] = vshlq_n_s8::<4>(both);
            weights[2 * pair + 1][half] = vandq_s8(both, mask);
        }
    }
    weights
}

/// 16 * octets' sum + nibbles' sum, the latter of nibbles times 16.
#[inline]
#[target_feature(enable = "dotprod")]
fn join(octets: int32x4_t, nibbles: int32x4_t) -> int32x4_t {
    vsraq_n_s32::<4>(vshlq_n_s32::<4>(octets), nibbles)
}

/// The two planes of a block of mantissas, each in two halves.
#[inline]
#[target_feature(enable = "dotprod")]
fn planes(x: &[i16; BLOCK]) -> [int8x16_t; 4] {
    let mut planes = [vdupq_n_s8(0); 4];
    for (i, plane) in planes.iter_mut().enumerate() {
        // SAFETY: the load is of 8 elements of `x`.
        *plane = vreinterpretq_s8_s16(unsafe { vld1q_s16(x[8 * i..][..8].as_ptr()) });
    }
    planes
}

/// Dot products of 8 rows with a block of mantissas: 256 * (weights . h) + weights . l.
#[inline]
#[target_feature(enable = "dotprod")]
fn block_dot(weights: &Weights, [h0, h1, l0, l1]: &[int8x16_t; 4]) -> [int32x4_t; 2] {
    let mut sums = [vdupq_n_s32(0); 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        let high = sixteen_columns(sixteen_columns(*sum, weights, 0, half, *h0), weights, 4, half, *h1);
        let low = vshlq_n_s32::<8>(high);
        *sum = sixteen_columns(sixteen_columns(low, weights, 0, half, *l0), weights, 4, half, *l1);
    }
    sums
}

/// Adds the products of 16 columns, `first` being the first four of them.
#[inline]
#[target_feature(enable = "dotprod")]
fn sixteen_columns(sum: int32x4_t, w: &Weights, first: usize, half: usize, x: int8x16_t) -> int32x4_t {
    let sum = sdot::<0>(sum, w[first][half], x);
    let sum = sdot::<1>(sum, w[first + 1][half], x);
    let sum = sdot::<2>(sum, w[first + 2][half], x);
    sdot::<3>(sum, w[first + 3][half], x)
}

/// SDOT (by element): adds, in each 32-bit lane i, the dot product of bytes 4i.. of `a` with bytes 4 `LANE`.. of `b`.
#[inline]
#[target_feature(enable = "dotprod")]
fn sdot<const LANE: usize>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only touches registers, and the CPU has it (the function's own condition).
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
