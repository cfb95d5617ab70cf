//! Activations as the kernels take them: octets, with a scale for each block of 32 of a token.
//!
//! A token's values become mantissas `M`, |M| <= [`MANTISSA_MAX`], under one power of 2. Of each block the kernels get octets
//! `m` and a scale `a`, `M = a * m`: one byte a column, which is what Arm's products of bytes take. Where that is too coarse, a
//! block has a second entry, `M = a * m + a' * m'`, which only those blocks that need it cost anything: see [`Precision`].
//! Entries of all blocks come first, second entries behind them. Tokens that kernels take together, a tile of them, have second entries
//! of all blocks that any of them needs, and zeros for the others, so that who is in the batch makes no difference to a single bit.
//!
//! Where there are fewer tokens than [`BATCH_MIN`], the kernels multiply nibbles as they stand, and each entry has a *bias*, which
//! makes up for those that are stored too large ([`crate::format`]).

mod octets;
mod writer;

#[cfg(target_arch = "aarch64")]
use core::ops::Range;

use crate::format::{BLOCK, Format};
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
/// Where tokens have biases, they are among an entry's scales.
const _: () = assert!(2 * (BATCH_MIN - 1) <= PADDED);

/// Which blocks have second entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// None.
    Octets,
    /// Those whose largest magnitude is over twice the mean of that of all blocks: most of what rounding to octets costs a
    /// language model is in the few channels that are large in every token.
    Outliers,
    /// The same, over four times that mean: for inputs whose outliers are elsewhere in each token, which would be many for a tile.
    Peaks,
    /// All: 16 bits.
    Words,
}

/// How the octets of an entry lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// (tiles, entries, tokens of a tile, 32 columns), of which groups of four come in an [`Order`].
    Rows(Order),
    /// (tiles, entries, pairs of tokens of a tile, 4, 2 tokens, 8 columns).
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

    /// Sums of a row that a vector's instructions leave to be added up.
    const fn sums(self) -> i32 {
        match self {
            Self::V16 => 1,
            Self::V32 => 2,
            Self::V64 => 4,
        }
    }
}

impl Isa {
    /// The layout that its kernels read, of a batch of `tokens`.
    #[must_use]
    pub const fn layout(self, tokens: usize) -> Layout {
        match self.kernel(tokens) {
            Kernel::I8mm | Kernel::Sve2x32 | Kernel::Sve2x64 if tokens >= BATCH_MIN => Layout::Pairs,
            Kernel::Sve2x32 => Layout::Rows(Order::V32),
            Kernel::Sve64 | Kernel::Sve2x64 => Layout::Rows(Order::V64),
            _ => Layout::Rows(Order::V16),
        }
    }

    /// Tokens of a tile, which kernels take together.
    const fn tile(self, tokens: usize) -> usize {
        match self.kernel(tokens) {
            _ if tokens < BATCH_MIN => 1,
            Kernel::Dotprod | Kernel::I8mm | Kernel::Sve2x32 | Kernel::Sve2x64 => TILE_MAX,
            _ => BATCH_MIN,
        }
    }
}

/// Most tokens of a tile.
const TILE_MAX: usize = 8;

/// A token of a batch: the exponent, `value = M * 2^-exponent`; and by how many bits its blocks' sums were shifted down, 0..=13.
pub type Token = [i32; 2];

/// What was written into [`Buffers`] so far.
#[derive(Clone, Copy, Debug)]
struct Shape {
    layout: Layout,
    tokens: usize,
    blocks: usize,
    /// Tokens of a tile.
    tile: usize,
}

impl Shape {
    /// How many times the sum of its octets the bias of an entry is, which is its scale's neighbour; if there are any. Each of a
    /// row's sums begins with it.
    const fn bias(&self) -> Option<i32> {
        match self.layout {
            Layout::Rows(order) if self.tokens < BATCH_MIN => {
                Some(-(Format::Q4.low_excess() as i32) / order.sums())
            }
            _ => None,
        }
    }

    /// Scales of an entry, and biases.
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
            Layout::Rows(_) if self.bias().is_some() => [first + 2 * token; 2],
            Layout::Rows(_) => [first + token; 2],
            Layout::Pairs => [first + token / 2 * 4 + token % 2, first + token / 2 * 4 + 2 + token % 2],
        }
    }

    /// From the octets of an entry to those of the next one.
    const fn octets_stride(&self) -> usize {
        self.tile * BLOCK
    }

    /// Where the octets of a token's entry begin; in [`Layout::Pairs`] those of it and of the other token.
    const fn octets_place(&self, entry: usize, token: usize) -> usize {
        let (tile, token) = (token / self.tile, token % self.tile);
        let token = if let Layout::Pairs = self.layout { token / 2 * 2 } else { token };
        (tile * 2 * self.blocks + entry) * self.octets_stride() + token * BLOCK
    }

    /// Where the list of a tile's second entries is: how many there are, then their blocks.
    const fn seconds_place(&self, token: usize) -> usize {
        token / self.tile * (1 + self.blocks)
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

/// The entries of some blocks.
#[cfg(target_arch = "aarch64")]
pub(crate) type Runs<'a> = [Option<Run<'a>>; 2];

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

/// How many of some ascending numbers of blocks are below one.
#[inline]
fn below(blocks: &[u16], end: usize) -> usize {
    blocks.partition_point(|&block| usize::from(block) < end)
}

/// Activations of a batch of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    shape: Shape,
    octets: &'a [i8],
    scales: &'a [i32],
    sums: &'a [i16],
    tokens: &'a [Token],
    /// (tiles, 1 + blocks), see [`Shape::seconds_place`].
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
        Ok(Self { blocks: cols / BLOCK, ..*self })
    }

    /// How they lie in memory.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.shape.layout
    }

    /// Whether they were written for the kernels of `isa`, or for such as take the same.
    pub(crate) fn are_for(&self, isa: Isa) -> bool {
        self.shape.layout == isa.layout(self.tokens()) && self.shape.tile == isa.tile(self.tokens())
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

    /// Blocks, ascending, of which a token has second entries.
    #[inline]
    fn seconds(&self, token: usize) -> &'a [u16] {
        let list = &self.seconds[self.shape.seconds_place(token)..];
        let list = &list[1..=list[0].into()];
        if self.blocks == self.shape.blocks { list } else { &list[..below(list, self.blocks)] }
    }

    /// Each entry of a token, and the block that it belongs to.
    #[inline]
    pub(crate) fn entries(&self, token: usize) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let seconds = (self.shape.blocks..).zip(self.seconds(token));
        (0..self.blocks)
            .map(|block| (block, block))
            .chain(seconds.map(|(entry, &block)| (entry, usize::from(block))))
    }

    /// The entries that a token, and with it its tile, has of some blocks: as one run or two.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn runs(&self, token: usize, blocks: Range<usize>) -> Runs<'a> {
        let seconds = self.seconds(token);
        let all = blocks.start == 0 && blocks.end == self.blocks;
        let (first, end) =
            if all { (0, seconds.len()) } else { (below(seconds, blocks.start), below(seconds, blocks.end)) };
        let seconds = &seconds[first..end];
        // Second entries lie behind those of all blocks.
        let together = first == 0 && blocks.end == self.shape.blocks;
        let (jumps, apart) = if together { (seconds, &[][..]) } else { (&[][..], seconds) };
        let entry = self.shape.blocks + first;
        let run = Run { entry: blocks.start, block: blocks.start, count: blocks.len(), jumps };
        let apart = apart.split_first();
        [Some(run), apart.map(|(&block, jumps)| Run { entry, block: block.into(), count: 1, jumps })]
    }

    /// Octets of an entry of a token; in [`Layout::Pairs`], of it and the other one.
    #[inline]
    pub(crate) fn octets(&self, token: usize, entry: usize) -> &'a [i8] {
        let each = if self.shape.layout == Layout::Pairs { 2 * BLOCK } else { BLOCK };
        &self.octets[self.shape.octets_place(entry, token)..][..each]
    }

    /// Octets of some entries of a token that is a tile of its own.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn octets_of(&self, token: usize, run: &Run) -> &'a [i8] {
        assert!(self.shape.tile == 1, "few tokens");
        &self.octets[self.shape.octets_place(run.entry, token)..][..run.entries() * BLOCK]
    }

    /// Where the octets of an entry, and its scales, begin. What lies there up to the last entry of the last tile is initialised:
    /// [`Buffers::writer`] saw to the room.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn place(&self, token: usize, entry: usize) -> (*const i8, *const i32) {
        let octets = self.octets.as_ptr().wrapping_add(self.shape.octets_place(entry, token));
        (octets, self.scales.as_ptr().wrapping_add(self.shape.scale_places(entry, token)[0]))
    }

    /// From a tile's octets of an entry to those of the next one.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) const fn octets_stride(&self) -> usize {
        self.shape.octets_stride()
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
        let count = if self.have_zeros_behind() { stride } else { self.blocks };
        &self.sums[token * stride..][..count]
    }

    /// Where some tokens' block sums from a block on begin, and how many there are from one token to the next. There are others, or
    /// zeros, up to a multiple of eight of all blocks, and of as many tokens as fill up the last four.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn sums_of_four(&self, tokens: Range<usize>, block: usize) -> (*const i16, usize) {
        let stride = self.shape.sums_stride();
        let sums = &self.sums[tokens.start * stride..][..tokens.len().next_multiple_of(4) * stride];
        (sums[block..].as_ptr(), stride)
    }

    /// Whether there are zeros behind a token's block sums, up to a multiple of eight.
    #[inline]
    #[cfg(target_arch = "aarch64")]
    pub(crate) const fn have_zeros_behind(&self) -> bool {
        self.blocks == self.shape.blocks
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
    /// # Errors
    /// [`ShapeError`] if there is no such token.
    pub fn decode(&self, token: usize, mut each: impl FnMut(usize, i64)) -> Result<i32, ShapeError> {
        if token >= self.tokens() {
            return Err(ShapeError);
        }
        for (entry, block) in self.entries(token) {
            let (octets, scale) = (self.octets(token, entry), i64::from(self.scale(token, entry)));
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
        Ok(self.exponent(token))
    }
}
