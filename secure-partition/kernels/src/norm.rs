//! RMS norm.

use crate::isa::Isa;
use crate::matrix::ShapeError;
use crate::narrow::narrow;
use crate::vector::Vector;
use crate::word::high;
#[cfg(target_arch = "aarch64")]
use crate::words_sve;

/// Writes `x * weight / sqrt(mean(x^2) + epsilon)` to `out` and answers its fraction bits.
///
/// `x` is in Q.`frac`, `epsilon` in Q0.32. Magnitudes of `out` are at most 2^30.
///
/// # Errors
/// [`ShapeError`] if `x`, `weight` and `out` are not of the same length.
pub fn rms_norm(
    isa: Isa,
    x: &[i64],
    frac: i32,
    weight: &Vector,
    epsilon: u32,
    out: &mut [i32],
) -> Result<i32, ShapeError> {
    let weights = weight.words();
    if weights.len() != out.len() {
        return Err(ShapeError);
    }
    // |x| <= 2^30 from here on: x = out * 2^-frac.
    let frac = frac.saturating_sub(narrow(isa, x, out)?);
    let mean = (u128::from(sum_of_squares(isa, out)) << 31) / out.len().max(1) as u128;
    // Epsilon, in units of 2^(-2 frac) as the mean, may be beyond all bounds.
    let epsilon = match frac.saturating_mul(2).saturating_sub(32) {
        up @ 0..96 => u128::from(epsilon) << up,
        96.. => u128::MAX >> 1,
        down => u128::from(epsilon) >> down.saturating_neg().min(127),
    };
    let sum = mean + epsilon;
    // Down to 62 bits, by an even shift.
    let half = (128 - sum.leading_zeros()).saturating_sub(61) / 2;
    let (root, h) = inverse_sqrt((sum >> (2 * half)) as u64);
    multiply(isa, out, weights, root);
    // x has lost its own bits by the root's, and both products 31 each.
    Ok(weight.shift().clamp(-1000, 1000) + 61 - (h - half.cast_signed()) - 2 * 31)
}

/// Sum of the squares of words of at most 2^30, each divided by 2^31 and rounded.
fn sum_of_squares(isa: Isa, x: &[i32]) -> u64 {
    #[cfg(target_arch = "aarch64")]
    if isa.has_sve2() {
        // SAFETY: the creator of `isa` promised that the CPU has the instructions.
        return unsafe { words_sve::sum_of_squares(x) };
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = isa;
    #[cfg(target_arch = "aarch64")]
    let (sum, x) = neon::sum_of_squares(x);
    #[cfg(not(target_arch = "aarch64"))]
    let sum = 0;
    sum + squares(x)
}

/// The same. Each is at most 2^29.
fn squares(x: &[i32]) -> u64 {
    x.iter().map(|&x| u64::from(high(x, x).unsigned_abs())).sum()
}

/// x = x * weight * root, of as many weights.
fn multiply(isa: Isa, x: &mut [i32], weights: &[[u8; 4]], root: i32) {
    #[cfg(target_arch = "aarch64")]
    if isa.has_sve2() {
        // SAFETY: the creator of `isa` promised that the CPU has the instructions; the lengths are the same.
        return unsafe { words_sve::multiply(x, weights, root) };
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = isa;
    #[cfg(target_arch = "aarch64")]
    let (x, weights) = neon::multiply(x, weights, root);
    products(x, weights, root);
}

/// The same.
fn products(x: &mut [i32], weights: &[[u8; 4]], root: i32) {
    for (x, &weight) in x.iter_mut().zip(weights) {
        *x = high(high(*x, i32::from_le_bytes(weight)), root);
    }
}

/// `1 / sqrt(m)` as `(r, h)`: r * 2^(h - 61), r in 2^30..2^31. 0 counts as 1.
fn inverse_sqrt(m: u64) -> (i32, i32) {
    let m = m.max(1);
    // Up to 60..=62 bits, by an even shift.
    let h = (m.leading_zeros().cast_signed() - 2) >> 1;
    let normal = if h >= 0 { m << (2 * h) } else { m >> 2 };
    let root = (1_u64 << 61) / normal.isqrt();
    (root.min(i32::MAX as u64) as i32, h)
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::*;

    /// Twin of [`super::squares`], of whole eights; answers the rest.
    pub(super) fn sum_of_squares(x: &[i32]) -> (u64, &[i32]) {
        let (eights, rest) = x.as_chunks::<8>();
        // SAFETY: every AArch64 target of this crate has NEON; the loads are of eight words.
        let sum = unsafe {
            let mut sums = [vdupq_n_s64(0); 2];
            for eight in eights {
                let eight = vld1q_s32_x2(eight.as_ptr());
                sums[0] = vpadalq_s32(sums[0], vqrdmulhq_s32(eight.0, eight.0));
                sums[1] = vpadalq_s32(sums[1], vqrdmulhq_s32(eight.1, eight.1));
            }
            vaddvq_s64(vaddq_s64(sums[0], sums[1])).cast_unsigned()
        };
        (sum, rest)
    }

    /// Twin of [`super::products`], of whole eights; answers the rest.
    pub(super) fn multiply<'a, 'b>(
        x: &'a mut [i32],
        weights: &'b [[u8; 4]],
        root: i32,
    ) -> (&'a mut [i32], &'b [[u8; 4]]) {
        let (eights, x) = x.as_chunks_mut::<8>();
        let (factors, weights) = weights.as_chunks::<8>();
        // SAFETY: NEON is there; loads and stores are of eight words.
        unsafe {
            let root = vdupq_n_s32(root);
            for (eight, factors) in eights.iter_mut().zip(factors) {
                let words = vld1q_s32_x2(eight.as_ptr());
                let factors = vld1q_u8_x2(factors.as_ptr().cast());
                let product =
                    |words, factors| vqrdmulhq_s32(vqrdmulhq_s32(words, vreinterpretq_s32_u8(factors)), root);
                let products = int32x4x2_t(product(words.0, factors.0), product(words.1, factors.1));
                vst1q_s32_x2(eight.as_mut_ptr(), products);
            }
        }
        (x, weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const FRAC: i32 = 24;

    fn vector(values: &[i32], shift: i32) -> Vec<u8> {
        let head = shift.to_le_bytes().into_iter().chain([0; 12]);
        head.chain(values.iter().flat_map(|value| value.to_le_bytes())).collect()
    }

    /// The largest difference from the definition in floating point, relative to the largest value.
    fn error(x: &[f64], epsilon: f64) -> f64 {
        let weights: Vec<i32> = (0..x.len() as i32).map(|i| (i % 7 - 3) << 27).collect();
        let bytes = vector(&weights, 28);
        let weight = Vector::new(x.len(), &bytes).unwrap();
        let fixed: Vec<i64> = x.iter().map(|x| (x * 2f64.powi(FRAC)).round() as i64).collect();
        let mut out = std::vec![0; x.len()];
        let epsilon_32 = (epsilon * 2f64.powi(32)).round() as u32;
        let frac = rms_norm(Isa::detect(), &fixed, FRAC, &weight, epsilon_32, &mut out).unwrap();
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let exact =
            x.iter().zip(&weights).map(|(x, &w)| x * f64::from(w) / 2f64.powi(28) / (mean + epsilon).sqrt());
        let exact: Vec<f64> = exact.collect();
        let largest = exact.iter().fold(0f64, |a, v| a.max(v.abs()));
        let differences = out.iter().zip(&exact).map(|(&o, e)| (f64::from(o) * 2f64.powi(-frac) - e).abs());
        differences.fold(0f64, f64::max) / largest
    }

    #[test]
    fn norm_follows_the_float() {
        let wave = |scale: f64| -> Vec<f64> { (0..67).map(|i| (f64::from(i) * 0.7).sin() * scale).collect() };
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
    fn extremes_are_those_of_the_plain_twin() {
        let edges = [i64::MIN, i64::MAX, 0, 1, -1, 1 << 33, -1 << 33, 77];
        for length in [1, 4, 7, 8, 9, 16, 23, 40] {
            for first in 0..edges.len() {
                let x: Vec<i64> = (0..length).map(|i| edges[(first + i * i) % edges.len()]).collect();
                let weights: Vec<i32> =
                    (0..length).map(|i| [i32::MIN, i32::MAX, 1, -1, 0][(first + i) % 5]).collect();
                for shift in [i32::MIN, 28, i32::MAX] {
                    let bytes = vector(&weights, shift);
                    let weight = Vector::new(length, &bytes).unwrap();
                    for (frac, epsilon) in [(FRAC, 0), (FRAC, u32::MAX), (i32::MIN, 1), (i32::MAX, 1)] {
                        let mut out = std::vec![0; length];
                        rms_norm(Isa::detect(), &x, frac, &weight, epsilon, &mut out).unwrap();
                        assert!(out.iter().all(|out| out.unsigned_abs() <= 1 << 30));
                    }
                    let mut words = std::vec![0; length];
                    narrow(Isa::detect(), &x, &mut words).unwrap();
                    for isa in [Isa::BASELINE, Isa::detect()] {
                        assert_eq!(sum_of_squares(isa, &words), squares(&words));
                        let [mut out, mut plain] = [(); 2].map(|()| words.clone());
                        multiply(isa, &mut out, weight.words(), i32::MAX);
                        products(&mut plain, weight.words(), i32::MAX);
                        assert_eq!(out, plain);
                    }
                }
            }
        }
    }

    #[test]
    fn lengths_are_checked() {
        let bytes = vector(&[1; 4], 0);
        let weight = Vector::new(4, &bytes).unwrap();
        assert_eq!(rms_norm(Isa::detect(), &[1; 4], FRAC, &weight, 1, &mut [0; 3]), Err(ShapeError));
        assert_eq!(rms_norm(Isa::detect(), &[1; 3], FRAC, &weight, 1, &mut [0; 4]), Err(ShapeError));
        assert_eq!(rms_norm(Isa::detect(), &[1; 5], FRAC, &weight, 1, &mut [0; 5]), Err(ShapeError));
    }

    #[test]
    fn inverse_square_roots_have_thirty_bits() {
        for m in (0..64).map(|bit| 1_u64 << bit).chain([3, 5, 1000, u64::MAX, (1 << 62) - 1]) {
            let (r, h) = inverse_sqrt(m);
            let got = f64::from(r) * 2f64.powi(h - 61);
            let exact = 1.0 / (m as f64).sqrt();
            assert!((got / exact - 1.0).abs() < 2f64.powi(-28), "{m}");
        }
        assert_eq!(inverse_sqrt(0), inverse_sqrt(1));
    }
}
