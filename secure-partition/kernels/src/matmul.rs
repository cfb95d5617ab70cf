//! `y = W x`, on whatever instructions there are.
//!
//! Nothing overflows, whatever bytes the weights are. With |mantissa| <= 2^14:
//!
//! | sum | bound |
//! |---|---|
//! | `S` of a block, i32 | 32 * 2^14 * 2056 < 2^31 (`W12`: 1 077 936 128); 2^26 for 8-bit weights |
//! | `128 * X`, i32 | 128 * 32 * 2^14 = 2^26 |
//! | a row, i64 | 2^12 blocks ([`crate::matrix::MAX_COLS`]) of at most 2^15 * 2^31 + 2^15 * 2^26: < 2^59 |
//!
//! Sums are exact, so no order of summation can make a difference.

use core::ops::Range;

use crate::activations::Activations;
use crate::format::{Format, GROUP};
use crate::isa::{Isa, Kernel};
use crate::matrix::{Matrix, row_shift};
use crate::plain::{self, Sums};

/// Tokens that share one pass over a group's weights.
const TOKENS: usize = 4;

/// Multiplies rows `8 * groups.start .. 8 * groups.end` of `weights` with every token of `x`.
///
/// `each(token, row, y)` is called once per token and group, with y of rows `row..row + y.len()` in Q.`frac`, rounded to
/// nearest, halves up, and saturated to i64. Only rows that the matrix has are reported.
///
/// # Panics
/// If the number of columns differs, or there are no such groups.
pub fn matmul(
    isa: Isa,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    frac: i32,
    mut each: impl FnMut(usize, usize, &[i64]),
) {
    assert_eq!(weights.cols(), x.cols(), "W's columns are x's");
    for index in groups {
        let (head, blocks) = weights.group(index);
        let rows = GROUP.min(weights.rows() - index * GROUP);
        let shifts: [i32; GROUP] = core::array::from_fn(|row| row_shift(head, row));
        let mut report = |token: usize, sums: &[i64; GROUP]| {
            let exponent = x.exponent(token).saturating_sub(frac);
            let y = scale_row(sums, shifts.map(|shift| shift.saturating_add(exponent)));
            each(token, index * GROUP, &y[..rows]);
        };
        let mut token = 0;
        while x.tokens() - token >= TOKENS {
            let sums = group::<TOKENS>(isa, weights.format(), blocks, x, token);
            for (i, sums) in sums.iter().enumerate() {
                report(token + i, sums);
            }
            token += TOKENS;
        }
        for token in token..x.tokens() {
            report(token, &group::<1>(isa, weights.format(), blocks, x, token)[0]);
        }
    }
}

/// [`scale`] of a group's sums. |sums| < 2^59.
#[inline]
fn scale_row(sums: &[i64; GROUP], shifts: [i32; GROUP]) -> [i64; GROUP] {
    let mut out = *sums;
    if shifts.iter().all(|shift| (1..=62).contains(shift)) {
        // The common case, without branches.
        for (out, shift) in out.iter_mut().zip(shifts) {
            *out = (*out + (1_i64 << (shift - 1))) >> shift;
        }
    } else {
        for (out, shift) in out.iter_mut().zip(shifts) {
            *out = scale(*out, shift);
        }
    }
    out
}

/// `value * 2^-shift`, rounded to nearest, halves up, saturated.
#[must_use]
#[inline]
pub const fn scale(value: i64, shift: i32) -> i64 {
    if shift > 62 {
        0
    } else if shift > 0 {
        // |value| < 2^62 wherever shift is that large or not: saturation keeps the worst case defined.
        value.saturating_add(1 << (shift - 1)) >> shift
    } else if value == 0 || shift == 0 {
        value
    } else if shift.saturating_neg() >= value.unsigned_abs().leading_zeros().cast_signed() {
        if value < 0 { i64::MIN } else { i64::MAX }
    } else {
        value << -shift
    }
}

/// One group of rows with `N` tokens, `first` and those behind it.
#[inline]
fn group<const N: usize>(isa: Isa, format: Format, blocks: &[u8], x: &Activations, first: usize) -> Sums<N> {
    let words = core::array::from_fn(|i| x.words(first + i));
    let sums = core::array::from_fn(|i| x.sums(first + i));
    match isa.kernel() {
        #[cfg(target_arch = "x86_64")]
        Kernel::Sse2 => crate::sse2::group(format, blocks, words, sums),
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => crate::neon::group(format, blocks, words, sums),
        // SAFETY: the creator of `isa` promised that the CPU has the feature.
        #[cfg(target_arch = "aarch64")]
        Kernel::Dotprod => unsafe { crate::dotprod::group(format, blocks, words, sums) },
        _ => plain::group(format, blocks, words, sums),
    }
}
