//! Attention of one query head over the positions of a key-value head, by dot products of octets.
//!
//! | what | numbers |
//! |---|---|
//! | keys and values | octets under one scale for each position, see [`crate::cache`]: upper octets at most 127, lower ones 64 |
//! | query, weights of the mixture | at most `WORD_MAX` under one exponent, as 256 * upper octet + lower one; a weight is not negative |
//! | scores | Q15.16, saturated, not below `SCORE_MIN` |
//! | softmax weights | Q2.30 |
//!
//! Nothing overflows:
//!
//! | sum | bound |
//! |---|---|
//! | query * key, i32 | [`HEAD_DIM_MAX`] * 127 * 32639 < 2^30, as much as a 128th of it by lower octets |
//! | octets of weights * values, i32 | [`STRETCH`] * 128 * 127 < 2^23 |
//! | weights * values, i32 | the weights' sum is at most 2^24, and 2^16 by rounding; (2^24 + 2^16) * (127 + 64 / 128) < 2^31 |
//! | softmax weights, i64 | 2^17 * 2^30 |
//!
//! The loops, `attention_plain`, have a twin for Arm's vectors that gives the same bits, `attention_neon`.

#[cfg(target_arch = "aarch64")]
use crate::attention_neon::{Dot, Long, Vectors};
use crate::attention_plain::Plain;
use crate::cache::{CHUNK, Layout, POSITIONS, Rows, exponent, magnitude, turned};
use crate::isa::Isa;
use crate::matrix::ShapeError;
use crate::word::high;

/// Most dimensions of a head.
pub const HEAD_DIM_MAX: usize = 256;
/// Most positions of a cache.
pub const CONTEXT_MAX: usize = 1 << 17;
/// Positions that are attended to at once.
pub const STRETCH: usize = 512;
/// Multiply-accumulates of a matrix product that take as long as all that [`attend`] does for a position, for each dimension.
pub const COST: usize = 4;
/// Fraction bits of [`attend`]'s result.
pub const OUT_FRAC: i32 = 40;
/// log2 e, Q1.60.
pub const LOG2_E: u64 = 1_663_314_137_230_540_311;
/// 1, Q2.30.
pub const ONE: i64 = 1 << 30;

/// Columns of the longest query.
pub(crate) const COLS_MAX: usize = 2 * HEAD_DIM_MAX;
/// Columns that are mixed at once.
pub(crate) const STRIP: usize = 32;
/// Weights that are narrowed at once.
const WEIGHTS: usize = 16;
/// Largest magnitude that a query or a weight is rounded to: its octets are at most 127, and at least -128.
#[cfg(test)]
pub(crate) const WORD_MAX: i32 = 127 * 256 + 127;
/// Smallest score: twice as much still fits.
pub(crate) const SCORE_MIN: i32 = -1 << 30;

/// `(2^t - 1) / t` of t in 0..1, from the highest power of t on, Q2.30: relative error of 2^t below 2^-23.
pub(crate) const EXP2: [i32; 5] = [2_004_816, 9_681_962, 59_914_701, 257_874_615, 744_265_554];

/// `2^x` of x <= 0 in Q15.16, as Q2.30. Relative error below 2^-21, absolute below 2^-30 + that.
#[must_use]
#[inline]
pub const fn exp2(x: i32) -> i64 {
    let (whole, t) = (x >> 16, (x & 0xffff) << 15);
    if whole < -31 {
        return 0;
    }
    let mut sum = EXP2[0];
    let mut i = 1;
    while i < EXP2.len() {
        sum = EXP2[i] + high(sum, t);
        i += 1;
    }
    let mantissa = ONE + high(sum, t) as i64;
    mantissa >> if whole < 0 { -whole } else { 0 }
}

/// The loops, each of which has a twin.
pub(crate) trait Loops {
    /// Rounds `values * 2^-shift` to two octets each, 256 * `high` + `low`. They are not above `WORD_MAX`.
    ///
    /// # Safety
    /// The CPU has the instructions; `high` and `low` are as long as `values`.
    unsafe fn narrow(values: &[i32], shift: i32, high: &mut [i8], low: &mut [i8]);

    /// Writes query . key of as many positions as there are scores, whole groups of [`POSITIONS`]. Answers the largest of the first
    /// `positions`, which end in the last group; those behind them are -2^31.
    ///
    /// # Safety
    /// The CPU has the instructions; there are as many scales as scores, and octets of as many positions.
    unsafe fn score(query: &Query, keys: &Rows, positions: usize, scores: &mut [i32]) -> i32;

    /// Turns scores into softmax weights times scales, of 2^(`top` - 30).
    ///
    /// # Safety
    /// The CPU has the instructions; there are as many scales as scores, whole groups.
    unsafe fn soften(scores: &mut [i32], largest: i32, scales: &[i32], top: i32) -> Softened;

    /// Sums of the weighted octets of `N` columns from `first` on; weights are upper and lower octets.
    ///
    /// # Safety
    /// The CPU has the instructions; there are octets of (`cols`) for as many positions as weights, whole groups; `N` is a multiple
    /// of [`CHUNK`].
    unsafe fn mix<const N: usize>(weights: [&[i8]; 2], values: &[i8], cols: usize, first: usize) -> [i32; N];

    /// Writes products of sums and a factor, [`high`], times 2^shift.
    ///
    /// # Safety
    /// The CPU has the instructions; there are not fewer sums than results.
    unsafe fn finish(sums: &[i32], mean: (i32, i32), out: &mut [i64]);
}

/// What [`Loops::soften`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Softened {
    /// Of the softmax weights, Q.30.
    pub sum: i64,
    /// Of the weights of the mixture.
    pub weights: i64,
    /// The largest weight of the mixture.
    pub largest: i32,
}

/// A query head in octets.
#[derive(Debug)]
pub(crate) struct Query {
    pub high: [i8; COLS_MAX],
    pub low: [i8; COLS_MAX],
    /// Columns.
    pub cols: usize,
    /// A unit is 2^`exponent` of Q15.16.
    pub exponent: i32,
}

impl Query {
    /// Of what [`turned`] answers.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`; there are as many numbers as dimensions.
    unsafe fn new<L: Loops>(layout: &Layout, (numbers, exponent): (&[i32], i32)) -> Self {
        let shift = word_shift(magnitude(numbers));
        let (cols, exponent) = (layout.cols(), exponent + shift);
        let mut query = Self { high: [0; COLS_MAX], low: [0; COLS_MAX], cols, exponent };
        let dims = ..numbers.len();
        // SAFETY: the caller's promise.
        unsafe { L::narrow(numbers, shift, &mut query.high[dims], &mut query.low[dims]) };
        if let Some(lower) = layout.lower() {
            // What lower octets are multiplied with is a 128th.
            for col in 0..numbers.len() {
                let word = 256 * i32::from(query.high[col]) + i32::from(query.low[col]);
                let word = (word + 64) >> 7;
                query.high[lower + col] = ((word + 128) >> 8) as i8;
                query.low[lower + col] = word as i8;
            }
        }
        query
    }
}

/// The shift that makes numbers of a magnitude at most `WORD_MAX`, and the largest more than 16256.
const fn word_shift(magnitude: u32) -> i32 {
    // What is below 2^15 with a 128th of it is at most 32515, rounded.
    17 - (magnitude + (magnitude >> 7)).leading_zeros().cast_signed()
}

/// Keys and values of one key-value head.
#[derive(Clone, Copy, Debug)]
pub struct Cache<'a> {
    /// Written by [`Layout::put_key`].
    pub keys: Rows<'a>,
    /// Written by [`Layout::put_value`].
    pub values: Rows<'a>,
}

/// Room for what [`attend`] computes in between, and for what it answers: 5 KB.
#[derive(Debug)]
pub struct Scratch {
    scores: [i32; STRETCH],
    weights: [i8; 2 * STRETCH],
    mean: [i64; HEAD_DIM_MAX],
}

impl Scratch {
    /// Its contents do not matter.
    #[must_use]
    pub const fn new() -> Self {
        Self { scores: [0; STRETCH], weights: [0; 2 * STRETCH], mean: [0; HEAD_DIM_MAX] }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Attends to the first `positions` of a cache with a query in Q15.16, (`head_dim`), and answers the weighted mean of the values, in
/// Q.40, (`head_dim`).
///
/// Positions are taken [`STRETCH`] at a time, and a running mean is kept, so that the room is small, however long the context
/// is: any core can attend for any head.
///
/// # Errors
/// [`ShapeError`] if `query` does not have the layout's dimensions, if the cache is too short for so many positions, or if they are
/// none, or more than [`CONTEXT_MAX`].
pub fn attend<'s>(
    isa: Isa,
    layout: &Layout,
    query: &[i32],
    cache: &Cache,
    positions: usize,
    scratch: &'s mut Scratch,
) -> Result<&'s [i64], ShapeError> {
    let dims = layout.head_dim();
    if query.len() != dims || positions == 0 || positions > CONTEXT_MAX {
        return Err(ShapeError);
    }
    let mut room = [0; HEAD_DIM_MAX];
    let query = turned(query, &mut room)?;
    let Scratch { scores, weights, mean } = scratch;
    let mean = &mut mean[..dims];
    let mut stretch = |first: usize, out: &mut [i64]| {
        let positions = STRETCH.min(positions - first);
        let head = Head {
            layout,
            query,
            keys: cache.keys.some(layout, first, positions)?,
            values: cache.values.some(layout, first, positions)?,
            positions,
        };
        let needed = positions.next_multiple_of(WEIGHTS);
        let (scores, weights) = (&mut scores[..needed], &mut weights[..2 * needed]);
        // SAFETY: `isa` promises the instructions, and lengths are those of so many positions.
        unsafe {
            #[cfg(target_arch = "aarch64")]
            return Ok(match isa {
                Isa::PLAIN => head.attend::<Plain>(scores, weights, out),
                _ if isa.has_dotprod() => head.attend::<Vectors<Dot>>(scores, weights, out),
                _ => head.attend::<Vectors<Long>>(scores, weights, out),
            });
            #[cfg(not(target_arch = "aarch64"))]
            {
                let _ = isa;
                Ok(head.attend::<Plain>(scores, weights, out))
            }
        }
    };
    let mut total = stretch(0, mean)?;
    for first in (STRETCH..positions).step_by(STRETCH) {
        let mut more = [0; HEAD_DIM_MAX];
        let more = &mut more[..dims];
        total = total.join(mean, stretch(first, more)?, more);
    }
    Ok(mean)
}

/// The softmax's denominator so far: the sum of 2^(score - largest score), Q.30, and that largest score.
#[derive(Clone, Copy)]
struct Total {
    sum: i64,
    largest: i32,
}

impl Total {
    /// That of both together; the mean of `here`'s positions becomes part of that of this one's. Means are within +-2^62.
    fn join(self, mean: &mut [i64], here: Self, more: &[i64]) -> Self {
        let largest = self.largest.max(here.largest);
        // A sum is 2^30 or more, and 2^30 a position at most.
        let of = |total: Self| {
            let share = exp2(total.largest.saturating_sub(largest));
            ((i128::from(total.sum) * i128::from(share)) >> 30).cast_unsigned()
        };
        let (before, added) = (of(self), of(here));
        let sum = before + added;
        let share = ((added << 32) / sum.max(1)) as i64;
        for (mean, &more) in mean.iter_mut().zip(more) {
            let both =
                i128::from(*mean) * i128::from((1 << 32) - share) + i128::from(more) * i128::from(share);
            *mean = (both >> 32) as i64;
        }
        Self { sum: sum as i64, largest }
    }
}

/// What a query attends to: whole groups of positions, of which the last may have some to spare.
struct Head<'a> {
    layout: &'a Layout,
    /// [`turned`]
    query: (&'a [i32], i32),
    keys: Rows<'a>,
    values: Rows<'a>,
    positions: usize,
}

impl Head<'_> {
    /// Writes the mean of the values to `out`.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`. `out` has the layout's dimensions, and there are as many scores, and twice as many
    /// weights, as positions, filled up to [`WEIGHTS`].
    unsafe fn attend<L: Loops>(&self, scores: &mut [i32], weights: &mut [i8], out: &mut [i64]) -> Total {
        let groups = self.positions.next_multiple_of(POSITIONS);
        let (scored, rest) = scores.split_at_mut(groups);
        let (high, low) = weights.split_at_mut(scored.len() + rest.len());
        let top = self.values.scales[..self.positions]
            .iter()
            .fold(i32::MIN, |top, &scale| top.max(exponent(scale)));
        // SAFETY: the caller's promise; `Rows::some` has scales and octets of whole groups.
        let (softened, largest, shift) = unsafe {
            let query = Query::new::<L>(self.layout, self.query);
            let largest = L::score(&query, &self.keys, self.positions, scored);
            let softened = L::soften(scored, largest, self.values.scales, top);
            rest.fill(0);
            let shift = softened.shift();
            L::narrow(scores, shift, high, low);
            (softened, largest, shift)
        };
        let mixture = Mixture {
            layout: self.layout,
            weights: [&high[..groups], &low[..groups]],
            values: self.values.octets,
            mean: softened.mean(shift + top),
        };
        let (strips, rest) = out.as_chunks_mut::<STRIP>();
        let whole = strips.len() * STRIP;
        // SAFETY: the caller's promise; columns are filled up to whole chunks.
        unsafe {
            for (i, out) in strips.iter_mut().enumerate() {
                mixture.write::<L, STRIP>(i * STRIP, out);
            }
            for (i, out) in rest.chunks_mut(CHUNK).enumerate() {
                mixture.write::<L, CHUNK>(whole + i * CHUNK, out);
            }
        }
        Total { sum: softened.sum, largest }
    }
}

impl Softened {
    /// The shift that makes the largest weight at most `WORD_MAX`, and their sum at most 2^24.
    fn shift(&self) -> i32 {
        let sum = 40 - self.weights.leading_zeros().cast_signed();
        word_shift(self.largest.cast_unsigned()).max(sum).max(0)
    }

    /// What sums of weights of 2^(`exponent` - 30) are multiplied with and shifted left by, for the mean in Q.[`OUT_FRAC`].
    const fn mean(&self, exponent: i32) -> (i32, i32) {
        // The largest score's weight is 2^30: the sum has 31 to 48 bits, of which 31 count.
        let bits = 64 - self.sum.leading_zeros().cast_signed();
        let reciprocal = (1 << 61) / (self.sum >> (bits - 31));
        let reciprocal = if reciprocal > i32::MAX as i64 { i32::MAX } else { reciprocal as i32 };
        (reciprocal, exponent + OUT_FRAC + 1 - bits)
    }
}

/// Weights, and what they are the weights of.
struct Mixture<'a> {
    layout: &'a Layout,
    weights: [&'a [i8]; 2],
    values: &'a [i8],
    /// [`Softened::mean`]
    mean: (i32, i32),
}

impl Mixture<'_> {
    /// Writes the means of `N` dimensions from `first` on, or of fewer.
    ///
    /// # Safety
    /// Those of [`Loops::mix`].
    #[inline(always)]
    unsafe fn write<L: Loops, const N: usize>(&self, first: usize, out: &mut [i64]) {
        let cols = self.layout.cols();
        // SAFETY: the caller's promise.
        let mut sums = unsafe { L::mix::<N>(self.weights, self.values, cols, first) };
        if let Some(lower) = self.layout.lower() {
            // SAFETY: the same.
            let lower = unsafe { L::mix::<N>(self.weights, self.values, cols, lower + first) };
            sums.iter_mut().zip(lower).for_each(|(sum, lower)| *sum += (lower + 64) >> 7);
        }
        // A mean is at most the largest value, and rounded weights are at most 5 times as much together: < 2^60.
        // SAFETY: the same.
        unsafe { L::finish(&sums, self.mean, out) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_limit_and_their_bits() {
        for bit in 0..32 {
            // No i32 has a larger one than 2^31.
            let magnitudes =
                (0..129).map(|i| (1_u64 << bit) + (i << bit) / 129).filter(|&all| all <= 1 << 31);
            for magnitude in magnitudes.map(|magnitude| magnitude as u32) {
                let shift = word_shift(magnitude);
                let word = f64::from(magnitude) * 2f64.powi(-shift);
                assert!(word.round() <= f64::from(WORD_MAX), "{magnitude}");
                assert!(word > 16256.0, "{magnitude}");
            }
        }
    }

    #[test]
    fn weights_and_their_sum_keep_their_limits() {
        for positions in [1, 2, 513, 1025, CONTEXT_MAX as i64] {
            for weight in [0, 1, 32_639, 32_640, 1 << 29, (1 << 30) - 1, 1 << 30] {
                let weights = positions * i64::from(weight);
                let softened = Softened { sum: positions << 30, weights, largest: weight };
                let shift = softened.shift();
                let rounded = (i64::from(weight) + (1 << shift >> 1)) >> shift;
                assert!(rounded <= WORD_MAX.into() && rounded * positions <= (1 << 24) + (1 << 16));
                assert!(shift == 0 || 2 * rounded > WORD_MAX.into() || rounded * positions >= 1 << 23);
                let (factor, up) = softened.mean(0);
                let mean = f64::from(factor) * 2f64.powi(up - 31);
                assert!(
                    (mean * positions as f64 * 2f64.powi(30 - OUT_FRAC) - 1.0).abs() < 1e-9,
                    "{positions}: {mean}"
                );
            }
        }
    }

    #[test]
    fn exponents_of_2_meet_at_whole_numbers() {
        for x in (-32 << 16..0).step_by(1 << 16) {
            assert!(exp2(x - 1) <= exp2(x) && exp2(x) <= exp2(x + 1).min(ONE));
            assert_eq!(exp2(x), if x < -31 << 16 { 0 } else { ONE >> -(x >> 16) });
        }
    }
}
