//! Many tokens: the weights of a group of rows are unpacked once, into a strip that stays in the cache, and multiplied with
//! tiles of tokens.
//!
//! | kernels | a strip's weights |
//! |---|---|
//! | Armv8.0-A, `FEAT_DotProd` | (2 x 4 rows, 8 x 4 columns): 4 rows of 4 columns a vector |
//! | `FEAT_I8MM`, SVE | (2 groups, 4 x 8 columns, 4 x 2 rows): 2 rows of 8 columns for each 16 bytes of a vector |

use core::arch::aarch64::*;
use core::ops::Range;

use crate::activations::Activations;
use crate::format::{BLOCK, Format, GROUP, HALF, NIBBLES, OCTETS, SCALES};
use crate::isa::Kernel;
use crate::matmul::Report;
use crate::matrix::Matrix;
use crate::minima::{self, Four};
use crate::neon::{Weights, four_rows, words};
use crate::tile::{self, Dots};
use crate::{i8mm, sve_batch};

/// Blocks of a strip. Entries that there are more of are added in another pass.
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

    /// The first weights and scales of rows `4 * half ..`, not in pairs.
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

/// Entries of some tokens, or pairs of tokens, that a strip's blocks are multiplied with.
pub(crate) struct Tile<const T: usize> {
    /// First octets of each token or pair. Where there are fewer, those of the last one.
    pub octets: [*const i8; T],
    /// Scales of the first entry, of eight tokens or as many pairs as there may be.
    pub scales: *const i32,
    /// From one entry's scales to the next one's.
    pub scales_stride: usize,
    /// Entries.
    pub blocks: usize,
}

impl<const T: usize> Tile<T> {
    /// `count` entries from the `first` on, of tokens from `token` on, `each` (one or two) at a place.
    #[inline(always)]
    fn new(x: &Activations, token: usize, each: usize, first: usize, count: usize) -> Self {
        let last = (x.tokens() - 1) / each * each;
        let mut octets = [core::ptr::null(); T];
        for (i, octets) in octets.iter_mut().enumerate() {
            (*octets, _) = x.place((token + i * each).min(last), first);
        }
        let (_, scales) = x.place(token, first);
        Self { octets, scales, scales_stride: x.scales_stride(), blocks: count }
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
    let octets = weights.format() == Format::Q8;
    for first in (0..x.tokens()).step_by(TOKENS) {
        let tokens = first..x.tokens().min(first + TOKENS);
        let fours: [Four; TOKENS / 4] =
            core::array::from_fn(|i| Four::new(x, tokens.end.min(first + 4 * i), tokens.end));
        for index in groups.clone().step_by(at_once) {
            let here = index..groups.end.min(index + at_once);
            for (index, sums) in here.clone().zip(&mut sums) {
                minima::of_tokens(&weights.group(index), &fours[..tokens.len().div_ceil(4)], sums);
            }
            for (entry, count) in x.chunks(CHUNK) {
                for (slot, index) in here.clone().enumerate() {
                    let group = weights.group(index);
                    let blocks = (entry..entry + count).map(|entry| group.block(x.block(entry)));
                    unpack(kernel, octets, blocks, &mut strip, slot);
                }
                // SAFETY: the caller's promise.
                unsafe {
                    multiply_strip(kernel, octets, &strip, (entry, count), x, tokens.clone(), &mut sums)
                };
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
    octets: bool,
    strip: &Strip,
    (entry, count): (usize, usize),
    x: &Activations,
    tokens: Range<usize>,
    sums: &mut [Sums; GROUPS],
) {
    let dots = match kernel {
        Kernel::Dotprod => Dots::Dotprod,
        _ if octets => Dots::Octets,
        _ => Dots::Nibbles,
    };
    let mut token = tokens.start;
    while token < tokens.end {
        let left = tokens.end - token;
        let at = token - tokens.start;
        let [first, second] = sums.each_mut().map(|sums| &mut sums[at..]);
        // SAFETY: the caller's promise.
        token += unsafe {
            match kernel {
                Kernel::Dotprod if left > 4 => {
                    tile::tile::<8>(dots, strip, &Tile::new(x, token, 1, entry, count), first);
                    8
                }
                Kernel::I8mm if left > 4 => {
                    i8mm::tile::<4>(strip, &Tile::new(x, token, 2, entry, count), first);
                    8
                }
                Kernel::I8mm => {
                    i8mm::tile::<2>(strip, &Tile::new(x, token, 2, entry, count), first);
                    4
                }
                Kernel::Sve32 | Kernel::Sve64 if left >= 5 => {
                    let tile = Tile::new(x, token, 2, entry, count);
                    sve_batch::tile::<3>(kernel, strip, &tile, [first, second])
                }
                Kernel::Sve32 | Kernel::Sve64 => {
                    let tile = Tile::new(x, token, 2, entry, count);
                    sve_batch::tile::<1>(kernel, strip, &tile, [first, second])
                }
                _ => {
                    tile::tile::<4>(dots, strip, &Tile::new(x, token, 1, entry, count), first);
                    4
                }
            }
        };
    }
}

/// Unpacks some blocks of a group into a strip.
fn unpack<'a>(
    kernel: Kernel,
    octets: bool,
    blocks: impl Iterator<Item = &'a [u8]>,
    strip: &mut Strip,
    slot: usize,
) {
    for ((block, weights), scales) in blocks.zip(&mut strip.weights).zip(&mut strip.scales) {
        let (halves, factor) =
            if octets { (octet_rows(&block[SCALES..]), 1) } else { (nibble_rows(&block[SCALES..]), 16) };
        // SAFETY: every AArch64 target of this crate has NEON; the stores are into as many bytes.
        unsafe {
            let words = words(block).map(|words| vmulq_n_s32(words, factor));
            if matches!(kernel, Kernel::Neon | Kernel::Dotprod) {
                for (out, &w) in weights.chunks_exact_mut(16).zip(halves.as_flattened()) {
                    vst1q_s8(out.as_mut_ptr().cast(), w);
                }
                vst1q_s32(scales[..4].as_mut_ptr(), words[0]);
                vst1q_s32(scales[4..8].as_mut_ptr(), words[1]);
            } else {
                by_pair(halves, &mut weights[slot * OCTETS..][..OCTETS]);
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
