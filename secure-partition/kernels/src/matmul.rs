//! `y = W x`, on whatever instructions there are.
//!
//! Nothing overflows, whatever bytes the weights are. With |octet| <= 127, scales of at most 4096 and |mantissa| < 2^19:
//!
//! | sum | bound |
//! |---|---|
//! | `S` of an entry, i32 | 32 * 127 * 128 < 2^19 of octets; 32 * 127 * 15 < 2^16 of low nibbles, not yet times 16; and a bias of 32 * 127 * 8 < 2^15 on the way |
//! | `a * S`, i32 | 4096 * 32 * 127 * 128 < 2^31; 4096 * 32 * 127 * 15 < 2^28 of low nibbles, again not yet times 16 |
//! | `2^s * X` of a block | 32 * 2^19 = 2^24, as much again by rounding |
//! | a row, i64 | 2^12 blocks ([`crate::matrix::MAX_COLS`]), each with two entries of at most 2^15 * 16 * 2^28 and 2^15 * 2^7 * 2^25 of minima: < 2^61 |
//!
//! Sums are exact, so no order of summation can make a difference.

use core::ops::Range;
use core::sync::atomic::{AtomicI32, AtomicI64, Ordering::Relaxed};

use crate::activations::Activations;
use crate::format::{GROUP, GROUP_HEAD};
use crate::isa::{Isa, Kernel};
use crate::matrix::{Group, Matrix, ShapeError, row_shift};
use crate::plain::{self, Sums};

/// Tokens that share one pass over a group's weights, where weights are unpacked for each.
const TOKENS: usize = 4;

/// Where a product goes. Elements are stored one by one or some at a time, by relaxed stores: several cores may write to the
/// same array, and even the same value to the same element.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// (tokens, rows): y, saturated.
    Store(&'a [AtomicI32]),
    /// (tokens, rows): what was there before, plus y, saturated.
    Add {
        /// What was there before.
        before: &'a [i64],
        /// The sum.
        after: &'a [AtomicI64],
    },
}

impl Output<'_> {
    /// Elements.
    fn len(&self) -> usize {
        match self {
            Self::Store(out) => out.len(),
            Self::Add { before, after } => before.len().min(after.len()),
        }
    }

    /// Puts `y` of some rows of a token at `at`.
    fn put(&self, at: usize, y: &[i64]) {
        match self {
            Self::Store(out) => {
                for (out, &y) in out[at..].iter().zip(y) {
                    out.store(y.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32, Relaxed);
                }
            }
            Self::Add { before, after } => {
                for ((after, &before), &y) in after[at..].iter().zip(&before[at..]).zip(y) {
                    after.store(before.saturating_add(y), Relaxed);
                }
            }
        }
    }
}

/// Multiplies rows `8 * groups.start .. 8 * groups.end` of `weights` with every token of `x`.
///
/// y is in Q.`frac`, rounded to nearest, halves up, and saturated.
///
/// # Errors
/// [`ShapeError`] if `x` has not [`Matrix::inputs`] columns or more, the activations were not written for `isa`, there are no
/// such groups, or `out` is shorter than (tokens, rows). Nothing is written then.
pub fn matmul(
    isa: Isa,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    frac: i32,
    out: Output,
) -> Result<(), ShapeError> {
    let (weights, x) = (&weights.octets(), &x.first(weights.inputs())?);
    let room = x.tokens().checked_mul(weights.rows()).is_some_and(|needed| needed <= out.len());
    if !x.are_for(isa) || groups.start > groups.end || groups.end > weights.groups() || !room {
        return Err(ShapeError);
    }
    let kernel = isa.kernel(x.tokens());
    let report = |index: usize, head: &[u8; GROUP_HEAD], first: usize, sums: &[[i64; GROUP]]| {
        let rows = GROUP.min(weights.rows() - index * GROUP);
        let at = |token: usize| token * weights.rows() + index * GROUP;
        #[cfg(target_arch = "aarch64")]
        if rows == GROUP {
            let heads = &x.heads(first)[..sums.len()];
            if crate::neon::finish(kernel, sums, head, heads, frac, out, at(first), weights.rows()) {
                return;
            }
        }
        for (token, sums) in (first..).zip(sums) {
            let exponent = x.exponent(token).saturating_sub(frac);
            let shifts = core::array::from_fn(|row| row_shift(head, row).saturating_add(exponent));
            out.put(at(token), &scale_row(sums, shifts)[..rows]);
        }
    };
    match kernel {
        Kernel::Plain => by_token(plain::group, plain::group, weights, groups, x, report),
        #[cfg(target_arch = "x86_64")]
        Kernel::Sse2 => by_token(crate::sse2::group, crate::sse2::group, weights, groups, x, report),
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the creator of `isa` promised that the CPU has the features.
        _ => unsafe {
            let report_groups = |first: usize, token: usize, sums: &[[i64; GROUP]]| {
                let end = first + sums.len();
                let exponent = x.exponent(token).saturating_sub(frac);
                let (bytes, each) = (weights.bytes(first..end), weights.group_bytes());
                let at = token * weights.rows() + first * GROUP;
                if end * GROUP > weights.rows()
                    || !crate::neon::finish_groups(kernel, sums, bytes, each, exponent, out, at)
                {
                    for ((index, group), sums) in (first..).zip(weights.groups_in(first..end)).zip(sums) {
                        report(index, group.head, token, core::slice::from_ref(sums));
                    }
                }
            };
            crate::arm::multiply(kernel, weights, groups, x, &report, &report_groups);
        },
        #[cfg(not(target_arch = "aarch64"))]
        _ => by_token(plain::group, plain::group, weights, groups, x, report),
    }
    Ok(())
}

/// What is done with the sums of a group and some tokens: `(group, head, first token, sums)`.
pub(crate) trait Report: Fn(usize, &[u8; GROUP_HEAD], usize, &[[i64; GROUP]]) {}

impl<T: Fn(usize, &[u8; GROUP_HEAD], usize, &[[i64; GROUP]])> Report for T {}

/// Each group with four tokens at a time, then with single ones.
#[inline]
fn by_token(
    four: impl Fn(&Group, &Activations, usize) -> Sums<TOKENS>,
    one: impl Fn(&Group, &Activations, usize) -> Sums<1>,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    report: impl Report,
) {
    for (index, group) in groups.clone().zip(weights.groups_in(groups)) {
        let whole = x.tokens() / TOKENS * TOKENS;
        for first in (0..whole).step_by(TOKENS) {
            report(index, group.head, first, &four(&group, x, first));
        }
        for token in whole..x.tokens() {
            report(index, group.head, token, &one(&group, x, token));
        }
    }
}

/// [`scale`] of a group's sums. |sums| < 2^61.
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
