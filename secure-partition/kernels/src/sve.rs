//! One token with scalable vectors: 4 rows of 4 columns in each 16 bytes of a vector. With `FEAT_SVE2`, vectors of 32 and of 64 bytes;
//! longer ones are used as if they had 64. Without it, of 64. (Many tokens: `sve_batch`.)
//!
//! A loop over blocks is one `asm!` block, as the compiler has no scalable types. Its twin is [`crate::plain::group`].

use core::arch::asm;

use crate::activations::{Activations, Run, Runs, jump};
use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, NIBBLES, OCTETS, SCALES};

/// Groups that are multiplied at once.
pub(crate) const GROUPS: usize = 4;
/// Sums of some groups' rows.
pub(crate) type Sums<const G: usize> = [[i64; GROUP]; G];

/// Twin of [`crate::plain::group`] for one token and one group or [`GROUPS`], which lie one behind the other, with vectors of
/// `LENGTH` bytes, and `FEAT_SVE2` if there are `TWO` versions; `runs` are the token's entries.
///
/// # Panics
/// If the groups are not of as many columns as `x`.
///
/// # Safety
/// The CPU has vectors of `LENGTH` bytes, or with `TWO` longer ones if that is 64.
#[inline]
pub(crate) unsafe fn groups<const LENGTH: usize, const TWO: bool, const G: usize>(
    format: Format,
    groups: &[u8],
    x: &Activations,
    token: usize,
    runs: &Runs,
) -> Sums<G> {
    const { assert!((G == 1 || G == GROUPS) && (TWO || LENGTH == 64)) };
    let (each, blocks) = (format.group_bytes(x.cols()), x.cols() / BLOCK);
    assert!(groups.len() == G * each, "groups of so many columns");
    let (bytes, minima_bytes) = (format.block_bytes(), blocks * format.minima_bytes());
    // SAFETY: inside the groups: the minima of each, and its blocks.
    let (minima, first) =
        unsafe { (groups.as_ptr().add(GROUP_HEAD), groups.as_ptr().add(GROUP_HEAD + minima_bytes)) };
    let mut out = [[0; GROUP]; G];
    // SAFETY: that many blocks are there, and minima of as many; the caller promises the instructions.
    unsafe {
        if format.minima_bytes() > 0 {
            start::<LENGTH, G>(minima, each, x.sums(token), 7 + x.sum_shift(token), &mut out);
        }
        for &run in runs.iter().flatten() {
            let operands = Operands {
                blocks: first.add(run.block * bytes),
                each,
                octets: x.octets_of(token, &run).as_ptr(),
                scales: x.scales(token, run.entry, run.entries()).as_ptr(),
                scales_stride: x.scales_stride(),
                run,
            };
            match format {
                Format::Q4 => multiply::<LENGTH, TWO, true, true, G>(&operands, &mut out),
                Format::Q4Min => multiply::<LENGTH, TWO, true, false, G>(&operands, &mut out),
                Format::Q8 => multiply::<LENGTH, TWO, false, false, G>(&operands, &mut out),
                Format::W16 | Format::Vector => {}
            }
        }
    }
    out
}

/// Entries of a token, and the blocks that they are multiplied with.
struct Operands<'a> {
    /// The first one's block of the first group.
    blocks: *const u8,
    /// Bytes of a group.
    each: usize,
    octets: *const i8,
    /// Beside each there is a bias.
    scales: *const i32,
    scales_stride: usize,
    run: Run<'a>,
}

/// For each row of a group, where the minima of four blocks are among those of these blocks.
static BY_ROW: [u16; 4 * GROUP] = {
    let mut table = [0; 4 * GROUP];
    let mut i = 0;
    while i < table.len() {
        table[i] = (i % 4 * GROUP + i / 4) as u16;
        i += 1;
    }
    table
};

/// Sets the sums to the products of the groups' minima with a token's block sums, times `2^shift`: those of four blocks are
/// multiplied as 16-bit numbers and added up in 64 bits.
///
/// # Safety
/// That of [`groups`]; every `each` bytes from `minima` on there are the minima of as many blocks as there are sums, and behind
/// the sums there is room up to a multiple of four of them.
unsafe fn start<const LENGTH: usize, const G: usize>(
    minima: *const u8,
    each: usize,
    sums: &[i16],
    shift: i32,
    out: &mut Sums<G>,
) {
    let minima = |group: usize| minima.wrapping_add(group % G * each);
    // Four blocks of a group; sums of rows 0..4 and 4..8, or of all rows, go to the last registers named.
    macro_rules! four_blocks {
        (64, $m:literal, $sum:literal) => {
            concat!(
                "ld1h {{z4.h}}, p2/z, [",
                $m,
                ", {i}, lsl #1]\n",
                "tbl z4.h, {{z4.h}}, z0.h\nsdot ",
                $sum,
                ".d, z4.h, z2.h\n"
            )
        };
        (32, $m:literal, $sum:literal, $sum_4:literal) => {
            concat!(
                "ld1h {{z4.h}}, p2/z, [",
                $m,
                ", {i}, lsl #1]\nld1h {{z5.h}}, p3/z, [",
                $m,
                ", {j}, lsl #1]\n",
                "tbl z6.h, {{z4.h, z5.h}}, z0.h\ntbl z7.h, {{z4.h, z5.h}}, z1.h\n",
                "sdot ",
                $sum,
                ".d, z6.h, z2.h\nsdot ",
                $sum_4,
                ".d, z7.h, z2.h\n"
            )
        };
    }
    macro_rules! store {
        ($sum:literal) => {
            concat!(
                "lsl ",
                $sum,
                ".d, p0/m, ",
                $sum,
                ".d, z3.d\n",
                "st1d {{",
                $sum,
                ".d}}, p0, [{out}]\nadd {out}, {out}, {rows}\n"
            )
        };
    }
    macro_rules! run {
        ($table:expr, $blocks:expr, $store:expr, $($m:tt)*) => {
            // SAFETY: loads of minima are predicated by the number of blocks; those of sums are of four; the table has 32 entries;
            // the stores are of 8 sums a group. The caller promises the instructions.
            unsafe {
                asm!(
                    ".arch_extension sve2",
                    $table,
                    "mov z3.d, {shift}",
                    "mov z16.d, #0", "mov z17.d, #0", "mov z18.d, #0", "mov z19.d, #0",
                    "mov z20.d, #0", "mov z21.d, #0", "mov z22.d, #0", "mov z23.d, #0",
                    "ptrue p1.d",
                    "2:",
                    "ld1rd {{z2.d}}, p1/z, [{sums}]",
                    "whilelo p2.h, {i}, {end}", "whilelo p3.h, {j}, {end}",
                    $blocks,
                    "add {sums}, {sums}, #8", "add {i}, {i}, #32", "add {j}, {j}, #32",
                    "cmp {i}, {end}",
                    "b.lo 2b",
                    $store,
                    ".arch_extension nosve2", ".arch_extension nosve",
                    $($m)*
                    table = in(reg) BY_ROW.as_ptr(), sums = inout(reg) sums.as_ptr() => _, shift = in(reg) i64::from(shift),
                    end = in(reg) sums.len() * GROUP, rows = in(reg) LENGTH,
                    i = inout(reg) 0_usize => _, j = inout(reg) GROUP * 2 => _,
                    out = inout(reg) out.as_mut_ptr() => _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                    out("v21") _, out("v22") _, out("v23") _, out("p0") _, out("p1") _, out("p2") _,
                    out("p3") _, options(nostack)
                );
            }
        };
    }
    match (LENGTH, G) {
        (32, 1) => run!(
            concat!(
                "ptrue p0.d, vl4\n", "ptrue p1.h, vl16\n",
                "ld1h {{z0.h}}, p1/z, [{table}]\n", "ld1h {{z1.h}}, p1/z, [{table}, #1, mul vl]\n"
            ),
            four_blocks!(32, "{m}", "z16", "z17"),
            concat!(store!("z16"), store!("z17")),
            m = in(reg) minima(0),
        ),
        (32, _) => run!(
            concat!(
                "ptrue p0.d, vl4\n", "ptrue p1.h, vl16\n",
                "ld1h {{z0.h}}, p1/z, [{table}]\n", "ld1h {{z1.h}}, p1/z, [{table}, #1, mul vl]\n"
            ),
            concat!(
                four_blocks!(32, "{m}", "z16", "z17"), four_blocks!(32, "{n}", "z18", "z19"),
                four_blocks!(32, "{o}", "z20", "z21"), four_blocks!(32, "{p}", "z22", "z23")
            ),
            concat!(
                store!("z16"), store!("z17"), store!("z18"), store!("z19"),
                store!("z20"), store!("z21"), store!("z22"), store!("z23")
            ),
            m = in(reg) minima(0), n = in(reg) minima(1), o = in(reg) minima(2), p = in(reg) minima(3),
        ),
        (_, 1) => run!(
            "ptrue p0.d, vl8\nptrue p1.h, vl32\nld1h {{z0.h}}, p1/z, [{table}]\n",
            four_blocks!(64, "{m}", "z16"),
            store!("z16"),
            m = in(reg) minima(0),
        ),
        _ => run!(
            "ptrue p0.d, vl8\nptrue p1.h, vl32\nld1h {{z0.h}}, p1/z, [{table}]\n",
            concat!(
                four_blocks!(64, "{m}", "z16"), four_blocks!(64, "{n}", "z17"),
                four_blocks!(64, "{o}", "z18"), four_blocks!(64, "{p}", "z19")
            ),
            concat!(store!("z16"), store!("z17"), store!("z18"), store!("z19")),
            m = in(reg) minima(0), n = in(reg) minima(1), o = in(reg) minima(2), p = in(reg) minima(3),
        ),
    }
}

/// Dot products of four rows, whose weights are in four vectors of 32 bytes or two of 64, with an entry's octets in z0; and what
/// they begin with.
macro_rules! dots {
    ($from:literal, $sum:literal, $($weights:literal $four:literal),+) => {
        concat!(
            "mov ", $sum, ".d, ", $from, "\n",
            $("sdot ", $sum, ".s, ", $weights, ".b, z0.b[", $four, "]\n"),+
        )
    };
}

/// What the assembler is told of the CPU: whether there is SVE's second version.
macro_rules! extension {
    (true) => {
        ".arch_extension sve2"
    };
    (false) => {
        ".arch_extension sve"
    };
}

/// Behind the load of an entry's octets to z0: with vectors of 64 bytes they are spread ([`crate::activations::Order::V64`]); its scale
/// goes to z1.
macro_rules! entry {
    (32, $scale:tt) => {
        entry!(@ $scale)
    };
    (64, $scale:tt) => {
        concat!("zip1 z0.d, z0.d, z0.d\n", entry!(@ $scale))
    };
    (@ true) => {
        "ld1rw {{z1.s}}, p0/z, [{a}]"
    };
    (@ false) => {
        "ld1rsw {{z1.d}}, p0/z, [{a}]"
    };
}

/// Scales of a block's rows, times that of the entry: as 32-bit numbers, of rows 0..4 in each 16 bytes of z2 and of rows 4..8 in z3; or
/// as 64-bit numbers, of all rows in z2.
macro_rules! scales {
    ($length:tt, true, $block:literal) => {
        concat!(
            "ld1sh {{z2.s}}, p1/z, [",
            $block,
            ", {scales}, lsl #1]\n",
            "mul z2.s, p1/m, z2.s, z1.s\n",
            "mov z3.q, z2.q[1]\n",
            "mov z2.q, z2.q[0]\n"
        )
    };
    (64, false, $block:literal) => {
        concat!("ld1sh {{z2.d}}, p0/z, [", $block, ", {scales}, lsl #1]\n", "mul z2.d, p0/m, z2.d, z1.d\n")
    };
}

/// A block's dot products with an entry: of rows 0..4 in z12, of rows 4..8 in z13. All begin with $from.
macro_rules! block_dots {
    (32, true, $from:literal, $block:literal) => {
        concat!(
            "ld1b {{z4.b}}, p0/z, [", $block, "]\n", "ld1b {{z5.b}}, p0/z, [", $block, ", #1, mul vl]\n",
            "ld1b {{z6.b}}, p0/z, [", $block, ", #2, mul vl]\n", "ld1b {{z7.b}}, p0/z, [", $block, ", #3, mul vl]\n",
            "and z8.d, z4.d, z14.d\n", "and z9.d, z5.d, z14.d\n", "and z10.d, z6.d, z14.d\n", "and z11.d, z7.d, z14.d\n",
            dots!($from, "z12", "z4" 0, "z5" 1, "z6" 2, "z7" 3), dots!($from, "z13", "z8" 0, "z9" 1, "z10" 2, "z11" 3),
            "sub z12.s, z12.s, z13.s\n"
        )
    };
    (32, false, $from:literal, $block:literal) => {
        concat!(
            "ld1b {{z4.b}}, p0/z, [", $block, "]\n", "ld1b {{z5.b}}, p0/z, [", $block, ", #1, mul vl]\n",
            "ld1b {{z6.b}}, p0/z, [", $block, ", #2, mul vl]\n", "ld1b {{z7.b}}, p0/z, [", $block, ", #3, mul vl]\n",
            "ld1b {{z8.b}}, p0/z, [", $block, ", #4, mul vl]\n", "ld1b {{z9.b}}, p0/z, [", $block, ", #5, mul vl]\n",
            "ld1b {{z10.b}}, p0/z, [", $block, ", #6, mul vl]\n", "ld1b {{z11.b}}, p0/z, [", $block, ", #7, mul vl]\n",
            dots!($from, "z12", "z4" 0, "z5" 1, "z6" 2, "z7" 3), dots!($from, "z13", "z8" 0, "z9" 1, "z10" 2, "z11" 3)
        )
    };
    (64, true, $from:literal, $block:literal) => {
        concat!(
            "ld1b {{z4.b}}, p0/z, [", $block, "]\n", "ld1b {{z5.b}}, p0/z, [", $block, ", x13]\n",
            "and z8.d, z4.d, z14.d\n", "and z9.d, z5.d, z14.d\n",
            dots!($from, "z12", "z4" 0, "z5" 1), dots!($from, "z13", "z8" 0, "z9" 1), "sub z12.s, z12.s, z13.s\n"
        )
    };
    (64, false, $from:literal, $block:literal) => {
        concat!(
            "ld1b {{z4.b}}, p0/z, [", $block, "]\n", "ld1b {{z5.b}}, p0/z, [", $block, ", x13]\n",
            "ld1b {{z8.b}}, p0/z, [", $block, ", x14]\n", "ld1b {{z9.b}}, p0/z, [", $block, ", x15]\n",
            dots!($from, "z12", "z4" 0, "z5" 1), dots!($from, "z13", "z8" 0, "z9" 1)
        )
    };
}

/// Adds dot products times scales to 64-bit sums: of rows 0 and 2, 1 and 3, 4 and 6, 5 and 7; or, where there are no products of even
/// and odd elements, those of each row added up first, of all rows to the first register.
macro_rules! add_products {
    ($length:tt, true, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "smlalb ",
            $a,
            ".d, z12.s, z2.s\n",
            "smlalt ",
            $b,
            ".d, z12.s, z2.s\n",
            "smlalb ",
            $c,
            ".d, z13.s, z3.s\n",
            "smlalt ",
            $d,
            ".d, z13.s, z3.s\n"
        )
    };
    (64, false, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "sunpklo z4.d, z12.s\n",
            "sunpkhi z5.d, z12.s\n",
            "add z4.d, z4.d, z5.d\n",
            "sunpklo z6.d, z13.s\n",
            "sunpkhi z7.d, z13.s\n",
            "add z6.d, z6.d, z7.d\n",
            "sel z5.d, p2, z4.d, z6.d\n",
            "ext z4.b, z4.b, z6.b, #32\n",
            "add z4.d, z4.d, z5.d\n",
            "mla ",
            $a,
            ".d, p0/m, z4.d, z2.d\n"
        )
    };
}

/// A block of a group: its products with an entry are added to four registers, or fewer.
macro_rules! block {
    ($length:tt, $two:tt, $nibble:tt, $from:literal, $block:literal, $($sums:literal),*) => {
        concat!(
            scales!($length, $two, $block), block_dots!($length, $nibble, $from, $block),
            add_products!($length, $two, $($sums),*), "add ", $block, ", ", $block, ", {bytes}\n"
        )
    };
}

/// Adds up the columns of a group's sums, and those to the sums at `out`. The last register is the one behind the sums. Rows
/// 4..8 are shifted first.
macro_rules! fold {
    (32, true, $shift:literal, $a:literal, $b:literal, $c:literal, $d:literal, $e:literal) => {
        concat!(
            "zip1 z0.d, ", $a, ".d, ", $b, ".d\n", "zip2 z1.d, ", $a, ".d, ", $b, ".d\n",
            "zip1 z2.d, ", $c, ".d, ", $d, ".d\n", "zip2 z3.d, ", $c, ".d, ", $d, ".d\n",
            "add z0.d, z0.d, z1.d\n", "add z1.d, z2.d, z3.d\n", fold!(@ $shift)
        )
    };
    (64, true, $shift:literal, $a:literal, $b:literal, $c:literal, $d:literal, $e:literal) => {
        concat!(
            "ext z0.b, {{", $a, ".b, ", $b, ".b}}, #32\n", "ext z1.b, {{", $b, ".b, ", $c, ".b}}, #32\n",
            "ext z2.b, {{", $c, ".b, ", $d, ".b}}, #32\n", "ext z3.b, {{", $d, ".b, ", $e, ".b}}, #32\n",
            "add ", $a, ".d, ", $a, ".d, z0.d\n", "add ", $b, ".d, ", $b, ".d, z1.d\n",
            "add ", $c, ".d, ", $c, ".d, z2.d\n", "add ", $d, ".d, ", $d, ".d, z3.d\n",
            "zip1 z0.d, ", $a, ".d, ", $b, ".d\n", "zip1 z1.d, ", $c, ".d, ", $d, ".d\n",
            "ext z2.b, {{z0.b, z1.b}}, #32\n", "ext z3.b, {{z1.b, z2.b}}, #32\n",
            "add z0.d, z0.d, z2.d\n", "add z1.d, z1.d, z3.d\n", fold!(@ $shift)
        )
    };
    (64, false, $shift:literal, $a:literal, $b:literal, $c:literal, $d:literal, $e:literal) => {
        concat!(
            "mov z0.d, ", $a, ".d\n", "mov z1.d, ", $a, ".d\n", "ext z1.b, z1.b, z1.b, #32\n", fold!(@ $shift)
        )
    };
    (@ $shift:literal) => {
        concat!(
            "lsl z1.d, z1.d, #", $shift, "\n", "add {second}, {out}, #32\n",
            "ld1d {{z2.d}}, p2/z, [{out}]\n", "ld1d {{z3.d}}, p2/z, [{second}]\n",
            "add z0.d, z0.d, z2.d\n", "add z1.d, z1.d, z3.d\n",
            "st1d {{z0.d}}, p2, [{out}]\n", "st1d {{z1.d}}, p2, [{second}]\n", "add {out}, {out}, #64\n"
        )
    };
}

/// Adds the products of some groups' blocks. With `NIBBLE`, those of 16 * high and 16 * low nibble; the latter may be `BIASED`.
///
/// # Safety
/// The CPU has vectors of `LENGTH` bytes, or with `TWO` longer ones if that is 64; there are as many entries as the run has, and its
/// blocks in each of `G` groups.
unsafe fn multiply<
    const LENGTH: usize,
    const TWO: bool,
    const NIBBLE: bool,
    const BIASED: bool,
    const G: usize,
>(
    operands: &Operands,
    out: &mut Sums<G>,
) {
    let run = operands.run;
    let bytes = SCALES + if NIBBLE { NIBBLES } else { OCTETS };
    let blocks = |group: usize| operands.blocks.wrapping_add(group % G * operands.each + SCALES);
    macro_rules! run {
        ($length:literal, $two:tt, $x:expr, $blocks:expr, $jump:expr, $fold:expr, $($b:tt)*) => {
            // SAFETY: the caller's promise; the loads and stores of sums are of 8 a group.
            unsafe {
                asm!(
                    extension!($two),
                    concat!("ptrue p0.b, vl", $length),
                    "ptrue p1.s, vl8", "ptrue p2.d, vl4", "ptrue p3.b, vl32", "mov z14.b, #15",
                    "mov z15.d, #0", "mov z16.d, #0", "mov z17.d, #0", "mov z18.d, #0",
                    "mov z19.d, #0", "mov z20.d, #0", "mov z21.d, #0", "mov z22.d, #0",
                    "mov z23.d, #0", "mov z24.d, #0", "mov z25.d, #0", "mov z26.d, #0",
                    "mov z27.d, #0", "mov z28.d, #0", "mov z29.d, #0", "mov z30.d, #0",
                    "2:",
                    "ld1b {{z0.b}}, p3/z, [{x}]", $x,
                    $blocks,
                    "add {x}, {x}, #32",
                    "add {a}, {a}, {a_stride}",
                    "subs {count}, {count}, #1",
                    "b.ne 2b",
                    $jump,
                    $fold,
                    ".arch_extension nosve2", ".arch_extension nosve",
                    $($b)*
                    bytes = in(reg) bytes, scales = in(reg) -(SCALES.cast_signed() / 2), x = inout(reg) operands.octets => _,
                    a = inout(reg) operands.scales => _, a_stride = in(reg) 4 * operands.scales_stride,
                    count = inout(reg) run.count => _, left = inout(reg) run.jumps.len() => _,
                    jumps = inout(reg) run.jumps.as_ptr() => _, here = inout(reg) run.block + run.count => _,
                    next = out(reg) _, jump = out(reg) _, out = inout(reg) out.as_mut_ptr() => _, second = out(reg) _,
                    in("x13") 64, in("x14") 128, in("x15") 192,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                    out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                    out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                    out("v28") _, out("v29") _, out("v30") _, out("v31") _, out("p0") _, out("p1") _, out("p2") _,
                    out("p3") _, options(nostack)
                );
            }
        };
    }
    macro_rules! some_groups {
        ($length:tt, $two:tt, $bias:literal, $nibble:tt, $from:literal, $shift:literal) => {
            if G == 1 {
                run!(
                    $length, $two, concat!(entry!($length, $two), $bias),
                    block!($length, $two, $nibble, $from, "{b}", "z15", "z16", "z17", "z18"),
                    jump!(b),
                    fold!($length, $two, $shift, "z15", "z16", "z17", "z18", "z19"),
                    b = inout(reg) blocks(0) => _,
                )
            } else {
                run!(
                    $length, $two, concat!(entry!($length, $two), $bias),
                    concat!(
                        block!($length, $two, $nibble, $from, "{b}", "z15", "z16", "z17", "z18"),
                        block!($length, $two, $nibble, $from, "{c}", "z19", "z20", "z21", "z22"),
                        block!($length, $two, $nibble, $from, "{d}", "z23", "z24", "z25", "z26"),
                        block!($length, $two, $nibble, $from, "{e}", "z27", "z28", "z29", "z30")
                    ),
                    jump!(b, c, d, e),
                    concat!(
                        fold!($length, $two, $shift, "z15", "z16", "z17", "z18", "z19"),
                        fold!($length, $two, $shift, "z19", "z20", "z21", "z22", "z23"),
                        fold!($length, $two, $shift, "z23", "z24", "z25", "z26", "z27"),
                        fold!($length, $two, $shift, "z27", "z28", "z29", "z30", "z31")
                    ),
                    b = inout(reg) blocks(0) => _, c = inout(reg) blocks(1) => _,
                    d = inout(reg) blocks(2) => _, e = inout(reg) blocks(3) => _,
                )
            }
        };
    }
    macro_rules! formats {
        ($length:tt, $two:tt) => {
            match (NIBBLE, BIASED) {
                (true, true) => {
                    some_groups!($length, $two, "\nld1rw {{z31.s}}, p0/z, [{a}, #4]", true, "z31.d", 4)
                }
                (true, false) => some_groups!($length, $two, "", true, "#0", 4),
                (false, _) => some_groups!($length, $two, "", false, "#0", 0),
            }
        };
    }
    match (LENGTH, TWO) {
        (32, _) => formats!(32, true),
        (_, true) => formats!(64, true),
        (_, false) => formats!(64, false),
    }
}
