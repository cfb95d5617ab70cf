//! `FEAT_DotProd`: four columns of four rows an instruction. One token.

use core::arch::asm;

use crate::activations::{Activations, Run, Runs, jump};
use crate::format::{BLOCK, Format, GROUP, NIBBLES, OCTETS, SCALES};
use crate::matrix::{Group, Matrix};
use crate::minima;
use crate::neon::{RowSums, store};

/// Dot products of four rows in v4 to v11 with an entry's octets in v0 and v1. What they are added to comes first: zeros, or what
/// an instruction makes of $from.
macro_rules! four_rows {
    ($sum:literal, $x:literal, $y:literal) => {
        four_rows!($sum, $x, $y, "movi", ".2d, #0")
    };
    ($sum:literal, $x:literal, $y:literal, $start:literal, $from:literal) => {
        concat!(
            $start, " ", $sum, $from, "\n",
            four_rows!(@ $sum, "v4", $x, 0), four_rows!(@ $sum, "v5", $x, 1),
            four_rows!(@ $sum, "v6", $x, 2), four_rows!(@ $sum, "v7", $x, 3),
            four_rows!(@ $sum, "v8", $y, 0), four_rows!(@ $sum, "v9", $y, 1),
            four_rows!(@ $sum, "v10", $y, 2), four_rows!(@ $sum, "v11", $y, 3)
        )
    };
    (@ $sum:literal, $w:literal, $x:literal, $lane:literal) => {
        concat!("sdot ", $sum, ".4s, ", $w, ".16b, ", $x, ".4b[", $lane, "]\n")
    };
}
pub(crate) use four_rows;

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
        nibbles!($block, "movi", ".2d, #0")
    };
    ($block:ident, $start:literal, $from:literal) => {
        concat!(
            load_rows!($block),
            four_rows!("v12", "v0", "v1", $start, $from),
            "and v4.16b, v4.16b, v24.16b\nand v5.16b, v5.16b, v24.16b\n",
            "and v6.16b, v6.16b, v24.16b\nand v7.16b, v7.16b, v24.16b\n",
            "and v8.16b, v8.16b, v24.16b\nand v9.16b, v9.16b, v24.16b\n",
            "and v10.16b, v10.16b, v24.16b\nand v11.16b, v11.16b, v24.16b\n",
            four_rows!("v13", "v0", "v1", $start, $from),
            "sub v12.4s, v12.4s, v13.4s\n"
        )
    };
}

/// The same of nibbles of both signs: all sums begin with the entry's bias.
macro_rules! symmetric {
    ($block:ident) => {
        nibbles!($block, "dup", ".4s, v2.s[1]")
    };
}

/// The same of octets.
macro_rules! octets {
    ($block:ident) => {
        concat!(
            load_rows!($block),
            four_rows!("v12", "v0", "v1"),
            load_rows!($block),
            four_rows!("v13", "v0", "v1")
        )
    };
}

/// A run of entries of one group or two, whose sums are in registers. In one piece, as the compiler would keep them in memory.
macro_rules! vector {
    ($rows:ident, $x:ident, $scales:ident, $stride:ident, $run:ident, $bytes:ident;
     $($block:ident $at:expr, $out:expr, $a:ident $b:ident $c:ident $d:ident);+) => {
        asm!(
            ".arch_extension dotprod",
            "movi v24.16b, #15",
            "2:",
            "ld1 {{v0.16b, v1.16b}}, [{x}], #32",
            "ld1 {{v2.2s}}, [{scales}], {stride}",
            $(
                concat!("ld1 {{v14.8h}}, [{", stringify!($block), "}], #16"),
                $rows!($block),
                // |scale * a| < 2^28.
                "smull v15.4s, v14.4h, v2.h[0]",
                "smull2 v14.4s, v14.8h, v2.h[0]",
                concat!("smlal {", stringify!($a), ":v}.2d, v15.2s, v12.2s"),
                concat!("smlal2 {", stringify!($b), ":v}.2d, v15.4s, v12.4s"),
                concat!("smlal {", stringify!($c), ":v}.2d, v14.2s, v13.2s"),
                concat!("smlal2 {", stringify!($d), ":v}.2d, v14.4s, v13.4s"),
            )+
            "subs {count}, {count}, #1",
            "b.ne 2b",
            jump!($($block),+),
            x = inout(reg) $x => _, scales = inout(reg) $scales => _, stride = in(reg) $stride,
            count = inout(reg) $run.count => _, left = inout(reg) $run.jumps.len() => _,
            jumps = inout(reg) $run.jumps.as_ptr() => _, here = inout(reg) $run.block + $run.count => _,
            next = out(reg) _, jump = out(reg) _, bytes = in(reg) $bytes,
            $(
                $block = inout(reg) $at => _,
                $a = inout(vreg) $out[0], $b = inout(vreg) $out[1], $c = inout(vreg) $out[2], $d = inout(vreg) $out[3],
            )+
            out("v0") _, out("v1") _, out("v2") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v24") _,
            options(readonly, nostack)
        )
    };
}

/// Twin of [`crate::plain::group`] for one token and as many groups, from the `first` on, as there is room for in `out`;
/// `runs` are the token's entries.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
pub(crate) unsafe fn groups(
    weights: &Matrix,
    first: usize,
    x: &Activations,
    token: usize,
    runs: &Runs,
    out: &mut [[i64; GROUP]],
) {
    let mut groups = weights.groups_in(first..first + out.len());
    for out in out.chunks_mut(2) {
        let Some(group) = groups.next() else { return };
        // SAFETY: the caller's promise.
        unsafe {
            match (out, groups.next()) {
                ([one, two], Some(next)) => [*one, *two] = products([&group, &next], x, token, runs),
                (out, _) => [out[0]] = products([&group], x, token, runs),
            }
        }
    }
}

/// Of one group or two.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
#[inline(always)]
unsafe fn products<const G: usize>(
    groups: [&Group; G],
    x: &Activations,
    token: usize,
    runs: &Runs,
) -> [[i64; GROUP]; G] {
    let format = groups[0].format;
    let nibbles = format.has_nibbles();
    // The sums of nibbles of rows 4..8 are a sixteenth of what they should be.
    let mut out = minima::of_token(groups, x, token, [7, if nibbles { 3 } else { 7 }]);
    for &run in runs.iter().flatten() {
        // SAFETY: the caller's promise.
        unsafe {
            match format {
                Format::Q4 => multiply::<G, true, true>(groups, x, token, run, &mut out),
                Format::Q4Min => multiply::<G, true, false>(groups, x, token, run, &mut out),
                _ => multiply::<G, false, false>(groups, x, token, run, &mut out),
            }
        }
    }
    let mut sums = [[0; GROUP]; G];
    for (sums, rows) in sums.iter_mut().zip(&out) {
        *sums = store(rows);
        if nibbles {
            sums[GROUP / 2..].iter_mut().for_each(|sum| *sum <<= 4);
        }
    }
    sums
}

/// Adds the products of a run of entries of some groups: those of 16 * high nibble and of low
/// nibble, which may be `BIASED`, or of octets.
///
/// # Safety
/// The CPU has `FEAT_DotProd`.
#[inline(always)]
unsafe fn multiply<const G: usize, const NIBBLE: bool, const BIASED: bool>(
    groups: [&Group; G],
    x: &Activations,
    token: usize,
    run: Run,
    out: &mut [RowSums; G],
) {
    const { assert!(G == 1 || G == 2) };
    let bytes = SCALES + if NIBBLE { NIBBLES } else { OCTETS };
    let block = |i: usize| groups[i].blocks[run.block * bytes..][..run.span() * bytes].as_ptr();
    let octets = x.octets_of(token, &run);
    let scales = x.scales(token, run.entry, run.entries());
    assert!(
        run.count > 0
            && octets.len() >= run.entries() * BLOCK
            && scales.len() > (run.entries() - 1) * x.scales_stride() + 1
    );
    let (x, scales, stride) = (octets.as_ptr(), scales.as_ptr(), 4 * x.scales_stride());
    // SAFETY: every group has all blocks of the run, of `bytes`, and there are as many times 32 octets and scales as entries; the
    // caller promises the instructions.
    unsafe {
        match (NIBBLE, BIASED, G) {
            (true, true, 1) => {
                vector!(symmetric, x, scales, stride, run, bytes; block0 block(0), out[0], a0 a1 a2 a3)
            }
            (true, true, _) => vector!(
                symmetric, x, scales, stride, run, bytes;
                block0 block(0), out[0], a0 a1 a2 a3; block1 block(G - 1), out[G - 1], b0 b1 b2 b3
            ),
            (true, false, 1) => {
                vector!(nibbles, x, scales, stride, run, bytes; block0 block(0), out[0], a0 a1 a2 a3)
            }
            (true, false, _) => vector!(
                nibbles, x, scales, stride, run, bytes;
                block0 block(0), out[0], a0 a1 a2 a3; block1 block(G - 1), out[G - 1], b0 b1 b2 b3
            ),
            (false, _, 1) => {
                vector!(octets, x, scales, stride, run, bytes; block0 block(0), out[0], a0 a1 a2 a3)
            }
            (false, _, _) => vector!(
                octets, x, scales, stride, run, bytes;
                block0 block(0), out[0], a0 a1 a2 a3; block1 block(G - 1), out[G - 1], b0 b1 b2 b3
            ),
        }
    }
}
