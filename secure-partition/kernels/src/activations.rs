//! Activations as the kernels take them: 16-bit mantissas, one exponent per token.

use crate::format::BLOCK;
use crate::isa::{Isa, Kernel};

/// Largest magnitude of a mantissa. Both halves of one (see [`Layout::Planes`]) fit i8.
pub const MANTISSA_MAX: i64 = 1 << 14;

/// What a block's sum is multiplied by: 2^7, the factor of minima in the format. 2^7 * 32 * 2^14 = 2^26.
pub const SUM_SCALE: i32 = 128;

/// How the mantissas of a block lie in its 32 words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Word c is the mantissa of column c.
    Words,
    /// 32 bytes `h`, then 32 bytes `l`, all i8: the mantissa of column c is `256 * h[c] + l[c]`.
    Planes,
}

impl Isa {
    /// The layout that its kernels read.
    #[must_use]
    pub const fn layout(self) -> Layout {
        match self.kernel() {
            Kernel::Plain | Kernel::Sse2 | Kernel::Neon => Layout::Words,
            Kernel::Dotprod => Layout::Planes,
        }
    }
}

/// Activations of some tokens: `value = mantissa * 2^-exponent`.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// (tokens, cols), in the [`Layout`] of the kernels.
    words: &'a [i16],
    /// (tokens, cols / 32): [`SUM_SCALE`] * sum of the mantissas of each block.
    sums: &'a [i32],
    /// (tokens)
    exponents: &'a [i32],
    cols: usize,
}

impl<'a> Activations<'a> {
    /// Takes the activations of `exponents.len()` tokens, written by [`quantize`]. What lies behind them in `words` and
    /// `sums` is ignored.
    ///
    /// # Panics
    /// If `cols` is no multiple of 32, or a buffer is too short.
    #[must_use]
    pub fn new(words: &'a [i16], sums: &'a [i32], exponents: &'a [i32], cols: usize) -> Self {
        assert!(cols.is_multiple_of(BLOCK), "columns are whole blocks");
        let tokens = exponents.len();
        Self { words: &words[..tokens * cols], sums: &sums[..tokens * cols / BLOCK], exponents, cols }
    }

    /// Number of tokens.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.exponents.len()
    }

    /// Columns.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Words of one token, [`Self::cols`] of them.
    #[inline]
    pub(crate) fn words(&self, token: usize) -> &'a [i16] {
        &self.words[token * self.cols..][..self.cols]
    }

    /// Block sums of one token.
    #[inline]
    pub(crate) fn sums(&self, token: usize) -> &'a [i32] {
        let blocks = self.cols / BLOCK;
        &self.sums[token * blocks..][..blocks]
    }

    /// Exponent of one token.
    #[inline]
    pub(crate) fn exponent(&self, token: usize) -> i32 {
        self.exponents[token]
    }
}

/// Rounds one token's values to mantissas of at most [`MANTISSA_MAX`] and answers their exponent.
///
/// `values[c] * 2^-frac` are the numbers; `words` gets as many, `sums` one per block, [`SUM_SCALE`]d. The largest magnitude decides the
/// exponent, such that it becomes a mantissa in 2^13..=2^14; zeros get exponent 0. Halves are rounded up.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn quantize(layout: Layout, values: &[i64], frac: i32, words: &mut [i16], sums: &mut [i32]) -> i32 {
    assert!(values.len() == words.len() && words.len() == sums.len() * BLOCK, "whole blocks of equal length");
    let magnitude = values.iter().fold(0, |all, v| all | v.unsigned_abs());
    let bits = 64 - magnitude.leading_zeros().cast_signed();
    // 14 bits are kept. Shifting left by as much as 13 cannot overflow: there are fewer than 14 bits then.
    let shift = bits - 14;
    for ((values, words), sum) in values.chunks_exact(BLOCK).zip(words.chunks_exact_mut(BLOCK)).zip(sums) {
        let mut block = [0_i16; BLOCK];
        if shift > 0 {
            let half = 1_i64 << (shift - 1);
            // A saturated value (near 2^63) must not wrap when half is added.
            for (word, value) in block.iter_mut().zip(values) {
                *word = (value.saturating_add(half) >> shift) as i16;
            }
        } else {
            for (word, value) in block.iter_mut().zip(values) {
                *word = (value << -shift) as i16;
            }
        }
        *sum = SUM_SCALE * block.iter().map(|&word| i32::from(word)).sum::<i32>();
        match layout {
            Layout::Words => words.copy_from_slice(&block),
            Layout::Planes => planes(&block, words),
        }
    }
    if magnitude == 0 { 0 } else { frac - shift }
}

/// Splits 32 mantissas into the two planes of [`Layout::Planes`].
fn planes(block: &[i16; BLOCK], words: &mut [i16]) {
    let (high, low) = words.split_at_mut(BLOCK / 2);
    for ((pair, high), low) in block.chunks_exact(2).zip(high).zip(low) {
        // The low half is signed, -128..=127; the high one makes up for it. |mantissa| <= 2^14 keeps it within +-64.
        let split = |word: i16| [((word + 128) >> 8) as u8, word as u8];
        let [first, second] = [split(pair[0]), split(pair[1])];
        *high = i16::from_le_bytes([first[0], second[0]]);
        *low = i16::from_le_bytes([first[1], second[1]]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_and_words_say_the_same() {
        let values: [i64; 32] = core::array::from_fn(|i| (i as i64 - 16) * 1024 + [0, 127, 128, -129][i % 4]);
        let (mut words, mut planes, mut sums) = ([0; 32], [0; 32], [0; 1]);
        assert_eq!(quantize(Layout::Words, &values, 3, &mut words, &mut sums), 2);
        assert_eq!(quantize(Layout::Planes, &values, 3, &mut planes, &mut sums), 2);
        let bytes: [u8; 64] = core::array::from_fn(|i| planes[i / 2].to_le_bytes()[i % 2]);
        for c in 0..32 {
            let both = 256 * i16::from(bytes[c].cast_signed()) + i16::from(bytes[32 + c].cast_signed());
            assert_eq!(both, words[c]);
        }
        assert_eq!(sums[0], 128 * words.iter().map(|&w| i32::from(w)).sum::<i32>());
    }

    #[test]
    fn mantissas_fill_fourteen_bits() {
        for value in [1, 3, 8191, 8192, 16383, 16384, 32767, 1 << 40, i64::MAX, i64::MIN] {
            let mut values = [0; 32];
            values[5] = value;
            let (mut words, mut sums) = ([0; 32], [0; 1]);
            let exponent = quantize(Layout::Words, &values, 0, &mut words, &mut sums);
            let mantissa = i64::from(words[5]);
            assert!((1 << 13..=1 << 14).contains(&mantissa.abs()), "{value} -> {mantissa}");
            if (0..=13).contains(&exponent) {
                assert_eq!(mantissa, value << exponent);
            }
        }
    }

    #[test]
    fn zeros_have_exponent_zero() {
        let (mut words, mut sums) = ([1; 32], [1; 1]);
        assert_eq!(quantize(Layout::Words, &[0; 32], 7, &mut words, &mut sums), 0);
        assert_eq!((words, sums), ([0; 32], [0]));
    }
}
