//! Chooses the next token, in integers: the same choice on every machine.

use crate::engine::FRAC;
use crate::fixed::{LOG2_E, exp2};

/// Top-p of 1, Q0.16: every token may be chosen.
pub const TOP_P_ALL: u32 = 1 << 16;

/// How tokens are chosen, and the state of the generator that chooses.
#[derive(Clone, Debug)]
pub struct Sampler {
    /// `log2(e) / temperature`, Q16.32; 0 for greedy.
    steepness: u64,
    /// 0 for all.
    top_k: u32,
    /// Q0.16
    top_p: u32,
    generator: Xoshiro256,
}

/// Buckets of the histograms that find how deep a choice goes.
const BUCKETS: usize = 256;

impl Sampler {
    /// `temperature` in Q16.16, 0 for the likeliest token always. Only the `top_k` likeliest tokens are chosen from, of
    /// equally likely ones the first; 0 for all. `top_p` in Q0.16: of these, only the likeliest that together have this
    /// share of their probability; [`TOP_P_ALL`] and above for all, 0 for the likeliest alone.
    #[must_use]
    pub fn new(temperature: u32, top_k: u32, top_p: u32, seed: u64) -> Self {
        let steepness = match temperature {
            0 => 0,
            // log2(e) in Q1.60 to Q.48, over Q.16, leaves Q.32.
            t => (LOG2_E >> 12) / u64::from(t),
        };
        Self { steepness, top_k, top_p: top_p.min(TOP_P_ALL), generator: Xoshiro256::new(seed) }
    }

    /// Chooses a token by its logits, Q15.16; the first of equally likely ones if there is no choice. `logits` is not empty.
    pub fn sample(&mut self, logits: &[i32]) -> u32 {
        let best = likeliest(logits);
        if self.steepness == 0 || self.top_p == 0 {
            return best as u32;
        }
        let top = logits.get(best).copied().unwrap_or_default();
        let weights = Weights { logits, top, steepness: self.steepness };
        let cut = weights.cut(self.top_k, self.top_p);
        let sum = weights.kept(cut).map(|(_, weight)| weight).sum();
        let mut left = self.generator.below(sum);
        for (token, weight) in weights.kept(cut) {
            if left < weight {
                return token as u32;
            }
            left -= weight;
        }
        best as u32
    }
}

/// The first of the highest logits.
fn likeliest(logits: &[i32]) -> usize {
    // Two loops, of which the first becomes vector instructions.
    let most = logits.iter().fold(i32::MIN, |most, &logit| most.max(logit));
    logits.iter().position(|&logit| logit == most).unwrap_or(0)
}

/// Logits seen as probabilities: `e^((logit - top) / temperature)`.
#[derive(Clone, Copy)]
struct Weights<'l> {
    logits: &'l [i32],
    top: i32,
    steepness: u64,
}

impl Weights<'_> {
    /// The weight of a logit that is `depth` below the highest, Q2.30.
    fn weight(&self, depth: u32) -> u64 {
        // Q15.16 by Q16.32, down to Q.16.
        let exponent = (u128::from(depth) * u128::from(self.steepness)) >> (FRAC + 32 - 16);
        // 2^-32 and less is nothing.
        if exponent >= 32 << 16 { 0 } else { exp2(-(exponent as i32)).cast_unsigned() }
    }

    /// How deep each token's logit is below the highest, Q16.16.
    fn depths(&self) -> impl Iterator<Item = u32> {
        self.logits.iter().map(|&logit| self.top.abs_diff(logit))
    }

    /// The tokens that are not cut off, and their weights.
    fn kept(&self, cut: Cut) -> impl Iterator<Item = (usize, u64)> {
        let mut edge = cut.edge;
        self.depths()
            .enumerate()
            .filter(move |&(_, depth)| {
                let first = depth == cut.depth && edge > 0;
                edge -= u64::from(first);
                depth < cut.depth || first
            })
            .map(|(token, depth)| (token, self.weight(depth)))
    }

    /// The `top_k` (0 for all) likeliest tokens; of these the likeliest that have `top_p` (Q0.16) of their weight.
    fn cut(&self, top_k: u32, top_p: u32) -> Cut {
        let mut cut = Cut { depth: u32::MAX, edge: u64::MAX };
        if top_k != 0 {
            let (depth, above) = self.depth_of(top_k.into(), |_| 1);
            cut = Cut { depth, edge: u64::from(top_k) - above };
        }
        if top_p < TOP_P_ALL {
            let sum: u64 = self.kept(cut).map(|(_, weight)| weight).sum();
            let wanted = (u128::from(sum) * u128::from(top_p)).div_ceil(1 << 16) as u64;
            let (depth, _) = self.depth_of(wanted, |depth| self.weight(depth));
            if depth < cut.depth {
                cut = Cut { depth, edge: u64::MAX };
            }
        }
        cut
    }

    /// The least depth such that the tokens down to it measure `wanted` together, and what those above it measure. If all
    /// measure less, the depth is `u32::MAX`.
    ///
    /// Four histograms of 256 buckets, one for each byte of the depth from the highest down, find it without sorting.
    fn depth_of(&self, wanted: u64, measure: impl Fn(u32) -> u64) -> (u32, u64) {
        let (mut above, mut prefix) = (0, 0);
        for shift in [24u32, 16, 8, 0] {
            let mut buckets = [0u64; BUCKETS];
            for depth in self.depths() {
                if u64::from(depth) >> (shift + 8) == u64::from(prefix) >> (shift + 8) {
                    buckets[(depth >> shift & 0xff) as usize] += measure(depth);
                }
            }
            for (bucket, within) in (0u32..).zip(buckets) {
                if above + within >= wanted || bucket as usize == BUCKETS - 1 {
                    prefix |= bucket << shift;
                    break;
                }
                above += within;
            }
        }
        (prefix, above)
    }
}

/// Which tokens are chosen from.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// Those that are less deep than this, Q16.16.
    depth: u32,
    /// And, of those just as deep, so many of the first.
    edge: u64,
}

/// xoshiro256** of Blackman and Vigna, seeded by splitmix64. No secret: it only has to be even and repeatable.
#[derive(Clone, Debug)]
struct Xoshiro256([u64; 4]);

impl Xoshiro256 {
    fn new(seed: u64) -> Self {
        let mut state = seed;
        Self(core::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ mixed >> 31
        }))
    }

    fn next(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, each as likely as the others to 2^-64 * `bound`; 0 if `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const ONE: i32 = 1 << FRAC;

    #[test]
    fn greedy_takes_the_first_of_the_highest() {
        assert_eq!(Sampler::new(0, 0, TOP_P_ALL, 1).sample(&[-5, 7, 7, 3]), 1);
        assert_eq!(Sampler::new(0, 0, TOP_P_ALL, 1).sample(&[i32::MIN]), 0);
    }

    #[test]
    fn the_generator_is_the_published_one() {
        let mut generator = Xoshiro256([1, 2, 3, 4]);
        assert_eq!([generator.next(), generator.next(), generator.next()], [11520, 0, 1_509_978_240]);
    }

    /// Shares of each token in many draws.
    fn shares(temperature: u32, top_k: u32, top_p: u32, logits: &[i32]) -> Vec<f64> {
        let mut sampler = Sampler::new(temperature, top_k, top_p, 42);
        let mut counts = std::vec![0u32; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.sample(logits) as usize] += 1;
        }
        counts.iter().map(|&count| f64::from(count) / 20_000.0).collect()
    }

    #[test]
    fn shares_follow_the_softmax() {
        let logits = [0, ONE, 2 * ONE, -3 * ONE];
        for temperature in [1 << 15, 1 << 16, 3 << 16] {
            let t = f64::from(temperature) / 65536.0;
            let exact = logits.map(|logit| (f64::from(logit) / 65536.0 / t).exp());
            let sum: f64 = exact.iter().sum();
            for (share, exact) in shares(temperature, 0, TOP_P_ALL, &logits).iter().zip(exact) {
                assert!((share - exact / sum).abs() < 0.015, "{share} instead of {}", exact / sum);
            }
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_that_is_likely_enough() {
        // Probabilities 0.5, 0.25, 0.125, 0.125 at temperature 1.
        let ln2 = 45_426;
        let logits = [-ln2, 0, -2 * ln2, -2 * ln2];
        let chosen = |top_p: u32| -> Vec<bool> {
            shares(ONE as u32, 0, top_p, &logits).iter().map(|&s| s > 0.0).collect()
        };
        assert_eq!(chosen(0), [false, true, false, false]);
        assert_eq!(chosen(TOP_P_ALL / 2 - 100), [false, true, false, false]);
        assert_eq!(chosen(TOP_P_ALL / 2 + 100), [true, true, false, false]);
        assert_eq!(chosen(TOP_P_ALL * 3 / 4 + 100), [true; 4]);
        assert_eq!(chosen(TOP_P_ALL), [true; 4]);
    }

    #[test]
    fn top_k_keeps_as_many_as_it_says_and_of_equals_the_first() {
        let logits = [-ONE, 0, -ONE, -2 * ONE, -ONE];
        let chosen = |top_k: u32| -> Vec<bool> {
            shares(ONE as u32, top_k, TOP_P_ALL, &logits).iter().map(|&s| s > 0.0).collect()
        };
        assert_eq!(chosen(1), [false, true, false, false, false]);
        assert_eq!(chosen(2), [true, true, false, false, false]);
        assert_eq!(chosen(3), [true, true, true, false, false]);
        assert_eq!(chosen(4), [true, true, true, false, true]);
        for all in [0, 5, 6, u32::MAX] {
            assert_eq!(chosen(all), [true; 5]);
        }
    }

    #[test]
    fn top_p_is_a_share_of_what_top_k_has_kept() {
        // 0.5, 0.25, 0.125, 0.125 of all; 2/3 and 1/3 of the first two.
        let ln2 = 45_426;
        let logits = [-ln2, 0, -2 * ln2, -2 * ln2];
        let share = |top_p: u32| shares(ONE as u32, 2, top_p, &logits)[0];
        assert!(share(TOP_P_ALL * 2 / 3 - 100) == 0.0);
        assert!((share(TOP_P_ALL * 2 / 3 + 100) - 1.0 / 3.0).abs() < 0.015);
    }

    #[test]
    fn extremes_are_chosen_from_without_overflow() {
        for (temperature, top_k, top_p) in [1, u32::MAX].into_iter().flat_map(|temperature| {
            [0, 1, 2, u32::MAX]
                .into_iter()
                .flat_map(move |top_k| [1, TOP_P_ALL - 1, u32::MAX].map(|top_p| (temperature, top_k, top_p)))
        }) {
            let mut sampler = Sampler::new(temperature, top_k, top_p, u64::MAX);
            for logits in [&[i32::MIN, i32::MAX][..], &[i32::MIN; 3], &[0]] {
                assert!((sampler.sample(logits) as usize) < logits.len());
            }
        }
    }
}
