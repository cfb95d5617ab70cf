//! One token on Armv8.0-A: 8-bit products summed in 16 bits where weights are nibbles, 16-bit products where they are octets.
//! Loops are in one piece of assembly, as the compiler would load registers one or two at a time instead of four. What the other kernels for Arm have in common is here, too.

use core::arch::aarch64::*;
use core::arch::asm;
use core::sync::atomic::{AtomicI32, AtomicI64};

use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, HALF, NIBBLES, OCTETS, SCALES};
use crate::matmul::Output;
use crate::matrix::Group;
use crate::minima;

/// Groups of four columns of a block.
pub(crate) const FOURS: usize = BLOCK / 4;
/// Sums of the 8 rows of a group, 2 rows a vector.
pub(crate) type RowSums = [int64x2_t; GROUP / 2];
/// Weights of four rows of a block, 4 columns a vector.
pub(crate) type Weights = [int8x16_t; FOURS];

/// Loads weights of four rows, and both planes of as many mantissas, of half a block.
macro_rules! load_half {
    ($weights:literal, $next:literal) => {
        concat!(
            "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, ",
            $weights,
            "\n",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{high}], ",
            $next,
            "\n",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{low}], ",
            $next,
            "\n"
        )
    };
}

/// Four columns of nibbles. Sums of 8 products with halves of mantissas, 8 * 15 * 128, and of two such sums fit i16: those of
/// high nibbles go to v16 to v19, those of low ones to v20 to v23; of these, the first two are with `h`.
macro_rules! nibbles {
    ($op:literal; $w:literal, $h:literal, $l:literal) => {
        concat!(
            "sshr v12.16b, ", $w, ".16b, #4\nand v13.16b, ", $w, ".16b, v14.16b\n",
            nibbles!(@ $op, "v16", "v17", "v12", $h), nibbles!(@ $op, "v18", "v19", "v12", $l),
            nibbles!(@ $op, "v20", "v21", "v13", $h), nibbles!(@ $op, "v22", "v23", "v13", $l)
        )
    };
    (@ $op:literal, $first:literal, $second:literal, $w:literal, $x:literal) => {
        concat!(
            $op, " ", $first, ".8h, ", $w, ".8b, ", $x, ".8b\n", $op, "2 ", $second, ".8h, ", $w, ".16b, ", $x, ".16b\n"
        )
    };
}

/// Adds up the sums of four rows: 256 * (weights . h) + weights . l.
macro_rules! add_up {
    ($h:literal, $h1:literal, $l:literal, $l1:literal) => {
        concat!(
            "addp ",
            $h,
            ".8h, ",
            $h,
            ".8h, ",
            $h1,
            ".8h\naddp ",
            $l,
            ".8h, ",
            $l,
            ".8h, ",
            $l1,
            ".8h\n",
            "saddlp ",
            $h,
            ".4s, ",
            $h,
            ".8h\nshl ",
            $h,
            ".4s, ",
            $h,
            ".4s, #8\nsadalp ",
            $h,
            ".4s, ",
            $l,
            ".8h\n"
        )
    };
}

/// Four columns of octets, with whole mantissas: the sums of rows 0 to 3 go to v16 to v19, those of rows 4 to 7 to v20 to v23.
macro_rules! octets {
    ($op:literal; $first:literal, $second:literal, $h:literal, $l:literal) => {
        concat!(
            "shll v12.8h, ", $h, ".8b, #8\nsaddw v12.8h, v12.8h, ", $l, ".8b\n",
            octets!(@ $op, "v16", "v17", "sxtl", ".8b", $first), octets!(@ $op, "v18", "v19", "sxtl2", ".16b", $first),
            octets!(@ $op, "v20", "v21", "sxtl", ".8b", $second), octets!(@ $op, "v22", "v23", "sxtl2", ".16b", $second)
        )
    };
    (@ $op:literal, $a:literal, $b:literal, $widen:literal, $half:literal, $w:literal) => {
        concat!(
            $widen, " v13.8h, ", $w, $half, "\n",
            $op, " ", $a, ".4s, v13.4h, v12.4h\n", $op, "2 ", $b, ".4s, v13.8h, v12.8h\n"
        )
    };
}

/// Scales the sums of four rows and of the other four and adds them up.
macro_rules! scale {
    ($first:literal, $second:literal) => {
        concat!(
            "sxtl v13.4s, v15.4h\nsxtl2 v15.4s, v15.8h\n",
            "smlal {a:v}.2d, v13.2s, ",
            $first,
            ".2s\nsmlal2 {b:v}.2d, v13.4s, ",
            $first,
            ".4s\n",
            "smlal {c:v}.2d, v15.2s, ",
            $second,
            ".2s\nsmlal2 {d:v}.2d, v15.4s, ",
            $second,
            ".4s\n"
        )
    };
}

/// Twin of [`crate::plain::group`] for one token, whose mantissas are in [`crate::activations::Layout::Spread`].
pub(crate) fn group(group: &Group, x: &[i16], sums: &[i32]) -> [i64; GROUP] {
    match group.format {
        Format::Q4Min => {
            // The sums are a sixteenth of what they should be.
            let [mut out] = minima::of_token::<1, 3, 3>([group.minima], sums);
            multiply::<true>(group, x, &mut out);
            store(&out).map(|sum| sum << 4)
        }
        Format::Q8 => {
            let mut out = no_rows();
            multiply::<false>(group, x, &mut out);
            store(&out)
        }
        Format::W16 | Format::Vector => [0; GROUP],
    }
}

/// Adds the products of all blocks: those of nibbles, or of octets.
#[inline(always)]
fn multiply<const NIBBLE: bool>(group: &Group, x: &[i16], out: &mut RowSums) {
    let (blocks, bytes) = (x.len() / (4 * BLOCK), group.format.block_bytes());
    if blocks == 0 {
        return;
    }
    let block = group.blocks[..blocks * bytes].as_ptr();
    let [a, b, c, d] = out;
    // From the second 64 bytes of `h`, of `l`, or of rows 0..4 and their scales to those of the next block: 192.
    // SAFETY: NEON is there; there are that many blocks of `bytes`, and as many times 256 bytes of mantissas.
    unsafe {
        if NIBBLE {
            asm!(
                "movi v14.16b, #15",
                "2:",
                "ld1 {{v15.8h}}, [{block}], #16",
                load_half!("[{block}], #64", "#64"),
                nibbles!("smull"; "v0", "v4", "v8"),
                nibbles!("smlal"; "v1", "v5", "v9"),
                nibbles!("smlal"; "v2", "v6", "v10"),
                nibbles!("smlal"; "v3", "v7", "v11"),
                load_half!("[{block}], #64", "{step}"),
                nibbles!("smlal"; "v0", "v4", "v8"),
                nibbles!("smlal"; "v1", "v5", "v9"),
                nibbles!("smlal"; "v2", "v6", "v10"),
                nibbles!("smlal"; "v3", "v7", "v11"),
                add_up!("v16", "v17", "v18", "v19"),
                add_up!("v20", "v21", "v22", "v23"),
                scale!("v16", "v20"),
                "subs {blocks}, {blocks}, #1",
                "b.ne 2b",
                block = inout(reg) block => _, step = in(reg) 192_usize,
                high = inout(reg) x.as_ptr() => _, low = inout(reg) x.as_ptr().add(2 * BLOCK) => _,
                blocks = inout(reg) blocks => _,
                a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                out("v21") _, out("v22") _, out("v23") _,
                options(readonly, nostack)
            );
        } else {
            asm!(
                "2:",
                "ld1 {{v15.8h}}, [{block}], #16",
                load_half!("[{block}], #64", "#64"),
                "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{second}], #64",
                octets!("smull"; "v0", "v24", "v4", "v8"),
                octets!("smlal"; "v1", "v25", "v5", "v9"),
                octets!("smlal"; "v2", "v26", "v6", "v10"),
                octets!("smlal"; "v3", "v27", "v7", "v11"),
                load_half!("[{block}], {step}", "{step}"),
                "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{second}], {last}",
                octets!("smlal"; "v0", "v24", "v4", "v8"),
                octets!("smlal"; "v1", "v25", "v5", "v9"),
                octets!("smlal"; "v2", "v26", "v6", "v10"),
                octets!("smlal"; "v3", "v27", "v7", "v11"),
                "addp v16.4s, v16.4s, v17.4s", "addp v18.4s, v18.4s, v19.4s", "addp v16.4s, v16.4s, v18.4s",
                "addp v20.4s, v20.4s, v21.4s", "addp v22.4s, v22.4s, v23.4s", "addp v20.4s, v20.4s, v22.4s",
                scale!("v16", "v20"),
                "subs {blocks}, {blocks}, #1",
                "b.ne 2b",
                block = inout(reg) block => _, second = inout(reg) block.add(SCALES + NIBBLES) => _,
                last = in(reg) OCTETS + SCALES - 64, step = in(reg) 192_usize,
                high = inout(reg) x.as_ptr() => _, low = inout(reg) x.as_ptr().add(2 * BLOCK) => _,
                blocks = inout(reg) blocks => _,
                a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                options(readonly, nostack)
            );
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
                unsafe { store_narrow(to, &rows) };
                to = to.wrapping_add(stride);
            }
        }
        Output::Add { before, after } => {
            let (mut from, mut to) = (before[..end][at..].as_ptr(), after[..end][at..].as_ptr());
            for (sums, &exponent) in tokens {
                let rows = scaled(sums, exponent);
                // SAFETY: NEON is there; the loads and stores are of 8 elements, the last ones before `end`.
                unsafe { store_sum(from, to, &rows) };
                (from, to) = (from.wrapping_add(stride), to.wrapping_add(stride));
            }
        }
    }
    true
}

/// Scales the sums of some whole groups of a token and puts them to `out` from `at` on; answers whether it could, otherwise what
/// it put is of no use. `groups` are their bytes, `each` a group. |sums| < 2^59.
#[inline]
pub(crate) fn finish_groups(
    sums: &[[i64; GROUP]],
    groups: &[u8],
    each: usize,
    exponent: i32,
    out: Output,
    at: usize,
) -> bool {
    // SAFETY: every AArch64 target of this crate has NEON.
    let (exponent, one, mut largest) = unsafe { (vdupq_n_s32(exponent), vdupq_n_s32(1), vdupq_n_u32(0)) };
    let mut scaled = |sums: &[i64; GROUP], group: &[u8]| {
        let mut rows = no_rows();
        // SAFETY: NEON is there; the loads are of 8 sums, and `load` checks its bounds.
        unsafe {
            for (half, (rows, sums)) in
                rows.as_chunks_mut::<2>().0.iter_mut().zip(sums.as_chunks::<HALF>().0).enumerate()
            {
                let shifts = vqaddq_s32(vreinterpretq_s32_s8(load(group, 16 * half)), exponent);
                largest = vmaxq_u32(largest, vreinterpretq_u32_s32(vsubq_s32(shifts, one)));
                let left = vnegq_s32(shifts);
                rows[0] = vrshlq_s64(vld1q_s64(sums.as_ptr()), vmovl_s32(vget_low_s32(left)));
                rows[1] = vrshlq_s64(vld1q_s64(sums[2..].as_ptr()), vmovl_high_s32(left));
            }
        }
        rows
    };
    let (groups, end) = (sums.iter().zip(groups.chunks_exact(each)), at + sums.len() * GROUP);
    match out {
        Output::Store(out) => {
            for ((sums, group), out) in groups.zip(out[at..end].chunks_exact(GROUP)) {
                let rows = scaled(sums, group);
                // SAFETY: NEON is there; the stores are of 8 elements.
                unsafe { store_narrow(out.as_ptr(), &rows) };
            }
        }
        Output::Add { before, after } => {
            let places = before[at..end].chunks_exact(GROUP).zip(after[at..end].chunks_exact(GROUP));
            for ((sums, group), (before, after)) in groups.zip(places) {
                let rows = scaled(sums, group);
                // SAFETY: NEON is there; the loads and stores are of 8 elements.
                unsafe { store_sum(before.as_ptr(), after.as_ptr(), &rows) };
            }
        }
    }
    // The common case: every shift is to the right and by less than the sums' length, (shift - 1) < 62.
    // SAFETY: NEON is there.
    unsafe { vmaxvq_u32(largest) < 62 }
}

/// Stores 8 sums, saturated.
///
/// # Safety
/// `to` is valid for shared writes of 8 elements.
#[inline(always)]
unsafe fn store_narrow(to: *const AtomicI32, rows: &RowSums) {
    // SAFETY: NEON is there; the caller's promise.
    unsafe {
        let low = vqmovn_high_s64(vqmovn_s64(rows[0]), rows[1]);
        let high = vqmovn_high_s64(vqmovn_s64(rows[2]), rows[3]);
        store_shared(to.cast(), vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
    }
}

/// Stores 8 sums, added to those at `from` and saturated.
///
/// # Safety
/// `from` is valid for reads and `to` for shared writes of 8 elements.
#[inline(always)]
unsafe fn store_sum(from: *const i64, to: *const AtomicI64, rows: &RowSums) {
    // SAFETY: NEON is there; the caller's promise.
    unsafe {
        let sum = |i: usize| vqaddq_s64(vld1q_s64(from.add(2 * i)), rows[i]);
        store_shared(to.cast(), sum(0), sum(1));
        store_shared(to.add(4).cast(), sum(2), sum(3));
    }
}

/// Stores 32 bytes that other cores may store to at the same time: an instruction instead of the language's store.
///
/// # Safety
/// `to` is valid for shared writes of 32 bytes.
#[inline(always)]
unsafe fn store_shared(to: *const i64, low: int64x2_t, high: int64x2_t) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "stp {low:q}, {high:q}, [{to}]",
            to = in(reg) to, low = in(vreg) low, high = in(vreg) high, options(nostack, preserves_flags)
        );
    }
}
