//! Rounds values to activations, token by token.

use core::ops::Range;

use super::octets::{self, Octets};
use super::{
    Activations, BATCH_MIN, Layout, MANTISSA_MAX, OCTET_MAX, PADDED, Precision, Shape, TILE_MAX, Token,
};
use crate::format::BLOCK;
use crate::isa::Isa;
use crate::matrix::{MAX_COLS, ShapeError};
use crate::word::{self, rounded};

/// What an octet of a first entry stands for where there is a second one, in units of the second's.
pub(super) const STEP: i32 = 2 * OCTET_MAX + 1;
/// Largest magnitude that two octets hold.
pub(super) const PAIR_MAX: i32 = OCTET_MAX * STEP + OCTET_MAX;
/// Largest magnitude of a block's sum, see [`crate::minima`].
const SUM_MAX: i32 = 2047;

/// Elements that each of a [`Buffers`]' arrays needs for `tokens` tokens of `cols` columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Of [`Buffers::octets`].
    pub octets: usize,
    /// Of [`Buffers::scales`].
    pub scales: usize,
    /// Of [`Buffers::sums`].
    pub sums: usize,
    /// Of [`Buffers::seconds`].
    pub seconds: usize,
    /// Of [`Buffers::scratch`].
    pub scratch: usize,
}

impl Needed {
    /// In any [`Layout`].
    #[must_use]
    pub const fn new(tokens: usize, cols: usize) -> Self {
        let blocks = cols / BLOCK;
        Self {
            octets: 2 * cols * if tokens < BATCH_MIN { tokens } else { tokens.next_multiple_of(TILE_MAX) },
            scales: 2 * blocks * 2 * tokens.next_multiple_of(PADDED),
            sums: tokens.next_multiple_of(4) * blocks.next_multiple_of(PADDED),
            // Tiles of a token each, or of four at least.
            seconds: if tokens < BATCH_MIN { tokens } else { tokens.div_ceil(BATCH_MIN) } * (1 + blocks),
            scratch: 2 * blocks,
        }
    }
}

/// Where the activations of a batch are written.
#[derive(Debug, Default)]
pub struct Buffers<'a> {
    /// Octets of all entries.
    pub octets: &'a mut [i8],
    /// (entries, tokens): scales, or of fewer tokens than [`super::BATCH_MIN`] a scale and a bias each; of [`Layout::Pairs`]
    /// (entries, pairs, 4), those of each pair twice.
    pub scales: &'a mut [i32],
    /// (tokens, blocks)
    pub sums: &'a mut [i16],
    /// (tokens)
    pub tokens: &'a mut [Token],
    /// (tiles of tokens, 1 + blocks): how many second entries there are, and of which blocks.
    pub seconds: &'a mut [u16],
    /// Scratch of one token: (blocks) largest magnitudes, (blocks) sums.
    pub scratch: &'a mut [i32],
}

/// [`Buffers`] on the heap.
#[cfg(any(test, feature = "std"))]
#[derive(Clone, Debug)]
pub struct Room {
    octets: std::vec::Vec<i8>,
    scales: std::vec::Vec<i32>,
    sums: std::vec::Vec<i16>,
    tokens: std::vec::Vec<Token>,
    seconds: std::vec::Vec<u16>,
    scratch: std::vec::Vec<i32>,
}

#[cfg(any(test, feature = "std"))]
impl Room {
    /// As much as `tokens` tokens of `cols` columns need.
    #[must_use]
    pub fn new(tokens: usize, cols: usize) -> Self {
        let needed = Needed::new(tokens, cols);
        Self {
            octets: std::vec![0; needed.octets],
            scales: std::vec![0; needed.scales],
            sums: std::vec![0; needed.sums],
            tokens: std::vec![[0; 2]; tokens],
            seconds: std::vec![0; needed.seconds],
            scratch: std::vec![0; needed.scratch],
        }
    }

    /// All of it.
    pub fn buffers(&mut self) -> Buffers<'_> {
        Buffers {
            octets: &mut self.octets,
            scales: &mut self.scales,
            sums: &mut self.sums,
            tokens: &mut self.tokens,
            seconds: &mut self.seconds,
            scratch: &mut self.scratch,
        }
    }
}

/// Writes the activations of a batch, token by token.
#[derive(Debug)]
pub struct Writer<'b, 'a> {
    buffers: &'b mut Buffers<'a>,
    shape: Shape,
    /// Tokens written.
    written: usize,
    /// Whether any of them has second entries.
    seconds: bool,
}

impl<'a> Buffers<'a> {
    /// Begins a batch in the layout that `isa` takes.
    ///
    /// # Errors
    /// [`ShapeError`] if `cols` are not whole blocks or more than a matrix has, or a buffer is too short ([`Needed`]).
    pub fn writer<'b>(
        &'b mut self,
        isa: Isa,
        tokens: usize,
        cols: usize,
    ) -> Result<Writer<'b, 'a>, ShapeError> {
        self.writer_in(isa.layout(tokens), isa.tile(tokens), tokens, cols)
    }

    fn writer_in<'b>(
        &'b mut self,
        layout: Layout,
        tile: usize,
        tokens: usize,
        cols: usize,
    ) -> Result<Writer<'b, 'a>, ShapeError> {
        // First what bounds the products in `Needed`.
        let sizes = 1..=self.tokens.len();
        if !sizes.contains(&tokens) || !cols.is_multiple_of(BLOCK) || cols > MAX_COLS {
            return Err(ShapeError);
        }
        let needed = Needed::new(tokens, cols);
        let long_enough = self.octets.len() >= needed.octets
            && self.scales.len() >= needed.scales
            && self.sums.len() >= needed.sums
            && self.seconds.len() >= needed.seconds
            && self.scratch.len() >= needed.scratch;
        if !long_enough {
            return Err(ShapeError);
        }
        let shape = Shape { layout, tokens, blocks: cols / BLOCK, tile };
        Ok(Writer { buffers: self, shape, written: 0, seconds: false })
    }
}

impl<'b> Writer<'b, '_> {
    /// Rounds the values of the next token: `values[c] * 2^-frac` are the numbers.
    ///
    /// The largest magnitude decides the exponent, such that its mantissa has 19 bits, or 18 if one of 19 were more than
    /// [`MANTISSA_MAX`]. Halves are rounded up.
    ///
    /// # Errors
    /// [`ShapeError`] if there are not as many values as columns, or as many tokens already.
    pub fn put(&mut self, values: &[i32], frac: i32, precision: Precision) -> Result<(), ShapeError> {
        let (shape, token) = (self.shape, self.written);
        let (values, []) = values.as_chunks::<BLOCK>() else { return Err(ShapeError) };
        if values.len() != shape.blocks || token == shape.tokens {
            return Err(ShapeError);
        }
        let blocks = shape.blocks;
        let (largest, rest) = self.buffers.scratch.split_at_mut(blocks);
        let sums = &mut rest[..blocks];
        let mut most = 0;
        for (largest, block) in largest.iter_mut().zip(values) {
            *largest = word::largest(block);
            most = most.max(*largest);
        }
        let shift = shift_to_mantissas(most);
        let mut total = 0;
        for largest in largest.iter_mut() {
            *largest = rounded(*largest, shift);
            total += i64::from(*largest);
        }
        let times_mean = |factor: i64| (factor * total / blocks.max(1) as i64) as i32;
        // Blocks whose largest mantissa is beyond it have second entries.
        let limit = match precision {
            Precision::Octets => i32::MAX,
            Precision::Outliers => times_mean(2),
            Precision::Peaks => times_mean(4),
            Precision::Words => -1,
        };
        let token_blocks = Blocks { values, largest, sums, shift, limit };
        let first = shape.octets_place(0, token);
        let octets = (&mut self.buffers.octets[first..], shape.octets_stride());
        let scales = (&mut *self.buffers.scales, shape.scales_stride());
        let ([place, again], bias) = (shape.scale_places(0, token), shape.bias());
        let (bits, seconds) = match shape.layout {
            Layout::Rows(order) => token_blocks.put(
                octets,
                |octets, out| octets::store_row(octets, order, out),
                scales,
                |scales, scale, sum| {
                    scales[place] = scale;
                    if let Some(times) = bias {
                        scales[place + 1] = times * sum;
                    }
                },
            ),
            Layout::Pairs => token_blocks.put(
                octets,
                |octets, out| octets::store_pair(octets, token % 2, out),
                scales,
                |scales, scale, _| (scales[place], scales[again]) = (scale, scale),
            ),
        };
        self.seconds |= seconds;
        // All bits of the sums have as many digits as the largest of them.
        let sum_shift = SUM_MAX.leading_zeros().saturating_sub(bits.leading_zeros());
        let half = (1 << sum_shift) >> 1;
        let stride = shape.sums_stride();
        let out = &mut self.buffers.sums[token * stride..][..stride];
        out[blocks..].fill(0);
        for (out, &sum) in out.iter_mut().zip(sums.iter()) {
            *out = ((sum + half) >> sum_shift).clamp(-SUM_MAX, SUM_MAX) as i16;
        }
        self.buffers.tokens[token] = [frac.saturating_sub(shift), sum_shift.cast_signed()];
        self.written += 1;
        Ok(())
    }

    /// The activations, once all tokens are written.
    ///
    /// # Errors
    /// [`ShapeError`] if some are not.
    pub fn finish(mut self) -> Result<Activations<'b>, ShapeError> {
        if self.written < self.shape.tokens {
            return Err(ShapeError);
        }
        for first in (0..self.shape.tokens).step_by(self.shape.tile) {
            let tile = first..self.shape.tokens.min(first + self.shape.tile);
            let list = self.shape.seconds_place(first);
            let mut seconds = 0;
            // Most often there are none at all.
            for b in 0..if self.seconds { self.shape.blocks } else { 0 } {
                if self.needs_second(b, tile.clone()) {
                    self.move_second(b, seconds, tile.clone());
                    seconds += 1;
                    self.buffers.seconds[list + seconds] = b as u16;
                }
            }
            self.buffers.seconds[list] = seconds as u16;
        }
        let (buffers, shape) = (self.buffers, self.shape);
        Ok(Activations {
            shape,
            octets: buffers.octets,
            scales: buffers.scales,
            sums: buffers.sums,
            tokens: &buffers.tokens[..shape.tokens],
            seconds: buffers.seconds,
            blocks: shape.blocks,
        })
    }

    /// Whether any token of a tile has a second entry of a block.
    fn needs_second(&self, block: usize, mut tile: Range<usize>) -> bool {
        let entry = self.shape.blocks + block;
        tile.any(|t| self.buffers.scales[self.shape.scale_places(entry, t)[0]] != 0)
    }

    /// Moves a tile's second entries of a block to the place of the `to`-th one; clears those that there are not.
    fn move_second(&mut self, block: usize, to: usize, tile: Range<usize>) {
        let shape = self.shape;
        let (from, to) = (shape.blocks + block, shape.blocks + to);
        for token in tile {
            let places = shape.scale_places(from, token);
            let scale = self.buffers.scales[places[0]];
            let to_places = shape.scale_places(to, token);
            for place in to_places {
                self.buffers.scales[place] = scale;
            }
            if shape.bias().is_some() {
                self.buffers.scales[to_places[0] + 1] = self.buffers.scales[places[0] + 1];
            }
            let ((length, from), (_, to)) = (shape.octet_parts(from, token), shape.octet_parts(to, token));
            for (from, to) in from.zip(to) {
                if scale == 0 {
                    self.buffers.octets[to..][..length].fill(0);
                } else {
                    self.buffers.octets.copy_within(from..from + length, to);
                }
            }
        }
    }
}

/// A token's blocks.
struct Blocks<'a> {
    values: &'a [[i32; BLOCK]],
    /// Their largest mantissas.
    largest: &'a [i32],
    /// Their sums, to be.
    sums: &'a mut [i32],
    /// From values to mantissas.
    shift: i32,
    /// The largest mantissa of blocks that have no second entry.
    limit: i32,
}

impl Blocks<'_> {
    /// Puts the octets of all blocks and, behind them, of second entries, by `store`; the scales of both by `store_scale`, which is
    /// told the sum of the octets. Of each there are some an entry, this token's first. Answers all bits of the sums, and
    /// whether there are second entries.
    #[inline]
    fn put<const LENGTH: usize>(
        self,
        (octets, each_octets): (&mut [i8], usize),
        store: impl Fn(&Octets, &mut [i8; LENGTH]),
        (scales, each): (&mut [i32], usize),
        store_scale: impl Fn(&mut [i32], i32, i32),
    ) -> (u32, bool) {
        let Self { values, largest, sums, shift, limit } = self;
        let (octets, seconds) = octets.split_at_mut(values.len() * each_octets);
        let (scales, second_scales) = scales.split_at_mut(values.len() * each);
        let blocks = values.iter().zip(largest).zip(sums);
        let octets = octets.chunks_mut(each_octets).zip(seconds.chunks_mut(each_octets));
        let octets =
            octets.filter_map(|(first, second)| first.first_chunk_mut().zip(second.first_chunk_mut()));
        let scales = scales.chunks_exact_mut(each).zip(second_scales.chunks_exact_mut(each));
        let (mut bits, mut any) = (0, false);
        for ((((block, &largest), sum), octets), scales) in blocks.zip(octets).zip(scales) {
            if largest > limit {
                any = true;
                let step = step_of(largest);
                let [first, second] = octets::pair(block, shift + step);
                let [first_sum, second_sum] = [&first, &second].map(octets::sum);
                store(&first, octets.0);
                store(&second, octets.1);
                store_scale(scales.0, STEP << step, first_sum);
                store_scale(scales.1, 1 << step, second_sum);
                *sum = (STEP * first_sum + second_sum) << step;
            } else {
                let (scale, factor) = scale_of(largest);
                let single = octets::single(block, shift, factor);
                let octet_sum = octets::sum(&single);
                store(&single, octets.0);
                store_scale(scales.0, scale, octet_sum);
                store_scale(scales.1, 0, 0);
                *sum = scale * octet_sum;
            }
            bits |= sum.unsigned_abs();
        }
        (bits, any)
    }
}

/// By how many bits a token's values are to be shifted down so that the largest magnitude has 19, or 18 if 19 are too many.
const fn shift_to_mantissas(most: i32) -> i32 {
    if most == 0 {
        return 0;
    }
    let shift = 13 - most.leading_zeros().cast_signed();
    shift + (rounded(most, shift) as i64 > MANTISSA_MAX) as i32
}

/// The scale of a block with one octet a column, and what its mantissas are to be multiplied by for their quotient by the scale:
/// `2^31 / scale`. It is off by at most 1/2, and the quotient, of at most 2^19, by 2^-13: no octet is beyond 127.
#[inline]
fn scale_of(largest: i32) -> (i32, i32) {
    let scale = largest.cast_unsigned().div_ceil(OCTET_MAX.cast_unsigned()).max(1);
    let factor = ((1 << 31) + scale / 2) / scale;
    // The scale 1 takes a little less than 1: mantissas of at most 127 are the same.
    (scale.cast_signed(), factor.min(i32::MAX.cast_unsigned()).cast_signed())
}

/// The power of 2 that is the scale of the second octets.
#[inline]
const fn step_of(largest: i32) -> i32 {
    let mut step = 0;
    while largest > PAIR_MAX << step {
        step += 1;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::super::Order;
    use super::*;
    use std::vec::Vec;

    const V16: Layout = Layout::Rows(Order::V16);
    const LAYOUTS: [Layout; 4] = [V16, Layout::Rows(Order::V32), Layout::Rows(Order::V64), Layout::Pairs];
    const PRECISIONS: [Precision; 4] =
        [Precision::Octets, Precision::Peaks, Precision::Outliers, Precision::Words];
    const COLS: usize = 3 * BLOCK;
    const LARGEST: i32 = MANTISSA_MAX as i32;
    type Values = [i32; COLS];

    fn with<T>(
        layout: Layout,
        tokens: &[Values],
        precision: Precision,
        then: impl Fn(Activations) -> T,
    ) -> T {
        let mut room = Room::new(tokens.len(), COLS);
        // What was there before makes no difference.
        room.octets.fill(0x55);
        room.scales.fill(0x5555);
        // The least that there may be.
        let tile = if tokens.len() < BATCH_MIN { 1 } else { BATCH_MIN };
        let mut buffers = room.buffers();
        let mut writer = buffers.writer_in(layout, tile, tokens.len(), COLS).unwrap();
        tokens.iter().for_each(|values| writer.put(values, 0, precision).unwrap());
        then(writer.finish().unwrap())
    }

    /// Mantissas of a token, and their exponent.
    fn mantissas(x: &Activations, token: usize) -> (Vec<i64>, i32) {
        let mut out = std::vec![0; COLS];
        let exponent = x.decode(token, |column, part| out[column] += part).unwrap();
        (out, exponent)
    }

    fn alone(values: Values, precision: Precision) -> (Vec<i64>, i32) {
        with(V16, &[values], precision, |x| mantissas(&x, 0))
    }

    /// Values of both signs; those of one block, which another token has elsewhere, are much larger.
    fn values(token: usize) -> Values {
        core::array::from_fn(|i| {
            let value = ((i + 7 * token) as i32 * 7919 + 13) % 65_537 - 32_768;
            if i / BLOCK == token % 3 { value << 6 } else { value }
        })
    }

    #[test]
    fn every_layout_says_the_same() {
        let tokens: Vec<_> = (0..5).map(values).collect();
        for precision in PRECISIONS {
            let of = |layout, count| {
                with(layout, &tokens[..count], precision, |x| {
                    (0..count).map(|token| mantissas(&x, token)).collect::<Vec<_>>()
                })
            };
            let all = of(V16, 5);
            for layout in LAYOUTS {
                // Pairs are for batches.
                let few = if layout == Layout::Pairs { &[][..] } else { &[1, 3] };
                for &count in few.iter().chain(&[4, 5]) {
                    assert_eq!(of(layout, count), all[..count], "{layout:?} {precision:?}");
                }
            }
        }
    }

    #[test]
    fn biases_are_beside_the_scales_of_few_tokens() {
        let tokens = [values(0), [i32::MIN; COLS], values(1)];
        for precision in PRECISIONS {
            for order in [Order::V16, Order::V32, Order::V64] {
                let layout = Layout::Rows(order);
                with(layout, &tokens, precision, |x| {
                    for token in 0..tokens.len() {
                        for (entry, _) in x.entries(token) {
                            let place = x.shape.scale_places(entry, token)[0];
                            let sum: i32 = x.octets(token, entry).iter().map(|&octet| i32::from(octet)).sum();
                            assert_eq!(
                                order.sums() * x.scales[place + 1],
                                -8 * sum,
                                "{order:?} {precision:?}"
                            );
                        }
                    }
                });
                with(layout, &[tokens[0]; BATCH_MIN], precision, |x| assert_eq!(x.shape.bias(), None));
            }
        }
    }

    #[test]
    fn octets_never_leave_their_range() {
        for precision in PRECISIONS {
            for layout in LAYOUTS {
                with(layout, &[[i32::MIN; COLS], [i32::MAX; COLS], values(1), values(2)], precision, |x| {
                    for (token, (entry, _)) in
                        (0..4).flat_map(|token| x.entries(token).map(move |entry| (token, entry)))
                    {
                        assert!((0..=4096).contains(&x.scale(token, entry)));
                        assert!(x.octets(token, entry).iter().all(|&octet| octet != i8::MIN), "{layout:?}");
                    }
                });
            }
        }
    }

    #[test]
    fn mantissas_fill_nineteen_bits() {
        let edge = (LARGEST << 10) + (1 << 9);
        let largest =
            [1, 3, 262_143, 262_144, 520_192, 520_193, 524_287, edge - 1, edge, 1 << 30, i32::MAX, i32::MIN];
        for largest in largest {
            let mut values = [0; COLS];
            values[5] = largest;
            let (mantissas, exponent) = alone(values, Precision::Octets);
            let mantissa = mantissas[5].abs();
            assert!((260_096..=MANTISSA_MAX).contains(&mantissa), "{largest} -> {mantissa}");
            // One value alone is a multiple of its block's scale, or next to one.
            if (0..=18).contains(&exponent) {
                let exact = i64::from(largest) << exponent;
                assert!((mantissa - exact).abs() <= exact / 254, "{largest} -> {mantissa}, not {exact}");
            }
        }
    }

    #[test]
    fn only_the_largest_value_decides_the_exponent() {
        // Together they have all bits; neither is more than MANTISSA_MAX.
        let mut values = [0; COLS];
        (values[0], values[1]) = (0x5_5555, -0x2_aaaa);
        assert_eq!(alone(values, Precision::Words).1, 0);
        values[2] = LARGEST + 1;
        assert_eq!(alone(values, Precision::Words).1, -1);
    }

    #[test]
    fn zeros_have_exponent_zero() {
        for precision in PRECISIONS {
            assert_eq!(alone([0; COLS], precision), (std::vec![0; COLS], 0));
        }
    }

    #[test]
    fn what_is_rounded_away_is_half_of_a_scale() {
        let values = values(0);
        let largest = |block: usize| {
            values[block * BLOCK..][..BLOCK].iter().map(|value| value.abs()).max().unwrap_or_default()
        };
        for (precision, seconds) in [
            (Precision::Octets, [false; 3]),
            (Precision::Outliers, [true, false, false]),
            (Precision::Words, [true; 3]),
        ] {
            let (mantissas, exponent) = alone(values, precision);
            for (column, (value, mantissa)) in values.iter().zip(mantissas).enumerate() {
                // In units of a mantissa, which is off by a half itself.
                let exact = f64::from(*value) * 2f64.powi(exponent);
                let most = f64::from(largest(column / BLOCK)) * 2f64.powi(exponent);
                let step = if seconds[column / BLOCK] { most / 16_256.0 } else { most / 126.0 };
                assert!(
                    (mantissa as f64 - exact).abs() <= step.max(1.0) / 2.0 + 1.0,
                    "{precision:?} {column}"
                );
            }
        }
    }

    #[test]
    fn sums_are_those_of_what_is_left() {
        let tokens = [values(0), values(1), [i32::MAX; COLS], [0; COLS]];
        for precision in PRECISIONS {
            with(V16, &tokens, precision, |x| {
                for token in 0..tokens.len() {
                    let (mantissas, _) = mantissas(&x, token);
                    for (block, &sum) in mantissas.chunks(BLOCK).zip(x.sums(token)) {
                        let exact: i64 = block.iter().sum();
                        let unit = 1_i64 << x.sum_shift(token);
                        // The largest may be cut off by a half.
                        assert!(
                            (i64::from(sum) * unit - exact).abs() <= unit,
                            "{precision:?} {token}: {exact}"
                        );
                        assert!(sum.abs() <= 2047);
                    }
                }
            });
        }
    }
}
