//! The inner loops of attention of one query head over the positions of a key-value head.
//!
//! | what | numbers |
//! |---|---|
//! | mantissas of queries and keys | at most [`KEY_MAX`]: 16383^2 * 8 < 2^31 |
//! | mantissas of values | at most [`VALUE_MAX`] |
//! | scores | Q15.16, within +-2^13, so that differences fit |
//! | softmax weights | Q2.30; for the mixture at most `WEIGHT_MAX` under one exponent: 32767 * 8191 * 8 < 2^31 |
//!
//! Each has a twin for Armv8.0-A that gives the same bits.

use crate::matmul::scale;

/// Largest magnitude of a mantissa of queries and keys.
pub const KEY_MAX: i32 = (1 << 14) - 1;
/// Largest magnitude of a mantissa of values.
pub const VALUE_MAX: i32 = (1 << 13) - 1;
/// Largest weight of a mixture.
const WEIGHT_MAX: i32 = (1 << 15) - 1;
/// Products of queries and keys that are summed in i32 before they are added up in i64.
const CHUNK: usize = 8;
/// Positions whose weighted values are summed in i32.
pub(crate) const POSITIONS: usize = 8;
/// Dimensions that [`mix`] takes at once.
pub const DIMENSIONS: usize = 32;
/// Largest magnitude of a score.
pub(crate) const LIMIT: i64 = 1 << 29;

/// [`EXP2_64`], as a vector's table.
#[cfg(target_arch = "aarch64")]
pub(crate) static EXP2: [i32; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = EXP2_64[i] as i32;
        i += 1;
    }
    table
};
/// 2^(i / 16), Q2.30.
const EXP2_64: [i64; 16] = [
    1_073_741_824,
    1_121_280_436,
    1_170_923_762,
    1_222_764_986,
    1_276_901_417,
    1_333_434_672,
    1_392_470_869,
    1_454_120_821,
    1_518_500_250,
    1_585_730_000,
    1_655_936_265,
    1_729_250_827,
    1_805_811_301,
    1_885_761_398,
    1_969_251_188,
    2_056_437_387,
];
/// ln 2, Q0.30.
pub(crate) const LN_2: i64 = 744_261_118;
/// 1, Q2.30.
pub const ONE: i64 = 1 << 30;

/// `2^x` of x <= 0 in Q15.16, as Q2.30. Relative error below 2^-21, absolute below 2^-30 + that.
#[must_use]
#[inline]
pub const fn exp2(x: i32) -> i64 {
    let (whole, fraction) = (x >> 16, (x & 0xffff) as i64);
    if whole < -31 {
        return 0;
    }
    // 2^(index / 16) * e^y, y = ln 2 * (fraction below a sixteenth), by three terms: y^4 / 24 < 2^-22.
    let y = ((fraction & 0xfff) * LN_2) >> 16;
    let y2 = (y * y) >> 30;
    let y3 = (y2 * y) >> 30;
    let rest = ONE + y + (y2 >> 1) + y3 / 6;
    let mantissa = (EXP2_64[(fraction >> 12) as usize] * rest) >> 30;
    mantissa >> if whole < 0 { -whole } else { 0 }
}

/// Writes query . key * 2^-(`shift` + exponent) of every position to `scores`, Q15.16, and answers the largest.
///
/// `keys` are (positions, `query.len()`), `exponents` (positions).
pub fn score(query: &[i16], keys: &[i16], exponents: &[i16], shift: i32, scores: &mut [i32]) -> i32 {
    let mut largest = i32::MIN;
    let keys = keys.chunks_exact(query.len());
    for ((score, key), &exponent) in scores.iter_mut().zip(keys).zip(exponents) {
        #[cfg(target_arch = "aarch64")]
        let sum = crate::attention_neon::dot(query, key).unwrap_or_else(|| dot(query, key));
        #[cfg(not(target_arch = "aarch64"))]
        let sum = dot(query, key);
        *score = scale(sum, shift + i32::from(exponent)).clamp(-LIMIT, LIMIT) as i32;
        largest = largest.max(*score);
    }
    largest
}

/// Dot product of mantissas.
#[inline]
pub(crate) fn dot(a: &[i16], b: &[i16]) -> i64 {
    let short =
        |a: &[i16], b: &[i16]| a.iter().zip(b).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum::<i32>();
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<CHUNK>(), b.as_chunks::<CHUNK>());
    a.iter().zip(b).map(|(a, b)| i64::from(short(a, b))).sum::<i64>() + i64::from(short(a_rest, b_rest))
}

/// Turns scores into 2^(score - largest score), Q2.30, and answers their sum.
pub fn soften(scores: &mut [i32], largest: i32) -> i64 {
    #[cfg(target_arch = "aarch64")]
    let (sum, scores) = crate::attention_neon::soften(scores, largest);
    #[cfg(not(target_arch = "aarch64"))]
    let sum = 0;
    sum + soften_plain(scores, largest)
}

pub(crate) fn soften_plain(scores: &mut [i32], largest: i32) -> i64 {
    let mut sum = 0;
    for score in scores {
        *score = exp2(*score - largest) as i32;
        sum += i64::from(*score);
    }
    sum
}

/// Folds the values' exponents into the softmax weights: `weights[j] * 2^(top - 15)` is `scores[j] * 2^-exponent[j]`,
/// `top` is answered, and the largest weight is 2^14 or more.
pub fn spread(exponents: &[i16], scores: &[i32], weights: &mut [i16]) -> i32 {
    let places = |score: i32, exponent: i16| 32 - score.leading_zeros().cast_signed() - i32::from(exponent);
    let top = scores.iter().zip(exponents).fold(i32::MIN, |top, (&score, &exponent)| {
        top.max(if score == 0 { i32::MIN } else { places(score, exponent) })
    });
    let top = if top == i32::MIN { 0 } else { top };
    for ((weight, &score), &exponent) in weights.iter_mut().zip(scores).zip(exponents) {
        *weight = weight_of(score, (top - 15) + i32::from(exponent));
    }
    top
}

/// `score * 2^-shift`, rounded to nearest, at most [`WEIGHT_MAX`]. `score` is not negative and, if `shift` is, has at most
/// `15 + shift` digits. Without branches, so that a loop becomes vector instructions.
fn weight_of(score: i32, shift: i32) -> i16 {
    let up = score << (-shift).clamp(0, 15);
    let down = ((score >> (shift - 1).clamp(0, 31)) + 1) >> 1;
    let weight = if shift > 0 { down } else { up };
    weight.min(WEIGHT_MAX) as i16
}

/// Sums of the weighted values of [`DIMENSIONS`] dimensions from `first` on. `values` are (positions, `head_dim`).
///
/// # Panics
/// If a head has fewer dimensions.
#[must_use]
pub fn mix(weights: &[i16], values: &[i16], head_dim: usize, first: usize) -> [i64; DIMENSIONS] {
    assert!(first + DIMENSIONS <= head_dim, "dimensions of the head");
    #[cfg(target_arch = "aarch64")]
    return crate::attention_neon::mix(weights, values, head_dim, first);
    #[cfg(not(target_arch = "aarch64"))]
    mix_plain(weights, values, head_dim, first)
}

/// [`mix`] of any number of dimensions, in plain Rust.
pub fn mix_plain<const N: usize>(weights: &[i16], values: &[i16], head_dim: usize, first: usize) -> [i64; N] {
    let mut sums = [0_i64; N];
    for (weights, values) in weights.chunks(POSITIONS).zip(values.chunks(POSITIONS * head_dim)) {
        let mut partial = [0_i32; N];
        for (&weight, values) in weights.iter().zip(values.chunks_exact(head_dim)) {
            let values: &[i16; N] = values[first..].first_chunk().expect("dimensions of the head");
            for (sum, &value) in partial.iter_mut().zip(values) {
                *sum += i32::from(weight) * i32::from(value);
            }
        }
        for (sum, partial) in sums.iter_mut().zip(partial) {
            *sum += i64::from(partial);
        }
    }
    sums
}
