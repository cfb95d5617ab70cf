//! What blocks' minima add to sums: their products with the sums of activations, 16-bit numbers of at most 2047.

use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

use crate::activations::Activations;
use crate::batch::{Sums, TOKENS};
use crate::format::{BLOCK, SCALES};
use crate::matrix::Group;
use crate::neon::{RowSums, no_rows};

/// Blocks whose products fit i32: 32 * 2^15 * 2047 < 2^31.
const SUMMED: usize = 32;
/// Blocks that are taken at once.
const EIGHT: usize = 8;
/// The same, if fewer are left; and tokens that are taken at once.
const FOUR: usize = EIGHT / 2;

/// Adds the minima in `$m`, times the sum at a place of `$x`, to four rows each.
macro_rules! minimum {
    ($m:literal, $x:literal, $at:literal, $low:literal, $high:literal) => {
        concat!(
            "smlal ", $low, ".4s, ", $m, ".4h, ", $x, ".h[", $at, "]\n", "smlal2 ", $high, ".4s, ", $m,
            ".8h, ", $x, ".h[", $at, "]\n"
        )
    };
}

/// Adds the products of four blocks' minima in v0 to v3 with four places of some tokens' sums.
macro_rules! four {
    (0; $($x:literal $low:literal $high:literal),+) => {
        concat!($(
            minimum!("v0", $x, 0, $low, $high), minimum!("v1", $x, 1, $low, $high),
            minimum!("v2", $x, 2, $low, $high), minimum!("v3", $x, 3, $low, $high)
        ),+)
    };
    (4; $($x:literal $low:literal $high:literal),+) => {
        concat!($(
            minimum!("v0", $x, 4, $low, $high), minimum!("v1", $x, 5, $low, $high),
            minimum!("v2", $x, 6, $low, $high), minimum!("v3", $x, 7, $low, $high)
        ),+)
    };
}

/// Products of at most [`SUMMED`] blocks' minima with a token's sums: of rows 0..4 and 4..8. Where sums are zeros that fill up,
/// what they are multiplied with are the first of the group's other bytes.
///
/// # Safety
/// `sums` is valid for reads of as many sums as there are blocks.
#[inline(always)]
unsafe fn products(minima: &[u8], sums: *const i16, blocks: usize) -> [int32x4_t; 2] {
    assert!(minima.len() >= blocks * SCALES && blocks <= SUMMED, "minima, or what lies behind them");
    let mut minima = minima.as_ptr();
    // SAFETY: NEON is there; there are minima and, the caller promises, sums of that many blocks.
    unsafe {
        let [mut low, mut high] = [vdupq_n_s32(0); 2];
        let whole = blocks / EIGHT * EIGHT;
        for done in (0..whole).step_by(EIGHT) {
            asm!(
                "ldr q8, [{sums}]",
                "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                four!(0; "v8" "{low:v}" "{high:v}"),
                "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                four!(4; "v8" "{low:v}" "{high:v}"),
                minima = inout(reg) minima, sums = in(reg) sums.add(done),
                low = inout(vreg) low, high = inout(vreg) high,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v8") _,
                options(readonly, nostack)
            );
        }
        for block in whole..blocks {
            let m = vld1q_s16(minima.cast());
            minima = minima.add(SCALES);
            low = vmlal_n_s16(low, vget_low_s16(m), *sums.add(block));
            high = vmlal_high_n_s16(high, m, *sums.add(block));
        }
        [low, high]
    }
}

/// Adds two rows' products each, times a power of 2.
#[inline(always)]
unsafe fn add_times(out: &mut [int64x2_t], products: int32x4_t, power: i32) {
    // SAFETY: NEON is there.
    unsafe {
        out[0] = vmlal_n_s32(out[0], vget_low_s32(products), power);
        out[1] = vmlal_high_n_s32(out[1], products, power);
    }
}

/// Products of some groups' minima with a token's block sums, times 2^`shifts` for rows 0..4 and rows 4..8.
#[inline(always)]
pub(crate) fn of_token<const G: usize>(
    groups: [&Group; G],
    x: &Activations,
    token: usize,
    shifts: [i32; 2],
) -> [RowSums; G] {
    let mut out = [no_rows(); G];
    if !groups[0].has_minima() {
        return out;
    }
    let powers = shifts.map(|shift| 1 << (shift + x.sum_shift(token)));
    for (chunk, sums) in x.padded_sums(token).chunks(SUMMED).enumerate() {
        for (out, group) in out.iter_mut().zip(groups) {
            // SAFETY: NEON is there, and that many sums.
            unsafe {
                let [low, high] = products(group.minima_from(chunk * SUMMED), sums.as_ptr(), sums.len());
                add_times(&mut out[..2], low, powers[0]);
                add_times(&mut out[2..], high, powers[1]);
            }
        }
    }
    out
}

/// By what powers of 2 the products of some tokens are multiplied: at most 2^20. Behind the `end` they are those of the last one.
pub(crate) fn powers(x: &Activations, first: usize, end: usize) -> [i32; TOKENS] {
    core::array::from_fn(|i| 1 << (7 + x.sum_shift(end.min(first + i + 1) - 1)))
}

/// Starts the sums: products of a group's minima, which its format has, with block sums, times `powers`.
pub(crate) fn of_tokens(
    group: &Group,
    x: &Activations,
    tokens: Range<usize>,
    powers: &[i32; TOKENS],
    out: &mut Sums,
) {
    assert!(tokens.len() <= TOKENS && TOKENS.is_multiple_of(FOUR), "tokens that there are sums of");
    let blocks = x.cols() / BLOCK;
    let mut start = 0;
    while start < blocks {
        let (sums, stride) = x.sums_of_four(tokens.clone(), start);
        let mut operands = Operands {
            minima: group.minima_from(start).as_ptr(),
            blocks: SUMMED.min(blocks - start),
            fours: tokens.len().div_ceil(FOUR),
            sums,
            stride,
            powers,
            out,
        };
        // Zeros fill up to four blocks, and are multiplied with the group's other bytes; or else there are other sums.
        let mut last = [0; FOUR * SCALES];
        let ragged = operands.blocks % FOUR;
        if ragged > 0 && !x.have_zeros_behind() {
            if operands.blocks > FOUR {
                operands.blocks -= ragged;
            } else {
                let minima = &group.minima_from(start)[..ragged * SCALES];
                last[..minima.len()].copy_from_slice(minima);
                operands.minima = last.as_ptr();
            }
        }
        let done = operands.blocks;
        if start == 0 {
            operands.multiply::<false>()
        } else {
            operands.multiply::<true>()
        }
        start += done;
    }
}

/// What multiplies blocks' minima with the block sums of some tokens.
struct Operands<'a> {
    /// Of the first block; there are others, or other bytes, up to a multiple of four.
    minima: *const u8,
    /// Blocks, at most [`SUMMED`].
    blocks: usize,
    /// Fours of tokens.
    fours: usize,
    /// Block sums of the first token.
    sums: *const i16,
    /// From them to those of the next token.
    stride: usize,
    powers: &'a [i32; TOKENS],
    out: &'a mut Sums,
}

/// A token's sums of rows, {`$at`} bytes behind those of the first, from products in `$low` and `$high` and a place of the powers.
macro_rules! token {
    ($op:literal, $load:expr, $store:expr, $low:literal, $high:literal, $power:literal) => {
        concat!(
            $load,
            $op, " v4.2d, ", $low, ".2s, v0.s[", $power, "]\n", $op, "2 v5.2d, ", $low, ".4s, v0.s[", $power, "]\n",
            $op, " v6.2d, ", $high, ".2s, v0.s[", $power, "]\n", $op, "2 v7.2d, ", $high, ".4s, v0.s[", $power, "]\n",
            $store
        )
    };
    (write $($products:tt)*) => {
        token!("smull", "", "stp q4, q5, [{out}], #32\nstp q6, q7, [{out}], #32\n", $($products)*)
    };
    (add $($products:tt)*) => {
        token!(
            "smlal", "ldp q4, q5, [{out}]\nldp q6, q7, [{out}, #32]\n",
            "stp q4, q5, [{out}], #32\nstp q6, q7, [{out}], #32\n", $($products)*
        )
    };
}

/// [`four`] of four tokens, whose block sums are in v8 to v11 and whose products in v16 to v23.
macro_rules! four_tokens {
    ($at:tt) => {
        four!($at; "v8" "v16" "v17", "v9" "v18" "v19", "v10" "v20" "v21", "v11" "v22" "v23")
    };
}

/// Four tokens' sums of rows, for all of which {minima} are loaded once.
macro_rules! fours {
    ($how:ident, $operands:ident) => {
        asm!(
            "4:",
            "mov {a}, {sums}", "add {b}, {a}, {stride}", "add {c}, {b}, {stride}", "add {d}, {c}, {stride}",
            "add {sums}, {d}, {stride}", "mov {m}, {minima}", "mov {left}, {eights}",
            "movi v16.2d, #0", "movi v17.2d, #0", "movi v18.2d, #0", "movi v19.2d, #0",
            "movi v20.2d, #0", "movi v21.2d, #0", "movi v22.2d, #0", "movi v23.2d, #0",
            "cbz {left}, 3f",
            "2:",
            "ldr q8, [{a}], #16", "ldr q9, [{b}], #16", "ldr q10, [{c}], #16", "ldr q11, [{d}], #16",
            "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{m}], #64",
            four_tokens!(0),
            "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{m}], #64",
            four_tokens!(4),
            "subs {left}, {left}, #1",
            "b.ne 2b",
            "3:",
            "cbz {half}, 5f",
            "ldr d8, [{a}]", "ldr d9, [{b}]", "ldr d10, [{c}]", "ldr d11, [{d}]",
            "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{m}]",
            four_tokens!(0),
            "5:",
            "ldr q0, [{powers}], #16",
            token!($how "v16", "v17", 0), token!($how "v18", "v19", 1),
            token!($how "v20", "v21", 2), token!($how "v22", "v23", 3),
            "subs {fours}, {fours}, #1",
            "b.ne 4b",
            minima = in(reg) $operands.minima, m = out(reg) _, left = out(reg) _,
            eights = in(reg) ($operands.blocks + EIGHT / 2 - 1) / EIGHT,
            half = in(reg) usize::from(matches!($operands.blocks % EIGHT, 1..=FOUR)),
            sums = inout(reg) $operands.sums => _, stride = in(reg) 2 * $operands.stride,
            a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
            fours = inout(reg) $operands.fours => _, powers = inout(reg) $operands.powers.as_ptr() => _,
            out = inout(reg) $operands.out.as_mut_ptr() => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v16") _, out("v17") _, out("v18") _,
            out("v19") _, out("v20") _, out("v21") _, out("v22") _, out("v23") _,
            options(nostack)
        )
    };
}

impl Operands<'_> {
    /// Writes the sums or, to what is there, adds them.
    fn multiply<const ADD: bool>(self) {
        // SAFETY: NEON is there; so are minima up to a multiple of four or eight blocks, or other bytes of the group, and block
        // sums, powers and sums of whole fours of tokens.
        unsafe {
            if ADD {
                fours!(add, self);
            } else {
                fours!(write, self);
            }
        }
    }
}
