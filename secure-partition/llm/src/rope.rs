//! The angles of rotary position embedding.

use crate::fixed::cos_sin;

/// Writes `(cos, sin)` in Q2.30 of every pair at `position` to `table`. `steps` are turns per position in Q0.64.
pub fn rotations(steps: impl Iterator<Item = u64>, position: usize, table: &mut [[i32; 2]]) {
    for (entry, step) in table.iter_mut().zip(steps) {
        let (cos, sin) = cos_sin(step.wrapping_mul(position as u64));
        *entry = [cos, sin];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn angles_are_as_exact_at_the_end_of_a_long_context() {
        let steps: Vec<f64> =
            (0..32).map(|i| 1e5f64.powf(-2.0 * f64::from(i) / 64.0) / core::f64::consts::TAU).collect();
        for position in [0, 1, 511, 2047, 131_071] {
            let mut table = [[0; 2]; 32];
            rotations(steps.iter().map(|step| (step * 2f64.powi(64)) as u64), position, &mut table);
            for (entry, step) in table.iter().zip(&steps) {
                // Whole turns are left out first: the float would not hold so large an angle as exactly.
                let angle = (step * position as f64).fract() * core::f64::consts::TAU;
                for (got, exact) in entry.iter().zip([angle.cos(), angle.sin()]) {
                    let error = (f64::from(*got) / 2f64.powi(30) - exact).abs();
                    assert!(error < 2f64.powi(-29), "position {position}: {error}");
                }
            }
        }
    }
}
