//! Many tokens with scalable vectors, `FEAT_SVE2` and `FEAT_I8MM`: two rows of 8 columns in each 16 bytes of a vector. Vectors of
//! 32 and of 64 bytes; longer ones are used as if they had 64.
//!
//! A loop over blocks is one `asm!` block, as the compiler has no scalable types. Its twin is [`crate::plain::group`].

use core::arch::asm;

use crate::batch::{Strip, Tile};
use crate::format::{GROUP, HALF, OCTETS};
use crate::isa::Kernel;

/// Adds the products of a strip with `P` pairs of tokens; answers how many tokens. With vectors of 64 bytes, of both of its
/// groups.
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn tile<const P: usize>(
    kernel: Kernel,
    strip: &Strip,
    tile: &Tile<P>,
    sums: [&mut [[i64; GROUP]]; 2],
) -> usize {
    const { assert!(P == 1 || P == 3) };
    let [first, second] = sums;
    let (first, second) = (&mut first[..2 * P], &mut second[..2 * P]);
    let whole = kernel == Kernel::Sve64;
    let first = first.as_mut_ptr().cast::<i64>();
    // SAFETY: the second half of a group's rows.
    let half = unsafe { first.add(HALF) };
    let operands = Operands {
        weights: strip.weights.as_ptr().cast(),
        scales: strip.scales.as_ptr().cast(),
        blocks: tile.blocks,
        token_scales: tile.scales,
        token_scales_stride: 4 * tile.scales_stride,
        // Rows of the second vector: those of the other group, or the other half of the same.
        sums: [first, if whole { second.as_mut_ptr().cast() } else { half }],
        apart: if whole { OCTETS } else { 32 },
        length: if whole { 64 } else { 32 },
    };
    // SAFETY: the strip has as many blocks as the tile, and so do the tokens; the sums have room for 2 * P tokens; the caller
    // promises the instructions.
    unsafe {
        if P == 1 {
            one_pair(&operands, tile.octets[0]);
        } else {
            three_pairs(&operands, [tile.octets[0], tile.octets[P / 2], tile.octets[P - 1]]);
        }
    }
    2 * P
}

/// What the loops over a strip's blocks take.
struct Operands {
    weights: *const u8,
    scales: *const i32,
    blocks: usize,
    /// Scales of the entries of the first pair, and bytes to those of the next entry.
    token_scales: *const i32,
    token_scales_stride: usize,
    /// Of the rows of the first vector of weights and of the second, 64 bytes a token.
    sums: [*mut i64; 2],
    /// Bytes between the two vectors.
    apart: usize,
    /// Bytes of a vector, and between the scales of the two.
    length: usize,
}

/// Eight columns, from byte `$at` of a pair's mantissas on: adds the products with the weights in `$first` and `$second`.
macro_rules! eight_columns {
    ($x:literal, $at:literal, $sum:literal, $other:literal, $first:literal, $second:literal) => {
        concat!(
            "ld1rqb {{z8.b}}, p0/z, [",
            $x,
            ", #",
            $at,
            "]\n",
            "smmla ",
            $sum,
            ".s, ",
            $first,
            ".b, z8.b\n",
            "smmla ",
            $other,
            ".s, ",
            $second,
            ".b, z8.b\n"
        )
    };
}

/// An entry of a pair of tokens, whose scales are `$at` bytes behind those of the first: times its scales.
macro_rules! pair {
    ($x:literal, $at:literal, $sum:literal, $other:literal) => {
        concat!(
            "mov ",
            $sum,
            ".s, #0\n",
            "mov ",
            $other,
            ".s, #0\n",
            eight_columns!($x, 0, $sum, $other, "z0", "z1"),
            eight_columns!($x, 16, $sum, $other, "z2", "z3"),
            eight_columns!($x, 32, $sum, $other, "z4", "z5"),
            eight_columns!($x, 48, $sum, $other, "z6", "z7"),
            "ld1rqw {{z8.s}}, p0/z, [{a}, #",
            $at,
            "]\n",
            "mul ",
            $sum,
            ".s, ",
            $sum,
            ".s, z8.s\n",
            "mul ",
            $other,
            ".s, ",
            $other,
            ".s, z8.s\n",
            "add ",
            $x,
            ", ",
            $x,
            ", #64\n"
        )
    };
}

/// Scales the sums of a pair and adds them to those of its tokens.
macro_rules! add_pair {
    ($sum:literal, $other:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "smlalb ",
            $a,
            ".d, ",
            $sum,
            ".s, z16.s\n",
            "smlalt ",
            $b,
            ".d, ",
            $sum,
            ".s, z16.s\n",
            "smlalb ",
            $c,
            ".d, ",
            $other,
            ".s, z17.s\n",
            "smlalt ",
            $d,
            ".d, ",
            $other,
            ".s, z17.s\n"
        )
    };
}

/// Reads (`ld1d`) or writes (`st1d`) the sums of a pair of tokens and goes to the next.
macro_rules! pair_sums {
    ($what:literal, $p:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            $what,
            " {{",
            $a,
            ".d}}, ",
            $p,
            ", [{first}]\n",
            $what,
            " {{",
            $b,
            ".d}}, ",
            $p,
            ", [{first}, x13, lsl #3]\n",
            $what,
            " {{",
            $c,
            ".d}}, ",
            $p,
            ", [{second}]\n",
            $what,
            " {{",
            $d,
            ".d}}, ",
            $p,
            ", [{second}, x13, lsl #3]\n",
            "add {first}, {first}, #128\nadd {second}, {second}, #128\n"
        )
    };
}

/// A strip's blocks times some pairs of tokens.
macro_rules! strip_loop {
    ($operands:ident, $read:expr, $pairs:expr, $add:expr, $write:expr, $back:literal, $($x:tt)*) => {
        asm!(
            ".arch_extension sve2", ".arch_extension i8mm",
            "ptrue p0.b, vl32", "cmp {length}, #16", "b.ne 3f", "ptrue p0.b, vl64", "3:",
            $read,
            "2:",
            "ld1b {{z0.b}}, p0/z, [{w}]", "ld1b {{z1.b}}, p0/z, [{v}]",
            "ld1b {{z2.b}}, p0/z, [{w}, x14]", "ld1b {{z3.b}}, p0/z, [{v}, x14]",
            "ld1b {{z4.b}}, p0/z, [{w}, x15]", "ld1b {{z5.b}}, p0/z, [{v}, x15]",
            "ld1b {{z6.b}}, p0/z, [{w}, x16]", "ld1b {{z7.b}}, p0/z, [{v}, x16]",
            "ld1w {{z16.s}}, p0/z, [{scales}]", "ld1w {{z17.s}}, p0/z, [{scales}, {length}, lsl #2]",
            $pairs,
            "add {w}, {w}, #512", "add {v}, {v}, #512", "add {scales}, {scales}, #128",
            "add {a}, {a}, {a_stride}",
            "subs {blocks}, {blocks}, #1",
            $add,
            "b.ne 2b",
            concat!("sub {first}, {first}, #", $back), concat!("sub {second}, {second}, #", $back),
            $write,
            ".arch_extension nosve2", ".arch_extension nosve",
            w = inout(reg) $operands.weights => _, v = inout(reg) $operands.weights.add($operands.apart) => _,
            scales = inout(reg) $operands.scales => _, length = in(reg) $operands.length / 4,
            blocks = inout(reg) $operands.blocks => _,
            first = inout(reg) $operands.sums[0] => _, second = inout(reg) $operands.sums[1] => _,
            a = inout(reg) $operands.token_scales => _, a_stride = in(reg) $operands.token_scales_stride,
            $($x)*
            in("x13") GROUP, in("x14") 64, in("x15") 128, in("x16") 192,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _,
            out("v16") _, out("v17") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _,
            out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            out("p0") _, options(nostack)
        )
    };
}

/// # Safety
/// That of [`tile`]; `x` has as many blocks as the operands.
unsafe fn one_pair(operands: &Operands, x: *const i8) {
    // SAFETY: the caller's promise.
    unsafe {
        strip_loop!(
            operands,
            pair_sums!("ld1d", "p0/z", "z20", "z21", "z22", "z23"),
            pair!("{x}", 0, "z10", "z11"),
            add_pair!("z10", "z11", "z20", "z21", "z22", "z23"),
            pair_sums!("st1d", "p0", "z20", "z21", "z22", "z23"),
            128,
            x = inout(reg) x => _,
        );
    }
}

/// # Safety
/// That of [`tile`]; each of `x` has as many blocks as the operands.
unsafe fn three_pairs(operands: &Operands, x: [*const i8; 3]) {
    // SAFETY: the caller's promise.
    unsafe {
        strip_loop!(
            operands,
            concat!(
                pair_sums!("ld1d", "p0/z", "z20", "z21", "z22", "z23"),
                pair_sums!("ld1d", "p0/z", "z24", "z25", "z26", "z27"),
                pair_sums!("ld1d", "p0/z", "z28", "z29", "z30", "z31")
            ),
            concat!(
                pair!("{x}", 0, "z10", "z11"), pair!("{y}", 16, "z12", "z13"), pair!("{z}", 32, "z14", "z15")
            ),
            concat!(
                add_pair!("z10", "z11", "z20", "z21", "z22", "z23"),
                add_pair!("z12", "z13", "z24", "z25", "z26", "z27"),
                add_pair!("z14", "z15", "z28", "z29", "z30", "z31")
            ),
            concat!(
                pair_sums!("st1d", "p0", "z20", "z21", "z22", "z23"),
                pair_sums!("st1d", "p0", "z24", "z25", "z26", "z27"),
                pair_sums!("st1d", "p0", "z28", "z29", "z30", "z31")
            ),
            384,
            x = inout(reg) x[0] => _, y = inout(reg) x[1] => _, z = inout(reg) x[2] => _,
        );
    }
}
