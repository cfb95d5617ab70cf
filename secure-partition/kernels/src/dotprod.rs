//! The kernels for `FEAT_DotProd`: the mantissas as two planes of bytes, four columns of four rows an instruction.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::format::{BLOCK, Format, GROUP, OCTETS, SCALES};
use crate::neon::{RowSums, load, minimum, scale, store};
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
    let mut out: [RowSums; N] = [[vdupq_n_s64(0); GROUP / 2]; N];
    for (b, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        let octets = if OCTET { Some(octets(&block[start..])) } else { None };
        let nibbles = match NIBBLE {
            true => Some(nibbles(&block[start + if OCTET { OCTETS } else { 0 }..])),
            false => None,
        };
        for token in 0..N {
            let x: &[i16; BLOCK] = x[token][b * BLOCK..].first_chunk().expect("as many blocks as weights");
            let s = match (&octets, &nibbles) {
                (Some(octets), Some(nibbles)) => {
                    let (o, n) = (block_dot(octets, x), block_dot(nibbles, x));
                    let join = |o, n| vsraq_n_s32::<4>(vshlq_n_s32::<4>(o), n);
                    [join(o[0], n[0]), join(o[1], n[1])]
                }
                (Some(weights), None) | (None, Some(weights)) => block_dot(weights, x),
                (None, None) => [vdupq_n_s32(0); 2],
            };
            scale(&mut out[token], block, s);
            if MINIMUM {
                minimum(&mut out[token], &block[SCALES..], sums[token][b]);
            }
        }
    }
    out.map(|rows| store(&rows))
}

/// A block's weights: for each 4 columns, rows 0..4 and rows 4..8.
type Weights = [[int8x16_t; 2]; BLOCK / 4];

#[inline]
#[target_feature(enable = "dotprod")]
fn octets(bytes: &[u8]) -> Weights {
    core::array::from_fn(|columns| [load(bytes, 32 * columns), load(bytes, 32 * columns + 16)])
}

/// Nibbles, times 16.
#[inline]
#[target_feature(enable = "dotprod")]
fn nibbles(bytes: &[u8]) -> Weights {
    let mask = vdupq_n_s8(-16);
    let mut weights = [[mask; 2]; BLOCK / 4];
    for pair in 0..BLOCK / 8 {
        for half in 0..2 {
            let both = load(bytes, 32 * pair + 16 * half);
            weights[2 * pair][half] = vshlq_n_s8::<4>(both);
            weights[2 * pair + 1][half] = vandq_s8(both, mask);
        }
    }
    weights
}

/// Dot products of 8 rows with a block of mantissas: 256 * (weights . h) + weights . l.
#[inline]
#[target_feature(enable = "dotprod")]
fn block_dot(weights: &Weights, x: &[i16; BLOCK]) -> [int32x4_t; 2] {
    // SAFETY: each load is of 8 elements of `x`.
    let planes: [_; 4] =
        core::array::from_fn(|i| vreinterpretq_s8_s16(unsafe { vld1q_s16(x[8 * i..][..8].as_ptr()) }));
    core::array::from_fn(|half| {
        let plane = |mut sum, plane: usize| {
            for i in 0..2 {
                let w = &weights[4 * i..];
                let x = planes[2 * plane + i];
                sum = sdot::<0>(sum, w[0][half], x);
                sum = sdot::<1>(sum, w[1][half], x);
                sum = sdot::<2>(sum, w[2][half], x);
                sum = sdot::<3>(sum, w[3][half], x);
            }
            sum
        };
        let high = plane(vdupq_n_s32(0), 0);
        plane(vshlq_n_s32::<8>(high), 1)
    })
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
