//! Rounds values to activations, token by token.

use core::ops::Range;

use super::{
    Activations, BATCH_MIN, EIGHT, Layout, MANTISSA_MAX, OCTET_MAX, Order, PADDED, Precision, Shape,
    TILE_MAX, Token,
};
use crate::format::BLOCK;
use crate::isa::Isa;
use crate::matrix::{MAX_COLS, ShapeError};

/// What an octet of a first entry stands for where there is a second one, in units of the second's.
const STEP: i32 = 2 * OCTET_MAX + 1;
/// Largest magnitude that two octets hold.
const PAIR_MAX: i32 = OCTET_MAX * STEP + OCTET_MAX;
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
    /// Of [`Buffers::mantissas`].
    pub mantissas: usize,
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
            mantissas: cols + 2 * blocks,
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
    /// Scratch of one token: (cols) mantissas, (blocks) their largest magnitudes, (blocks) the
    /// sums of what is left of them.
    pub mantissas: &'a mut [i32],
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
    mantissas: std::vec::Vec<i32>,
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
            mantissas: std::vec![0; needed.mantissas],
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
            mantissas: &mut self.mantissas,
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
            && self.mantissas.len() >= needed.mantissas;
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
    pub fn put(&mut self, values: &[i64], frac: i32, precision: Precision) -> Result<(), ShapeError> {
        let (shape, token) = (self.shape, self.written);
        let (values, []) = values.as_chunks::<BLOCK>() else { return Err(ShapeError) };
        if values.len() != shape.blocks || token == shape.tokens {
            return Err(ShapeError);
        }
        let blocks = shape.blocks;
        let (mantissas, rest) = self.buffers.mantissas.split_at_mut(blocks * BLOCK);
        let (largest, rest) = rest.split_at_mut(blocks);
        let sums = &mut rest[..blocks];
        let mantissas = &mut mantissas.as_chunks_mut::<BLOCK>().0[..blocks];
        let mut shift = shift_to_mantissas(values);
        let mut total;
        loop {
            let mut most = 0;
            total = 0;
            for (values, (mantissas, largest)) in
                values.iter().zip(mantissas.iter_mut().zip(largest.iter_mut()))
            {
                *largest = narrow(values, shift, mantissas);
                total += i64::from(*largest);
                most = most.max(*largest);
            }
            // Of 1 in 127 tokens, and then once: half of it is well below.
            if i64::from(most) <= MANTISSA_MAX {
                break;
            }
            shift += 1;
        }
        let mut bits = 0;
        for (b, ((block, &largest), sum)) in
            mantissas.iter().zip(largest.iter()).zip(sums.iter_mut()).enumerate()
        {
            let second = match precision {
                Precision::Octets => false,
                Precision::Outliers => i64::from(largest) * blocks as i64 > 2 * total,
                Precision::Words => true,
            };
            let (scales, octet_sums) = if second {
                let (octets, step) = pairs(block, largest);
                store(self.buffers.octets, &shape, b, token, &octets[0]);
                store(self.buffers.octets, &shape, blocks + b, token, &octets[1]);
                self.seconds = true;
                let sums = octets.each_ref().map(sum_of);
                *sum = step * (STEP * sums[0] + sums[1]);
                ([STEP * step, step], sums)
            } else {
                let (octets, scale) = octets(block, largest);
                store(self.buffers.octets, &shape, b, token, &octets);
                let octet_sum = sum_of(&octets);
                *sum = scale * octet_sum;
                ([scale, 0], [octet_sum, 0])
            };
            bits |= sum.unsigned_abs();
            for (i, entry) in [b, blocks + b].into_iter().enumerate() {
                let places = shape.scale_places(entry, token);
                for place in places {
                    self.buffers.scales[place] = scales[i];
                }
                if let Some(times) = shape.bias() {
                    self.buffers.scales[places[0] + 1] = times * octet_sums[i];
                }
            }
        }
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

/// By how many bits a token's values are to be shifted down so that the largest magnitude has 19.
fn shift_to_mantissas(values: &[[i64; BLOCK]]) -> i32 {
    let magnitude = values.as_flattened().iter().fold(0, |all, v| all | v.unsigned_abs());
    // Shifting left by as much as 18 cannot overflow: there are fewer than 19 bits then.
    if magnitude == 0 { 0 } else { 45 - magnitude.leading_zeros().cast_signed() }
}

/// Rounds a block's values to mantissas; answers the largest magnitude of them.
#[inline]
fn narrow(values: &[i64; BLOCK], shift: i32, mantissas: &mut [i32; BLOCK]) -> i32 {
    // Loops, as an array's `map` of this length is not turned into vector instructions.
    if shift > 0 {
        for (out, value) in mantissas.iter_mut().zip(values) {
            // Half is added behind the first shift, where it cannot overflow.
            *out = (((value >> (shift - 1)) + 1) >> 1) as i32;
        }
    } else {
        for (out, value) in mantissas.iter_mut().zip(values) {
            *out = (value << -shift) as i32;
        }
    }
    mantissas.iter().fold(0, |largest, mantissa| mantissa.abs().max(largest))
}

/// Sum of a block's octets.
#[inline]
fn sum_of(octets: &[i8; BLOCK]) -> i32 {
    octets.iter().map(|&octet| i32::from(octet)).sum()
}

/// One octet a column, and their scale. `largest` is the largest magnitude.
#[inline]
fn octets(block: &[i32; BLOCK], largest: i32) -> ([i8; BLOCK], i32) {
    /// Bits of the scale's reciprocal: `127 * 2^23` and half of it fit i32.
    const BITS: u32 = 23;
    let scale = ((largest + OCTET_MAX - 1) / OCTET_MAX).max(1);
    // It is off by at most 1/2, and the quotient, of at most 2^19, by 1/32: no octet is beyond 127.
    let reciprocal = ((1 << BITS) + scale / 2) / scale;
    let mut octets = [0; BLOCK];
    for (octet, mantissa) in octets.iter_mut().zip(block) {
        *octet = ((mantissa * reciprocal + (1 << (BITS - 1))) >> BITS) as i8;
    }
    (octets, scale)
}

/// Two octets a column, and the scale of the second ones: a power of 2.
#[inline]
fn pairs(block: &[i32; BLOCK], largest: i32) -> ([[i8; BLOCK]; 2], i32) {
    /// `2^24 / 255`: a quotient is off by less than 2^-16, and none is nearer than 1/510 to a half.
    const RECIPROCAL: i32 = (1 << 24) / STEP;
    let mut shift = 0;
    while largest > PAIR_MAX << shift {
        shift += 1;
    }
    let half = (1 << shift) >> 1;
    let [mut first, mut second] = [[0; BLOCK]; 2];
    for ((first, second), mantissa) in first.iter_mut().zip(&mut second).zip(block) {
        let word = (mantissa + half) >> shift;
        // |word| <= 32512: less than 2^31, half included.
        let high = (word * RECIPROCAL + (1 << 23)) >> 24;
        *first = high as i8;
        *second = (word - STEP * high) as i8;
    }
    ([first, second], 1 << shift)
}

/// Puts a block's octets where its layout has them.
#[inline]
fn store(out: &mut [i8], shape: &Shape, entry: usize, token: usize, octets: &[i8; BLOCK]) {
    let place = shape.octets_place(entry, token);
    match shape.layout {
        Layout::Rows(Order::V16) => out[place..][..BLOCK].copy_from_slice(octets),
        Layout::Rows(order) => {
            let fours = octets.as_chunks::<4>().0;
            for (out, four) in out[place..][..BLOCK].as_chunks_mut::<4>().0.iter_mut().zip(order.places()) {
                *out = fours[four];
            }
        }
        Layout::Pairs => {
            let out = out[place..][..2 * BLOCK].as_chunks_mut::<{ 2 * EIGHT }>().0;
            for (out, eight) in out.iter_mut().zip(octets.as_chunks::<EIGHT>().0) {
                out[token % 2 * EIGHT..][..EIGHT].copy_from_slice(eight);
                // The first of a pair clears the second's place, as there may be none.
                if token.is_multiple_of(2) {
                    out[EIGHT..].fill(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const V16: Layout = Layout::Rows(Order::V16);
    const LAYOUTS: [Layout; 4] = [V16, Layout::Rows(Order::V32), Layout::Rows(Order::V64), Layout::Pairs];
    const PRECISIONS: [Precision; 3] = [Precision::Octets, Precision::Outliers, Precision::Words];
    const COLS: usize = 3 * BLOCK;
    type Values = [i64; COLS];

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
        let exponent = x.decode(token, |column, part| out[column] += part);
        (out, exponent)
    }

    fn alone(values: Values, precision: Precision) -> (Vec<i64>, i32) {
        with(V16, &[values], precision, |x| mantissas(&x, 0))
    }

    /// Values of both signs; those of one block, which another token has elsewhere, are much larger.
    fn values(token: usize) -> Values {
        core::array::from_fn(|i| {
            let value = ((i + 7 * token) as i64 * 7919 + 13) % 65_537 - 32_768;
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
        let tokens = [values(0), [i64::MIN; COLS], values(1)];
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
                with(layout, &[[i64::MIN; COLS], [i64::MAX; COLS], values(1), values(2)], precision, |x| {
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
        let edge = (MANTISSA_MAX << 40) + (1 << 39);
        let largest =
            [1, 3, 262_143, 262_144, 520_192, 520_193, 524_287, edge - 1, edge, 1 << 40, i64::MAX, i64::MIN];
        for largest in largest {
            let mut values = [0; COLS];
            values[5] = largest;
            let (mantissas, exponent) = alone(values, Precision::Octets);
            let mantissa = mantissas[5].abs();
            assert!((260_096..=MANTISSA_MAX).contains(&mantissa), "{largest} -> {mantissa}");
            // One value alone is a multiple of its block's scale, or next to one.
            if (0..=18).contains(&exponent) {
                let exact = largest << exponent;
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
        values[2] = MANTISSA_MAX + 1;
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
                let exact = *value as f64 * 2f64.powi(exponent);
                let most = largest(column / BLOCK) as f64 * 2f64.powi(exponent);
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
        let tokens = [values(0), values(1), [i64::MAX; COLS], [0; COLS]];
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
