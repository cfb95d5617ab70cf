//! Many tokens: the weights of a group of rows are unpacked once, into a strip that stays in the cache, and multiplied with
//! tiles of tokens.
//!
//! | kernels | a strip's weights |
//! |---|---|
//! | Armv8.0-A | (columns, 8 rows), i16 |
//! | `FEAT_DotProd` | (2 x 4 rows, 8 x 4 columns): 4 rows of 4 columns a vector |
//! | `FEAT_I8MM`, SVE | (2 groups, 4 x 8 columns, 4 x 2 rows): 2 rows of 8 columns for each 16 bytes of a vector |

use core::arch::aarch64::*;
use core::ops::Range;

use crate::activations::Activations;
use crate::format::{BLOCK, Format, GROUP, HALF, NIBBLES, OCTETS, SCALES};
use crate::isa::Kernel;
use crate::matmul::Report;
use crate::matrix::{Group, Matrix};
use crate::neon::{FOURS, Weights, four_rows, load, scale, words};
use crate::{dotprod, i8mm, minima, sve_batch};

/// Blocks of a strip. What a matrix has more is added in another pass.
const CHUNK: usize = 32;
/// Tokens that share a strip.
const TOKENS: usize = 64;
/// Groups that share one, at most.
const GROUPS: usize = 2;

/// Unpacked weights of a chunk of one group, or two.
#[repr(C, align(64))]
pub(crate) struct Strip {
    /// (blocks)
    pub weights: [[u8; 2 * OCTETS]; CHUNK],
    /// (blocks): one a row; or for `FEAT_I8MM` and SVE (2 groups, 4 x 2 rows), each twice.
    pub scales: [[i32; 4 * GROUP]; CHUNK],
}

impl Strip {
    /// Bytes from a block's weights to the next one's.
    pub const WEIGHTS_STRIDE: usize = 2 * OCTETS;
    /// Bytes from a block's scales to the next one's.
    pub const SCALES_STRIDE: usize = 4 * GROUP * 4;

    /// The first weights and scales of rows `4 * half ..`, for `FEAT_DotProd`.
    pub fn half(&self, half: usize) -> (*const u8, *const i32) {
        let (weights, scales) = (self.weights.as_flattened(), self.scales.as_flattened());
        (weights[half * NIBBLES..].as_ptr(), scales[half * HALF..].as_ptr())
    }

    /// The same of the first group, for `FEAT_I8MM`.
    pub fn half_in_pairs(&self, half: usize) -> (*const u8, *const i32) {
        let (weights, scales) = (self.weights.as_flattened(), self.scales.as_flattened());
        (weights[half * BLOCK..].as_ptr(), scales[half * 2 * HALF..].as_ptr())
    }
}

/// Sums of some tokens: (tokens, rows of a group). Tiles may have more tokens than there are.
pub(crate) type Sums = [[i64; GROUP]; TOKENS];

/// What is unpacked of a block at once: a part that fits i8.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Octets,
    Nibbles,
}

/// The parts of a format's weights, and by what their products are multiplied.
const fn parts(format: Format) -> &'static [(Part, i32)] {
    match format {
        Format::Q4Min => &[(Part::Nibbles, 16)],
        Format::Q8 => &[(Part::Octets, 1)],
        Format::W16 | Format::Vector => &[],
    }
}

/// As [`crate::arm::multiply`].
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn multiply(
    kernel: Kernel,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    report: &impl Report,
) {
    let at_once = if kernel == Kernel::Sve64 { GROUPS } else { 1 };
    let mut strip = Strip { weights: [[0; 2 * OCTETS]; CHUNK], scales: [[0; 4 * GROUP]; CHUNK] };
    let mut sums = [[[0; GROUP]; TOKENS]; GROUPS];
    let blocks = weights.cols() / BLOCK;
    for first in (0..x.tokens()).step_by(TOKENS) {
        let tokens = first..x.tokens().min(first + TOKENS);
        for index in groups.clone().step_by(at_once) {
            let here = index..groups.end.min(index + at_once);
            for (index, sums) in here.clone().zip(&mut sums) {
                minima::of_tokens(&weights.group(index), x, tokens.clone(), sums);
            }
            for &(part, factor) in parts(weights.format()) {
                for start in (0..blocks).step_by(CHUNK) {
                    let chunk = start..blocks.min(start + CHUNK);
                    for (slot, index) in here.clone().enumerate() {
                        unpack(kernel, part, factor, &weights.group(index), chunk.clone(), &mut strip, slot);
                    }
                    // SAFETY: the caller's promise.
                    unsafe { multiply_strip(kernel, &strip, chunk, x, tokens.clone(), &mut sums) };
                }
            }
            for ((index, group), sums) in here.clone().zip(weights.groups_in(here)).zip(&sums) {
                report(index, group.head, tokens.start, &sums[..tokens.len()]);
            }
        }
    }
}

/// Adds the products of a strip with its chunk of every token.
///
/// # Safety
/// The CPU has what `kernel` needs.
unsafe fn multiply_strip(
    kernel: Kernel,
    strip: &Strip,
    chunk: Range<usize>,
    x: &Activations,
    tokens: Range<usize>,
    sums: &mut [Sums; GROUPS],
) {
    let blocks = chunk.len();
    let mut token = tokens.start;
    while token < tokens.end {
        let left = tokens.end - token;
        let at = token - tokens.start;
        let [first, second] = sums.each_mut().map(|sums| &mut sums[at..]);
        // SAFETY: the caller's promise.
        token += unsafe {
            match kernel {
                Kernel::Dotprod if left > 4 => {
                    dotprod::tile::<8>(strip, blocks, of(x, token, &chunk), first);
                    8
                }
                Kernel::Dotprod => {
                    dotprod::tile::<4>(strip, blocks, of(x, token, &chunk), first);
                    4
                }
                Kernel::I8mm if left > 4 => {
                    i8mm::tile::<4>(strip, blocks, pairs(x, token, &chunk), first);
                    8
                }
                Kernel::I8mm => {
                    i8mm::tile::<2>(strip, blocks, pairs(x, token, &chunk), first);
                    4
                }
                Kernel::Sve32 | Kernel::Sve64 if left >= 5 => {
                    sve_batch::tile::<3>(kernel, strip, blocks, pairs(x, token, &chunk), [first, second])
                }
                Kernel::Sve32 | Kernel::Sve64 => {
                    sve_batch::tile::<1>(kernel, strip, blocks, pairs(x, token, &chunk), [first, second])
                }
                _ if left >= 4 => neon::<4>(strip, blocks, of(x, token, &chunk), first),
                _ => neon::<1>(strip, blocks, of(x, token, &chunk), first),
            }
        };
    }
}

/// A chunk of the words of `N` tokens; where there are fewer, of the last one.
#[inline(always)]
fn of<'a, const N: usize>(x: &Activations<'a>, token: usize, chunk: &Range<usize>) -> [&'a [i16]; N] {
    let mut words = [&[][..]; N];
    for (i, words) in words.iter_mut().enumerate() {
        *words = &x.words((token + i).min(x.tokens() - 1))[chunk.start * BLOCK..chunk.end * BLOCK];
    }
    words
}

/// A chunk of the words of `N` pairs of tokens; where there are fewer, of the last one.
#[inline(always)]
fn pairs<'a, const N: usize>(x: &Activations<'a>, token: usize, chunk: &Range<usize>) -> [&'a [i16]; N] {
    let mut words = [&[][..]; N];
    for (i, words) in words.iter_mut().enumerate() {
        *words = &x.words((token + 2 * i).min((x.tokens() - 1) / 2 * 2))
            [chunk.start * 2 * BLOCK..chunk.end * 2 * BLOCK];
    }
    words
}

/// Unpacks a chunk of a group into a strip.
fn unpack(
    kernel: Kernel,
    part: Part,
    factor: i32,
    group: &Group,
    chunk: Range<usize>,
    strip: &mut Strip,
    slot: usize,
) {
    let bytes = group.format.block_bytes();
    let octets = part == Part::Octets;
    let start = if octets || group.format == Format::Q4Min { SCALES } else { SCALES + OCTETS };
    let blocks = group.blocks[chunk.start * bytes..chunk.end * bytes].chunks_exact(bytes);
    for ((block, weights), scales) in blocks.zip(&mut strip.weights).zip(&mut strip.scales) {
        let halves = if octets { octet_rows(&block[start..]) } else { nibble_rows(&block[start..]) };
        // SAFETY: every AArch64 target of this crate has NEON; the stores are into as many bytes.
        unsafe {
            let words = words(block).map(|words| vmulq_n_s32(words, factor));
            match kernel {
                Kernel::Neon => by_column(halves, weights),
                Kernel::Dotprod => {
                    for (out, &w) in weights.chunks_exact_mut(16).zip(halves.as_flattened()) {
                        vst1q_s8(out.as_mut_ptr().cast(), w);
                    }
                }
                _ => by_pair(halves, &mut weights[slot * OCTETS..][..OCTETS]),
            }
            if matches!(kernel, Kernel::Neon | Kernel::Dotprod) {
                vst1q_s32(scales[..4].as_mut_ptr(), words[0]);
                vst1q_s32(scales[4..8].as_mut_ptr(), words[1]);
            } else {
                let scales = scales[slot * 2 * GROUP..][..2 * GROUP].chunks_exact_mut(2 * HALF);
                for (out, words) in scales.zip(words) {
                    vst1q_s32(out[..4].as_mut_ptr(), vzip1q_s32(words, words));
                    vst1q_s32(out[4..].as_mut_ptr(), vzip2q_s32(words, words));
                }
            }
        }
    }
}

/// The octets of a block, by halves of its rows.
#[inline(always)]
fn octet_rows(bytes: &[u8]) -> [Weights; 2] {
    [four_rows(bytes), four_rows(&bytes[NIBBLES..])]
}

/// The nibbles of a block, by halves of its rows.
#[inline(always)]
fn nibble_rows(bytes: &[u8]) -> [Weights; 2] {
    let both = four_rows(bytes);
    // SAFETY: NEON is there.
    unsafe { [both.map(|b| vshrq_n_s8::<4>(b)), both.map(|b| vandq_s8(b, vdupq_n_s8(15)))] }
}

/// Pairs of rows, 8 columns of each.
#[inline(always)]
unsafe fn by_pair(halves: [Weights; 2], out: &mut [u8]) {
    for (half, weights) in halves.iter().enumerate() {
        for (eight, columns) in weights.chunks_exact(2).enumerate() {
            let out = &mut out[eight * 2 * BLOCK + half * BLOCK..][..BLOCK];
            // SAFETY: NEON is there; the stores are into 32 bytes.
            unsafe {
                let [a, b] = [vreinterpretq_s32_s8(columns[0]), vreinterpretq_s32_s8(columns[1])];
                vst1q_s32(out.as_mut_ptr().cast(), vzip1q_s32(a, b));
                vst1q_s32(out[16..].as_mut_ptr().cast(), vzip2q_s32(a, b));
            }
        }
    }
}

/// Columns of 8 rows, widened.
#[inline(always)]
unsafe fn by_column([first, second]: [Weights; 2], out: &mut [u8; 2 * OCTETS]) {
    const TURNED: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // SAFETY: NEON is there; the stores are into 64 bytes.
    unsafe {
        let turned = vld1q_u8(TURNED.as_ptr());
        for (i, out) in out.chunks_exact_mut(64).enumerate().take(FOURS) {
            let [a, b] = [first[i], second[i]].map(|w| vreinterpretq_s32_s8(vqtbl1q_s8(w, turned)));
            let columns = [vzip1q_s32(a, b), vzip2q_s32(a, b)].map(|w| vreinterpretq_s8_s32(w));
            for (out, columns) in out.chunks_exact_mut(32).zip(columns) {
                vst1q_s16(out.as_mut_ptr().cast(), vmovl_s8(vget_low_s8(columns)));
                vst1q_s16(out[16..].as_mut_ptr().cast(), vmovl_high_s8(columns));
            }
        }
    }
}

/// The sums of 4 rows of `T` tokens, in registers.
type Tile<const T: usize> = [[int64x2_t; 2]; T];

/// Reads the sums of rows `4 * half ..`.
#[inline(always)]
pub(crate) fn read<const T: usize>(sums: &[[i64; GROUP]], half: usize) -> Tile<T> {
    // SAFETY: NEON is there; the loads are of 2 sums.
    core::array::from_fn(|t| unsafe {
        let sums = &sums[t][half * HALF..][..HALF];
        [vld1q_s64(sums.as_ptr()), vld1q_s64(sums[2..].as_ptr())]
    })
}

/// Writes them.
#[inline(always)]
pub(crate) fn write<const T: usize>(tile: &Tile<T>, sums: &mut [[i64; GROUP]], half: usize) {
    for (tile, sums) in tile.iter().zip(sums) {
        let sums = &mut sums[half * HALF..][..HALF];
        // SAFETY: NEON is there; the stores are of 2 sums.
        unsafe {
            vst1q_s64(sums.as_mut_ptr(), tile[0]);
            vst1q_s64(sums[2..].as_mut_ptr(), tile[1]);
        }
    }
}

/// `T` tokens on Armv8.0-A; answers how many.
fn neon<const T: usize>(strip: &Strip, blocks: usize, x: [&[i16]; T], sums: &mut [[i64; GROUP]]) -> usize {
    let (low, high) = (read::<T>(sums, 0), read::<T>(sums, 1));
    let mut out: [[int64x2_t; 4]; T] =
        core::array::from_fn(|t| [low[t][0], low[t][1], high[t][0], high[t][1]]);
    let x = x.map(|x| &x.as_chunks::<BLOCK>().0[..blocks]);
    for (b, (weights, scales)) in strip.weights.iter().zip(&strip.scales).take(blocks).enumerate() {
        // SAFETY: NEON is there; the loads are of 8 words and 4 scales.
        unsafe {
            let mut rows = [[vdupq_n_s32(0); 2]; T];
            for (eight, weights) in weights.chunks_exact(128).enumerate() {
                let x = x.map(|x| vld1q_s16(x[b][8 * eight..][..8].as_ptr()));
                column::<0, T>(&mut rows, weights, &x);
                column::<1, T>(&mut rows, weights, &x);
                column::<2, T>(&mut rows, weights, &x);
                column::<3, T>(&mut rows, weights, &x);
                column::<4, T>(&mut rows, weights, &x);
                column::<5, T>(&mut rows, weights, &x);
                column::<6, T>(&mut rows, weights, &x);
                column::<7, T>(&mut rows, weights, &x);
            }
            let scales = [vld1q_s32(scales[..4].as_ptr()), vld1q_s32(scales[4..8].as_ptr())];
            for (out, &rows) in out.iter_mut().zip(&rows) {
                scale(out, scales, rows);
            }
        }
    }
    write::<T>(&out.map(|[a, b, _, _]| [a, b]), sums, 0);
    write::<T>(&out.map(|[_, _, a, b]| [a, b]), sums, 1);
    T
}

/// Adds the products of column `C` of eight.
#[inline(always)]
unsafe fn column<const C: i32, const T: usize>(
    rows: &mut [[int32x4_t; 2]; T],
    weights: &[u8],
    x: &[int16x8_t; T],
) {
    // SAFETY: NEON is there; `load` checks its bounds.
    unsafe {
        let w = vreinterpretq_s16_s8(load(weights, 16 * C as usize));
        for (rows, &x) in rows.iter_mut().zip(x) {
            rows[0] = vmlal_laneq_s16::<C>(rows[0], vget_low_s16(w), x);
            rows[1] = vmlal_high_laneq_s16::<C>(rows[1], w, x);
        }
    }
}
