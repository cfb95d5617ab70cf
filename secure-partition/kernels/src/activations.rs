//! Activations as the kernels take them: octets, with a scale for each block of 32 of a token.
//!
//! A token's values become mantissas `M`, |M| <= [`MANTISSA_MAX`], under one power of 2. Of each block the kernels get octets
//! `m` and a scale `a`, `M = a * m`: one byte a column, which is what Arm's products of bytes take. Where that is too coarse, a
//! block has a second entry, `M = a * m + a' * m'`, which only those blocks that need it cost anything: see [`Precision`].
//! Entries of all blocks come first, second entries behind them; a batch of tokens has those of all blocks that any of its tokens
//! needs, and zeros for the others, so that who is in the batch makes no difference to a single bit.

mod writer;

use crate::format::BLOCK;
use crate::isa::{Isa, Kernel};
use crate::matrix::ShapeError;

#[cfg(any(test, feature = "std"))]
pub use writer::Room;
pub use writer::{Buffers, Needed, Writer};

/// Largest magnitude of an octet: two products with any octet fit i16.
pub const OCTET_MAX: i32 = 127;
/// Largest scale: a block's products, times it, fit i32, see [`crate::matmul`].
pub const SCALE_MAX: i32 = 4096;
/// Largest magnitude of a mantissa.
pub const MANTISSA_MAX: i64 = (OCTET_MAX * SCALE_MAX) as i64;

/// Tokens from which on a matrix's weights are unpacked once for all of them.
pub const BATCH_MIN: usize = 4;
/// Columns of a token that lie together in [`Layout::Pairs`].
const EIGHT: usize = 8;
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

    /// How many octets of a token lie together, and where each such part of an entry begins.
    #[inline]
    fn octet_parts(&self, entry: usize, token: usize) -> (usize, impl Iterator<Item = usize> + use<>) {
        let first = self.octets_place(entry, token);
        let (length, first) = match self.layout {
            Layout::Rows(_) => (BLOCK, first),
            Layout::Pairs => (EIGHT, first + token % 2 * EIGHT),
        };
        (length, (0..BLOCK / length).map(move |part| first + part * 2 * length))
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

/// Instructions behind those for the entry of one block, which go back to them, at label 2, for the next entry of a list of jumps:
/// {jumps}, of which {left} are left. The pointers named are to a block each, of {bytes} bytes, and are behind the one in front of
/// block number {here}; {count} is how many adjacent blocks the instructions go through. {next} and {jump} are scratch.
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    ($($block:ident),+) => {
        concat!(
            "cbz {left}, 3f\nldrh {next:w}, [{jumps}], #2\nsub {left}, {left}, #1\n",
            "sub {jump}, {next}, {here}\nmul {jump}, {jump}, {bytes}\n",
            $("add {", stringify!($block), "}, {", stringify!($block), "}, {jump}\n",)+
            "add {here}, {next}, #1\nmov {count}, #1\nb 2b\n3:\n"
        )
    };
}
#[cfg(target_arch = "aarch64")]
pub(crate) use jump;

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
                    Layout::Pairs => column / EIGHT * 2 * EIGHT + token % 2 * EIGHT + column % EIGHT,
                };
                each(block * BLOCK + column, scale * i64::from(octets[place]));
            }
        }
        self.exponent(token)
    }
}
