//! Rotary position embedding of adjacent pairs.

use crate::fixed::{cos_sin, saturate};

/// Writes `(cos, sin)` in Q2.30 of every pair at `position` to `table`. `steps` are turns per position in Q0.64.
pub fn rotations(steps: impl Iterator<Item = u64>, position: usize, table: &mut [[i32; 2]]) {
    for (entry, step) in table.iter_mut().zip(steps) {
        let (cos, sin) = cos_sin(step.wrapping_mul(position as u64));
        *entry = [cos, sin];
    }
}

/// Turns the leading pairs of each head, `heads` being (heads, `head_dim`).
pub fn rotate(heads: &mut [i32], head_dim: usize, table: &[[i32; 2]]) {
    for head in heads.chunks_exact_mut(head_dim) {
        for (pair, &[cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(table) {
            let [a, b] = pair.map(i64::from);
            let (cos, sin) = (i64::from(cos), i64::from(sin));
            // |a cos - b sin| <= 2^31 * 2^30 * 2.
            let round = |v: i64| saturate((v + (1 << 29)) >> 30);
            *pair = [round(a * cos - b * sin), round(a * sin + b * cos)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn pairs_turn_by_their_angles() {
        // An eighth and a quarter of a turn per position, at position 3.
        let mut table = [[0; 2]; 2];
        rotations([1 << 61, 1 << 62].into_iter(), 3, &mut table);
        let one = 1 << 16;
        let mut heads = [one, 0, one, 0, 7, 8, 0, 2 * one, 0, one, -9, 9];
        rotate(&mut heads, 6, &table);
        let half = 46_341;
        assert_eq!(heads, [-half, half, 0, -one, 7, 8, -2 * half, -2 * half, one, 0, -9, 9]);
    }

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

    #[test]
    fn what_does_not_fit_saturates() {
        let mut table = [[0; 2]];
        rotations([1 << 61].into_iter(), 1, &mut table);
        let mut head = [i32::MIN, i32::MAX];
        rotate(&mut head, 2, &table);
        assert_eq!(head[0], i32::MIN);
    }
}
