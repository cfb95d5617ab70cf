//! The gate of a feed-forward network: `silu(gate) * up`, `silu(x) = x / (1 + e^-x)`; or with GELU, by the approximation that models
//! with such a gate were trained with (Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2):
//! `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, which is `x / (1 + e^-bent(x))`, `bent(x) = 2 sqrt(2/pi) (x + 0.044715 x^3)`.
//!
//! With `e = e^-|x|`, `1 / (1 + e^-x)` is `1 / (1 + e)` or, of a negative x, `e / (1 + e)`: both keep their relative precision.
//! `e` is a power of 2 by a polynomial; the reciprocal is URECPE's estimate and a step of Newton's. Together they are off by
//! less than 2^-16 of the value.
//!
//! Everything is in words and done by SQRDMULH and the like: `neon` does the same with four at a time.

use crate::attention;
use crate::isa::Isa;
use crate::matrix::ShapeError;
use crate::word::{high, largest, reciprocal, room, rounded, up};
#[cfg(target_arch = "aarch64")]
use crate::words_sve;

/// Fraction bits of what goes in.
pub const FRAC: i32 = 16;

/// -log2(e), Q1.30.
pub(crate) const LOG2_E: i32 = -(((attention::LOG2_E + (1 << 29)) >> 30) as i32);
/// `2^(u/2)` of u in -1..1 as a polynomial, Q1.30, lowest term first. Off by less than 2^-18; 2^0 is just below 1, so that
/// `1 + e` is below 2.
pub(crate) const POWER: [i32; 5] = [(1 << 30) - 1, 372_118_218, 64_489_199, 7_503_633, 643_094];
/// What a gate is shifted left by for its exponent: Q5.26, saturated at 32, where nothing is left of `e`.
pub(crate) const UP: u32 = 10;
/// Fraction bits of that exponent.
pub(crate) const EXPONENT_FRAC: i32 = 25;

/// What a gate is shifted left by to be bent: Q4.27, saturated at 16, whose sigmoid is 1 or 0 in any case.
pub(crate) const BEND_UP: u32 = 11;
/// Of `bent(16 t)` as `16 t (a + b t^2)`, `a` and `b` in Q5.26.
pub(crate) const BEND: [i32; 2] = [107_090_253, 1_225_866_409];
/// Fraction bits of `t (a + b t^2)`, less those of what goes in and the 4 that multiply by 16.
pub(crate) const BEND_DOWN: i32 = 26 - FRAC - 4;

/// Writes `silu(gate) * up` of numbers in Q15.16 to `out`, and answers its fraction bits, 0..=62. Magnitudes are at most 2^30.
///
/// # Errors
/// [`ShapeError`] if the three are not of the same length.
pub fn silu(isa: Isa, gate: &[i32], up: &[i32], out: &mut [i32]) -> Result<i32, ShapeError> {
    gated::<false>(isa, gate, up, out)
}

/// [`silu`] with GELU.
///
/// # Errors
/// The same.
pub fn gelu(isa: Isa, gate: &[i32], up: &[i32], out: &mut [i32]) -> Result<i32, ShapeError> {
    gated::<true>(isa, gate, up, out)
}

/// Both, by whether the sigmoid is of what was bent.
fn gated<const BENT: bool>(isa: Isa, gate: &[i32], up: &[i32], out: &mut [i32]) -> Result<i32, ShapeError> {
    if gate.len() != out.len() || up.len() != out.len() {
        return Err(ShapeError);
    }
    #[cfg(target_arch = "aarch64")]
    if isa.has_sve2() {
        // SAFETY: the creator of `isa` promised that the CPU has the instructions; the lengths are the same.
        return unsafe {
            let shifts = [gate, up].map(|words| room(words_sve::largest(words)));
            words_sve::gated::<BENT>(gate, up, shifts, out);
            Ok(frac(shifts))
        };
    }
    #[cfg(not(target_arch = "aarch64"))]
    let _ = isa;
    let shifts = [gate, up].map(|words| room(largest(words)));
    #[cfg(target_arch = "aarch64")]
    let (gate, up, out) = neon::multiply::<BENT>(gate, up, shifts, out);
    multiply::<BENT>(gate, up, shifts, out);
    Ok(frac(shifts))
}

/// Fraction bits of what was shifted left: twice 16 and the sigmoid's 30, and two products have lost 31 each.
const fn frac([gate, up]: [i32; 2]) -> i32 {
    2 * FRAC + 30 - 2 * 31 + gate + up
}

/// The gate's numbers shifted left as said, by their sigmoid, by the others shifted left as said.
fn multiply<const BENT: bool>(gate: &[i32], up: &[i32], shifts: [i32; 2], out: &mut [i32]) {
    for (out, (&gate, &up)) in out.iter_mut().zip(gate.iter().zip(up)) {
        let sigmoid = sigmoid(if BENT { bent(gate) } else { gate });
        *out = high(high(gate << shifts[0], sigmoid), up << shifts[1]);
    }
}

/// `bent(x)`, both in Q15.16.
fn bent(x: i32) -> i32 {
    let t = self::up(x, BEND_UP);
    rounded(high(t, high(high(t, t), BEND[1]) + BEND[0]), BEND_DOWN)
}

/// `1 / (1 + e^-x)` of x in Q15.16, Q1.30.
fn sigmoid(x: i32) -> i32 {
    // 2^exponent = e: the nearest whole number, and what is left of it as u, in the lower bits.
    let exponent = high(up(x, UP).saturating_abs(), LOG2_E);
    let (whole, u) = (rounded(exponent, EXPONENT_FRAC), exponent << (32 - EXPONENT_FRAC));
    let [terms @ .., last] = POWER;
    let power = terms.into_iter().rev().fold(last, |sum, term| high(sum, u) + term);
    // Q0.31: at most 2^31 - 2.
    let e = rounded(power, -(whole + 1));
    let sum = e.cast_unsigned() | 1 << 31;
    // 1 / (1 + e), Q0.31; 2 less what it makes of 1 + e, Q1.30; a better one, Q1.30.
    let estimate = (reciprocal(sum) >> 1).cast_signed();
    let left = i32::MIN.wrapping_sub(high((sum >> 1).cast_signed(), estimate));
    let inverse = high(estimate, left);
    high(if x < 0 { e } else { i32::MAX }, inverse)
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use super::{BEND, BEND_DOWN, BEND_UP, EXPONENT_FRAC, LOG2_E, POWER, UP};
    use core::arch::aarch64::*;

    /// Twin of [`super::multiply`], of whole fours; answers the rest.
    pub(super) fn multiply<'a, const BENT: bool>(
        gate: &'a [i32],
        up: &'a [i32],
        shifts: [i32; 2],
        out: &'a mut [i32],
    ) -> (&'a [i32], &'a [i32], &'a mut [i32]) {
        let (gates, gate) = gate.as_chunks::<4>();
        let (ups, up) = up.as_chunks::<4>();
        let (outs, out) = out.as_chunks_mut::<4>();
        for (out, (gate, up)) in outs.iter_mut().zip(gates.iter().zip(ups)) {
            // SAFETY: NEON is there; loads and stores are of four words.
            unsafe {
                let (gate, up) = (vld1q_s32(gate.as_ptr()), vld1q_s32(up.as_ptr()));
                let [gate_shift, up_shift] = shifts.map(|shift| vdupq_n_s32(shift));
                let sigmoid = sigmoid(if BENT { bent(gate) } else { gate });
                let gated = vqrdmulhq_s32(vshlq_s32(gate, gate_shift), sigmoid);
                vst1q_s32(out.as_mut_ptr(), vqrdmulhq_s32(gated, vshlq_s32(up, up_shift)));
            }
        }
        (gate, up, out)
    }

    /// Twin of [`super::bent`].
    #[inline(always)]
    unsafe fn bent(x: int32x4_t) -> int32x4_t {
        let [a, b] = BEND;
        // SAFETY: NEON is there.
        unsafe {
            let t = vqshlq_n_s32::<{ BEND_UP as i32 }>(x);
            let sum = vaddq_s32(vqrdmulhq_s32(vqrdmulhq_s32(t, t), vdupq_n_s32(b)), vdupq_n_s32(a));
            vrshrq_n_s32::<BEND_DOWN>(vqrdmulhq_s32(t, sum))
        }
    }

    /// Twin of [`super::sigmoid`].
    #[inline(always)]
    unsafe fn sigmoid(x: int32x4_t) -> int32x4_t {
        // SAFETY: NEON is there.
        unsafe {
            let exponent = vqrdmulhq_s32(vqabsq_s32(vqshlq_n_s32::<{ UP as i32 }>(x)), vdupq_n_s32(LOG2_E));
            let whole = vrshrq_n_s32::<EXPONENT_FRAC>(exponent);
            let u = vshlq_n_s32::<{ 32 - EXPONENT_FRAC }>(exponent);
            let mut power = vdupq_n_s32(POWER[POWER.len() - 1]);
            for term in POWER.into_iter().rev().skip(1) {
                power = vaddq_s32(vqrdmulhq_s32(power, u), vdupq_n_s32(term));
            }
            let e = vrshlq_s32(power, vaddq_s32(whole, vdupq_n_s32(1)));
            let sum = vorrq_u32(vreinterpretq_u32_s32(e), vdupq_n_u32(1 << 31));
            let half = |fraction| vreinterpretq_s32_u32(vshrq_n_u32::<1>(fraction));
            let estimate = half(vrecpeq_u32(sum));
            let left = vsubq_s32(vdupq_n_s32(i32::MIN), vqrdmulhq_s32(half(sum), estimate));
            let inverse = vqrdmulhq_s32(estimate, left);
            vqrdmulhq_s32(vbslq_s32(vcltzq_s32(x), e, vdupq_n_s32(i32::MAX)), inverse)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn sigmoid_follows_the_float() {
        for x in (-20 << 16..20 << 16).step_by(1013).chain([0, 1, -1, -1 << 16]) {
            let exact = 2f64.powi(30) / (1.0 + (-f64::from(x) / 65536.0).exp());
            assert!((f64::from(sigmoid(x)) - exact).abs() <= exact * 2f64.powi(-16) + 1.5, "{x}");
        }
        assert_eq!(sigmoid(i32::MIN), 0);
        assert!(sigmoid(i32::MAX) > (1 << 30) - (1 << 14));
    }

    /// Twins, of any length.
    fn check<const BENT: bool>(gate: &[i32], up: &[i32]) -> Vec<f64> {
        let [mut out, mut own, mut plain] = [7, 8, 9].map(|fill| vec![fill; gate.len()]);
        let frac = gated::<BENT>(Isa::BASELINE, gate, up, &mut out).unwrap();
        assert_eq!(gated::<BENT>(Isa::detect(), gate, up, &mut own), Ok(frac));
        assert_eq!(own, out);
        let shifts = [gate, up].map(|words| room(largest(words)));
        multiply::<BENT>(gate, up, shifts, &mut plain);
        assert_eq!((frac, &out), (super::frac(shifts), &plain));
        assert!(largest(&out) <= 1 << 30);
        out.into_iter().map(|out| f64::from(out) * 2f64.powi(-frac)).collect()
    }

    /// Products that are `exact(gate) * up`, but for `bits` of the value and some of the largest.
    fn follow<const BENT: bool>(exact: impl Fn(f64) -> f64, bits: i32) {
        for scale in [0.001, 0.5, 9.0, 300.0] {
            let wave = |step: f64| -> Vec<i32> {
                (0..1003).map(|i| ((f64::from(i) * step).sin() * scale * 65536.0) as i32).collect()
            };
            let (gate, up) = (wave(0.7), wave(1.3));
            let products = check::<BENT>(&gate, &up);
            for ((&gate, &up), got) in gate.iter().zip(&up).zip(products) {
                let exact = exact(f64::from(gate) / 65536.0) * f64::from(up) / 65536.0;
                let most = exact.abs() * 2f64.powi(-bits) + scale * scale * 2f64.powi(-28);
                assert!((got - exact).abs() <= most, "{got}, not {exact}");
            }
        }
    }

    #[test]
    fn products_follow_the_float() {
        follow::<false>(|x| x / (1.0 + (-x).exp()), 16);
        // The inner error is that of x, which e^-bent(x) multiplies by what is bent at most 8 times.
        let inner = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        follow::<true>(|x| x / (1.0 + (-2.0 * inner(x)).exp()), 15);
    }

    #[test]
    fn what_is_bent_follows_the_float() {
        let factor = (8.0 / std::f64::consts::PI).sqrt();
        assert_eq!(BEND, [1.0, 0.044_715 * 256.0].map(|term| (term * factor * 2f64.powi(26)).round() as i32));
        for x in (-16 << 16..16 << 16).step_by(997) {
            let exact = f64::from(x) / 65536.0;
            let exact = factor * (exact + 0.044_715 * exact.powi(3)) * 65536.0;
            assert!((f64::from(bent(x)) - exact).abs() <= 1.0, "{x}: {}, not {exact}", bent(x));
        }
        assert!([i32::MIN, -17 << 16].iter().all(|&x| bent(x) == bent(-16 << 16)));
        assert!(bent(i32::MAX) >= 300 << 16);
    }

    #[test]
    fn extremes_are_those_of_the_plain_twin() {
        let edges = [0, 1, -1, 1 << 21, -1 << 21, (1 << 21) - 1, i32::MIN, i32::MIN + 1, i32::MAX];
        let all: Vec<[i32; 2]> = edges.into_iter().flat_map(|a| edges.map(|b| [a, b])).collect();
        for length in [0, 1, 3, 4, 5, 8, 11] {
            for pairs in all.windows(length.max(1)) {
                let column =
                    |i: usize| -> Vec<i32> { pairs.iter().map(|pair| pair[i]).take(length).collect() };
                check::<false>(&column(0), &column(1));
                check::<true>(&column(0), &column(1));
            }
        }
        // Every exponent and estimate.
        let gate: Vec<i32> = (-25 << 16..1 << 16).step_by(37).collect();
        check::<false>(&gate, &vec![i32::MAX; gate.len()]);
        check::<true>(&gate, &vec![i32::MAX; gate.len()]);
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(silu(Isa::detect(), &[1; 3], &[1; 4], &mut [0; 4]), Err(ShapeError));
        assert_eq!(silu(Isa::detect(), &[1; 4], &[1; 5], &mut [0; 4]), Err(ShapeError));
        assert_eq!(silu(Isa::detect(), &[1; 4], &[1; 4], &mut [0; 3]), Err(ShapeError));
    }
}
