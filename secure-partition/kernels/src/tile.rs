//! Many tokens with Armv8.0-A or `FEAT_DotProd`: tiles of four rows, whose weights stay in registers, and four or eight tokens.
//! In one piece each, as the compiler would keep the sums in memory.

use core::arch::asm;

use crate::activations::jump;
use crate::batch::{STRIDE, Tile};
use crate::dotprod::four_rows;
use crate::format::{BLOCK, GROUP, HALF, NIBBLES};

/// Adds the dot products of four rows with an entry of a token, in `$dots`, times its scale, to sums in two registers.
macro_rules! add {
    ($dots:literal, $a:literal, $low:literal, $high:literal) => {
        concat!(
            "mul ",
            $dots,
            ".4s, ",
            $dots,
            ".4s, ",
            $a,
            "\n",
            "smlal v",
            $low,
            ".2d, v13.2s, ",
            $dots,
            ".2s\nsmlal2 v",
            $high,
            ".2d, v13.4s, ",
            $dots,
            ".4s\n"
        )
    };
}

/// The same of two tokens, in v12 and v15.
macro_rules! add_both {
    ($a:literal, $low:literal, $high:literal, $b:literal, $second_low:literal, $second_high:literal) => {
        concat!(add!("v12", $a, $low, $high), add!("v15", $b, $second_low, $second_high))
    };
}

/// Dot products of four rows in v4 to v11 with two tokens' octets of an entry, in v0 to v3, one after the other.
macro_rules! dotprod {
    ($a:literal, $low:literal, $high:literal, $b:literal, $second_low:literal, $second_high:literal) => {
        concat!(
            four_rows!("v12", "v0", "v1"),
            add!("v12", $a, $low, $high),
            four_rows!("v12", "v2", "v3"),
            add!("v12", $b, $second_low, $second_high)
        )
    };
}

/// The same of rows of nibbles, with both at once, so that a core that takes instructions in order need not wait for one sum.
/// Sums of 8 products, 8 * 15 * 127, and of two such sums fit i16.
macro_rules! nibbles {
    ($($token:literal),+) => {
        concat!(
            nibbles!(@ "smull", "v4", "v0", "v2", 0), nibbles!(@ "smlal", "v5", "v0", "v2", 1),
            nibbles!(@ "smlal", "v6", "v0", "v2", 2), nibbles!(@ "smlal", "v7", "v0", "v2", 3),
            nibbles!(@ "smlal", "v8", "v1", "v3", 0), nibbles!(@ "smlal", "v9", "v1", "v3", 1),
            nibbles!(@ "smlal", "v10", "v1", "v3", 2), nibbles!(@ "smlal", "v11", "v1", "v3", 3),
            "addp v12.8h, v12.8h, v25.8h\naddp v15.8h, v15.8h, v27.8h\n",
            "saddlp v12.4s, v12.8h\nsaddlp v15.4s, v15.8h\n",
            add_both!($($token),+)
        )
    };
    (@ $op:literal, $w:literal, $x:literal, $y:literal, $lane:literal) => {
        concat!(
            "dup v24.4s, ", $x, ".s[", $lane, "]\ndup v26.4s, ", $y, ".s[", $lane, "]\n",
            $op, " v12.8h, ", $w, ".8b, v24.8b\n", $op, " v15.8h, ", $w, ".8b, v26.8b\n",
            $op, "2 v25.8h, ", $w, ".16b, v24.16b\n", $op, "2 v27.8h, ", $w, ".16b, v26.16b\n"
        )
    };
}

/// The same of octets: sums of two products, 2 * 128 * 127, fit i16.
macro_rules! octets {
    ($($token:literal),+) => {
        concat!(
            octets!(@ "saddlp", "v4", "v5", "v0", "v2", 0, 1), octets!(@ "sadalp", "v6", "v7", "v0", "v2", 2, 3),
            octets!(@ "sadalp", "v8", "v9", "v1", "v3", 0, 1), octets!(@ "sadalp", "v10", "v11", "v1", "v3", 2, 3),
            "addp v12.4s, v12.4s, v27.4s\naddp v15.4s, v15.4s, v31.4s\n",
            add_both!($($token),+)
        )
    };
    (@ $add:literal, $a:literal, $b:literal, $x:literal, $y:literal, $first:literal, $second:literal) => {
        concat!(
            octets!(= "smull", $a, $x, $y, $first), octets!(= "smlal", $b, $x, $y, $second),
            $add, " v12.4s, v25.8h\n", $add, " v15.4s, v29.8h\n", $add, " v27.4s, v26.8h\n", $add, " v31.4s, v30.8h\n"
        )
    };
    (= $op:literal, $w:literal, $x:literal, $y:literal, $lane:literal) => {
        concat!(
            "dup v24.4s, ", $x, ".s[", $lane, "]\ndup v28.4s, ", $y, ".s[", $lane, "]\n",
            $op, " v25.8h, ", $w, ".8b, v24.8b\n", $op, " v29.8h, ", $w, ".8b, v28.8b\n",
            $op, "2 v26.8h, ", $w, ".16b, v24.16b\n", $op, "2 v30.8h, ", $w, ".16b, v28.16b\n"
        )
    };
}

/// Four rows and some tokens, `$two` at a time: for each, its scale and registers of its sums, and the bytes from `$sums` to the two's.
/// `$next` goes on to the octets of the next entry, if those of other tokens come first.
macro_rules! tile {
    ($two:ident, $scales_of:literal, $next:expr, $weights:ident, $scales:ident, $tile:ident, $sums:ident;
     $($a:literal, $low:literal, $high:literal, $b:literal, $second_low:literal, $second_high:literal, $at:literal);+) => {
        asm!(
            ".arch_extension dotprod",
            $(
                concat!("ldp q", $low, ", q", $high, ", [{before}, #", $at, "]"),
                concat!("ldp q", $second_low, ", q", $second_high, ", [{before}, #", $at, " + 64]"),
            )+
            "2:",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{weights}], #64",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{weights}], {weights_stride}",
            "ld1 {{v13.4s}}, [{scales}], {bytes}",
            concat!("ld1 {{", $scales_of, "}}, [{a}], {a_stride}"),
            $(
                "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{x}], #64",
                $two!($a, $low, $high, $b, $second_low, $second_high),
            )+
            $next,
            "subs {count}, {count}, #1",
            "b.ne 2b",
            jump!(weights, scales),
            $(
                concat!("stp q", $low, ", q", $high, ", [{sums}, #", $at, "]"),
                concat!("stp q", $second_low, ", q", $second_high, ", [{sums}, #", $at, " + 64]"),
            )+
            weights = inout(reg) $weights => _, scales = inout(reg) $scales => _, bytes = in(reg) STRIDE,
            count = inout(reg) $tile.run.count => _, left = inout(reg) $tile.run.jumps.len() => _,
            jumps = inout(reg) $tile.run.jumps.as_ptr() => _, here = inout(reg) $tile.run.block + $tile.run.count => _,
            next = out(reg) _, jump = out(reg) _,
            a = inout(reg) $tile.scales => _, a_stride = in(reg) 4 * $tile.scales_stride,
            x = inout(reg) $tile.octets => _, rest = in(reg) $tile.octets_stride.wrapping_sub(HALF * BLOCK),
            before = in(reg) $tile.before($sums), sums = in(reg) $sums,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
            out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _,
            out("v30") _, out("v31") _,
            weights_stride = in(reg) STRIDE - 64,
            options(nostack)
        )
    };
}

/// Four tokens.
macro_rules! four_tokens {
    ($two:ident, $weights:ident, $scales:ident, $tile:ident, $sums:ident) => {
        tile!(
            $two, "v14.4s", "add {x}, {x}, {rest}", $weights, $scales, $tile, $sums;
            "v14.s[0]", 16, 17, "v14.s[1]", 18, 19, 0;
            "v14.s[2]", 20, 21, "v14.s[3]", 22, 23, 128
        )
    };
}

/// What stands in a strip, and what multiplies it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Dots {
    /// Armv8.0-A, nibbles.
    Nibbles,
    /// Armv8.0-A, octets.
    Octets,
    /// `FEAT_DotProd`.
    Dotprod,
}

/// Adds the products of the first group with four tokens, or with eight if it is `FEAT_DotProd` that multiplies; answers how many.
///
/// # Safety
/// The CPU has what `dots` says.
#[inline(always)]
pub(crate) unsafe fn tile<const T: usize>(dots: Dots, tile: &Tile, sums: &mut [[i64; GROUP]]) -> usize {
    const { assert!(T == 4 || T == 8) };
    assert!(T == 4 || dots == Dots::Dotprod, "tiles of Armv8.0-A are of four tokens");
    let sums = &mut sums[..T];
    for half in 0..2 {
        let (weights, scales) = tile.first(half * NIBBLES, half * HALF * 4);
        // SAFETY: inside the first token's.
        let sums = unsafe { sums.as_mut_ptr().cast::<i64>().add(half * HALF) };
        // SAFETY: the blocks of the run are there, and its entries of each token; the sums are of `T` tokens; the caller promises
        // the instructions.
        unsafe {
            match (T, dots) {
                (8, _) => tile!(
                    dotprod, "v14.4s, v15.4s", "/* {rest} */", weights, scales, tile, sums;
                    "v14.s[0]", 16, 17, "v14.s[1]", 18, 19, 0;
                    "v14.s[2]", 20, 21, "v14.s[3]", 22, 23, 128;
                    "v15.s[0]", 24, 25, "v15.s[1]", 26, 27, 256;
                    "v15.s[2]", 28, 29, "v15.s[3]", 30, 31, 384
                ),
                (_, Dots::Dotprod) => four_tokens!(dotprod, weights, scales, tile, sums),
                (_, Dots::Nibbles) => four_tokens!(nibbles, weights, scales, tile, sums),
                (_, Dots::Octets) => four_tokens!(octets, weights, scales, tile, sums),
            }
        }
    }
    T
}
