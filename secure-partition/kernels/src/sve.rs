//! Scalable vectors with `FEAT_SVE2` and `FEAT_I8MM`: for one token, 4 rows of 4 columns in each 16 bytes of a vector; for many,
//! two rows of 8 columns. Vectors of 32 and of 64 bytes; longer ones are used as if they had 64.
//!
//! A loop over blocks is one `asm!` block, as the compiler has no scalable types. Its twin is [`crate::plain::group`].

use core::arch::asm;

use crate::batch::Strip;
use crate::format::{BLOCK, Format, GROUP, HALF, NIBBLES, OCTETS, SCALES};
use crate::isa::Kernel;
use crate::matrix::Group;
use crate::neon::{minima, store};

/// Sums of four rows: those of even and those of odd ones, i64, in each 16 bytes of a vector those of some columns.
type Lanes = [[i64; 8]; 2];

/// Twin of [`crate::plain::group`] for one token. The mantissas are in [`crate::activations::Layout::Planes`], for vectors of
/// `LENGTH` bytes.
///
/// # Safety
/// The CPU has SVE2 with vectors of `LENGTH` bytes, or longer ones if that is 64.
pub(crate) unsafe fn group<const LENGTH: usize>(group: &Group, x: &[i16], sums: &[i32]) -> [i64; GROUP] {
    let bytes = group.format.block_bytes();
    let blocks = x.len() / BLOCK;
    let block = group.blocks[..blocks * bytes].as_ptr();
    let nibbles_at = bytes - NIBBLES;
    // SAFETY: that many blocks are there, and as many mantissas; the caller promises the instructions.
    unsafe {
        let nibbles = || multiply::<LENGTH, true>(block, bytes, nibbles_at, x.as_ptr(), blocks);
        let octets = || multiply::<LENGTH, false>(block, bytes, SCALES, x.as_ptr(), blocks);
        match group.format {
            Format::Q4Min => {
                let [minima] = minima::<1, 7, 7>([group], sums);
                let (mut out, [high, low]) = (store(&minima), nibbles());
                for row in 0..HALF {
                    out[row] += high[row];
                    // A low nibble counts sixteen times.
                    out[HALF + row] += low[row] << 4;
                }
                out
            }
            Format::Q8 => *octets().as_flattened().as_array().expect("two halves"),
            Format::W16 | Format::Vector => [0; GROUP],
        }
    }
}

/// Sums of rows 0 to 3, over all columns.
fn fold<const LENGTH: usize>(lanes: &Lanes) -> [i64; HALF] {
    core::array::from_fn(|row| (row / 2..LENGTH / 8).step_by(2).map(|lane| lanes[row % 2][lane]).sum())
}

/// Dot products of four rows with vectors of 32 bytes: 256 * (weights . h) + weights . l.
macro_rules! dots_32 {
    ($sum:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "mov ", $sum, ".s, #0\n", dots_32!(@ $sum, $a, $b, $c, $d, "z0"),
            "lsl ", $sum, ".s, ", $sum, ".s, #8\n", dots_32!(@ $sum, $a, $b, $c, $d, "z1")
        )
    };
    (@ $sum:literal, $a:literal, $b:literal, $c:literal, $d:literal, $x:literal) => {
        concat!(
            "sdot ", $sum, ".s, ", $a, ".b, ", $x, ".b[0]\n", "sdot ", $sum, ".s, ", $b, ".b, ", $x, ".b[1]\n",
            "sdot ", $sum, ".s, ", $c, ".b, ", $x, ".b[2]\n", "sdot ", $sum, ".s, ", $d, ".b, ", $x, ".b[3]\n",
        )
    };
}

/// The same with vectors of 64 bytes, one of which holds both planes of a block.
macro_rules! dots_64 {
    ($sum:literal, $a:literal, $b:literal) => {
        concat!(
            "mov ", $sum, ".s, #0\n", dots_64!(@ $sum, $a, $b, "0", "1"),
            "lsl ", $sum, ".s, ", $sum, ".s, #8\n", dots_64!(@ $sum, $a, $b, "2", "3")
        )
    };
    (@ $sum:literal, $a:literal, $b:literal, $i:literal, $j:literal) => {
        concat!("sdot ", $sum, ".s, ", $a, ".b, z0.b[", $i, "]\n", "sdot ", $sum, ".s, ", $b, ".b, z0.b[", $j, "]\n")
    };
}

/// Sums of all blocks of a group, of rows 0..4 and of rows 4..8. With `NIBBLE`, those of 16 * high nibble and of low nibble of
/// the 128 bytes that lie `from` bytes into each block; otherwise of the 256 octets there.
///
/// # Safety
/// The CPU has SVE2 with vectors of `LENGTH` bytes, or longer ones if that is 64; there are that many blocks of `bytes` bytes
/// from `block` on, and as many times 64 bytes of mantissas at `x`.
unsafe fn multiply<const LENGTH: usize, const NIBBLE: bool>(
    block: *const u8,
    bytes: usize,
    from: usize,
    x: *const i16,
    blocks: usize,
) -> [[i64; HALF]; 2] {
    let mut out: [Lanes; 2] = [[[0; 8]; 2]; 2];
    if blocks == 0 {
        return [[0; HALF]; 2];
    }
    // The weights of rows 0..4 (or whole bytes) go to z4 and on, those of rows 4..8 (or low nibbles) to z8 and on.
    macro_rules! run {
        ($length:literal, $load:expr, $second:expr, $first_dots:expr, $second_dots:expr, $combine:literal) => {
            // SAFETY: the caller's promise; `out` has room for four vectors of 64 bytes.
            unsafe {
                asm!(
                    ".arch_extension sve2", ".arch_extension i8mm",
                    concat!("ptrue p0.b, vl", $length),
                    "ptrue p1.s, vl8", "mov z18.b, #15",
                    "mov z20.d, #0", "mov z21.d, #0", "mov z22.d, #0", "mov z23.d, #0",
                    "2:",
                    "ld1sh {{z2.s}}, p1/z, [{block}]",
                    "add x15, {block}, {from}",
                    "add {block}, {block}, {bytes}",
                    $load,
                    $second,
                    "add {x}, {x}, #64",
                    "mov z3.q, z2.q[1]", "mov z2.q, z2.q[0]",
                    $first_dots, $second_dots, $combine,
                    "subs {blocks}, {blocks}, #1",
                    "smlalb z20.d, z16.s, z2.s", "smlalt z21.d, z16.s, z2.s",
                    "smlalb z22.d, z17.s, z3.s", "smlalt z23.d, z17.s, z3.s",
                    "b.ne 2b",
                    "st1d {{z20.d}}, p0, [{out}]",
                    "add {out}, {out}, #64", "st1d {{z21.d}}, p0, [{out}]",
                    "add {out}, {out}, #64", "st1d {{z22.d}}, p0, [{out}]",
                    "add {out}, {out}, #64", "st1d {{z23.d}}, p0, [{out}]",
                    ".arch_extension nosve2", ".arch_extension nosve",
                    block = inout(reg) block => _, bytes = in(reg) bytes, x = inout(reg) x => _, from = in(reg) from,
                    blocks = inout(reg) blocks => _, out = inout(reg) out.as_mut_ptr() => _,
                    in("x13") 64, in("x14") 128, in("x16") 192, out("x15") _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v16") _, out("v17") _,
                    out("v18") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("p0") _, out("p1") _,
                    options(nostack)
                );
            }
        };
    }
    macro_rules! run_32 {
        ($second:expr, $combine:literal) => {
            run!(
                32,
                concat!(
                    "ld1b {{z4.b}}, p0/z, [x15]\nld1b {{z5.b}}, p0/z, [x15, #1, mul vl]\n",
                    "ld1b {{z6.b}}, p0/z, [x15, #2, mul vl]\nld1b {{z7.b}}, p0/z, [x15, #3, mul vl]\n",
                    "ld1b {{z0.b}}, p0/z, [{x}]\nld1b {{z1.b}}, p0/z, [{x}, #1, mul vl]\n"
                ),
                $second,
                dots_32!("z16", "z4", "z5", "z6", "z7"),
                dots_32!("z17", "z8", "z9", "z10", "z11"),
                $combine
            )
        };
    }
    macro_rules! run_64 {
        ($second:expr, $combine:literal) => {
            run!(
                64,
                concat!(
                    "ld1b {{z4.b}}, p0/z, [x15]\nld1b {{z5.b}}, p0/z, [x15, x13]\n",
                    "ld1b {{z0.b}}, p0/z, [{x}]\n"
                ),
                $second,
                dots_64!("z16", "z4", "z5"),
                dots_64!("z17", "z8", "z9"),
                $combine
            )
        };
    }
    match (LENGTH, NIBBLE) {
        (32, true) => run_32!(
            concat!(
                "and z8.d, z4.d, z18.d\nand z9.d, z5.d, z18.d\n",
                "and z10.d, z6.d, z18.d\nand z11.d, z7.d, z18.d\n"
            ),
            "sub z16.s, z16.s, z17.s"
        ),
        (32, false) => run_32!(
            concat!(
                "ld1b {{z8.b}}, p0/z, [x15, #4, mul vl]\nld1b {{z9.b}}, p0/z, [x15, #5, mul vl]\n",
                "ld1b {{z10.b}}, p0/z, [x15, #6, mul vl]\nld1b {{z11.b}}, p0/z, [x15, #7, mul vl]\n"
            ),
            ""
        ),
        (_, true) => {
            run_64!(concat!("and z8.d, z4.d, z18.d\nand z9.d, z5.d, z18.d\n"), "sub z16.s, z16.s, z17.s")
        }
        (_, false) => {
            run_64!(concat!("ld1b {{z8.b}}, p0/z, [x15, x14]\nld1b {{z9.b}}, p0/z, [x15, x16]\n"), "")
        }
    }
    [fold::<LENGTH>(&out[0]), fold::<LENGTH>(&out[1])]
}

/// Adds the products of a strip with `P` pairs of tokens; answers how many tokens. With vectors of 64 bytes, of both of its
/// groups.
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn tile<const P: usize>(
    kernel: Kernel,
    strip: &Strip,
    blocks: usize,
    x: [&[i16]; P],
    sums: [&mut [[i64; GROUP]]; 2],
) -> usize {
    const { assert!(P == 1 || P == 3) };
    let [first, second] = sums;
    let (first, second) = (&mut first[..2 * P], &mut second[..2 * P]);
    assert!(blocks > 0 && blocks <= strip.weights.len(), "a chunk of a strip");
    for x in x {
        assert!(x.len() >= 2 * BLOCK * blocks, "a chunk of each token");
    }
    let whole = kernel == Kernel::Sve64;
    let first = first.as_mut_ptr().cast::<i64>();
    // SAFETY: the second half of a group's rows.
    let half = unsafe { first.add(HALF) };
    let operands = Operands {
        weights: strip.weights.as_ptr().cast(),
        scales: strip.scales.as_ptr().cast(),
        blocks,
        // Rows of the second vector: those of the other group, or the other half of the same.
        sums: [first, if whole { second.as_mut_ptr().cast() } else { half }],
        apart: if whole { OCTETS } else { 32 },
        length: if whole { 64 } else { 32 },
    };
    // SAFETY: the strip has that many blocks, and so do the tokens; the sums have room for 2 * P tokens; the caller promises the
    // instructions.
    unsafe {
        if P == 1 {
            one_pair(&operands, x[0].as_ptr());
        } else {
            three_pairs(&operands, [x[0].as_ptr(), x[P / 2].as_ptr(), x[P - 1].as_ptr()]);
        }
    }
    2 * P
}

/// What the loops over a strip's blocks take.
struct Operands {
    weights: *const u8,
    scales: *const i32,
    blocks: usize,
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

/// Both planes of a block of a pair of tokens.
macro_rules! pair {
    ($x:literal, $sum:literal, $other:literal) => {
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
            "lsl ",
            $sum,
            ".s, ",
            $sum,
            ".s, #8\n",
            "lsl ",
            $other,
            ".s, ",
            $other,
            ".s, #8\n",
            eight_columns!($x, 64, $sum, $other, "z0", "z1"),
            eight_columns!($x, 80, $sum, $other, "z2", "z3"),
            eight_columns!($x, 96, $sum, $other, "z4", "z5"),
            eight_columns!($x, 112, $sum, $other, "z6", "z7"),
            "add ",
            $x,
            ", ",
            $x,
            ", #128\n"
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
unsafe fn one_pair(operands: &Operands, x: *const i16) {
    // SAFETY: the caller's promise.
    unsafe {
        strip_loop!(
            operands,
            pair_sums!("ld1d", "p0/z", "z20", "z21", "z22", "z23"),
            pair!("{x}", "z10", "z11"),
            add_pair!("z10", "z11", "z20", "z21", "z22", "z23"),
            pair_sums!("st1d", "p0", "z20", "z21", "z22", "z23"),
            128,
            x = inout(reg) x => _,
        );
    }
}

/// # Safety
/// That of [`tile`]; each of `x` has as many blocks as the operands.
unsafe fn three_pairs(operands: &Operands, x: [*const i16; 3]) {
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
                pair!("{x}", "z10", "z11"), pair!("{y}", "z12", "z13"), pair!("{z}", "z14", "z15")
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
