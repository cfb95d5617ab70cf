//! Functions of fixed-point numbers. `Qa.b` has b fraction bits.

pub use flexserve_kernels::attention::{LOG2_E, exp2};

/// 2 pi, Q3.60.
const TAU: i128 = 7_244_019_458_077_122_842;

/// Cosine and sine of a fraction of a turn in Q0.64, as Q2.30.
#[must_use]
#[inline]
pub fn cos_sin(turns: u64) -> (i32, i32) {
    let mul = |a: i128, b: i128| (a * b) >> 60;
    // The nearest quarter turn and what is left of it, within an eighth.
    let quarter = turns.wrapping_add(1 << 61) >> 62;
    let rest = turns.wrapping_sub(quarter << 62).cast_signed();
    let x = (i128::from(rest) * TAU) >> 64;
    let x2 = mul(x, x);
    // Taylor's series by Horner's rule: 1 - x2 / (n (n - 1)) (1 - ...). The terms left out are below 2^-33.
    let series = |from: i128| {
        let mut sum = 1_i128 << 60;
        for n in (0..5).map(|i| from - 2 * i) {
            sum = (1_i128 << 60) - mul(x2, sum) / (n * (n - 1));
        }
        sum
    };
    let round = |value: i128| ((value + (1 << 29)) >> 30) as i32;
    let (cos, sin) = (round(series(10)), round(mul(x, series(11))));
    match quarter {
        0 => (cos, sin),
        1 => (-sin, cos),
        2 => (-cos, -sin),
        _ => (sin, -cos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexserve_kernels::attention::ONE;

    #[test]
    fn exp2_follows_the_float() {
        for x in (0..40 << 16).step_by(97).map(|x: i32| -x) {
            let exact = (f64::from(x) / 65536.0).exp2() * 2f64.powi(30);
            assert!((exp2(x) as f64 - exact).abs() <= exact * 2f64.powi(-21) + 1.5, "{x}");
        }
        assert_eq!(exp2(0), ONE);
        assert_eq!(exp2(i32::MIN), 0);
    }

    #[test]
    fn circle_follows_the_float() {
        for step in 0..5000_u64 {
            let turns = step.wrapping_mul(0x000d_1b71_7583_beef);
            let angle = turns as f64 / 2f64.powi(64) * core::f64::consts::TAU;
            let (cos, sin) = cos_sin(turns);
            assert!((f64::from(cos) - angle.cos() * 2f64.powi(30)).abs() < 1.5, "cos {angle}");
            assert!((f64::from(sin) - angle.sin() * 2f64.powi(30)).abs() < 1.5, "sin {angle}");
        }
        assert_eq!(cos_sin(0), (1 << 30, 0));
        assert_eq!(cos_sin(1 << 62), (0, 1 << 30));
        assert_eq!(cos_sin(u64::MAX).0, 1 << 30);
    }
}
