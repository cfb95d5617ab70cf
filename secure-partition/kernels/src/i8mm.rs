//! Many tokens with `FEAT_I8MM`: 8 columns of two rows and two tokens an instruction.

use core::arch::asm;

use crate::activations::jump;
use crate::batch::{STRIDE, Tile};
use crate::format::{BLOCK, GROUP, HALF};

/// Dot products of four rows in v0 to v7 with an entry of a pair of tokens, to v12 and v13.
macro_rules! four_rows {
    () => {
        concat!(
            "movi v12.2d, #0\nmovi v13.2d, #0\n",
            "ld1 {{v8.16b, v9.16b, v10.16b, v11.16b}}, [{x}], #64\n",
            four_rows!(@ "v8", "v0", "v1"), four_rows!(@ "v9", "v2", "v3"),
            four_rows!(@ "v10", "v4", "v5"), four_rows!(@ "v11", "v6", "v7")
        )
    };
    (@ $x:literal, $a:literal, $b:literal) => {
        concat!("smmla v12.4s, ", $a, ".16b, ", $x, ".16b\nsmmla v13.4s, ", $b, ".16b, ", $x, ".16b\n")
    };
}

/// Four rows and some pairs of tokens: for each, the bytes from `$sums` to its sums and from an entry's scales to its
/// own, and registers for the sums of each row. In one piece, as the compiler would keep the sums in memory. The weights are in
/// v0 to v7, a pair of rows in even ones and the other in odd ones.
macro_rules! tile {
    ($next:expr, $weights:ident, $scales:ident, $tile:ident, $sums:ident;
     $($at:literal, $a_at:literal, $a:literal, $b:literal, $c:literal, $d:literal);+) => {
        asm!(
            ".arch_extension i8mm",
            $(
                concat!("ldp q12, q13, [{before}, #", $at, "]"),
                concat!("ldp q14, q15, [{before}, #", $at, " + 64]"),
                concat!("zip1 ", $a, ".2d, v12.2d, v14.2d"),
                concat!("zip2 ", $b, ".2d, v12.2d, v14.2d"),
                concat!("zip1 ", $c, ".2d, v13.2d, v15.2d"),
                concat!("zip2 ", $d, ".2d, v13.2d, v15.2d"),
            )+
            "2:",
            "ldp q0, q1, [{weights}]",
            "ldp q2, q3, [{weights}, #64]",
            "ldp q4, q5, [{weights}, #128]",
            "ldp q6, q7, [{weights}, #192]",
            "add {weights}, {weights}, {bytes}",
            "ldp q14, q15, [{scales}], {stride}",
            $(
                four_rows!(),
                concat!("ldr q8, [{a}, #", $a_at, "]"),
                "mul v12.4s, v12.4s, v8.4s",
                "mul v13.4s, v13.4s, v8.4s",
                concat!("smlal ", $a, ".2d, v14.2s, v12.2s"),
                concat!("smlal2 ", $b, ".2d, v14.4s, v12.4s"),
                concat!("smlal ", $c, ".2d, v15.2s, v13.2s"),
                concat!("smlal2 ", $d, ".2d, v15.4s, v13.4s"),
            )+
            $next,
            "add {a}, {a}, {a_stride}",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            jump!(weights, scales),
            $(
                concat!("zip1 v12.2d, ", $a, ".2d, ", $b, ".2d"),
                concat!("zip1 v13.2d, ", $c, ".2d, ", $d, ".2d"),
                concat!("zip2 v14.2d, ", $a, ".2d, ", $b, ".2d"),
                concat!("zip2 v15.2d, ", $c, ".2d, ", $d, ".2d"),
                concat!("stp q12, q13, [{sums}, #", $at, "]"),
                concat!("stp q14, q15, [{sums}, #", $at, " + 64]"),
            )+
            weights = inout(reg) $weights => _, scales = inout(reg) $scales => _,
            bytes = in(reg) STRIDE, stride = const STRIDE,
            count = inout(reg) $tile.run.count => _, left = inout(reg) $tile.run.jumps.len() => _,
            jumps = inout(reg) $tile.run.jumps.as_ptr() => _, here = inout(reg) $tile.run.block + $tile.run.count => _,
            next = out(reg) _, jump = out(reg) _,
            a = inout(reg) $tile.scales => _, a_stride = in(reg) 4 * $tile.scales_stride,
            before = in(reg) $tile.before($sums), sums = in(reg) $sums,
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
pub(crate) unsafe fn tile<const P: usize>(tile: &Tile, sums: &mut [[i64; GROUP]]) -> usize {
    const { assert!(P == 2 || P == 4) };
    let sums = &mut sums[..2 * P];
    for half in 0..2 {
        let (weights, scales) = tile.first(half * BLOCK, half * 2 * HALF * 4);
        // SAFETY: inside the first token's.
        let sums = unsafe { sums.as_mut_ptr().cast::<i64>().add(half * HALF) };
        // SAFETY: the blocks of the run are there, and its entries of each pair; the sums are of `P` pairs; the caller promises
        // the instructions.
        unsafe {
            if P == 4 {
                tile!(
                    "/* {rest} */", weights, scales, tile, sums;
                    0, 0, "v16", "v17", "v18", "v19";
                    128, 16, "v20", "v21", "v22", "v23";
                    256, 32, "v24", "v25", "v26", "v27";
                    384, 48, "v28", "v29", "v30", "v31"
                );
            } else {
                tile!(
                    "add {x}, {x}, {rest}", weights, scales, tile, sums;
                    0, 0, "v16", "v17", "v18", "v19";
                    128, 16, "v20", "v21", "v22", "v23"
                );
            }
        }
    }
    2 * P
}
