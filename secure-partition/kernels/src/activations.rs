//! Activations as the kernels take them: octets, with a scale for each block of 32 of a token.
//!
//! A token's values become mantissas `M`, |M| <= [`MANTISSA_MAX`], under one power of 2. Of each block the kernels get octets
//! `m` and a scale `a`, `M = a * m`: one byte a column, which is what Arm's products of bytes take. Where that is too coarse, a
//! block has a second entry, `M = a * m + a' * m'`, which only those blocks that need it cost anything: see [`Precision`].
//! Entries of all blocks come first, second entries behind them; a batch of tokens has those of all blocks that any of its tokens
//! needs, and zeros for the others, so that who is in the batch makes no difference to a single bit.

use crate::format::BLOCK;
use crate::isa::{Isa, Kernel};
use crate::matrix::ShapeError;

/// Largest magnitude of an octet: two products with any octet fit i16.
pub const OCTET_MAX: i32 = 127;
/// Largest scale: a block's products, times it, fit i32, see [`crate::matmul`].
pub const SCALE_MAX: i32 = 4096;
/// Largest magnitude of a mantissa.
pub const MANTISSA_MAX: i64 = (OCTET_MAX * SCALE_MAX) as i64;
/// What an octet of a first entry stands for where there is a second one, in units of the second's.
const STEP: i32 = 2 * OCTET_MAX + 1;
/// Largest magnitude that two octets hold.
const PAIR_MAX: i32 = OCTET_MAX * STEP + OCTET_MAX;
/// Largest magnitude of a block's sum, see [`crate::minima`].
const SUM_MAX: i32 = 2047;

/// Tokens from which on a matrix's weights are unpacked once for all of them.
pub const BATCH_MIN: usize = 4;
/// The scales of an entry, and the sums of a token, are padded to multiples of this.
const PADDED: usize = 8;

/// Which blocks have second entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// None.
    Octets,
    /// Those whose largest magnitude is over twice the mean of that of all blocks: most of what rounding to octets costs a
    /// language model is in the few channels that are large in every token.
    Outliers,
    /// All: 16 bits.
    Words,
}

/// How the octets of an entry lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (tokens, entries, 32 columns), of which groups of four come in an [`Order`].
    Rows(Order),
    /// (pairs of tokens, entries, 4, 2 tokens, 8 columns).
    Pairs,
}

/// Order of a block's 8 groups of four columns, such that the k-th four of each 16 bytes of a vector are multiplied with the
/// k-th vector of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Vectors of 16 bytes: that of the columns.
    V16,
    /// Vectors of 32 bytes.
    V32,
    /// Vectors of 64 bytes, of which a block's octets fill the first half; four of two groups are then spread to 16 bytes.
    V64,
}

impl Order {
    /// Which group of four comes at each place.
    const fn places(self) -> [usize; 8] {
        match self {
            Self::V16 => [0, 1, 2, 3, 4, 5, 6, 7],
            Self::V32 => [0, 2, 4, 6, 1, 3, 5, 7],
            Self::V64 => [0, 4, 1, 5, 2, 6, 3, 7],
        }
    }
}

impl Isa {
    /// The layout that its kernels read, of a batch of `tokens`.
    #[must_use]
    pub const fn layout(self, tokens: usize) -> Layout {
        match self.kernel() {
            Kernel::I8mm | Kernel::Sve32 | Kernel::Sve64 if tokens >= BATCH_MIN => Layout::Pairs,
            Kernel::Sve32 => Layout::Rows(Order::V32),
            Kernel::Sve64 => Layout::Rows(Order::V64),
            _ => Layout::Rows(Order::V16),
        }
    }
}

/// A token of a batch: the exponent, `value = M * 2^-exponent`; and by how many bits its blocks' sums were shifted down, 0..=13.
pub type Token = [i32; 2];

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
            octets: 2 * cols * tokens.next_multiple_of(2),
            scales: 2 * blocks * 2 * tokens.next_multiple_of(PADDED),
            sums: tokens * blocks.next_multiple_of(PADDED),
            seconds: blocks,
            mantissas: cols + 2 * blocks,
        }
    }
}

/// Where the activations of a batch are written.
#[derive(Debug, Default)]
pub struct Buffers<'a> {
    /// Octets of all entries.
    pub octets: &'a mut [i8],
    /// (entries, tokens): scales; of [`Layout::Pairs`] (entries, pairs, 4), those of each pair twice.
    pub scales: &'a mut [i32],
    /// (tokens, blocks)
    pub sums: &'a mut [i16],
    /// (tokens)
    pub tokens: &'a mut [Token],
    /// Blocks of the second entries.
    pub seconds: &'a mut [u16],
    /// Scratch of one token: (cols) mantissas, (blocks) their largest magnitudes, (blocks) the
    /// sums of what is left of them.
    pub mantissas: &'a mut [i32],
}

/// [`Buffers`] on the heap.
#[cfg(feature = "std")]
#[derive(Clone, Debug)]
pub struct Room {
    octets: std::vec::Vec<i8>,
    scales: std::vec::Vec<i32>,
    sums: std::vec::Vec<i16>,
    tokens: std::vec::Vec<Token>,
    seconds: std::vec::Vec<u16>,
    mantissas: std::vec::Vec<i32>,
}

#[cfg(feature = "std")]
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

/// What was written into [`Buffers`] so far.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layout: Layout,
    tokens: usize,
    blocks: usize,
}

impl Shape {
    /// Scales of an entry.
    const fn scales_stride(&self) -> usize {
        let tokens = self.tokens.next_multiple_of(PADDED);
        if let Layout::Pairs = self.layout { 2 * tokens } else { tokens }
    }

    /// Sums of a token.
    const fn sums_stride(&self) -> usize {
        self.blocks.next_multiple_of(PADDED)
    }

    /// Places of a token's scale of an entry: in [`Layout::Pairs`] two.
    const fn scale_places(&self, entry: usize, token: usize) -> [usize; 2] {
        let first = entry * self.scales_stride();
        match self.layout {
            Layout::Rows(_) => [first + token; 2],
            Layout::Pairs => [first + token / 2 * 4 + token % 2, first + token / 2 * 4 + 2 + token % 2],
        }
    }

    /// Where the octets of a token's entry begin; in [`Layout::Pairs`] those of it and of the other token.
    const fn octets_place(&self, entry: usize, token: usize) -> usize {
        match self.layout {
            Layout::Rows(_) => (token * 2 * self.blocks + entry) * BLOCK,
            Layout::Pairs => (token / 2 * 2 * self.blocks + entry) * 2 * BLOCK,
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
        // First what bounds the products in `Needed`.
        let sizes = 1..=self.tokens.len();
        if !sizes.contains(&tokens) || !cols.is_multiple_of(BLOCK) || cols > crate::matrix::MAX_COLS {
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
        let shape = Shape { layout: isa.layout(tokens), tokens, blocks: cols / BLOCK };
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
            let scales = if second {
                let (octets, step) = pairs(block, largest);
                store(self.buffers.octets, &shape, b, token, &octets[0]);
                store(self.buffers.octets, &shape, blocks + b, token, &octets[1]);
                self.seconds = true;
                *sum = step * (STEP * sum_of(&octets[0]) + sum_of(&octets[1]));
                [STEP * step, step]
            } else {
                let (octets, scale) = octets(block, largest);
                store(self.buffers.octets, &shape, b, token, &octets);
                *sum = scale * sum_of(&octets);
                [scale, 0]
            };
            bits |= sum.unsigned_abs();
            for (entry, scale) in [b, blocks + b].into_iter().zip(scales) {
                for place in shape.scale_places(entry, token) {
                    self.buffers.scales[place] = scale;
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
        let mut seconds = 0;
        if self.seconds {
            for b in 0..self.shape.blocks {
                if self.needs_second(b) {
                    self.move_second(b, seconds);
                    self.buffers.seconds[seconds] = b as u16;
                    seconds += 1;
                }
            }
        }
        let (buffers, shape) = (self.buffers, self.shape);
        Ok(Activations {
            shape,
            octets: buffers.octets,
            scales: buffers.scales,
            sums: buffers.sums,
            tokens: &buffers.tokens[..shape.tokens],
            seconds: &buffers.seconds[..seconds],
            blocks: shape.blocks,
        })
    }

    /// Whether any token has a second entry of a block.
    fn needs_second(&self, block: usize) -> bool {
        let entry = self.shape.blocks + block;
        (0..self.shape.tokens).any(|t| self.buffers.scales[self.shape.scale_places(entry, t)[0]] != 0)
    }

    /// Moves all tokens' second entries of a block to the place of the `to`-th one; clears those that there are not.
    fn move_second(&mut self, block: usize, to: usize) {
        let shape = self.shape;
        let (from, to) = (shape.blocks + block, shape.blocks + to);
        for token in 0..shape.tokens {
            let places = shape.scale_places(from, token);
            let scale = self.buffers.scales[places[0]];
            for place in shape.scale_places(to, token) {
                self.buffers.scales[place] = scale;
            }
            match shape.layout {
                Layout::Rows(_) => {
                    let (from, to) = (shape.octets_place(from, token), shape.octets_place(to, token));
                    if scale == 0 {
                        self.buffers.octets[to..][..BLOCK].fill(0);
                    } else if from != to {
                        self.buffers.octets.copy_within(from..from + BLOCK, to);
                    }
                }
                Layout::Pairs => {
                    let (from, to) = (shape.octets_place(from, token), shape.octets_place(to, token));
                    let own = token % 2 * 8;
                    for eight in 0..4 {
                        let (from, to) = (from + 16 * eight + own, to + 16 * eight + own);
                        if scale == 0 {
                            self.buffers.octets[to..][..8].fill(0);
                        } else if from != to {
                            self.buffers.octets.copy_within(from..from + 8, to);
                        }
                    }
                    // There may be no other one.
                    if token.is_multiple_of(2) && token + 1 == shape.tokens {
                        (0..4).for_each(|eight| self.buffers.octets[to + 16 * eight + 8..][..8].fill(0));
                    }
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
            let eights = octets.as_chunks::<8>().0;
            let out = out[place..][..2 * BLOCK].as_chunks_mut::<16>().0;
            for (out, eight) in out.iter_mut().zip(eights) {
                out[token % 2 * 8..][..8].copy_from_slice(eight);
                // The first of a pair clears the second's place, as there may be none.
                if token.is_multiple_of(2) {
                    out[8..].fill(0);
                }
            }
        }
    }
}

/// Entries that lie behind each other: some of adjacent blocks, then one of each block of a list.
#[derive(Clone, Copy)]
#[cfg(target_arch = "aarch64")]
pub(crate) struct Run<'a> {
    /// The first entry.
    pub entry: usize,
    /// Its block.
    pub block: usize,
    /// Entries of adjacent blocks: one or more.
    pub count: usize,
    /// Blocks of the others, ascending.
    pub jumps: &'a [u16],
}

#[cfg(target_arch = "aarch64")]
impl Run<'_> {
    /// Entries.
    pub const fn entries(&self) -> usize {
        self.count + self.jumps.len()
    }

    /// Blocks from the first one to the last one.
    pub fn span(&self) -> usize {
        self.jumps.last().map_or(0, |&last| usize::from(last) + 1).max(self.block + self.count) - self.block
    }
}

/// Activations of a batch of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    shape: Shape,
    octets: &'a [i8],
    scales: &'a [i32],
    sums: &'a [i16],
    tokens: &'a [Token],
    seconds: &'a [u16],
    /// Blocks that are taken into account.
    blocks: usize,
}

impl<'a> Activations<'a> {
    /// Only the first columns of each token.
    ///
    /// # Errors
    /// [`ShapeError`] if there are fewer, or they are not whole blocks.
    pub fn first(&self, cols: usize) -> Result<Self, ShapeError> {
        if cols > self.cols() || !cols.is_multiple_of(BLOCK) {
            return Err(ShapeError);
        }
        let blocks = cols / BLOCK;
        // They are in ascending order.
        let seconds = self.seconds.iter().take_while(|&&block| usize::from(block) < blocks).count();
        Ok(Self { blocks, seconds: &self.seconds[..seconds], ..*self })
    }

    /// How they lie in memory.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.shape.layout
    }

    /// Number of tokens.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Columns.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.blocks * BLOCK
    }

    /// Blocks of the second entries, in ascending order.
    #[must_use]
    pub const fn seconds(&self) -> &'a [u16] {
        self.seconds
    }

    /// Each entry, and the block that it belongs to.
    #[inline]
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let seconds =
            (self.shape.blocks..).zip(self.seconds).map(|(entry, &block)| (entry, usize::from(block)));
        (0..self.blocks).map(|block| (block, block)).chain(seconds)
    }

    /// The entries in chunks of at most `most` that lie behind each other: the first entry, and how many.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn chunks(&self, most: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (blocks, first, seconds) = (self.blocks, self.shape.blocks, self.seconds.len());
        // Second entries lie behind those of all blocks.
        let parts =
            if blocks == first { [(0, blocks + seconds), (0, 0)] } else { [(0, blocks), (first, seconds)] };
        parts.into_iter().flat_map(move |(start, count)| {
            (0..count).step_by(most).map(move |done| (start + done, most.min(count - done)))
        })
    }

    /// The block that an entry belongs to.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn block(&self, entry: usize) -> usize {
        if entry < self.shape.blocks { entry } else { usize::from(self.seconds[entry - self.shape.blocks]) }
    }

    /// The entries as runs that lie behind each other in memory.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run<'a>> + use<'a> {
        // Second entries lie behind those of all blocks.
        let together = self.blocks == self.shape.blocks;
        let (jumps, apart) = if together { (self.seconds, &[][..]) } else { (&[][..], self.seconds) };
        let apart = (self.shape.blocks..).zip(apart).map(|(entry, &block)| Run {
            entry,
            block: block.into(),
            count: 1,
            jumps: &[],
        });
        core::iter::once(Run { entry: 0, block: 0, count: self.blocks, jumps }).chain(apart)
    }

    /// Octets of `count` entries of a token; in [`Layout::Pairs`], of it and the other one.
    #[inline]
    pub(crate) fn octets(&self, token: usize, entry: usize, count: usize) -> &'a [i8] {
        let each = if self.shape.layout == Layout::Pairs { 2 * BLOCK } else { BLOCK };
        &self.octets[self.shape.octets_place(entry, token)..][..count * each]
    }

    /// Where the octets of an entry, and its scales, begin. What lies there up to the last entry of the last token is initialised:
    /// [`Buffers::writer`] saw to the room.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn place(&self, token: usize, entry: usize) -> (*const i8, *const i32) {
        let octets = self.octets.as_ptr().wrapping_add(self.shape.octets_place(entry, token));
        (octets, self.scales.as_ptr().wrapping_add(self.shape.scale_places(entry, token)[0]))
    }

    /// Scales from those of a token's entry on.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn scales(&self, token: usize, entry: usize, count: usize) -> &'a [i32] {
        let stride = self.shape.scales_stride();
        let first = self.shape.scale_places(entry, token)[0];
        let end = (entry + count) * stride;
        &self.scales[first..end]
    }

    /// From a token's scale of one entry to that of the next.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) const fn scales_stride(&self) -> usize {
        self.shape.scales_stride()
    }

    /// Scale of a token's entry.
    #[inline]
    pub(crate) fn scale(&self, token: usize, entry: usize) -> i32 {
        self.scales[self.shape.scale_places(entry, token)[0]]
    }

    /// Block sums of a token.
    #[inline]
    pub(crate) fn sums(&self, token: usize) -> &'a [i16] {
        &self.sums[token * self.shape.sums_stride()..][..self.blocks]
    }

    /// The same, with zeros up to a multiple of eight unless there are other sums behind them.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn padded_sums(&self, token: usize) -> &'a [i16] {
        let stride = self.shape.sums_stride();
        let count = if self.blocks == self.shape.blocks { stride } else { self.blocks };
        &self.sums[token * stride..][..count]
    }

    /// Exponents and shifts of sums, from the `first` token's on.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn heads(&self, first: usize) -> &'a [Token] {
        &self.tokens[first..]
    }

    /// Exponent of a token.
    #[inline]
    pub(crate) fn exponent(&self, token: usize) -> i32 {
        self.tokens[token][0]
    }

    /// By how many bits a token's block sums were shifted down.
    #[inline]
    pub(crate) fn sum_shift(&self, token: usize) -> i32 {
        self.tokens[token][1]
    }

    /// What the activations of a token are, entry by entry: `each(column, part of its mantissa)`; the parts are to be added up and
    /// multiplied by `2^-exponent`, which is answered.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn decode(&self, token: usize, mut each: impl FnMut(usize, i64)) -> i32 {
        for (entry, block) in self.entries() {
            let (octets, scale) = (self.octets(token, entry, 1), i64::from(self.scale(token, entry)));
            for column in 0..BLOCK {
                let place = match self.shape.layout {
                    Layout::Rows(order) => {
                        let four = order.places().iter().position(|&four| four == column / 4);
                        four.unwrap_or(0) * 4 + column % 4
                    }
                    Layout::Pairs => column / 8 * 16 + token % 2 * 8 + column % 8,
                };
                each(block * BLOCK + column, scale * i64::from(octets[place]));
            }
        }
        self.exponent(token)
    }
}
