//! One token on Armv8.0-A: 8-bit products summed in 16 bits where weights are nibbles, 16-bit products where they are octets.
//! What the other kernels for Arm have in common is here, too.

use core::arch::aarch64::*;

use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, NIBBLES, OCTETS, SCALES};
use crate::matmul::Output;
use crate::matrix::Group;

/// Groups of four columns of a block.
pub(crate) const FOURS: usize = BLOCK / 4;
/// Blocks whose products with a half of a block's sum fit i32: 64 * 2^15 * 1020 < 2^31.
const SUMMED: usize = 64;

/// Sums of the 8 rows of a group, 2 rows a vector.
pub(crate) type RowSums = [int64x2_t; GROUP / 2];
/// Weights of four rows of a block, 4 columns a vector.
pub(crate) type Weights = [int8x16_t; FOURS];

/// Twin of [`crate::plain::group`] for one token, whose mantissas are in [`crate::activations::Layout::Spread`].
pub(crate) fn group(group: &Group, x: &[i16], sums: &[i32]) -> [i64; GROUP] {
    match group.format {
        Format::Q4Min => typed::<false, true>(group, x, sums),
        Format::Q8 => typed::<true, false>(group, x, sums),
        Format::W16 | Format::Vector => [0; GROUP],
    }
}

fn typed<const OCTET: bool, const NIBBLE: bool>(group: &Group, x: &[i16], sums: &[i32]) -> [i64; GROUP] {
    // Of 4-bit weights, the sums are a sixteenth of what they should be.
    let [mut out] = if OCTET { [no_rows()] } else { minima::<1, 3, 3>([group], sums) };
    let x = x.as_chunks::<{ 4 * BLOCK }>().0;
    for (block, x) in group.blocks.chunks_exact(group.format.block_bytes()).zip(x) {
        let s = match (OCTET, NIBBLE) {
            (true, false) => octets(&block[SCALES..], x),
            (false, true) => nibbles(&block[SCALES..], x),
            _ => {
                let (o, n) = (octets(&block[SCALES..], x), nibbles(&block[SCALES + OCTETS..], x));
                // SAFETY: every AArch64 target of this crate has NEON.
                unsafe { [join(o[0], n[0]), join(o[1], n[1])] }
            }
        };
        scale(&mut out, words(block), s);
    }
    let mut stored = store(&out);
    if !OCTET {
        stored.iter_mut().for_each(|sum| *sum <<= 4);
    }
    stored
}

/// 16 * `octets` + `nibbles`.
#[inline(always)]
unsafe fn join(octets: int32x4_t, nibbles: int32x4_t) -> int32x4_t {
    // SAFETY: NEON is there.
    unsafe { vaddq_s32(vshlq_n_s32::<4>(octets), nibbles) }
}

/// Dot products of nibbles with a block. Sums of 8 products with halves of mantissas, 8 * 15 * 128, fit i16.
#[inline(always)]
fn nibbles(bytes: &[u8], x: &[i16; 4 * BLOCK]) -> [int32x4_t; 2] {
    // SAFETY: NEON is there.
    unsafe {
        // For high and low nibbles: `h` of rows 0 and 1, of rows 2 and 3, `l` likewise.
        let mut sums = [[vdupq_n_s16(0); 4]; 2];
        for i in 0..FOURS {
            let both = load(bytes, 16 * i);
            let (h, l) = (half(x, i), half(x, FOURS + i));
            let halves = [vshrq_n_s8::<4>(both), vandq_s8(both, vdupq_n_s8(15))];
            for (sums, w) in sums.iter_mut().zip(halves) {
                sums[0] = vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(h));
                sums[1] = vmlal_high_s8(sums[1], w, h);
                sums[2] = vmlal_s8(sums[2], vget_low_s8(w), vget_low_s8(l));
                sums[3] = vmlal_high_s8(sums[3], w, l);
            }
        }
        let whole = |h, l| vpadalq_s16(vshlq_n_s32::<8>(vpaddlq_s16(h)), l);
        sums.map(|[h0, h1, l0, l1]| vpaddq_s32(whole(h0, l0), whole(h1, l1)))
    }
}

/// Dot products of octets with a block.
#[inline(always)]
fn octets(bytes: &[u8], x: &[i16; 4 * BLOCK]) -> [int32x4_t; 2] {
    // SAFETY: NEON is there.
    unsafe {
        let mut rows = [vdupq_n_s32(0); GROUP];
        for i in 0..FOURS {
            let (h, l) = (half(x, i), half(x, FOURS + i));
            let x = vaddw_s8(vshll_n_s8::<8>(vget_low_s8(h)), vget_low_s8(l));
            for (rows, w) in
                rows.chunks_exact_mut(4).zip([load(bytes, 16 * i), load(bytes, NIBBLES + 16 * i)])
            {
                let (first, second) = (vmovl_s8(vget_low_s8(w)), vmovl_high_s8(w));
                rows[0] = vmlal_s16(rows[0], vget_low_s16(first), vget_low_s16(x));
                rows[1] = vmlal_high_s16(rows[1], first, x);
                rows[2] = vmlal_s16(rows[2], vget_low_s16(second), vget_low_s16(x));
                rows[3] = vmlal_high_s16(rows[3], second, x);
            }
        }
        let whole = |r: &[int32x4_t]| vpaddq_s32(vpaddq_s32(r[0], r[1]), vpaddq_s32(r[2], r[3]));
        [whole(&rows[..4]), whole(&rows[4..])]
    }
}

/// The i-th 16 bytes of spread mantissas.
#[inline(always)]
fn half(x: &[i16; 4 * BLOCK], i: usize) -> int8x16_t {
    // SAFETY: the load is of 8 elements of `x`; NEON is there.
    unsafe { vreinterpretq_s8_s16(vld1q_s16(x[8 * i..][..8].as_ptr())) }
}

/// Products of the groups' minima with a token's block sums, times 2^`HIGH` for rows 0..4 and 2^`LOW` for rows 4..8.
#[inline(always)]
pub(crate) fn minima<const G: usize, const HIGH: i32, const LOW: i32>(
    groups: [&Group; G],
    sums: &[i32],
) -> [RowSums; G] {
    let mut out = [no_rows(); G];
    for (chunk, sums) in sums.chunks(SUMMED).enumerate() {
        let minima = groups.map(|group| &group.minima[chunk * SUMMED * SCALES..][..sums.len() * SCALES]);
        // SAFETY: NEON is there; the loads are of 4 sums, and `load` checks its bounds.
        unsafe {
            // Products with the high and with the low half of sums, of 4 rows each.
            let mut parts = [[vdupq_n_s32(0); 4]; G];
            let (fours, rest) = sums.as_chunks::<4>();
            for (four, sums) in fours.iter().enumerate() {
                let sums = vreinterpretq_s16_s32(vld1q_s32(sums.as_ptr()));
                for (parts, minima) in parts.iter_mut().zip(minima) {
                    let at = |i: usize| vreinterpretq_s16_s8(load(minima, (4 * four + i) * SCALES));
                    minimum::<0, 1>(parts, at(0), sums);
                    minimum::<2, 3>(parts, at(1), sums);
                    minimum::<4, 5>(parts, at(2), sums);
                    minimum::<6, 7>(parts, at(3), sums);
                }
            }
            for (i, &sum) in rest.iter().enumerate() {
                let sum = vreinterpretq_s16_s32(vdupq_n_s32(sum));
                for (parts, minima) in parts.iter_mut().zip(minima) {
                    let m = vreinterpretq_s16_s8(load(minima, (4 * fours.len() + i) * SCALES));
                    minimum::<0, 1>(parts, m, sum);
                }
            }
            for (out, [h0, h1, l0, l1]) in out.iter_mut().zip(parts) {
                add_shifted::<HIGH>(&mut out[..2], h0, l0);
                add_shifted::<LOW>(&mut out[2..], h1, l1);
            }
        }
    }
    out
}

/// Adds a block's minima times its sum, whose halves are at two places of `sums`.
#[inline(always)]
pub(crate) unsafe fn minimum<const L: i32, const H: i32>(
    parts: &mut [int32x4_t; 4],
    m: int16x8_t,
    sums: int16x8_t,
) {
    // SAFETY: NEON is there.
    unsafe {
        parts[0] = vmlal_laneq_s16::<H>(parts[0], vget_low_s16(m), sums);
        parts[1] = vmlal_high_laneq_s16::<H>(parts[1], m, sums);
        parts[2] = vmlal_laneq_s16::<L>(parts[2], vget_low_s16(m), sums);
        parts[3] = vmlal_high_laneq_s16::<L>(parts[3], m, sums);
    }
}

/// Adds (1024 * `high` + `low`) * 2^`SHIFT` to four rows.
#[inline(always)]
pub(crate) unsafe fn add_shifted<const SHIFT: i32>(out: &mut [int64x2_t], high: int32x4_t, low: int32x4_t) {
    // SAFETY: NEON is there.
    unsafe {
        let pairs =
            [(vmovl_s32(vget_low_s32(high)), vget_low_s32(low)), (vmovl_high_s32(high), vget_high_s32(low))];
        for (out, (high, low)) in out.iter_mut().zip(pairs) {
            let sum = vaddw_s32(vshlq_n_s64::<10>(high), low);
            *out = vaddq_s64(*out, vshlq_n_s64::<SHIFT>(sum));
        }
    }
}

/// Adds scale * s for 8 rows.
#[inline(always)]
pub(crate) fn scale(out: &mut RowSums, [low, high]: [int32x4_t; 2], s: [int32x4_t; 2]) {
    let (first, second) = out.split_at_mut(2);
    scale_half(first, low, s[0]);
    scale_half(second, high, s[1]);
}

/// Adds scale * s for 4 rows.
#[inline(always)]
pub(crate) fn scale_half(out: &mut [int64x2_t], scales: int32x4_t, s: int32x4_t) {
    // SAFETY: NEON is there.
    unsafe {
        out[0] = vmlal_s32(out[0], vget_low_s32(scales), vget_low_s32(s));
        out[1] = vmlal_high_s32(out[1], scales, s);
    }
}

/// Zeros.
#[inline(always)]
pub(crate) fn no_rows() -> RowSums {
    // SAFETY: NEON is there.
    unsafe { [vdupq_n_s64(0); GROUP / 2] }
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

/// The weights of four rows of a block.
#[inline(always)]
pub(crate) fn four_rows(bytes: &[u8]) -> Weights {
    let bytes: &[u8; NIBBLES] = bytes.first_chunk().expect("inside the block");
    core::array::from_fn(|i| load(bytes, 16 * i))
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

/// Scales the sums of a whole group and some tokens and puts them to `out`, from `at` on and every `stride` elements; answers
/// whether it could. |sums| < 2^59.
#[inline]
pub(crate) fn finish(
    sums: &[[i64; GROUP]],
    head: &[u8; GROUP_HEAD],
    exponents: &[i32],
    frac: i32,
    out: Output,
    at: usize,
    stride: usize,
) -> bool {
    let (mut least, mut most) = (i32::MAX, i32::MIN);
    for &exponent in exponents {
        (least, most) = (least.min(exponent), most.max(exponent));
    }
    let (least, most) = (least.saturating_sub(frac), most.saturating_sub(frac));
    let saturated = least == i32::MIN || most == i32::MAX;
    // SAFETY: NEON is there; `load` checks its bounds.
    let shifts = unsafe {
        let shifts: [_; 2] = [0, 16].map(|i| vreinterpretq_s32_s8(load(head, i)));
        // The common case, that every shift is to the right and by less than the sums' length: (shift - 1) < 62.
        let one = vdupq_n_s32(1);
        let below =
            |shift, exponent| vreinterpretq_u32_s32(vsubq_s32(vqaddq_s32(shift, vdupq_n_s32(exponent)), one));
        let mut largest = vmaxq_u32(below(shifts[0], least), below(shifts[1], least));
        if sums.len() > 1 {
            largest = vmaxq_u32(largest, vmaxq_u32(below(shifts[0], most), below(shifts[1], most)));
        }
        if saturated || vmaxvq_u32(largest) >= 62 {
            return false;
        }
        [
            vmovl_s32(vget_low_s32(shifts[0])),
            vmovl_high_s32(shifts[0]),
            vmovl_s32(vget_low_s32(shifts[1])),
            vmovl_high_s32(shifts[1]),
        ]
    };
    let scaled = |sums: &[i64; GROUP], exponent: i32| {
        let mut rows = no_rows();
        // SAFETY: NEON is there; the loads are of 8 sums.
        unsafe {
            let left = vdupq_n_s64(i64::from(frac) - i64::from(exponent));
            for ((row, shift), sums) in rows.iter_mut().zip(shifts).zip(sums.as_chunks::<2>().0) {
                *row = vrshlq_s64(vld1q_s64(sums.as_ptr()), vsubq_s64(left, shift));
            }
        }
        rows
    };
    let (tokens, end) = (sums.iter().zip(exponents), at + (sums.len() - 1) * stride + GROUP);
    match out {
        Output::Store(out) => {
            let mut to = out[..end][at..].as_ptr();
            for (sums, &exponent) in tokens {
                let rows = scaled(sums, exponent);
                // SAFETY: NEON is there; the stores are of 8 elements, the last ones before `end`.
                unsafe {
                    let low = vqmovn_high_s64(vqmovn_s64(rows[0]), rows[1]);
                    let high = vqmovn_high_s64(vqmovn_s64(rows[2]), rows[3]);
                    store_shared(to.cast(), vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
                }
                to = to.wrapping_add(stride);
            }
        }
        Output::Add { before, after } => {
            let (mut from, mut to) = (before[..end][at..].as_ptr(), after[..end][at..].as_ptr());
            for (sums, &exponent) in tokens {
                let rows = scaled(sums, exponent);
                // SAFETY: NEON is there; the loads and stores are of 8 elements, the last ones before `end`.
                unsafe {
                    let sum = |i: usize| vqaddq_s64(vld1q_s64(from.add(2 * i)), rows[i]);
                    store_shared(to.cast(), sum(0), sum(1));
                    store_shared(to.add(4).cast(), sum(2), sum(3));
                }
                (from, to) = (from.wrapping_add(stride), to.wrapping_add(stride));
            }
        }
    }
    true
}

/// Stores 32 bytes that other cores may store to at the same time: an instruction instead of the language's store.
///
/// # Safety
/// `to` is valid for shared writes of 32 bytes.
#[inline(always)]
unsafe fn store_shared(to: *const i64, low: int64x2_t, high: int64x2_t) {
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!(
            "stp {low:q}, {high:q}, [{to}]",
            to = in(reg) to, low = in(vreg) low, high = in(vreg) high, options(nostack, preserves_flags)
        );
    }
}
