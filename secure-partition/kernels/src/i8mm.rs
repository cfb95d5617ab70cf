//! Many tokens with `FEAT_I8MM`: 8 columns of two rows and two tokens an instruction.

use core::arch::asm;

use crate::activations::jump;
use crate::batch::{STRIDE, Tile};
use crate::format::{BLOCK, GROUP, HALF, NIBBLES};

/// Dot products of four rows in v0 to v7 with an entry of a pair of tokens, times the scales in `$a`, added to the sums of a row in
/// each of four registers. The weights are in v0 to v7, a pair of rows in even ones and the other in odd ones, and the rows' scales in
/// v15; `$load` loads the pair's own between the two.
macro_rules! pair {
    ($load:expr, $a:literal, $r0:literal, $r1:literal, $r2:literal, $r3:literal) => {
        concat!(
            "movi v13.2d, #0\nmovi v14.2d, #0\n",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{x}], #64\n",
            pair!(@ "v8", "v0", "v1"), pair!(@ "v9", "v2", "v3"), pair!(@ "v10", "v4", "v5"), pair!(@ "v11", "v6", "v7"),
            $load, "mul v13.4s, v13.4s, ", $a, ".4s\nmul v14.4s, v14.4s, ", $a, ".4s\n",
            "smlal ", $r0, ".2d, v13.2s, v15.s[0]\nsmlal2 ", $r1, ".2d, v13.4s, v15.s[1]\n",
            "smlal ", $r2, ".2d, v14.2s, v15.s[2]\nsmlal2 ", $r3, ".2d, v14.4s, v15.s[3]\n"
        )
    };
    (@ $x:literal, $a:literal, $b:literal) => {
        concat!("smmla v13.4s, ", $a, ".16b, ", $x, ".16b\nsmmla v14.4s, ", $b, ".16b, ", $x, ".16b\n")
    };
}

/// Four rows and some pairs of tokens, two at a time: how {a} goes on behind their scales, and registers for the sums of each row of
/// the first pair, and of the second. In one piece, as the compiler would keep the sums in memory.
macro_rules! tile {
    ($next:expr, $weights:ident, $scales:ident, $tile:ident, $sums:ident, $pairs:expr;
     $($go_on:literal, $a:literal, $b:literal, $c:literal, $d:literal, $e:literal, $f:literal, $g:literal, $h:literal);+) => {
        asm!(
            ".arch_extension i8mm",
            $(
                concat!("ld4 {{", $a, ".d, ", $b, ".d, ", $c, ".d, ", $d, ".d}}[0], [{before}], {row}"),
                concat!("ld4 {{", $a, ".d, ", $b, ".d, ", $c, ".d, ", $d, ".d}}[1], [{before}], {row}"),
                concat!("ld4 {{", $e, ".d, ", $f, ".d, ", $g, ".d, ", $h, ".d}}[0], [{before}], {row}"),
                concat!("ld4 {{", $e, ".d, ", $f, ".d, ", $g, ".d, ", $h, ".d}}[1], [{before}], {row}"),
            )+
            "2:",
            "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{weights}], #64",
            "ld1 {{v4.16b, v5.16b, v6.16b, v7.16b}}, [{weights}], {weights_stride}",
            "ld1 {{v15.4s}}, [{scales}], {bytes}",
            $(
                pair!(concat!("ld1 {{v11.4s, v12.4s}}, [{a}], ", $go_on, "\n"), "v11", $a, $b, $c, $d),
                pair!("", "v12", $e, $f, $g, $h),
            )+
            $next,
            "subs {count}, {count}, #1",
            "b.ne 2b",
            jump!(weights, scales),
            $(
                concat!("st4 {{", $a, ".d, ", $b, ".d, ", $c, ".d, ", $d, ".d}}[0], [{sums}], {row}"),
                concat!("st4 {{", $a, ".d, ", $b, ".d, ", $c, ".d, ", $d, ".d}}[1], [{sums}], {row}"),
                concat!("st4 {{", $e, ".d, ", $f, ".d, ", $g, ".d, ", $h, ".d}}[0], [{sums}], {row}"),
                concat!("st4 {{", $e, ".d, ", $f, ".d, ", $g, ".d, ", $h, ".d}}[1], [{sums}], {row}"),
            )+
            weights = inout(reg) $weights => _, weights_stride = in(reg) STRIDE - 64,
            scales = inout(reg) $scales => _, bytes = in(reg) STRIDE,
            count = inout(reg) $tile.run.count => _, left = inout(reg) $tile.run.jumps.len() => _,
            jumps = inout(reg) $tile.run.jumps.as_ptr() => _, here = inout(reg) $tile.run.block + $tile.run.count => _,
            next = out(reg) _, jump = out(reg) _,
            a = inout(reg) $tile.scales => _, a_stride = in(reg) 4 * $tile.scales_stride - 32 * ($pairs / 2 - 1),
            before = inout(reg) $tile.before($sums) => _, sums = inout(reg) $sums => _, row = in(reg) 8 * GROUP,
            x = inout(reg) $tile.octets => _, rest = in(reg) $tile.octets_stride.wrapping_sub(4 * BLOCK),
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
            out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _,
            out("v30") _, out("v31") _,
            options(nostack)
        )
    };
}

/// Adds the products of the first group with four or two pairs of tokens; answers how many tokens.
///
/// # Safety
/// The CPU has `FEAT_I8MM`.
#[inline(always)]
pub(crate) unsafe fn tile<const P: usize>(tile: &Tile, sums: &mut [[i64; GROUP]]) -> usize {
    const { assert!(P == 2 || P == 4) };
    let sums = &mut sums[..2 * P];
    for half in 0..2 {
        let (weights, scales) = tile.first(half * NIBBLES, half * HALF * 4);
        // SAFETY: inside the first token's.
        let sums = unsafe { sums.as_mut_ptr().cast::<i64>().add(half * HALF) };
        // SAFETY: the blocks of the run are there, and its entries of each pair; the sums are of `P` pairs; the caller promises
        // the instructions.
        unsafe {
            if P == 4 {
                tile!(
                    "/* {rest} */", weights, scales, tile, sums, P;
                    "#32", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23";
                    "{a_stride}", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31"
                );
            } else {
                tile!(
                    "add {x}, {x}, {rest}", weights, scales, tile, sums, P;
                    "{a_stride}", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23"
                );
            }
        }
    }
    2 * P
}
