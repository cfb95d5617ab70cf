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
    let (r, h) = inverse_sqrt(u64::try_from(mean + epsilon).unwrap_or(u64::MAX));
    // |v| <= 2^30, |weight| <= 2^31, r <= 2^31: 2^61, then 2^62.
    for (out, weight) in out.iter_mut().zip(weight.mantissas()) {
        *out = ((*out * i64::from(weight)) >> 30) * r;
    }
    weight.shift().clamp(-1000, 1000) - 30 + 61 - h
}
