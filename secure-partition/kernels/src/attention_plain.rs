//! Attention's loops in plain Rust.

use crate::attention::{COLS_MAX, Loops, Query, SCORE_MIN, Softened, exp2};
use crate::cache::{POSITIONS, Rows, exponent};
use crate::word::{self, shifted};

/// On any CPU.
pub(crate) struct Plain;

impl Loops for Plain {
    unsafe fn narrow(values: &[i32], shift: i32, high: &mut [i8], low: &mut [i8]) {
        for ((&value, high), low) in values.iter().zip(high).zip(low) {
            let word = shifted(value, -shift);
            *high = ((word + 128) >> 8) as i8;
            *low = word as i8;
        }
    }

    unsafe fn score(query: &Query, keys: &Rows, positions: usize, scores: &mut [i32]) -> i32 {
        let mut words = [0; COLS_MAX];
        for ((word, &high), &low) in words.iter_mut().zip(&query.high).zip(&query.low) {
            *word = 256 * i32::from(high) + i32::from(low);
        }
        let words = words[..query.cols].as_chunks::<4>().0;
        let groups = keys.octets.chunks_exact(POSITIONS * query.cols);
        for ((scores, scales), octets) in scores
            .as_chunks_mut::<POSITIONS>()
            .0
            .iter_mut()
            .zip(keys.scales.as_chunks::<POSITIONS>().0)
            .zip(groups)
        {
            let mut sums = [0; POSITIONS];
            for (words, octets) in words.iter().zip(octets.as_chunks::<16>().0) {
                for (sum, octets) in sums.iter_mut().zip(octets.as_chunks::<4>().0) {
                    *sum +=
                        words.iter().zip(octets).map(|(word, &octet)| word * i32::from(octet)).sum::<i32>();
                }
            }
            for ((score, sum), &scale) in scores.iter_mut().zip(sums).zip(scales) {
                *score = shifted(word::high(sum, scale), exponent(scale) + query.exponent).max(SCORE_MIN);
            }
        }
        let (scores, spare) = scores.split_at_mut(positions);
        spare.fill(i32::MIN);
        scores.iter().fold(i32::MIN, |largest, &score| largest.max(score))
    }

    unsafe fn soften(scores: &mut [i32], largest: i32, scales: &[i32], top: i32) -> Softened {
        let mut softened = Softened { sum: 0, weights: 0, largest: 0 };
        for (score, &scale) in scores.iter_mut().zip(scales) {
            let weight = exp2(score.saturating_sub(largest)) as i32;
            *score = shifted(word::high(weight, scale), exponent(scale) - top);
            softened.sum += i64::from(weight);
            softened.weights += i64::from(*score);
            softened.largest = softened.largest.max(*score);
        }
        softened
    }

    unsafe fn mix<const N: usize>(
        [high, low]: [&[i8]; 2],
        values: &[i8],
        cols: usize,
        first: usize,
    ) -> [i32; N] {
        let mut sums = [0; N];
        let weights = high.as_chunks::<POSITIONS>().0.iter().zip(low.as_chunks::<POSITIONS>().0);
        for ((high, low), octets) in weights.zip(values.chunks_exact(POSITIONS * cols)) {
            let words: [i32; POSITIONS] =
                core::array::from_fn(|i| 256 * i32::from(high[i]) + i32::from(low[i]));
            for (sum, octets) in sums.iter_mut().zip(octets.as_chunks::<POSITIONS>().0.iter().skip(first)) {
                *sum += words.iter().zip(octets).map(|(word, &octet)| word * i32::from(octet)).sum::<i32>();
            }
        }
        sums
    }

    unsafe fn finish(sums: &[i32], (factor, shift): (i32, i32), out: &mut [i64]) {
        let (up, down) = (shift.clamp(0, 63), (-shift).clamp(0, 63));
        for (out, &sum) in out.iter_mut().zip(sums) {
            *out = (i64::from(word::high(sum, factor)) << up) >> down;
        }
    }
}
