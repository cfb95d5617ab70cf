//! A layer's operations on single values, with scalable vectors of any length and `FEAT_SVE2`: twins of those in
//! [`crate::silu`], [`crate::norm`] and [`crate::narrow`]; and, with vectors of 64 bytes or more, what is done with sums of products.
//!
//! A loop is one `asm!` block, as the compiler has no scalable types. Its predicate keeps loads and stores inside the slices,
//! and lanes beyond them are zeros.

use core::arch::asm;

use crate::activations::Token;
use crate::format::{GROUP, GROUP_HEAD};
use crate::matmul::Output;
use crate::silu::{BEND, BEND_DOWN, BEND_UP, EXPONENT_FRAC, LOG2_E, POWER, UP};

/// A loop over elements of a size: what comes before it, in it, and behind it. `p0` is all lanes, `p1` those of the step.
macro_rules! each {
    ($size:literal, $count:expr, [$($before:literal),*], [$($step:literal),*], [$($after:literal),*], $($operands:tt)*) => {
        asm!(
            ".arch_extension sve", ".arch_extension sve2",
            concat!("ptrue p0.", $size), concat!("whilelo p1.", $size, ", {i}, {count}"),
            $($before,)*
            "2:",
            $($step,)*
            concat!("whilelo p1.", $size, ", {i}, {count}"), "b.first 2b",
            $($after,)*
            ".arch_extension nosve2", ".arch_extension nosve",
            i = inout(reg) 0_usize => _, count = in(reg) $count, $($operands)*
            out("p0") _, out("p1") _, out("p2") _, out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _,
            options(nostack)
        )
    };
}

/// Twin of [`crate::word::largest`].
///
/// # Safety
/// The CPU has SVE2.
pub(crate) unsafe fn largest(words: &[i32]) -> i32 {
    let largest;
    // SAFETY: that many words are there; the caller promises the instructions.
    unsafe {
        each!("s", words.len(),
            ["mov z4.s, #0"],
            ["ld1w {{z0.s}}, p1/z, [{words}, {i}, lsl #2]", "sqabs z0.s, p0/m, z0.s",
             "smax z4.s, p0/m, z4.s, z0.s", "incw {i}"],
            ["smaxv s4, p0, z4.s", "fmov {largest:w}, s4"],
            words = in(reg) words.as_ptr(), largest = out(reg) largest,
        );
    }
    largest
}

/// Twin of the products in [`crate::silu`], of as many values as `out` has.
///
/// # Safety
/// The CPU has SVE2; `gate` and `up` have as many values.
pub(crate) unsafe fn gated<const BENT: bool>(gate: &[i32], up: &[i32], shifts: [i32; 2], out: &mut [i32]) {
    macro_rules! run {
        ($($bend:literal),*) => {
            each!("s", out.len(),
            ["mov z16.s, {gate_shift:w}", "mov z17.s, {up_shift:w}", "mov z18.s, {log2_e:w}",
             "mov z19.s, {power_0:w}", "mov z20.s, {power_1:w}", "mov z21.s, {power_2:w}",
             "mov z22.s, {power_3:w}", "mov z23.s, {power_4:w}", "mov z24.s, #0x80000000", "mov z25.s, #0x7fffffff",
             "mov z26.s, {bend_0:w}", "mov z27.s, {bend_1:w}"],
            ["ld1w {{z0.s}}, p1/z, [{gate}, {i}, lsl #2]", "ld1w {{z1.s}}, p1/z, [{up}, {i}, lsl #2]",
             // The exponent; of it, z3 the nearest whole number and z2 the rest.
             "mov z2.d, z0.d", $($bend,)* "sqshl z2.s, p0/m, z2.s, #{UP}", "sqabs z2.s, p0/m, z2.s",
             "sqrdmulh z2.s, z2.s, z18.s",
             "movprfx z3, z2", "srshr z3.s, p0/m, z3.s, #{EXPONENT_FRAC}", "lsl z2.s, z2.s, #{REST}",
             // Its power.
             "sqrdmulh z4.s, z23.s, z2.s", "add z4.s, z4.s, z22.s", "sqrdmulh z4.s, z4.s, z2.s",
             "add z4.s, z4.s, z21.s", "sqrdmulh z4.s, z4.s, z2.s", "add z4.s, z4.s, z20.s",
             "sqrdmulh z4.s, z4.s, z2.s", "add z4.s, z4.s, z19.s",
             "add z3.s, z3.s, #1", "srshl z4.s, p0/m, z4.s, z3.s",
             // 1 + e, the estimate, the reciprocal in z2.
             "orr z2.d, z4.d, z24.d", "urecpe z3.s, p0/m, z2.s", "lsr z2.s, z2.s, #1", "lsr z3.s, z3.s, #1",
             "sqrdmulh z2.s, z2.s, z3.s", "sub z2.s, z24.s, z2.s", "sqrdmulh z2.s, z3.s, z2.s",
             "cmplt p2.s, p0/z, z0.s, #0", "sel z4.s, p2, z4.s, z25.s", "sqrdmulh z2.s, z4.s, z2.s",
             "lsl z0.s, p0/m, z0.s, z16.s", "lsl z1.s, p0/m, z1.s, z17.s",
             "sqrdmulh z0.s, z0.s, z2.s", "sqrdmulh z0.s, z0.s, z1.s",
             "st1w {{z0.s}}, p1, [{out}, {i}, lsl #2]", "incw {i}"],
            [],
            gate = in(reg) gate.as_ptr(), up = in(reg) up.as_ptr(), out = in(reg) out.as_mut_ptr(),
            gate_shift = in(reg) shifts[0], up_shift = in(reg) shifts[1], log2_e = in(reg) LOG2_E,
            power_0 = in(reg) POWER[0], power_1 = in(reg) POWER[1], power_2 = in(reg) POWER[2],
            power_3 = in(reg) POWER[3], power_4 = in(reg) POWER[4],
            UP = const UP, EXPONENT_FRAC = const EXPONENT_FRAC, REST = const 32 - EXPONENT_FRAC,
            BEND_UP = const BEND_UP, BEND_DOWN = const BEND_DOWN, bend_0 = in(reg) BEND[0], bend_1 = in(reg) BEND[1],
            out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v22") _,
            out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
            )
        };
    }
    // SAFETY: that many values are there; the caller promises the instructions.
    unsafe {
        if BENT {
            run!(
                "sqshl z2.s, p0/m, z2.s, #{BEND_UP}",
                "sqrdmulh z3.s, z2.s, z2.s",
                "sqrdmulh z3.s, z3.s, z27.s",
                "add z3.s, z3.s, z26.s",
                "sqrdmulh z2.s, z2.s, z3.s",
                "srshr z2.s, p0/m, z2.s, #{BEND_DOWN}"
            );
        } else {
            run!("/* {BEND_UP} {BEND_DOWN} */");
        }
    }
}

/// Twin of the sum of squares in [`crate::norm`].
///
/// # Safety
/// The CPU has SVE2.
pub(crate) unsafe fn sum_of_squares(x: &[i32]) -> u64 {
    let sum;
    // SAFETY: that many words are there; the caller promises the instructions.
    unsafe {
        each!("s", x.len(),
            ["mov z4.d, #0"],
            ["ld1w {{z0.s}}, p1/z, [{x}, {i}, lsl #2]", "sqrdmulh z0.s, z0.s, z0.s",
             "uadalp z4.d, p0/m, z0.s", "incw {i}"],
            ["uaddv d4, p0, z4.d", "fmov {sum}, d4"],
            x = in(reg) x.as_ptr(), sum = out(reg) sum,
        );
    }
    sum
}

/// Twin of the products in [`crate::norm`].
///
/// # Safety
/// The CPU has SVE2; `weights` has as many values as `x`.
pub(crate) unsafe fn multiply(x: &mut [i32], weights: &[[u8; 4]], root: i32) {
    // SAFETY: that many values are there; the caller promises the instructions.
    unsafe {
        each!("s", x.len(),
            ["mov z2.s, {root:w}"],
            ["ld1w {{z0.s}}, p1/z, [{x}, {i}, lsl #2]", "ld1w {{z1.s}}, p1/z, [{weights}, {i}, lsl #2]",
             "sqrdmulh z0.s, z0.s, z1.s", "sqrdmulh z0.s, z0.s, z2.s",
             "st1w {{z0.s}}, p1, [{x}, {i}, lsl #2]", "incw {i}"],
            [],
            x = in(reg) x.as_mut_ptr(), weights = in(reg) weights.as_ptr(), root = in(reg) root,
        );
    }
}

/// Twin of [`crate::narrow`]'s bits of all magnitudes.
///
/// # Safety
/// The CPU has SVE2.
pub(crate) unsafe fn magnitude(values: &[i64]) -> u64 {
    let all;
    // SAFETY: that many values are there; the caller promises the instructions.
    unsafe {
        each!("d", values.len(),
            ["mov z4.d, #0"],
            ["ld1d {{z0.d}}, p1/z, [{values}, {i}, lsl #3]", "abs z0.d, p0/m, z0.d",
             "orr z4.d, z4.d, z0.d", "incd {i}"],
            ["orv d4, p0, z4.d", "fmov {all}, d4"],
            values = in(reg) values.as_ptr(), all = out(reg) all,
        );
    }
    all
}

/// Twin of [`crate::narrow`]'s rounding.
///
/// # Safety
/// The CPU has SVE2; `out` has as many elements as `values`.
pub(crate) unsafe fn round(values: &[i64], shift: i32, out: &mut [i32]) {
    // SAFETY: that many values are there; the caller promises the instructions.
    unsafe {
        each!("d", values.len(),
            ["mov z1.d, {left}"],
            ["ld1d {{z0.d}}, p1/z, [{values}, {i}, lsl #3]", "srshl z0.d, p0/m, z0.d, z1.d",
             "st1w {{z0.d}}, p1, [{out}, {i}, lsl #2]", "incd {i}"],
            [],
            values = in(reg) values.as_ptr(), out = in(reg) out.as_mut_ptr(), left = in(reg) -i64::from(shift),
        );
    }
}

/// What puts 8 scaled sums to an [`Output`].
macro_rules! put {
    (Store) => {
        "sqxtnb z0.s, z0.d\nst1w {{z0.d}}, p0, [{to}]\nadd {to}, {to}, {stride}, lsl #2"
    };
    (Add) => {
        concat!(
            "ld1d {{z3.d}}, p0/z, [{from}]\nsqadd z0.d, z0.d, z3.d\nst1d {{z0.d}}, p0, [{to}]\n",
            "add {from}, {from}, {stride}, lsl #3\nadd {to}, {to}, {stride}, lsl #3"
        )
    };
}

/// Twin of [`crate::neon::finish`], of sums whose shifts were checked.
///
/// # Safety
/// The CPU has SVE2 with vectors of 64 bytes or more.
pub(crate) unsafe fn finish(
    sums: &[[i64; GROUP]],
    head: &[u8; GROUP_HEAD],
    heads: &[Token],
    frac: i32,
    out: Output,
    at: usize,
    stride: usize,
) {
    let count = sums.len().min(heads.len());
    if count == 0 {
        return;
    }
    let end = at + (count - 1) * stride + GROUP;
    macro_rules! run {
        ($put:ident, $($to:tt)*) => {
            asm!(
                ".arch_extension sve", ".arch_extension sve2",
                "ptrue p0.d, vl8", "ld1sw {{z1.d}}, p0/z, [{head}]", "mov z2.d, {frac}", "sub z1.d, z2.d, z1.d",
                "2:",
                "ld1rsw {{z2.d}}, p0/z, [{heads}]", "add {heads}, {heads}, #8",
                "ld1d {{z0.d}}, p0/z, [{sums}]", "add {sums}, {sums}, #64",
                "sub z2.d, z1.d, z2.d", "srshl z0.d, p0/m, z0.d, z2.d",
                put!($put),
                "subs {count}, {count}, #1", "b.ne 2b",
                ".arch_extension nosve2", ".arch_extension nosve",
                head = in(reg) head.as_ptr(), frac = in(reg) i64::from(frac),
                heads = inout(reg) heads.as_ptr() => _, sums = inout(reg) sums.as_ptr() => _,
                count = inout(reg) count => _, stride = in(reg) stride, $($to)*
                out("p0") _, out("v0") _, out("v1") _, out("v2") _, out("v3") _, options(nostack)
            )
        };
    }
    // SAFETY: as many sums and heads are there, and 8 elements at each place up to `end`; the caller promises the instructions.
    unsafe {
        match out {
            Output::Store(out) => run!(Store, to = inout(reg) out[..end][at..].as_ptr() => _,),
            Output::Add { before, after } => run!(
                Add,
                from = inout(reg) before[..end][at..].as_ptr() => _, to = inout(reg) after[..end][at..].as_ptr() => _,
            ),
        }
    }
}

/// Twin of [`crate::neon::finish_groups`].
///
/// # Safety
/// The CPU has SVE2 with vectors of 64 bytes or more.
pub(crate) unsafe fn finish_groups(
    sums: &[[i64; GROUP]],
    groups: &[u8],
    each: usize,
    exponent: i32,
    out: Output,
    at: usize,
) -> bool {
    assert!(each >= GROUP_HEAD && groups.len() / each >= sums.len(), "a group for each sums");
    if sums.is_empty() {
        return true;
    }
    let end = at + sums.len() * GROUP;
    let largest: u64;
    macro_rules! run {
        ($put:ident, $($to:tt)*) => {
            asm!(
                ".arch_extension sve", ".arch_extension sve2",
                "ptrue p0.d, vl8", "mov z1.d, {left}", "mov z4.d, #0",
                "2:",
                "ld1sw {{z2.d}}, p0/z, [{groups}]", "add {groups}, {groups}, {each}",
                "ld1d {{z0.d}}, p0/z, [{sums}]", "add {sums}, {sums}, #64",
                "sub z2.d, z1.d, z2.d", "srshl z0.d, p0/m, z0.d, z2.d",
                // The right shift less 1.
                "not z2.d, p0/m, z2.d", "umax z4.d, p0/m, z4.d, z2.d",
                put!($put),
                "subs {count}, {count}, #1", "b.ne 2b",
                "umaxv d4, p0, z4.d", "fmov {largest}, d4",
                ".arch_extension nosve2", ".arch_extension nosve",
                left = in(reg) -i64::from(exponent), groups = inout(reg) groups.as_ptr() => _, each = in(reg) each,
                sums = inout(reg) sums.as_ptr() => _, count = inout(reg) sums.len() => _, stride = in(reg) GROUP,
                largest = out(reg) largest, $($to)*
                out("p0") _, out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, options(nostack)
            )
        };
    }
    // SAFETY: as many sums and groups are there, and 8 elements for each from `at` to `end`; the caller promises the instructions.
    unsafe {
        match out {
            Output::Store(out) => run!(Store, to = inout(reg) out[at..end].as_ptr() => _,),
            Output::Add { before, after } => run!(
                Add,
                from = inout(reg) before[at..end].as_ptr() => _, to = inout(reg) after[at..end].as_ptr() => _,
            ),
        }
    }
    // The common case: every shift is to the right and by less than the sums' length.
    largest < 62
}
