//! Rotary position embedding of adjacent pairs.

use crate::matrix::ShapeError;

/// Turns the leading pairs of each head, `heads` being (heads, `head_dim`), by the (cosine, sine) of each, Q2.30. Rounded to
/// nearest, halves up, and saturated.
///
/// # Errors
/// [`ShapeError`] if `heads` are not whole heads, or a head has fewer pairs than the table.
pub fn rotate(heads: &mut [i32], head_dim: usize, table: &[[i32; 2]]) -> Result<(), ShapeError> {
    if head_dim == 0 || !heads.len().is_multiple_of(head_dim) || table.len() > head_dim / 2 {
        return Err(ShapeError);
    }
    for head in heads.chunks_exact_mut(head_dim) {
        let pairs = head.as_chunks_mut::<2>().0;
        #[cfg(target_arch = "aarch64")]
        let (pairs, table) = neon::turn(pairs, table);
        turn(pairs, table);
    }
    Ok(())
}

/// Turns each pair.
fn turn(pairs: &mut [[i32; 2]], table: &[[i32; 2]]) {
    for (pair, turn) in pairs.iter_mut().zip(table) {
        let ([a, b], [cos, sin]) = (pair.map(i64::from), turn.map(i64::from));
        // Of a cosine and a sine, |a cos - b sin| <= 2^31 * 2^30 * 2. Of other numbers it may wrap.
        let round =
            |v: i64| (v.saturating_add(1 << 29) >> 30).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        *pair = [round((a * cos).wrapping_sub(b * sin)), round((a * sin).wrapping_add(b * cos))];
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use core::arch::aarch64::*;

    type Pairs<'a> = &'a [[i32; 2]];

    /// Twin of [`super::turn`], of whole fours; answers the rest.
    #[inline]
    pub(super) fn turn<'a, 'b>(
        pairs: &'a mut [[i32; 2]],
        table: Pairs<'b>,
    ) -> (&'a mut [[i32; 2]], Pairs<'b>) {
        let whole = pairs.len().min(table.len()) / 4 * 4;
        let ((fours, pairs), (turns, table)) = (pairs.split_at_mut(whole), table.split_at(whole));
        for (four, turns) in fours.as_chunks_mut::<4>().0.iter_mut().zip(turns.as_chunks::<4>().0) {
            // SAFETY: every AArch64 target of this crate has NEON; loads and stores are of four pairs.
            unsafe {
                let int32x4x2_t(a, b) = vld2q_s32(four.as_ptr().cast());
                let int32x4x2_t(cos, sin) = vld2q_s32(turns.as_ptr().cast());
                let ([a_low, b_low], [cos_low, sin_low]) =
                    ([a, b].map(|v| vget_low_s32(v)), [cos, sin].map(|v| vget_low_s32(v)));
                let first = [
                    vmlsl_s32(vmull_s32(a_low, cos_low), b_low, sin_low),
                    vmlsl_high_s32(vmull_high_s32(a, cos), b, sin),
                ];
                let second = [
                    vmlal_s32(vmull_s32(a_low, sin_low), b_low, cos_low),
                    vmlal_high_s32(vmull_high_s32(a, sin), b, cos),
                ];
                let [a, b] = [first, second]
                    .map(|[low, high]| vqrshrn_high_n_s64::<30>(vqrshrn_n_s64::<30>(low), high));
                vst2q_s32(four.as_mut_ptr().cast(), int32x4x2_t(a, b));
            }
        }
        (pairs, table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn pairs_turn_by_their_angles() {
        let (one, half) = (1 << 16, 46_341);
        // Three eighths of a turn, and three quarters.
        let table = [[-759_250_125, 759_250_125], [0, -1 << 30]];
        let mut heads = [one, 0, one, 0, 7, 8, 0, 2 * one, 0, one, -9, 9];
        assert_eq!(rotate(&mut heads, 6, &table), Ok(()));
        assert_eq!(heads, [-half, half, 0, -one, 7, 8, -2 * half, -2 * half, one, 0, -9, 9]);
        for head_dim in [0, 3, 5, 24] {
            assert_eq!(rotate(&mut heads, head_dim, &table), Err(ShapeError), "{head_dim}");
        }
    }

    #[test]
    fn turns_are_those_of_the_plain_twin() {
        let edges = [0, 1, -1, i32::MIN, i32::MAX, 1 << 30, -1 << 30, 0x1234_5678];
        let pairs: Vec<[i32; 2]> = edges.into_iter().flat_map(|a| edges.map(|b| [a, b])).collect();
        for (count, turns) in [(64, 64), (10, 7), (9, 3), (4, 4), (1, 0)] {
            for first in 0..64 {
                let table: Vec<[i32; 2]> = (0..turns).map(|i| pairs[(first + i) % 64]).collect();
                let mut plain = pairs[..count].to_vec();
                let mut heads = plain.as_flattened().to_vec();
                rotate(&mut heads, 2 * count, &table).unwrap();
                turn(&mut plain, &table);
                assert_eq!(heads, plain.as_flattened());
            }
        }
    }

    #[test]
    fn what_does_not_fit_saturates() {
        let mut head = [i32::MIN, i32::MAX];
        rotate(&mut head, 2, &[[759_250_125; 2]]).unwrap();
        assert_eq!(head[0], i32::MIN);
    }
}
