//! RMS norm.

use flexserve_kernels::vector::Vector;

use crate::fixed::inverse_sqrt;

/// Fraction bits of the residual stream, an i64: models have outliers of 2^15, and values that matter below 2^-10.
pub const RESIDUAL_FRAC: i32 = 24;

/// Writes `x * weight / sqrt(mean(x^2) + epsilon)` to `out` and answers its fraction bits.
///
/// `x` is in Q39.24, `epsilon` in Q0.32; `out` has the same length as `x` and `weight`, its magnitudes are below 2^63.
pub fn rms_norm(x: &[i64], weight: &Vector, epsilon: u32, out: &mut [i64]) -> i32 {
    let bits = 64 - x.iter().fold(0, |all, v| all | v.unsigned_abs()).leading_zeros().cast_signed();
    // 30 bits are kept of the largest: x = x30 * 2^-frac.
    let shift = bits - 30;
    let frac = RESIDUAL_FRAC - shift;
    let narrow = |v: i64| if shift > 0 { v >> shift } else { v << -shift };
    let mut squares = 0_u128;
    for (out, &v) in out.iter_mut().zip(x) {
        let v = narrow(v);
        *out = v;
        squares += u128::from(v.unsigned_abs().pow(2));
    }
    // The mean square, in units of 2^(-2 frac), below 2^61. Epsilon, in those units, may be beyond all bounds.
    let mean = squares / x.len().max(1) as u128;
    let epsilon = match 2 * frac - 32 {
        up @ 0..96 => u128::from(epsilon) << up,
        96.. => u128::MAX >> 1,
        down => u128::from(epsilon) >> (-down).min(127),
    };
    let sum = mean + epsilon;
    // Down to 62 bits, by an even shift.
    let half = (128 - sum.leading_zeros()).saturating_sub(61) / 2;
    let (r, h) = inverse_sqrt((sum >> (2 * half)) as u64);
    let h = h - half.cast_signed();
    // |v| <= 2^30, |weight| <= 2^31, r <= 2^31: 2^61, then 2^62.
    for (out, weight) in out.iter_mut().zip(weight.mantissas()) {
        *out = ((*out * i64::from(weight)) >> 30) * r;
    }
    weight.shift().clamp(-1000, 1000) - 30 + 61 - h
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn vector(values: &[i32], shift: i32) -> Vec<u8> {
        let head = shift.to_le_bytes().into_iter().chain([0; 12]);
        head.chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
    }

    /// The largest difference from the definition in floating point, relative to the largest value.
    fn error(x: &[f64], epsilon: f64) -> f64 {
        let weights: Vec<i32> = (0..x.len() as i32).map(|i| (i % 7 - 3) << 27).collect();
        let bytes = vector(&weights, 28);
        let weight = Vector::new(x.len(), &bytes).unwrap();
        let fixed: Vec<i64> = x.iter().map(|x| (x * 2f64.powi(RESIDUAL_FRAC)).round() as i64).collect();
        let mut out = std::vec![0; x.len()];
        let frac = rms_norm(&fixed, &weight, (epsilon * 2f64.powi(32)).round() as u32, &mut out);
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let exact =
            x.iter().zip(&weights).map(|(x, &w)| x * f64::from(w) / 2f64.powi(28) / (mean + epsilon).sqrt());
        let exact: Vec<f64> = exact.collect();
        let largest = exact.iter().fold(0f64, |a, v| a.max(v.abs()));
        let differences = out.iter().zip(&exact).map(|(&o, e)| (o as f64 * 2f64.powi(-frac) - e).abs());
        differences.fold(0f64, f64::max) / largest
    }

    #[test]
    fn norm_follows_the_float() {
        let wave = |scale: f64| -> Vec<f64> { (0..64).map(|i| (f64::from(i) * 0.7).sin() * scale).collect() };
        for scale in [0.01, 1.0, 3000.0] {
            assert!(error(&wave(scale), 1e-5) < 1e-4, "{scale}");
        }
        // An outlier like those of trained models.
        let mut outlier = wave(2.0);
        outlier[13] = 25_000.0;
        assert!(error(&outlier, 1e-5) < 1e-6);
        // Epsilon outweighs the values.
        assert!(error(&wave(0.001), 0.5) < 1e-3);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let bytes = vector(&[i32::MIN; 4], i32::MIN);
        let weight = Vector::new(4, &bytes).unwrap();
        for x in [[0; 4], [i64::MIN; 4], [i64::MAX; 4], [1, 0, -1, i64::MAX]] {
            for epsilon in [0, u32::MAX] {
                rms_norm(&x, &weight, epsilon, &mut [0; 4]);
            }
        }
    }
}
