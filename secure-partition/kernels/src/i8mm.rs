//! Many tokens with `FEAT_I8MM`: 8 columns of two rows and two tokens an instruction.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::batch::{Strip, read, write};
use crate::format::{BLOCK, GROUP, HALF};
use crate::neon::load;

/// Mantissas of a block of a pair of tokens: 4 x 8 columns of `h`, then of `l`.
type Pair = [i16; 2 * BLOCK];
/// Eights of columns in a block.
const EIGHTS: usize = BLOCK / 8;

/// Adds the products of a strip's first group with `P` pairs of tokens; answers how many tokens.
///
/// # Safety
/// The CPU has `FEAT_I8MM`.
pub(crate) unsafe fn tile<const P: usize>(
    strip: &Strip,
    blocks: usize,
    x: [&[i16]; P],
    sums: &mut [[i64; GROUP]],
) -> usize {
    let x = x.map(|x| &x.as_chunks::<{ 2 * BLOCK }>().0[..blocks]);
    let (pairs, _) = sums.as_chunks_mut::<2>();
    let pairs: &mut [_; P] = pairs.first_chunk_mut().expect("room for pairs of tokens");
    for half in 0..2 {
        let mut out = [by_row(read::<2>(&pairs[0], half)); P];
        for (out, pair) in out.iter_mut().zip(&*pairs) {
            *out = by_row(read::<2>(pair, half));
        }
        // SAFETY: the caller's promise.
        unsafe { four_rows(strip, half, blocks, x, &mut out) };
        for (pair, out) in pairs.iter_mut().zip(out) {
            write(&by_token(out), pair, half);
        }
    }
    2 * P
}

/// Sums of four rows and two tokens: for each two rows, for each row, both tokens.
type Rows = [[int64x2_t; 2]; 2];

/// From tokens of four rows to rows of two tokens.
#[inline(always)]
fn by_row([[a, b], [c, d]]: [[int64x2_t; 2]; 2]) -> Rows {
    // SAFETY: every AArch64 target of this crate has NEON.
    unsafe { [[vzip1q_s64(a, c), vzip2q_s64(a, c)], [vzip1q_s64(b, d), vzip2q_s64(b, d)]] }
}

/// And back.
#[inline(always)]
fn by_token([[a, b], [c, d]]: Rows) -> [[int64x2_t; 2]; 2] {
    // SAFETY: NEON is there.
    unsafe { [[vzip1q_s64(a, b), vzip1q_s64(c, d)], [vzip2q_s64(a, b), vzip2q_s64(c, d)]] }
}

/// Adds the products of rows `4 * half ..`.
#[inline(always)]
unsafe fn four_rows<const P: usize>(
    strip: &Strip,
    half: usize,
    blocks: usize,
    x: [&[Pair]; P],
    out: &mut [Rows; P],
) {
    for (b, (weights, scales)) in strip.weights.iter().zip(&strip.scales).take(blocks).enumerate() {
        let weights: [_; EIGHTS] = core::array::from_fn(|i| {
            let at = 2 * BLOCK * i + BLOCK * half;
            [load(weights, at), load(weights, at + 16)]
        });
        // SAFETY: NEON is there, the caller promises the rest; the loads are of 4 scales.
        unsafe {
            let mut s = [[vdupq_n_s32(0); 2]; P];
            for (s, x) in s.iter_mut().zip(x) {
                eights(s, &weights, &x[b], 0);
                *s = [vshlq_n_s32::<8>(s[0]), vshlq_n_s32::<8>(s[1])];
                eights(s, &weights, &x[b], EIGHTS);
            }
            let scales: &[i32; 2 * HALF] =
                scales[2 * HALF * half..].first_chunk().expect("scales of both halves");
            let scales = [vld1q_s32(scales.as_ptr()), vld1q_s32(scales[4..].as_ptr())];
            for (out, s) in out.iter_mut().zip(s) {
                for ((out, s), scales) in out.iter_mut().zip(s).zip(scales) {
                    crate::neon::scale_half(out, scales, s);
                }
            }
        }
    }
}

/// Adds the products of one plane of a pair of tokens, `first` being its first eight columns.
#[inline(always)]
unsafe fn eights(s: &mut [int32x4_t; 2], weights: &[[int8x16_t; 2]; EIGHTS], x: &Pair, first: usize) {
    for (i, [w0, w1]) in weights.iter().enumerate() {
        // SAFETY: the load is of 8 elements of `x`; NEON is there, the caller promises the rest.
        unsafe {
            let x = vreinterpretq_s8_s16(vld1q_s16(x[8 * (first + i)..][..8].as_ptr()));
            s[0] = smmla(s[0], *w0, x);
            s[1] = smmla(s[1], *w1, x);
        }
    }
}

/// SMMLA: adds to the 2 x 2 lanes the products of the two rows of 8 in `a` and in `b`.
#[inline(always)]
unsafe fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only touches registers, and the caller promises that the CPU has it.
    unsafe {
        asm!(
            ".arch_extension i8mm", "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
