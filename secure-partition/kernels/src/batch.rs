//! Many tokens: the weights of a group of rows are unpacked once, into a strip that stays in the cache, and multiplied with
//! tiles of tokens.
//!
//! | kernels | a strip's weights |
//! |---|---|
//! | Armv8.0-A, `FEAT_DotProd` | (2 x 4 rows, 8 x 4 columns): 4 rows of 4 columns a vector |
//! | `FEAT_I8MM` | (2 x 4 rows, 4 x 8 columns, 2 rows): 2 rows of 8 columns a vector |
//! | SVE | (4 x 8 columns, 4 x 2 rows): the same for each 16 bytes of a vector |

use core::arch::aarch64::*;
use core::ops::Range;

use crate::activations::{Activations, Run};
use crate::format::{BLOCK, Format, GROUP, HALF, NIBBLES, OCTETS, SCALES};
use crate::isa::Kernel;
use crate::matmul::Report;
use crate::matrix::{Group, Matrix};
use crate::minima;
use crate::neon::{Weights, four_rows, words};
use crate::tile::{self, Dots};
use crate::{i8mm, sve_batch, sve_minima};

/// Blocks of a strip. What there are more of is added in another pass.
const CHUNK: usize = 32;
/// Tokens that share a strip: whole tiles of them.
pub(crate) const TOKENS: usize = 128;
/// Groups that share one, at most.
pub(crate) const GROUPS: usize = 2;

/// Unpacked weights of a block of one group, or two.
pub(crate) type Block = [Slot; GROUPS];

/// Those of one group.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    weights: [u8; OCTETS],
    /// One a row; or for SVE (4 x 2 rows), each twice.
    scales: [i32; 2 * GROUP],
}

/// Unpacked weights of a chunk of blocks.
type Strip = [Block; CHUNK];

/// Bytes from a block to the next one.
pub(crate) const STRIDE: usize = size_of::<Block>();

/// Unpacked weights of the blocks of a run of entries, and the entries of a tile of tokens.
pub(crate) struct Tile<'a> {
    /// The first block.
    pub blocks: *const Block,
    /// Octets of the first entry of the first token, or pair of tokens; those of the others lie behind them.
    pub octets: *const i8,
    /// From an entry's octets to those of the next one.
    pub octets_stride: usize,
    /// Scales of the first entry, of eight tokens or as many pairs as there may be.
    pub scales: *const i32,
    /// From one entry's scales to the next one's.
    pub scales_stride: usize,
    /// Entries.
    pub run: Run<'a>,
    /// Whether there are no sums yet that the products are added to.
    fresh: bool,
}

/// Sums of a tile that there is nothing of yet.
static ZEROS: [[i64; GROUP]; 8] = [[0; GROUP]; 8];

impl<'a> Tile<'a> {
    /// A run of entries of tokens from `token` on. `blocks` are those of the run.
    #[inline(always)]
    fn new(blocks: &[Block], x: &Activations, token: usize, run: Run<'a>, fresh: bool) -> Self {
        assert!(run.count > 0 && run.span() <= blocks.len(), "blocks of the strip");
        let (octets, scales) = x.place(token, run.entry);
        let (octets_stride, scales_stride) = (x.octets_stride(), x.scales_stride());
        Self { blocks: blocks.as_ptr(), octets, octets_stride, scales, scales_stride, run, fresh }
    }

    /// What the products are added to before they are stored at `sums`.
    #[inline(always)]
    pub const fn before(&self, sums: *const i64) -> *const i64 {
        if self.fresh { ZEROS.as_ptr().cast() } else { sums }
    }

    /// The first group's weights and scales of the first block, from `weights` and `scales` bytes on.
    #[inline(always)]
    pub const fn first(&self, weights: usize, scales: usize) -> (*const u8, *const u8) {
        let block = self.blocks.cast::<u8>();
        (block.wrapping_add(weights), block.wrapping_add(OCTETS + scales))
    }
}

/// Sums of some tokens: (tokens, rows of a group). Tiles may have more tokens than there are.
pub(crate) type Sums = [[i64; GROUP]; TOKENS];

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
    let at_once = if kernel == Kernel::Sve2x64 { GROUPS } else { 1 };
    let mut strip = [[Slot { weights: [0; OCTETS], scales: [0; 2 * GROUP] }; GROUPS]; CHUNK];
    let mut sums = [[[0; GROUP]; TOKENS]; GROUPS];
    let all = x.cols() / BLOCK;
    for first in (0..x.tokens()).step_by(TOKENS) {
        let tokens = first..x.tokens().min(first + TOKENS);
        let powers = &minima::powers(x, first, tokens.end);
        for index in groups.clone().step_by(at_once) {
            let here = index..groups.end.min(index + at_once);
            let in_groups = weights.groups_in(here.clone());
            if weights.format() == Format::Q4Min && kernel.has_sve2() {
                // SAFETY: the caller's promise.
                unsafe { sve_minima::of_tokens(kernel, in_groups, x, tokens.clone(), powers, &mut sums) };
            } else if weights.format() == Format::Q4Min {
                for (group, sums) in in_groups.zip(&mut sums) {
                    minima::of_tokens(&group, x, tokens.clone(), powers, sums);
                }
            } else if kernel.has_sve2() {
                sums.iter_mut().for_each(|sums| sums[..tokens.len()].fill([0; GROUP]));
            }
            for start in (0..all).step_by(CHUNK) {
                let blocks = start..all.min(start + CHUNK);
                for (slot, group) in weights.groups_in(here.clone()).enumerate() {
                    unpack(kernel, &group, blocks.clone(), &mut strip, slot);
                }
                // SAFETY: the caller's promise.
                unsafe {
                    multiply_strip(kernel, weights.format(), &strip, blocks, x, tokens.clone(), &mut sums)
                };
            }
            for ((index, group), sums) in here.clone().zip(weights.groups_in(here)).zip(&sums) {
                report(index, group.head, tokens.start, &sums[..tokens.len()]);
            }
        }
    }
}

/// Adds the products of a strip of blocks with every token.
///
/// # Safety
/// The CPU has what `kernel` needs.
unsafe fn multiply_strip(
    kernel: Kernel,
    format: Format,
    strip: &Strip,
    blocks: Range<usize>,
    x: &Activations,
    tokens: Range<usize>,
    sums: &mut [Sums; GROUPS],
) {
    let dots = match kernel {
        Kernel::Dotprod => Dots::Dotprod,
        _ if format.has_nibbles() => Dots::Nibbles,
        _ => Dots::Octets,
    };
    let mut token = tokens.start;
    while token < tokens.end {
        let left = tokens.end - token;
        let at = token - tokens.start;
        let mut done = 0;
        let mut fresh = blocks.start == 0 && format != Format::Q4Min;
        for run in x.runs(token, blocks.clone()).into_iter().flatten() {
            let tile = Tile::new(&strip[run.block - blocks.start..], x, token, run, fresh);
            fresh = false;
            let [first, second] = sums.each_mut().map(|sums| &mut sums[at..]);
            // SAFETY: the caller's promise.
            done = unsafe {
                match kernel {
                    Kernel::Dotprod if left > 4 => tile::tile::<8>(dots, &tile, first),
                    Kernel::I8mm if left > 4 => i8mm::tile::<4>(&tile, first),
                    Kernel::I8mm => i8mm::tile::<2>(&tile, first),
                    _ if kernel.has_sve2() && left > 4 => {
                        sve_batch::tile::<4>(kernel, &tile, [first, second])
                    }
                    _ if kernel.has_sve2() => sve_batch::tile::<1>(kernel, &tile, [first, second]),
                    _ => tile::tile::<4>(dots, &tile, first),
                }
            };
        }
        token += done;
    }
}

/// Unpacks some blocks of a group into a strip.
fn unpack(kernel: Kernel, group: &Group, blocks: Range<usize>, strip: &mut Strip, slot: usize) {
    for (b, out) in blocks.zip(strip) {
        let (block, out) = (group.block(b), &mut out[slot]);
        let (halves, factor) = match group.format {
            format if format.has_nibbles() => (nibble_rows(&block[SCALES..], format.low_excess()), 16),
            _ => (octet_rows(&block[SCALES..]), 1),
        };
        // SAFETY: every AArch64 target of this crate has NEON; the stores are into as many bytes.
        unsafe {
            let words = words(block).map(|words| vmulq_n_s32(words, factor));
            match kernel {
                Kernel::I8mm => by_pair(halves, &mut out.weights, NIBBLES, BLOCK),
                _ if kernel.has_sve2() => by_pair(halves, &mut out.weights, BLOCK, 2 * BLOCK),
                _ => {
                    for (out, &w) in out.weights.chunks_exact_mut(16).zip(halves.as_flattened()) {
                        vst1q_s8(out.as_mut_ptr().cast(), w);
                    }
                }
            }
            if kernel.has_sve2() {
                for (out, words) in out.scales.chunks_exact_mut(2 * HALF).zip(words) {
                    vst1q_s32(out[..4].as_mut_ptr(), vzip1q_s32(words, words));
                    vst1q_s32(out[4..].as_mut_ptr(), vzip2q_s32(words, words));
                }
            } else {
                vst1q_s32(out.scales[..4].as_mut_ptr(), words[0]);
                vst1q_s32(out.scales[4..].as_mut_ptr(), words[1]);
            }
        }
    }
}

/// The octets of a block, by halves of its rows.
#[inline(always)]
fn octet_rows(bytes: &[u8]) -> [Weights; 2] {
    [four_rows(bytes), four_rows(&bytes[NIBBLES..])]
}

/// The nibbles of a block, by halves of its rows; the low ones are stored too large by `excess`.
#[inline(always)]
fn nibble_rows(bytes: &[u8], excess: i8) -> [Weights; 2] {
    let both = four_rows(bytes);
    // SAFETY: NEON is there.
    unsafe {
        let low = both.map(|b| vsubq_s8(vandq_s8(b, vdupq_n_s8(15)), vdupq_n_s8(excess)));
        [both.map(|b| vshrq_n_s8::<4>(b)), low]
    }
}

/// Pairs of rows, 8 columns of each; the bytes from a half of the rows to the other, and from eight columns to the next.
#[inline(always)]
unsafe fn by_pair(halves: [Weights; 2], out: &mut [u8; OCTETS], each_half: usize, each_eight: usize) {
    for (half, weights) in halves.iter().enumerate() {
        for (eight, columns) in weights.chunks_exact(2).enumerate() {
            let out = &mut out[eight * each_eight + half * each_half..][..BLOCK];
            // SAFETY: NEON is there; the stores are into 32 bytes.
            unsafe {
                let [a, b] = [vreinterpretq_s32_s8(columns[0]), vreinterpretq_s32_s8(columns[1])];
                vst1q_s32(out.as_mut_ptr().cast(), vzip1q_s32(a, b));
                vst1q_s32(out[16..].as_mut_ptr().cast(), vzip2q_s32(a, b));
            }
        }
    }
}
