//! A packed matrix, checked.

use core::ops::Range;

use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, HALF, NIBBLES, SCALES};

/// Most columns of a matrix, or twice those of a [`Format::W16`]. It bounds every sum of a row, see [`crate::matmul`].
pub const MAX_COLS: usize = 1 << 17;

/// Sizes that do not fit: bytes of a matrix and its shape, its columns and those of activations, a buffer and what goes into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShapeError;

/// A packed matrix `[rows, cols]`. Any bytes are a valid matrix: only the sizes are checked.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Takes the packed bytes of a matrix; `bytes` may be longer than it needs.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn new(format: Format, rows: usize, cols: usize, bytes: &'a [u8]) -> Result<Self, ShapeError> {
        let needed = format.packed_bytes(rows, cols).ok_or(ShapeError)?;
        if format == Format::Vector || cols > MAX_COLS / format.passes() {
            return Err(ShapeError);
        }
        let bytes = bytes.get(..needed).ok_or(ShapeError)?;
        Ok(Self { format, rows, cols, bytes })
    }

    /// How it is packed.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Outputs.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Columns of the activations that it is multiplied with: [`Self::cols`], or twice as many in [`Format::W16`].
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.cols * self.format.passes()
    }

    /// The matrix that kernels multiply: of [`Format::W16`] the [`Format::Q8`] that it is made of.
    pub(crate) const fn octets(&self) -> Self {
        let format = if let Format::W16 = self.format { Format::Q8 } else { self.format };
        Self { format, cols: self.inputs(), ..*self }
    }

    /// Groups of [`GROUP`] rows.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// The parts of one group.
    #[inline]
    pub(crate) fn group(&self, index: usize) -> Group<'a> {
        self.groups_in(index..index + 1).next().expect("a range of one")
    }

    /// Bytes of one group.
    #[inline]
    pub(crate) const fn group_bytes(&self) -> usize {
        self.format.group_bytes(self.cols)
    }

    /// The bytes of some groups.
    ///
    /// # Panics
    /// If there are no such groups.
    #[inline]
    pub(crate) fn bytes(&self, groups: Range<usize>) -> &'a [u8] {
        let bytes = self.group_bytes();
        &self.bytes[groups.start * bytes..groups.end * bytes]
    }

    /// The parts of some groups.
    ///
    /// # Panics
    /// If there are no such groups.
    #[inline]
    pub(crate) fn groups_in(&self, range: Range<usize>) -> impl Iterator<Item = Group<'a>> + Clone + use<'a> {
        let format = self.format;
        let minima = self.cols / BLOCK * format.minima_bytes();
        self.bytes(range).chunks_exact(self.group_bytes()).map(move |group| {
            let (head, rest) = group.split_first_chunk().expect("a group is longer than its head");
            let blocks = &rest[minima..];
            Group { format, head, blocks, rest }
        })
    }

    /// Decodes one row: `each(column, value)`, the value to be multiplied by `2^-shift`; answers the shift. Values are
    /// below 2^24 in magnitude: twice `32768 * 128` at most.
    ///
    /// # Errors
    /// [`ShapeError`] if there is no such row.
    pub fn decode_row(&self, row: usize, mut each: impl FnMut(usize, i64)) -> Result<i32, ShapeError> {
        if row >= self.rows {
            return Err(ShapeError);
        }
        let group = self.octets().group(row / GROUP);
        let lane = row % GROUP;
        let (bytes, blocks) = (self.format.block_bytes(), self.cols / BLOCK);
        for b in 0..blocks {
            for c in 0..BLOCK {
                let mut value = i64::from(group.minimum(b, lane)) * 128;
                for block in group.blocks.chunks_exact(bytes).skip(b).step_by(blocks) {
                    value +=
                        i64::from(half_word(block, lane)) * i64::from(weight(group.format, block, lane, c));
                }
                each(b * BLOCK + c, value);
            }
        }
        Ok(row_shift(group.head, lane))
    }
}

/// A group of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    pub format: Format,
    /// Shifts.
    pub head: &'a [u8; GROUP_HEAD],
    /// Blocks without their minima.
    pub blocks: &'a [u8],
    /// The same, and in front of them the minima of all blocks, if the format has any.
    rest: &'a [u8],
}

impl Group<'_> {
    /// A block.
    #[inline]
    pub fn block(&self, b: usize) -> &[u8] {
        let bytes = self.format.block_bytes();
        &self.blocks[b * bytes..][..bytes]
    }

    /// Whether there are minima.
    #[inline]
    pub const fn has_minima(&self) -> bool {
        self.format.minima_bytes() > 0
    }

    /// Bytes from the minima of block `b` on, and those of the blocks behind all minima.
    #[inline]
    pub fn minima_from(&self, b: usize) -> &[u8] {
        &self.rest[b * SCALES..]
    }

    /// Minimum of row `lane` in block `b`; 0 if the format has none.
    #[inline]
    pub fn minimum(&self, b: usize, lane: usize) -> i16 {
        if self.has_minima() { half_word(self.minima_from(b), lane) } else { 0 }
    }
}

/// Shift of row `lane` of a group.
#[inline]
pub(crate) fn row_shift(head: &[u8; GROUP_HEAD], lane: usize) -> i32 {
    i32::from_le_bytes(core::array::from_fn(|i| head[4 * lane + i]))
}

/// The `lane`-th i16 of `bytes`.
#[inline]
pub(crate) fn half_word(bytes: &[u8], lane: usize) -> i16 {
    i16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]])
}

/// The `q` of the format's definition, of row `lane` and column `c` of a block. -128..=240.
pub(crate) fn weight(format: Format, block: &[u8], lane: usize, c: usize) -> i16 {
    let within = c / 4 * 16 + lane % HALF * 4 + c % 4;
    let octet = || i16::from(block[SCALES + lane / HALF * NIBBLES + within].cast_signed());
    let nibble = || {
        let byte = block[SCALES + within];
        if lane < HALF {
            i16::from(byte.cast_signed() >> 4)
        } else {
            i16::from(byte & 15) - i16::from(format.low_excess())
        }
    };
    match format {
        Format::Q4 | Format::Q4Min => 16 * nibble(),
        Format::Q8 => octet(),
        Format::W16 | Format::Vector => 0,
    }
}
