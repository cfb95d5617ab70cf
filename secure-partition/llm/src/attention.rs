//! Attention of one query head over the keys and values so far.
//!
//! Keys and queries are stored as mantissas of at most [`KEY_MAX`], values of at most [`VALUE_MAX`], under one exponent per head
//! and position.
//! Weights are not divided by their sum: the result is.

use flexserve_kernels::attention::{DIMENSIONS, mix, mix_plain, score, soften, spread};
pub use flexserve_kernels::attention::{KEY_MAX, VALUE_MAX};

use crate::fixed::{LOG2_E, saturate};

/// Most dimensions of a head.
pub const HEAD_DIM_MAX: usize = 256;
/// Fraction bits of [`attend`]'s result.
pub const OUT_FRAC: i32 = 40;

/// Rounds `values * 2^-frac` to mantissas of at most `max` and answers their exponent: value = mantissa * 2^-exponent. `max` is
/// a power of 2 less 1.
pub fn quantize(
    values: impl Iterator<Item = i32> + Clone,
    frac: i32,
    max: i32,
    mantissas: &mut [i16],
) -> i16 {
    let magnitude = values.clone().fold(0, |all, v| all | v.unsigned_abs());
    let shift = max.leading_zeros().cast_signed() - magnitude.leading_zeros().cast_signed();
    let max = max as i16;
    // Two loops, so that they become vector instructions. Half is added behind the first shift, where it cannot overflow.
    if shift > 0 {
        for (mantissa, value) in mantissas.iter_mut().zip(values) {
            *mantissa = (((value >> (shift - 1)) + 1) >> 1).clamp(-i32::from(max), max.into()) as i16;
        }
    } else {
        for (mantissa, value) in mantissas.iter_mut().zip(values) {
            *mantissa = (value << -shift) as i16;
        }
    }
    (frac - shift) as i16
}

/// `log2(e) / sqrt(head_dim)`, Q2.30: what turns a dot product into an exponent of 2.
#[must_use]
pub fn score_factor(head_dim: usize) -> i64 {
    let root = ((head_dim as u128) << 100).isqrt();
    ((u128::from(LOG2_E) << 20) / root.max(1)) as i64
}

/// Keys and values of one key-value head.
#[derive(Clone, Copy)]
pub struct Cache<'a> {
    /// (positions, `head_dim`)
    pub keys: &'a [i16],
    /// (positions)
    pub key_exponents: &'a [i16],
    /// (positions, `head_dim`)
    pub values: &'a [i16],
    /// (positions)
    pub value_exponents: &'a [i16],
}

/// One query head: mantissas, already multiplied by [`score_factor`], and their exponent.
#[derive(Clone, Copy)]
pub struct Query<'a> {
    /// (`head_dim`)
    pub mantissas: &'a [i16],
    /// value = mantissa * 2^-exponent.
    pub exponent: i16,
}

/// Attends to every position of `cache`, and writes the weighted mean of the values to `out` (`head_dim`), in Q.40.
/// `scores` and `weights` are scratch, one per position.
pub fn attend(query: Query, cache: Cache, scores: &mut [i32], weights: &mut [i16], out: &mut [i64]) {
    let shift = i32::from(query.exponent) - 16;
    let largest = score(query.mantissas, cache.keys, cache.key_exponents, shift, scores);
    let sum = soften(scores, largest);
    let top = spread(cache.value_exponents, scores, weights);
    // value = mixed * 2^(top - 15) / sum, with |mixed| < 2^45 and sum in 2^30..=2^47. A value in Q15.16 has an exponent in
    // -3..=29, so that top is in -28..=34 and the shift in 19..=81.
    let reciprocal = (1_u128 << 78) / u128::from(sum.max(1).unsigned_abs());
    // 31 bits of it, and of the largest of some values, so that their products fit i64.
    let spare = (128 - reciprocal.leading_zeros()).saturating_sub(31);
    let factor = (reciprocal >> spare) as i32;
    let shift = 78 - OUT_FRAC - (top - 15) - spare.cast_signed();
    let head_dim = out.len();
    let mut finish = |first: usize, mixed: &[i64]| {
        let all = mixed.iter().fold(0, |all, v| all | v.unsigned_abs());
        let beyond = (64 - all.leading_zeros()).saturating_sub(31);
        let shift = shift - beyond.cast_signed();
        let (down, up) = (shift.clamp(0, 63), (-shift).clamp(0, 63));
        for (out, &mixed) in out[first..].iter_mut().zip(mixed) {
            let product = i64::from((mixed >> beyond) as i32) * i64::from(factor);
            *out = (product >> down).clamp(-(1 << 62) >> up, (1 << 62) >> up) << up;
        }
    };
    let whole = head_dim / DIMENSIONS * DIMENSIONS;
    for first in (0..whole).step_by(DIMENSIONS) {
        finish(first, &mix(weights, cache.values, head_dim, first));
    }
    for first in whole..head_dim {
        finish(first, &mix_plain::<1>(weights, cache.values, head_dim, first));
    }
}

/// Multiplies a query value by [`score_factor`].
#[inline]
#[must_use]
pub fn scale_query(value: i32, factor: i64) -> i32 {
    saturate((i64::from(value) * factor) >> 28)
}
/// Fraction bits that [`scale_query`] adds.
pub const QUERY_FRAC: i32 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const FRAC: i32 = 16;

    fn wave(count: usize, step: f64, scale: f64) -> Vec<f64> {
        (0..count).map(|i| ((i * i) as f64 * step).sin() * scale).collect()
    }

    fn fixed(values: &[f64]) -> impl Iterator<Item = i32> + Clone + '_ {
        values.iter().map(|value| (value * 65536.0).round() as i32)
    }

    /// Attention in floating point.
    fn exact(query: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
        let dim = query.len();
        let score =
            |key: &[f64]| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
        let scores: Vec<f64> = keys.chunks(dim).map(score).collect();
        let top = scores.iter().fold(f64::MIN, |a, &s| a.max(s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let sum: f64 = weights.iter().sum();
        (0..dim)
            .map(|i| values.chunks(dim).zip(&weights).map(|(value, w)| value[i] * w).sum::<f64>() / sum)
            .collect()
    }

    /// The largest difference from floating point, relative to the largest value.
    fn error(dim: usize, positions: usize, query_scale: f64, value_scale: impl Fn(usize) -> f64) -> f64 {
        let (query, keys) = (wave(dim, 0.3, query_scale), wave(dim * positions, 0.11, 5.0));
        let mut values = wave(dim * positions, 0.07, 1.0);
        values.iter_mut().enumerate().for_each(|(i, value)| *value *= value_scale(i / dim));
        let store = |values: &[f64], max| {
            let mut mantissas = std::vec![0; values.len()];
            let exponents: Vec<i16> = values
                .chunks(dim)
                .zip(mantissas.chunks_mut(dim))
                .map(|(v, m)| quantize(fixed(v), FRAC, max, m))
                .collect();
            (mantissas, exponents)
        };
        let ((keys_16, key_exponents), (values_16, value_exponents)) =
            (store(&keys, KEY_MAX), store(&values, VALUE_MAX));
        let factor = score_factor(dim);
        let mut mantissas = std::vec![0; dim];
        let scaled = fixed(&query).map(|value| scale_query(value, factor));
        let exponent = quantize(scaled, FRAC + QUERY_FRAC, KEY_MAX, &mut mantissas);
        let cache = Cache {
            keys: &keys_16,
            key_exponents: &key_exponents,
            values: &values_16,
            value_exponents: &value_exponents,
        };
        let (mut scores, mut weights, mut out) =
            (std::vec![0; positions], std::vec![0; positions], std::vec![0; dim]);
        attend(Query { mantissas: &mantissas, exponent }, cache, &mut scores, &mut weights, &mut out);
        let exact = exact(&query, &keys, &values);
        let largest = values.iter().fold(0f64, |a, v| a.max(v.abs()));
        let differences = out.iter().zip(&exact).map(|(&o, e)| (o as f64 * 2f64.powi(-OUT_FRAC) - e).abs());
        differences.fold(0f64, f64::max) / largest
    }

    #[test]
    fn attention_follows_the_float() {
        for dim in [16, 32, 64, 80, 256] {
            for positions in [1, 2, 15, 16, 17, 33, 200, 2048] {
                let error = error(dim, positions, 1.0, |_| 1.0);
                assert!(error < 1e-3, "{dim} x {positions}: {error}");
            }
        }
    }

    #[test]
    fn values_of_very_different_size_keep_their_weight() {
        assert!(error(64, 40, 2.0, |position| 0.5f64.powi(position as i32 % 12)) < 1e-3);
        assert!(error(64, 40, 20.0, |_| 300.0) < 1e-2);
    }

    #[test]
    fn mantissas_round_and_never_exceed_their_limit() {
        let mut mantissas = [0; 3];
        assert_eq!(quantize([3, -5, 0].into_iter(), 0, VALUE_MAX, &mut mantissas), 10);
        assert_eq!(mantissas, [3 << 10, -5 << 10, 0]);
        let exponent = quantize([i32::MAX, i32::MIN, 1 << 18].into_iter(), 0, VALUE_MAX, &mut mantissas);
        assert_eq!((exponent, mantissas), (-19, [4096, -4096, 1]));
        quantize([0x3_ffff, 0, 0].into_iter(), 0, KEY_MAX, &mut mantissas);
        assert_eq!(i32::from(mantissas[0]), KEY_MAX);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let (key, value) = (KEY_MAX as i16, VALUE_MAX as i16);
        let (keys, values) = (std::vec![key; 256 * 40], std::vec![-value; 256 * 40]);
        for (query, exponent) in [(key, -32), (-key, 32)] {
            let mantissas = [query; 256];
            let exponents = [-3; 40];
            let cache = Cache {
                keys: &keys,
                key_exponents: &exponents,
                values: &values,
                value_exponents: &exponents,
            };
            let mut out = [0; 256];
            attend(Query { mantissas: &mantissas, exponent }, cache, &mut [0; 40], &mut [0; 40], &mut out);
            // All alike: the mean is each of them.
            let exact = -8191.0 * 8.0;
            assert!((out[0] as f64 * 2f64.powi(-OUT_FRAC) / exact - 1.0).abs() < 1e-3);
        }
    }
}
