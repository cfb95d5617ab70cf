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
