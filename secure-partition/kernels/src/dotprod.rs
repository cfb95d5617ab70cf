//! `FEAT_DotProd`: four columns of four rows an instruction. One token, and tiles of many.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::batch::Strip;
use crate::format::{BLOCK, Format, GROUP, HALF, NIBBLES, OCTETS, SCALES};
use crate::matrix::Group;
use crate::neon::{FOURS, RowSums, Weights, minima, no_rows, scale, store};

/// Twin of [`crate::plain::group`] for one token and some groups of the same matrix. The mantissas are in
/// [`crate::activations::Layout::Planes`], for vectors of 16 bytes.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
pub(crate) unsafe fn groups<const G: usize>(
    groups: [&Group; G],
    x: &[i16],
    sums: &[i32],
) -> [[i64; GROUP]; G] {
    // SAFETY: the caller's promise.
    unsafe {
        match groups[0].format {
            Format::Q4Min => typed::<G, false, true>(groups, x, sums),
            Format::Q8 => typed::<G, true, false>(groups, x, sums),
            Format::W16 | Format::Vector => [[0; GROUP]; G],
        }
    }
}

#[inline(always)]
unsafe fn typed<const G: usize, const OCTET: bool, const NIBBLE: bool>(
    groups: [&Group; G],
    x: &[i16],
    sums: &[i32],
) -> [[i64; GROUP]; G] {
    const WIDE: usize = SCALES + OCTETS + NIBBLES;
    let bytes = WIDE - if OCTET { 0 } else { OCTETS } - if NIBBLE { 0 } else { NIBBLES };
    const { assert!(G == 1 || G == 2) };
    // Of 4-bit weights, the sums of rows 4..8 are a sixteenth of what they should be.
    let mut out = if OCTET { [no_rows(); G] } else { minima::<G, 7, 3>(groups, sums) };
    let x = x.as_chunks::<BLOCK>().0;
    let mut blocks = groups.map(|group| group.blocks[..x.len() * bytes].as_ptr());
    for x in x {
        // SAFETY: every group has as many blocks as `x`, of `bytes` each; the caller promises the instructions.
        unsafe {
            let x = planes(x);
            // Not a loop, which would keep the sums in memory.
            add_block::<OCTET, NIBBLE>(blocks[0], &x, &mut out[0]);
            blocks[0] = blocks[0].add(bytes);
            if G == 2 {
                add_block::<OCTET, NIBBLE>(blocks[G - 1], &x, &mut out[G - 1]);
                blocks[G - 1] = blocks[G - 1].add(bytes);
            }
        }
    }
    let mut stored = [[0; GROUP]; G];
    for (stored, out) in stored.iter_mut().zip(&mut out) {
        if !OCTET {
            // SAFETY: every AArch64 target of this crate has NEON.
            (out[2], out[3]) = unsafe { (vshlq_n_s64::<4>(out[2]), vshlq_n_s64::<4>(out[3])) };
        }
        *stored = store(out);
    }
    stored
}

/// Adds the products of one block of a group.
#[inline(always)]
unsafe fn add_block<const OCTET: bool, const NIBBLE: bool>(
    block: *const u8,
    x: &[int8x16_t; 4],
    out: &mut RowSums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match (OCTET, NIBBLE) {
            (true, false) => add_octets(block, x, out),
            (false, true) => add_nibbles(block, x, out),
            _ => {
                let (o, (whole, low)) =
                    (octets(block.add(SCALES), x), nibbles(block.add(SCALES + OCTETS), x));
                let high = vshrq_n_s32::<4>(vsubq_s32(whole, low));
                let s = [vaddq_s32(vshlq_n_s32::<4>(o[0]), high), vaddq_s32(vshlq_n_s32::<4>(o[1]), low)];
                let scales = vld1q_s16(block.cast());
                scale(out, [vmovl_s16(vget_low_s16(scales)), vmovl_high_s16(scales)], s);
            }
        }
    }
}

/// Four rows of a block, whose weights are in w0 to w7: `$sum` = 256 * (weights . h) + weights . l.
macro_rules! four_rows {
    ($sum:literal) => {
        concat!(
            "movi {", $sum, ":v}.2d, #0\n",
            four_rows!(@ $sum, "x0", "x1"),
            "shl {", $sum, ":v}.4s, {", $sum, ":v}.4s, #8\n",
            four_rows!(@ $sum, "x2", "x3")
        )
    };
    (@ $sum:literal, $first:literal, $second:literal) => {
        concat!(
            four_rows!(@ $sum, "w0", $first, "0"), four_rows!(@ $sum, "w1", $first, "1"),
            four_rows!(@ $sum, "w2", $first, "2"), four_rows!(@ $sum, "w3", $first, "3"),
            four_rows!(@ $sum, "w4", $second, "0"), four_rows!(@ $sum, "w5", $second, "1"),
            four_rows!(@ $sum, "w6", $second, "2"), four_rows!(@ $sum, "w7", $second, "3")
        )
    };
    (@ $sum:literal, $w:literal, $x:literal, $lane:literal) => {
        concat!("sdot {", $sum, ":v}.4s, {", $w, ":v}.16b, {", $x, ":v}.4b[", $lane, "]\n")
    };
}

/// Scales `first` and `second` by `s` and adds them to `o0` to `o3`.
macro_rules! scale_rows {
    () => {
        "sxtl {t:v}.4s, {s:v}.4h
        sxtl2 {s:v}.4s, {s:v}.8h
        smlal {o0:v}.2d, {t:v}.2s, {first:v}.2s
        smlal2 {o1:v}.2d, {t:v}.4s, {first:v}.4s
        smlal {o2:v}.2d, {s:v}.2s, {second:v}.2s
        smlal2 {o3:v}.2d, {s:v}.4s, {second:v}.4s"
    };
}

/// The block of `Q4Min`. In one piece, as the compiler would do two groups at a time and run out of registers.
#[inline(always)]
unsafe fn add_nibbles(block: *const u8, x: &[int8x16_t; 4], [o0, o1, o2, o3]: &mut RowSums) {
    // SAFETY: the caller promises the instructions, and a block at `block`, of which the scales and 128 bytes are read.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "ldp {s:q}, {w0:q}, [{block}]",
            "ldp {w1:q}, {w2:q}, [{block}, #32]",
            "ldp {w3:q}, {w4:q}, [{block}, #64]",
            "ldp {w5:q}, {w6:q}, [{block}, #96]",
            "ldr {w7:q}, [{block}, #128]",
            four_rows!("first"),
            "and {w0:v}.16b, {w0:v}.16b, {mask:v}.16b",
            "and {w1:v}.16b, {w1:v}.16b, {mask:v}.16b",
            "and {w2:v}.16b, {w2:v}.16b, {mask:v}.16b",
            "and {w3:v}.16b, {w3:v}.16b, {mask:v}.16b",
            "and {w4:v}.16b, {w4:v}.16b, {mask:v}.16b",
            "and {w5:v}.16b, {w5:v}.16b, {mask:v}.16b",
            "and {w6:v}.16b, {w6:v}.16b, {mask:v}.16b",
            "and {w7:v}.16b, {w7:v}.16b, {mask:v}.16b",
            four_rows!("second"),
            "sub {first:v}.4s, {first:v}.4s, {second:v}.4s",
            scale_rows!(),
            block = in(reg) block, mask = in(vreg) vdupq_n_s8(15),
            x0 = in(vreg) x[0], x1 = in(vreg) x[1], x2 = in(vreg) x[2], x3 = in(vreg) x[3],
            o0 = inout(vreg) *o0, o1 = inout(vreg) *o1, o2 = inout(vreg) *o2, o3 = inout(vreg) *o3,
            w0 = out(vreg) _, w1 = out(vreg) _, w2 = out(vreg) _, w3 = out(vreg) _,
            w4 = out(vreg) _, w5 = out(vreg) _, w6 = out(vreg) _, w7 = out(vreg) _,
            first = out(vreg) _, second = out(vreg) _, s = out(vreg) _, t = out(vreg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

/// The block of `Q8`.
#[inline(always)]
unsafe fn add_octets(block: *const u8, x: &[int8x16_t; 4], [o0, o1, o2, o3]: &mut RowSums) {
    // SAFETY: the caller promises the instructions, and a block at `block`, of which the scales and 256 bytes are read.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "ldp {s:q}, {w0:q}, [{block}]",
            "ldp {w1:q}, {w2:q}, [{block}, #32]",
            "ldp {w3:q}, {w4:q}, [{block}, #64]",
            "ldp {w5:q}, {w6:q}, [{block}, #96]",
            "ldp {w7:q}, {t:q}, [{block}, #128]",
            four_rows!("first"),
            "mov {w0:v}.16b, {t:v}.16b",
            "ldp {w1:q}, {w2:q}, [{block}, #160]",
            "ldp {w3:q}, {w4:q}, [{block}, #192]",
            "ldp {w5:q}, {w6:q}, [{block}, #224]",
            "ldr {w7:q}, [{block}, #256]",
            four_rows!("second"),
            scale_rows!(),
            block = in(reg) block,
            x0 = in(vreg) x[0], x1 = in(vreg) x[1], x2 = in(vreg) x[2], x3 = in(vreg) x[3],
            o0 = inout(vreg) *o0, o1 = inout(vreg) *o1, o2 = inout(vreg) *o2, o3 = inout(vreg) *o3,
            w0 = out(vreg) _, w1 = out(vreg) _, w2 = out(vreg) _, w3 = out(vreg) _,
            w4 = out(vreg) _, w5 = out(vreg) _, w6 = out(vreg) _, w7 = out(vreg) _,
            first = out(vreg) _, second = out(vreg) _, s = out(vreg) _, t = out(vreg) _,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
}

/// Dot products of 2 x 128 octets with a block.
#[inline(always)]
unsafe fn octets(bytes: *const u8, x: &[int8x16_t; 4]) -> [int32x4_t; 2] {
    // SAFETY: the caller's promise.
    unsafe { [four_dots(&load_rows(bytes), x), four_dots(&load_rows(bytes.add(NIBBLES)), x)] }
}

/// Dot products of 128 bytes with a block (16 * high nibble + low nibble), and of their low nibbles.
#[inline(always)]
unsafe fn nibbles(bytes: *const u8, x: &[int8x16_t; 4]) -> (int32x4_t, int32x4_t) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = load_rows(bytes);
        let whole = four_dots(&weights, x);
        for weights in &mut weights {
            *weights = vandq_s8(*weights, vdupq_n_s8(15));
        }
        (whole, four_dots(&weights, x))
    }
}

/// 128 bytes: the weights of four rows of a block.
#[inline(always)]
unsafe fn load_rows(bytes: *const u8) -> Weights {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [vdupq_n_s8(0); FOURS];
        for (i, weights) in weights.iter_mut().enumerate() {
            *weights = vld1q_s8(bytes.add(16 * i).cast());
        }
        weights
    }
}

/// The two planes of a block of mantissas, each in two vectors.
#[inline(always)]
pub(crate) fn planes(x: &[i16; BLOCK]) -> [int8x16_t; 4] {
    // SAFETY: the loads are of 8 elements of `x` each; NEON is there.
    unsafe {
        let mut planes = [vdupq_n_s8(0); 4];
        for (i, plane) in planes.iter_mut().enumerate() {
            *plane = vreinterpretq_s8_s16(vld1q_s16(x.as_ptr().add(8 * i)));
        }
        planes
    }
}

/// Dot products of 4 rows with a block of mantissas: 256 * (weights . h) + weights . l.
#[inline(always)]
pub(crate) unsafe fn four_dots(weights: &Weights, [h0, h1, l0, l1]: &[int8x16_t; 4]) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let high = vdupq_n_s32(0);
        let high = sixteen_columns(sixteen_columns(high, weights, 0, *h0), weights, FOURS / 2, *h1);
        let low = vshlq_n_s32::<8>(high);
        sixteen_columns(sixteen_columns(low, weights, 0, *l0), weights, FOURS / 2, *l1)
    }
}

/// Adds the products of 16 columns, `first` being the first four of them.
#[inline(always)]
unsafe fn sixteen_columns(sum: int32x4_t, w: &Weights, first: usize, x: int8x16_t) -> int32x4_t {
    // SAFETY: the caller's promise.
    unsafe {
        let sum = sdot::<0>(sum, w[first], x);
        let sum = sdot::<1>(sum, w[first + 1], x);
        let sum = sdot::<2>(sum, w[first + 2], x);
        sdot::<3>(sum, w[first + 3], x)
    }
}

/// SDOT (by element): adds, in each 32-bit lane i, the dot product of bytes 4i.. of `a` with bytes 4 `LANE`.. of `b`.
#[inline(always)]
unsafe fn sdot<const LANE: usize>(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction only touches registers, and the caller promises that the CPU has it.
    unsafe {
        asm!(
            ".arch_extension dotprod", "sdot {sum:v}.4s, {a:v}.16b, {b:v}.4b[{lane}]",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Four rows and some tokens: for each, its mantissas, the registers of its sums, and the bytes from `$sums` to them.
macro_rules! tile {
    ($weights:ident, $scales:ident, $blocks:ident, $sums:ident,
     $($x:ident $words:expr, $low:literal, $high:literal, $low_q:literal, $high_q:literal, $at:literal);+) => {
        asm!(
            ".arch_extension dotprod",
            $(concat!("ldp ", $low_q, ", ", $high_q, ", [{sums}, #", $at, "]"),)+
            "2:",
            "ldp q0, q1, [{weights}]",
            "ldp q2, q3, [{weights}, #32]",
            "ldp q4, q5, [{weights}, #64]",
            "ldp q6, q7, [{weights}, #96]",
            "add {weights}, {weights}, {weights_stride}",
            "ldr q13, [{scales}], {scales_stride}",
            $(
                concat!("ldp q8, q9, [{", stringify!($x), "}], #32"),
                concat!("ldp q10, q11, [{", stringify!($x), "}], #32"),
                "movi v12.2d, #0",
                plane!("v8", "v9"),
                "shl v12.4s, v12.4s, #8",
                plane!("v10", "v11"),
                concat!("smlal ", $low, ".2d, v13.2s, v12.2s"),
                concat!("smlal2 ", $high, ".2d, v13.4s, v12.4s"),
            )+
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            $(concat!("stp ", $low_q, ", ", $high_q, ", [{sums}, #", $at, "]"),)+
            weights = inout(reg) $weights => _, scales = inout(reg) $scales => _, blocks = inout(reg) $blocks => _,
            sums = in(reg) $sums, $($x = inout(reg) $words => _,)+
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
            out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _,
            out("v30") _, out("v31") _,
            weights_stride = const Strip::WEIGHTS_STRIDE, scales_stride = const Strip::SCALES_STRIDE,
            options(nostack)
        )
    };
}

/// Adds the products of one plane of a block, in two registers, with four rows in v0 to v7 to v12.
macro_rules! plane {
    ($first:literal, $second:literal) => {
        concat!(
            plane!(@ "v0", $first, 0), plane!(@ "v1", $first, 1), plane!(@ "v2", $first, 2), plane!(@ "v3", $first, 3),
            plane!(@ "v4", $second, 0), plane!(@ "v5", $second, 1), plane!(@ "v6", $second, 2), plane!(@ "v7", $second, 3)
        )
    };
    (@ $w:literal, $x:literal, $lane:literal) => {
        concat!("sdot v12.4s, ", $w, ".16b, ", $x, ".4b[", $lane, "]\n")
    };
}

/// Adds the products of a strip with eight or four tokens. In one piece, as the compiler would keep the sums in memory: those
/// of four rows and eight tokens are in v16 to v31, the rows' weights in v0 to v7.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
pub(crate) unsafe fn tile<const T: usize>(
    strip: &Strip,
    blocks: usize,
    x: [&[i16]; T],
    sums: &mut [[i64; GROUP]],
) {
    const { assert!(T == 4 || T == 8) };
    let sums = &mut sums[..T];
    assert!(blocks > 0 && blocks <= strip.weights.len(), "a chunk of a strip");
    let x = x.map(|x| x[..blocks * BLOCK].as_ptr());
    for half in 0..2 {
        let (weights, scales) = strip.half(half);
        // SAFETY: inside the first token's.
        let sums = unsafe { sums.as_mut_ptr().cast::<i64>().add(half * HALF) };
        // SAFETY: the strip has that many blocks, and so has each token; the sums are of `T` tokens; the caller promises the
        // instructions.
        unsafe {
            if T == 8 {
                tile!(
                    weights, scales, blocks, sums,
                    x0 x[0], "v16", "v17", "q16", "q17", 0; x1 x[1], "v18", "v19", "q18", "q19", 64;
                    x2 x[2], "v20", "v21", "q20", "q21", 128; x3 x[3], "v22", "v23", "q22", "q23", 192;
                    x4 x[T - 4], "v24", "v25", "q24", "q25", 256; x5 x[T - 3], "v26", "v27", "q26", "q27", 320;
                    x6 x[T - 2], "v28", "v29", "q28", "q29", 384; x7 x[T - 1], "v30", "v31", "q30", "q31", 448
                );
            } else {
                tile!(
                    weights, scales, blocks, sums,
                    x0 x[0], "v16", "v17", "q16", "q17", 0; x1 x[1], "v18", "v19", "q18", "q19", 64;
                    x2 x[2], "v20", "v21", "q20", "q21", 128; x3 x[3], "v22", "v23", "q22", "q23", 192
                );
            }
        }
    }
}
