//! Activations as the kernels take them: 16-bit mantissas, one exponent per token.

use crate::format::BLOCK;
use crate::isa::{Isa, Kernel};

/// Largest magnitude of a mantissa. Both halves of one (see [`Layout::Planes`]) fit i8.
pub const MANTISSA_MAX: i64 = 127 * 256 + 127;

/// Tokens from which on a matrix's weights are unpacked once for all of them.
pub const BATCH_MIN: usize = 4;

/// How the mantissas of a batch of tokens lie in memory. A mantissa is `256 * h + l`, both i8, where it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (tokens, columns): word c is the mantissa of column c.
    Words,
    /// (tokens, blocks): `h` of 8 x 4 columns, each four repeated four times, then `l` likewise: 256 bytes a block.
    Spread,
    /// (tokens, blocks): `h` and `l` of 8 x 4 columns, in the [`Order`] of the vector length: 64 bytes a block.
    Planes(Order),
    /// (pairs of tokens, blocks): for `h` and then `l`, for each 8 columns, those of one token and of the other: 128 bytes a
    /// block.
    Pairs,
}

/// Order of a block's 16 groups of four columns, `h` of the first columns being 0 and `l` of the last 15, such that the k-th
/// element of each 16 bytes of a vector is multiplied with the k-th vector of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Vectors of 16 bytes.
    V16,
    /// Vectors of 32 bytes.
    V32,
    /// Vectors of 64 bytes.
    V64,
}

impl Order {
    /// Which group of four comes at each place.
    const fn places(self) -> [usize; 16] {
        match self {
            Self::V16 => [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            Self::V32 => [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15],
            Self::V64 => [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15],
        }
    }
}

impl Isa {
    /// The layout that its kernels read, of a batch of `tokens`.
    #[must_use]
    pub const fn layout(self, tokens: usize) -> Layout {
        let batch = tokens >= BATCH_MIN;
        match self.kernel() {
            Kernel::Plain | Kernel::Sse2 => Layout::Words,
            Kernel::Neon if batch => Layout::Words,
            Kernel::Neon => Layout::Spread,
            Kernel::I8mm | Kernel::Sve32 | Kernel::Sve64 if batch => Layout::Pairs,
            Kernel::Dotprod | Kernel::I8mm => Layout::Planes(Order::V16),
            Kernel::Sve32 => Layout::Planes(Order::V32),
            Kernel::Sve64 => Layout::Planes(Order::V64),
        }
    }
}

/// Words that a batch of up to `tokens` of `cols` columns takes at most, in any [`Layout`].
#[must_use]
pub const fn words_needed(tokens: usize, cols: usize) -> usize {
    // A few tokens may be spread out to four times their size; the last of a pair may be missing.
    let spread = 4 * (if tokens < BATCH_MIN { tokens } else { BATCH_MIN - 1 });
    let pairs = tokens.next_multiple_of(2);
    cols * if spread > pairs { spread } else { pairs }
}

/// Activations of some tokens: `value = mantissa * 2^-exponent`.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    layout: Layout,
    words: &'a [i16],
    /// (tokens, cols / 32): sums of the mantissas of each block, see [`split_sum`].
    sums: &'a [i32],
    /// (tokens)
    exponents: &'a [i32],
    cols: usize,
    /// Columns of a token in memory.
    stride: usize,
}

impl<'a> Activations<'a> {
    /// Takes the activations of `exponents.len()` tokens, written by [`quantize`]. What lies behind them in `words` and
    /// `sums` is ignored.
    ///
    /// # Panics
    /// If `cols` is no multiple of 32, or a buffer is too short.
    #[must_use]
    pub fn new(layout: Layout, words: &'a [i16], sums: &'a [i32], exponents: &'a [i32], cols: usize) -> Self {
        assert!(cols.is_multiple_of(BLOCK), "columns are whole blocks");
        let tokens = exponents.len();
        let words = &words[..layout.words(tokens, cols)];
        Self { layout, words, sums: &sums[..tokens * cols / BLOCK], exponents, cols, stride: cols }
    }

    /// Only the first columns of each token.
    ///
    /// # Panics
    /// If there are fewer, or they are not whole blocks.
    #[must_use]
    pub fn first(&self, cols: usize) -> Self {
        assert!(cols <= self.cols && cols.is_multiple_of(BLOCK), "columns are x's, and whole blocks");
        Self { cols, ..*self }
    }

    /// How they lie in memory.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
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

    /// Words of one token; in [`Layout::Pairs`], of it and the next.
    #[inline]
    pub(crate) fn words(&self, token: usize) -> &'a [i16] {
        &self.words[self.layout.words(token, self.stride)..]
            [..self.layout.words(if self.layout == Layout::Pairs { 2 } else { 1 }, self.cols)]
    }

    /// Block sums of one token.
    #[inline]
    pub(crate) fn sums(&self, token: usize) -> &'a [i32] {
        &self.sums[token * self.stride / BLOCK..][..self.cols / BLOCK]
    }

    /// Exponents of the tokens from `first` on.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn exponents(&self, first: usize) -> &'a [i32] {
        &self.exponents[first..]
    }

    /// Exponent of one token.
    #[inline]
    pub(crate) fn exponent(&self, token: usize) -> i32 {
        self.exponents[token]
    }
}

impl Layout {
    /// Words of `tokens` tokens.
    const fn words(self, tokens: usize, cols: usize) -> usize {
        match self {
            Self::Words | Self::Planes(_) => tokens * cols,
            Self::Spread => 4 * tokens * cols,
            Self::Pairs => tokens.next_multiple_of(2) * cols,
        }
    }
}

/// A block's sum X, |X| < 2^20, as two i16 that 64 products with an i16 can be summed of in i32: the low half is
/// -512..=511, and `X = 1024 * high + low`.
#[inline]
pub(crate) const fn split_sum(sum: i32) -> i32 {
    let high = (sum + 512) >> 10;
    high << 16 | ((sum - (high << 10)) & 0xffff)
}

/// The sum that was split.
#[inline]
pub(crate) const fn join_sum(word: i32) -> i32 {
    ((word >> 16) << 10) + (word as i16) as i32
}

/// Rounds the values of one token of a batch to mantissas of at most [`MANTISSA_MAX`] and answers their exponent.
///
/// `values[c] * 2^-frac` are the numbers; `words` and `sums` are those of the whole batch. Tokens are to be written in
/// ascending order. The largest magnitude decides the exponent, such that it becomes a mantissa of 15 bits, or of 14 if one of
/// 15 were more than [`MANTISSA_MAX`]; zeros get exponent 0. Halves are rounded up.
///
/// # Panics
/// If `values` are not whole blocks, or a buffer is too short.
pub fn quantize(
    layout: Layout,
    token: usize,
    values: &[i64],
    frac: i32,
    words: &mut [i16],
    sums: &mut [i32],
) -> i32 {
    let cols = values.len();
    assert!(cols.is_multiple_of(BLOCK), "columns are whole blocks");
    let magnitude = values.iter().fold(0, |all, v| all | v.unsigned_abs());
    let bits = 64 - magnitude.leading_zeros().cast_signed();
    // 15 bits are kept. Shifting left by as much as 14 cannot overflow: there are fewer than 15 bits then.
    let shift = bits - 15;
    // `magnitude` has the bits of all: it may be too large where no value is.
    let most = largest(shift);
    let beyond = magnitude > most && values.iter().any(|v| v.unsigned_abs() > most);
    let shift = if beyond { shift + 1 } else { shift };
    let blocks = cols / BLOCK;
    let first = match layout {
        Layout::Pairs => token / 2 * 2 * cols,
        _ => layout.words(token, cols),
    };
    let words = &mut words[first..];
    let sums = &mut sums[token * blocks..][..blocks];
    for ((b, values), sum) in values.as_chunks::<BLOCK>().0.iter().enumerate().zip(sums) {
        let block = narrow(values, shift);
        *sum = split_sum(block.iter().map(|&word| i32::from(word)).sum::<i32>());
        match layout {
            Layout::Words => words[b * BLOCK..][..BLOCK].copy_from_slice(&block),
            Layout::Planes(order) => planes(&block, order, &mut words[b * BLOCK..][..BLOCK]),
            Layout::Spread => spread(&block, &mut words[b * 4 * BLOCK..][..4 * BLOCK]),
            Layout::Pairs => pair(&block, token % 2, &mut words[b * 2 * BLOCK..][..2 * BLOCK]),
        }
    }
    if magnitude == 0 { 0 } else { frac - shift }
}

/// The largest magnitude that becomes a mantissa of at most [`MANTISSA_MAX`] by a shift down by -15..=49.
const fn largest(shift: i32) -> u64 {
    let max = MANTISSA_MAX.cast_unsigned();
    // A half is rounded up.
    if shift > 0 { (max << shift) + (1 << (shift - 1)) - 1 } else { max >> -shift }
}

/// Values as mantissas. Loops, as an array's `map` of this length is not turned into vector instructions.
#[inline]
fn narrow(values: &[i64; BLOCK], shift: i32) -> [i16; BLOCK] {
    let mut block = [0; BLOCK];
    if shift > 0 {
        let half = 1_i64 << (shift - 1);
        for (word, value) in block.iter_mut().zip(values) {
            // A saturated value (near 2^63) must not wrap when half is added.
            *word = (value.saturating_add(half) >> shift) as i16;
        }
    } else {
        for (word, value) in block.iter_mut().zip(values) {
            *word = (value << -shift) as i16;
        }
    }
    block
}

/// The two halves of each mantissa: the low one is signed, -128..=127, the high one makes up for it. [`MANTISSA_MAX`]
/// keeps it within +-127.
#[inline]
fn split(block: &[i16; BLOCK]) -> [[u8; BLOCK]; 2] {
    let [mut high, mut low] = [[0; BLOCK]; 2];
    for ((word, high), low) in block.iter().zip(&mut high).zip(&mut low) {
        *high = ((word + 128) >> 8) as u8;
        *low = *word as u8;
    }
    [high, low]
}

/// [`Layout::Planes`].
fn planes(block: &[i16; BLOCK], order: Order, words: &mut [i16]) {
    let halves = split(block);
    let fours = halves.as_flattened().as_chunks::<4>().0;
    for (out, place) in words.as_chunks_mut::<2>().0.iter_mut().zip(order.places()) {
        *out = two_words(fours[place]);
    }
}

/// [`Layout::Spread`].
fn spread(block: &[i16; BLOCK], words: &mut [i16]) {
    let halves = split(block);
    let fours = halves.as_flattened().as_chunks::<4>().0;
    for (out, &four) in words.as_chunks_mut::<8>().0.iter_mut().zip(fours) {
        out.as_chunks_mut::<2>().0.fill(two_words(four));
    }
}

/// [`Layout::Pairs`]. The first of a pair clears the second's place, as there may be none.
fn pair(block: &[i16; BLOCK], second: usize, words: &mut [i16]) {
    let halves = split(block);
    let eights = halves.as_flattened().as_chunks::<8>().0;
    for (out, eight) in words.as_chunks_mut::<8>().0.iter_mut().zip(eights) {
        let (own, other) = if second == 0 { (0, Some(4)) } else { (4, None) };
        for (out, &bytes) in out[own..].iter_mut().zip(eight.as_chunks::<2>().0) {
            *out = i16::from_le_bytes(bytes);
        }
        if let Some(other) = other {
            out[other..].fill(0);
        }
    }
}

#[inline]
fn two_words([a, b, c, d]: [u8; 4]) -> [i16; 2] {
    [i16::from_le_bytes([a, b]), i16::from_le_bytes([c, d])]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a mantissa is, from the bytes of its halves.
    fn joined(h: u8, l: u8) -> i16 {
        256 * i16::from(h.cast_signed()) + i16::from(l.cast_signed())
    }

    fn bytes<const N: usize>(words: &[i16; N]) -> std::vec::Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn every_layout_says_the_same() {
        let values: [i64; 32] = core::array::from_fn(|i| (i as i64 - 16) * 1024 + [0, 127, 128, -129][i % 4]);
        let mut sums = [0; 2];
        let mut words = [0; 32];
        assert_eq!(quantize(Layout::Words, 0, &values, 3, &mut words, &mut sums), 3);
        assert_eq!(join_sum(sums[0]), words.iter().map(|&w| i32::from(w)).sum::<i32>());
        for order in [Order::V16, Order::V32, Order::V64] {
            let mut planes = [0; 32];
            quantize(Layout::Planes(order), 0, &values, 3, &mut planes, &mut sums);
            let planes = bytes(&planes);
            let at = |group: usize| order.places().iter().position(|&p| p == group).unwrap() * 4;
            for (c, &word) in words.iter().enumerate() {
                assert_eq!(joined(planes[at(c / 4) + c % 4], planes[at(8 + c / 4) + c % 4]), word);
            }
        }
        let mut spread = [0; 128];
        quantize(Layout::Spread, 0, &values, 3, &mut spread, &mut sums);
        let spread = bytes(&spread);
        for i in 0..128 {
            assert_eq!(joined(spread[i], spread[128 + i]), words[i / 16 * 4 + i % 4]);
        }
        let mut pairs = [7; 64];
        quantize(Layout::Pairs, 0, &values, 3, &mut pairs, &mut sums);
        let first = bytes(&pairs);
        quantize(Layout::Pairs, 1, &values, 3, &mut pairs, &mut sums);
        let both = bytes(&pairs);
        for (c, &word) in words.iter().enumerate() {
            let at = c / 8 * 16 + c % 8;
            assert_eq!(joined(first[at], first[64 + at]), word);
            assert_eq!((first[at + 8], first[72 + at]), (0, 0));
            assert_eq!(joined(both[at], both[64 + at]), word);
            assert_eq!(joined(both[at + 8], both[72 + at]), word);
        }
    }

    #[test]
    fn sums_are_put_together_again() {
        const MOST: i32 = BLOCK as i32 * MANTISSA_MAX as i32;
        for sum in (-MOST..=MOST).step_by(77).chain([-513, -512, 511, 512, MOST]) {
            let word = split_sum(sum);
            assert_eq!(join_sum(word), sum);
            assert!((-512..=511).contains(&(word as i16)) && (-1020..=1020).contains(&(word >> 16)), "{sum}");
        }
    }

    #[test]
    fn mantissas_fill_fifteen_bits() {
        let edge = (MANTISSA_MAX << 40) + (1 << 39);
        let values = [1, 3, 16383, 16384, 32639, 32640, 32767, edge - 1, edge, 1 << 40, i64::MAX, i64::MIN];
        for value in values {
            let mut values = [0; 32];
            values[5] = value;
            let (mut words, mut sums) = ([0; 32], [0; 1]);
            let exponent = quantize(Layout::Words, 0, &values, 0, &mut words, &mut sums);
            let mantissa = i64::from(words[5]);
            assert!((16320..=MANTISSA_MAX).contains(&mantissa.abs()), "{value} -> {mantissa}");
            if (0..=14).contains(&exponent) {
                assert_eq!(mantissa, value << exponent);
            }
        }
    }

    #[test]
    fn only_the_largest_value_decides_the_exponent() {
        let (mut words, mut sums) = ([0; 32], [0; 1]);
        // Together they have all bits; neither is more than MANTISSA_MAX.
        let mut values = [0; 32];
        (values[0], values[1]) = (0x5555, -0x2aaa);
        assert_eq!(quantize(Layout::Words, 0, &values, 0, &mut words, &mut sums), 0);
        assert_eq!(words[..2], [0x5555, -0x2aaa]);
        values[2] = MANTISSA_MAX + 1;
        assert_eq!(quantize(Layout::Words, 0, &values, 0, &mut words, &mut sums), -1);
    }

    #[test]
    fn zeros_have_exponent_zero() {
        let (mut words, mut sums) = ([1; 32], [1; 1]);
        assert_eq!(quantize(Layout::Words, 0, &[0; 32], 7, &mut words, &mut sums), 0);
        assert_eq!((words, sums), ([0; 32], [0]));
    }
}
