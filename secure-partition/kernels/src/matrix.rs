//! A packed matrix, checked.

use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, OCTETS, SCALES};

/// Most columns of a matrix. It bounds every sum of a row, see [`crate::matmul`].
pub const MAX_COLS: usize = 1 << 17;

/// The bytes of a packed matrix do not fit its shape, or its format is none of a matrix.
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
        if format == Format::Vector || cols > MAX_COLS {
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

    /// Groups of [`GROUP`] rows.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Head and blocks of one group.
    #[inline]
    pub(crate) fn group(&self, index: usize) -> (&'a [u8; GROUP_HEAD], &'a [u8]) {
        let bytes = self.format.group_bytes(self.cols);
        let group = &self.bytes[index * bytes..][..bytes];
        group.split_first_chunk().expect("a group is longer than its head")
    }

    /// Decodes one row: `each(column, value)`, the value to be multiplied by `2^-shift`; answers the shift. Values are
    /// below 2^38 in magnitude: `32768 * 2056 + 32768 * 128` at most.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn decode_row(&self, row: usize, mut each: impl FnMut(usize, i64)) -> i32 {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let (head, blocks) = self.group(row / GROUP);
        let lane = row % GROUP;
        for (b, block) in blocks.chunks_exact(self.format.block_bytes()).enumerate() {
            let scale = half_word(block, lane);
            let minimum = match self.format {
                Format::Q4Min => half_word(&block[SCALES..], lane),
                _ => 0,
            };
            for c in 0..BLOCK {
                let q = i64::from(weight(self.format, block, lane, c));
                each(b * BLOCK + c, i64::from(scale) * q + i64::from(minimum) * 128);
            }
        }
        row_shift(head, lane)
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

/// The `q` of the format's definition, of row `lane` and column `c` of a block. -2056..=2047.
pub(crate) fn weight(format: Format, block: &[u8], lane: usize, c: usize) -> i16 {
    let octet = |at: usize| i16::from(block[at + c / 4 * 32 + lane * 4 + c % 4].cast_signed());
    let nibble_16 = |at: usize| {
        let pair = block[at + c / 8 * 32 + lane * 4 + c % 4];
        let high = if c % 8 < 4 { pair << 4 } else { pair & 0xf0 };
        i16::from(high.cast_signed())
    };
    match format {
        Format::Q4 => nibble_16(SCALES),
        Format::Q4Min => nibble_16(2 * SCALES),
        Format::Q8 => octet(SCALES),
        Format::W12 => 16 * octet(SCALES) + (nibble_16(SCALES + OCTETS) >> 4),
        Format::Vector => 0,
    }
}
