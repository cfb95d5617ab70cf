//! Many tokens with scalable vectors, `FEAT_SVE2` and `FEAT_I8MM`: two rows of 8 columns in each 16 bytes of a vector. Vectors of
//! 32 and of 64 bytes; longer ones are used as if they had 64.
//!
//! A loop over blocks is one `asm!` block, as the compiler has no scalable types. Its twin is [`crate::plain::group`].

use core::arch::asm;

use crate::activations::jump;
use crate::batch::{STRIDE, Slot, Tile};
use crate::format::{BLOCK, GROUP, HALF, OCTETS};
use crate::isa::Kernel;

/// Eight columns of a pair of tokens, which are `$at` bytes behind `x`: adds the products with the weights in two registers.
macro_rules! eight_columns {
    ($at:literal, $first:literal, $second:literal) => {
        concat!(
            "ld1rqb {{z8.b}}, p0/z, [{x}, #",
            $at,
            "]\n",
            "smmla z9.s, ",
            $first,
            ".b, z8.b\nsmmla z10.s, ",
            $second,
            ".b, z8.b\n"
        )
    };
}

/// A run's blocks times some pairs of tokens: for each, how the pointers to sums go on to it, where its sums are, places of its octets,
/// where its scales are behind the first pair's, and registers for its sums: two tokens' of the rows of the first vector, and of
/// the second.
macro_rules! run {
    ($tile:ident, $sums:ident, $apart:ident, $length:ident;
     $($go_on:literal, $a_at:literal, $b_at:literal, $c_at:literal, $d_at:literal,
       $x0:literal, $x1:literal, $x2:literal, $x3:literal, $scales:literal,
       $a:literal, $b:literal, $c:literal, $d:literal);+) => {
        asm!(
            ".arch_extension sve2", ".arch_extension i8mm",
            "ptrue p0.b, vl32", "cmp {length:x}, #64", "b.ne 4f", "ptrue p0.b, vl64", "4:",
            "mov {next}, {first}", "mov {jump}, {second}",
            $(
                $go_on,
                concat!("ld1d {{", $a, ".d}}, p0/z, ", $a_at), concat!("ld1d {{", $b, ".d}}, p0/z, ", $b_at),
                concat!("ld1d {{", $c, ".d}}, p0/z, ", $c_at), concat!("ld1d {{", $d, ".d}}, p0/z, ", $d_at),
            )+
            "mov {first}, {next}", "mov {second}, {jump}",
            "2:",
            "ld1b {{z0.b}}, p0/z, [{w}]", "ld1b {{z1.b}}, p0/z, [{v}]",
            "ld1b {{z2.b}}, p0/z, [{w}, x14]", "ld1b {{z3.b}}, p0/z, [{v}, x14]",
            "ld1b {{z4.b}}, p0/z, [{w}, x15]", "ld1b {{z5.b}}, p0/z, [{v}, x15]",
            "ld1b {{z6.b}}, p0/z, [{w}, x16]", "ld1b {{z7.b}}, p0/z, [{v}, x16]",
            // Scales are 4 * 64 bytes behind the weights.
            "ld1w {{z11.s}}, p0/z, [{w}, x14, lsl #2]", "ld1w {{z12.s}}, p0/z, [{v}, x14, lsl #2]",
            $(
                "mov z9.s, #0", "mov z10.s, #0",
                eight_columns!($x0, "z0", "z1"), eight_columns!($x1, "z2", "z3"),
                eight_columns!($x2, "z4", "z5"), eight_columns!($x3, "z6", "z7"),
                concat!("ld1rqw {{z8.s}}, p0/z, [{a}, #", $scales, "]"),
                "mul z9.s, z9.s, z8.s", "mul z10.s, z10.s, z8.s",
                concat!("smlalb ", $a, ".d, z9.s, z11.s"), concat!("smlalt ", $b, ".d, z9.s, z11.s"),
                concat!("smlalb ", $c, ".d, z10.s, z12.s"), concat!("smlalt ", $d, ".d, z10.s, z12.s"),
            )+
            "add {w}, {w}, {bytes}", "add {v}, {v}, {bytes}",
            "add {a}, {a}, {a_stride}", "add {x}, {x}, {x_stride}",
            "subs {count}, {count}, #1",
            "b.ne 2b",
            jump!(w, v),
            $(
                $go_on,
                concat!("st1d {{", $a, ".d}}, p0, ", $a_at), concat!("st1d {{", $b, ".d}}, p0, ", $b_at),
                concat!("st1d {{", $c, ".d}}, p0, ", $c_at), concat!("st1d {{", $d, ".d}}, p0, ", $d_at),
            )+
            ".arch_extension nosve2", ".arch_extension nosve",
            w = inout(reg) $tile.blocks => _, v = inout(reg) $tile.blocks.byte_add($apart) => _,
            length = in(reg) $length, bytes = in(reg) STRIDE,
            count = inout(reg) $tile.run.count => _, left = inout(reg) $tile.run.jumps.len() => _,
            jumps = inout(reg) $tile.run.jumps.as_ptr() => _, here = inout(reg) $tile.run.block + $tile.run.count => _,
            next = out(reg) _, jump = out(reg) _,
            first = inout(reg) $sums[0] => _, second = inout(reg) $sums[1] => _,
            a = inout(reg) $tile.scales => _, a_stride = in(reg) 4 * $tile.scales_stride,
            // Offsets of octets are signed.
            x = inout(reg) $tile.octets.wrapping_add(128) => _, x_stride = in(reg) $tile.octets_stride,
            in("x13") GROUP, in("x14") OCTETS / 4, in("x15") OCTETS / 2, in("x16") OCTETS / 4 * 3,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v16") _, out("v17") _,
            out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _, out("v24") _,
            out("v25") _, out("v26") _, out("v27") _, out("v28") _, out("v29") _, out("v30") _, out("v31") _,
            out("p0") _, options(nostack)
        )
    };
}

/// Adds the products of a run's blocks with `P` pairs of tokens; answers how many tokens. With vectors of 64 bytes, of both groups.
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn tile<const P: usize>(
    kernel: Kernel,
    tile: &Tile,
    sums: [&mut [[i64; GROUP]]; 2],
) -> usize {
    const { assert!(P == 1 || P == 4) };
    let [first, second] = sums.map(|sums| sums[..2 * P].as_mut_ptr().cast::<i64>());
    // Rows of the second vector: those of the other group, or the other half of the same.
    let (second, apart, length) = if kernel == Kernel::Sve2x64 {
        (second, size_of::<Slot>(), 64)
    } else {
        // SAFETY: inside the first token's.
        (unsafe { first.add(HALF) }, BLOCK, 32)
    };
    let sums = [first, second];
    // SAFETY: the blocks of the run are there, and its entries of each pair; the sums have room for 2 * P tokens; the caller
    // promises the instructions.
    unsafe {
        if P == 1 {
            run!(
                tile, sums, apart, length;
                "", "[{first}]", "[{first}, x13, lsl #3]", "[{second}]", "[{second}, x13, lsl #3]",
                -128, -112, -96, -80, 0, "z16", "z17", "z18", "z19"
            );
        } else {
            run!(
                tile, sums, apart, length;
                "", "[{first}]", "[{first}, x13, lsl #3]", "[{second}]", "[{second}, x13, lsl #3]",
                -128, -112, -96, -80, 0, "z16", "z17", "z18", "z19";
                "add {first}, {first}, #128\nadd {second}, {second}, #128\n",
                "[{first}]", "[{first}, x13, lsl #3]", "[{second}]", "[{second}, x13, lsl #3]",
                -64, -48, -32, -16, 16, "z20", "z21", "z22", "z23";
                "add {first}, {first}, #128\nadd {second}, {second}, #128\n",
                "[{first}]", "[{first}, x13, lsl #3]", "[{second}]", "[{second}, x13, lsl #3]",
                0, 16, 32, 48, 32, "z24", "z25", "z26", "z27";
                "add {first}, {first}, #128\nadd {second}, {second}, #128\n",
                "[{first}]", "[{first}, x13, lsl #3]", "[{second}]", "[{second}, x13, lsl #3]",
                64, 80, 96, 112, 48, "z28", "z29", "z30", "z31"
            );
        }
    }
    2 * P
}
