//! `FEAT_DotProd`: four columns of four rows an instruction. One token, and tiles of many.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::batch::Strip;
use crate::format::{BLOCK, Format, GROUP, HALF};
use crate::matrix::{Group, Matrix};
use crate::minima;
use crate::neon::{RowSums, no_rows, store};

/// Adds the products of one plane of a block, in two registers, with four rows in v4 to v11.
macro_rules! plane {
    ($sum:literal, $first:literal, $second:literal) => {
        concat!(
            plane!(@ $sum, "v4", $first, 0), plane!(@ $sum, "v5", $first, 1),
            plane!(@ $sum, "v6", $first, 2), plane!(@ $sum, "v7", $first, 3),
            plane!(@ $sum, "v8", $second, 0), plane!(@ $sum, "v9", $second, 1),
            plane!(@ $sum, "v10", $second, 2), plane!(@ $sum, "v11", $second, 3)
        )
    };
    (@ $sum:literal, $w:literal, $x:literal, $lane:literal) => {
        concat!("sdot ", $sum, ".4s, ", $w, ".16b, ", $x, ".4b[", $lane, "]\n")
    };
}

/// Dot products of four rows in v4 to v11 with a block in v0 to v3: 256 * (weights . h) + weights . l.
macro_rules! four_rows {
    ($sum:literal) => {
        concat!(
            "movi ",
            $sum,
            ".2d, #0\n",
            plane!($sum, "v0", "v1"),
            "shl ",
            $sum,
            ".4s, ",
            $sum,
            ".4s, #8\n",
            plane!($sum, "v2", "v3")
        )
    };
}

/// Loads four rows of a group into v4 to v11.
macro_rules! load_rows {
    ($block:ident) => {
        concat!(
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{",
            stringify!($block),
            "}], #64\n",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{",
            stringify!($block),
            "}], #64\n"
        )
    };
}

/// A block of a group: the sums of its first rows go to v12, those of the others to v13.
macro_rules! nibbles {
    ($block:ident) => {
        concat!(
            load_rows!($block),
            four_rows!("v12"),
            "and v4.16b, v4.16b, v24.16b\nand v5.16b, v5.16b, v24.16b\n",
            "and v6.16b, v6.16b, v24.16b\nand v7.16b, v7.16b, v24.16b\n",
            "and v8.16b, v8.16b, v24.16b\nand v9.16b, v9.16b, v24.16b\n",
            "and v10.16b, v10.16b, v24.16b\nand v11.16b, v11.16b, v24.16b\n",
            four_rows!("v13"),
            "sub v12.4s, v12.4s, v13.4s\n"
        )
    };
}

/// The same of octets.
macro_rules! octets {
    ($block:ident) => {
        concat!(load_rows!($block), four_rows!("v12"), load_rows!($block), four_rows!("v13"))
    };
}

/// All blocks of one group or two, whose sums are in registers. In one piece, as the compiler would keep them in memory.
macro_rules! vector {
    ($rows:ident, $x:ident, $blocks:ident;
     $($block:ident $at:expr, $out:expr, $a:ident $b:ident $c:ident $d:ident);+) => {
        asm!(
            ".arch_extension dotprod",
            "movi v24.16b, #15",
            "2:",
            "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{x}], #64",
            $(
                concat!("ld1 {{v14.8h}}, [{", stringify!($block), "}], #16"),
                $rows!($block),
                "sxtl v15.4s, v14.4h",
                "sxtl2 v14.4s, v14.8h",
                concat!("smlal {", stringify!($a), ":v}.2d, v15.2s, v12.2s"),
                concat!("smlal2 {", stringify!($b), ":v}.2d, v15.4s, v12.4s"),
                concat!("smlal {", stringify!($c), ":v}.2d, v14.2s, v13.2s"),
                concat!("smlal2 {", stringify!($d), ":v}.2d, v14.4s, v13.4s"),
            )+
            "subs {blocks}, {blocks}, #1",
            "b.ne 2b",
            x = inout(reg) $x => _, blocks = inout(reg) $blocks => _,
            $(
                $block = inout(reg) $at => _,
                $a = inout(vreg) $out[0], $b = inout(vreg) $out[1], $c = inout(vreg) $out[2], $d = inout(vreg) $out[3],
            )+
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v24") _,
            options(readonly, nostack)
        )
    };
}

/// Twin of [`crate::plain::group`] for one token and as many groups, from the `first` on, as there is room for in `out`. The
/// mantissas are in [`crate::activations::Layout::Planes`], for vectors of 16 bytes.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
pub(crate) unsafe fn groups(
    weights: &Matrix,
    first: usize,
    x: &[i16],
    sums: &[i32],
    out: &mut [[i64; GROUP]],
) {
    let mut groups = weights.groups_in(first..first + out.len());
    for out in out.chunks_mut(2) {
        let Some(group) = groups.next() else { return };
        // SAFETY: the caller's promise.
        unsafe {
            match (out, groups.next()) {
                ([one, two], Some(next)) => [*one, *two] = products([&group, &next], x, sums),
                (out, _) => [out[0]] = products([&group], x, sums),
            }
        }
    }
}

/// Of one group or two.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
#[inline(always)]
unsafe fn products<const G: usize>(groups: [&Group; G], x: &[i16], sums: &[i32]) -> [[i64; GROUP]; G] {
    let mut out = [no_rows(); G];
    let mut stored = [[0; GROUP]; G];
    // SAFETY: the caller's promise.
    unsafe {
        match groups[0].format {
            Format::Q4Min => {
                // The sums of rows 4..8 are a sixteenth of what they should be.
                let mut minima = [groups[0].minima; G];
                minima[G - 1] = groups[G - 1].minima;
                out = minima::of_token::<G, 7, 3>(minima, sums);
                multiply::<G, true>(groups, x, &mut out);
                for out in &mut out {
                    (out[2], out[3]) = (vshlq_n_s64::<4>(out[2]), vshlq_n_s64::<4>(out[3]));
                }
            }
            Format::Q8 => multiply::<G, false>(groups, x, &mut out),
            Format::W16 | Format::Vector => {}
        }
    }
    for (stored, out) in stored.iter_mut().zip(&out) {
        *stored = store(out);
    }
    stored
}

/// Adds the products of all blocks of some groups: those of 16 * high nibble and of low nibble, or of octets.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
#[inline(always)]
unsafe fn multiply<const G: usize, const NIBBLE: bool>(
    groups: [&Group; G],
    x: &[i16],
    out: &mut [RowSums; G],
) {
    const { assert!(G == 1 || G == 2) };
    let (blocks, bytes) = (x.len() / BLOCK, groups[0].format.block_bytes());
    if blocks == 0 {
        return;
    }
    let block = |i: usize| groups[i].blocks[..blocks * bytes].as_ptr();
    let x = x.as_ptr();
    // SAFETY: every group has that many blocks of `bytes`, and there are as many times 64 bytes of mantissas; the caller
    // promises the instructions.
    unsafe {
        match (NIBBLE, G) {
            (true, 1) => {
                vector!(nibbles, x, blocks; block0 block(0), out[0], a0 a1 a2 a3)
            }
            (true, _) => vector!(
                nibbles, x, blocks;
                block0 block(0), out[0], a0 a1 a2 a3; block1 block(G - 1), out[G - 1], b0 b1 b2 b3
            ),
            (false, 1) => {
                vector!(octets, x, blocks; block0 block(0), out[0], a0 a1 a2 a3)
            }
            (false, _) => vector!(
                octets, x, blocks;
                block0 block(0), out[0], a0 a1 a2 a3; block1 block(G - 1), out[G - 1], b0 b1 b2 b3
            ),
        }
    }
}

/// Four rows and some tokens: for each, its mantissas, the registers of its sums, and the bytes from `$sums` to them.
macro_rules! tile {
    ($weights:ident, $scales:ident, $blocks:ident, $sums:ident,
     $($x:ident $words:expr, $low:literal, $high:literal, $low_q:literal, $high_q:literal, $at:literal);+) => {
        asm!(
            ".arch_extension dotprod",
            $(concat!("ldp ", $low_q, ", ", $high_q, ", [{sums}, #", $at, "]"),)+
            "2:",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{weights}], #64",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{weights}], {weights_stride}",
            "ldr q13, [{scales}], {scales_stride}",
            $(
                concat!("ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{", stringify!($x), "}], #64"),
                four_rows!("v12"),
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
            weights_stride = in(reg) Strip::WEIGHTS_STRIDE - 64, scales_stride = const Strip::SCALES_STRIDE,
            options(nostack)
        )
    };
}

/// Adds the products of a strip with eight or four tokens. In one piece, as the compiler would keep the sums in memory: those
/// of four rows and eight tokens are in v16 to v31, the rows' weights in v4 to v11.
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
