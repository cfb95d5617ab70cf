//! How tensors lie in memory, once packed for the kernels.
//!
//! A matrix is `[rows, cols]`, `y = W x`, with `cols` a multiple of [`BLOCK`]. Rows are taken in groups of [`GROUP`]
//! (the last one padded with zero rows). A group is
//!
//! | bytes | what |
//! |---|---|
//! | 32 | shift of each row, 8 x i32 |
//! | 16 a block | `Q4Min` only: for each block of 32 columns, minimum of each row, 8 x i16 |
//! | then, for each block of 32 columns: | |
//! | 16 | scale of each row, 8 x i16 |
//! | 256 | `Q8`: octets of rows 0..4, octets of rows 4..8 |
//! | 128 | `Q4`, `Q4Min`: nibbles, those of rows 0..4 being the high and those of rows 4..8 the low halves of bytes |
//!
//! and everything is little-endian. The 128 bytes of four rows are, for each 4 columns, for each row, 4 bytes: a vector
//! of 16 bytes is what one dot-product instruction takes, and what a wider one takes is beside it. With `m[c]` the octets of an
//! entry of the [`crate::activations`], `a` its scale, and all arithmetic exact,
//!
//! ```text
//! S(entry) = sum over its block of q[c] * m[c]     q = 16 * nibble (Q4, Q4Min), octet (Q8)
//! X(block) = sum over the block of the activations' mantissas, rounded to 11 bits and sign under one power of 2, 2^s, a token
//! y = 2^-shift * (sum over entries of scale * a * S + 2^s * sum over blocks of minimum * 128 * X)
//! ```
//!
//! Octets are two's complement. High nibbles are, too: -8..=7. Low nibbles are 0..=15, and in `Q4` stand for 8 less. A byte is
//! thus 16 * high + low, and a kernel multiplies the whole byte and the low nibble: the difference is the high nibble's product,
//! and it need not be taken out of the byte. If both sums begin with -8 times the sum of the octets instead of 0, the low one is
//! that of `Q4`, and the difference is the same.
//!
//! `W16` is a `Q8` matrix of twice the columns, multiplied with each token's activations twice over: first come the blocks of
//! the weights' upper octets, whose scales are 256 times as large, then those of their lower octets. No kernel knows of it.

/// Columns that share a scale.
pub const BLOCK: usize = 32;
/// Rows that are interleaved.
pub const GROUP: usize = 8;
/// Bytes in front of a group's blocks: its rows' shifts.
pub const GROUP_HEAD: usize = GROUP * 4;
/// Rows whose bytes lie together.
pub const HALF: usize = GROUP / 2;
/// Bytes of one block's octets: 8 rows x 32 columns.
pub const OCTETS: usize = GROUP * BLOCK;
/// Bytes of one block's nibbles, or of the octets of four rows.
pub const NIBBLES: usize = HALF * BLOCK;
/// Bytes of one block's scales (or minima).
pub const SCALES: usize = GROUP * 2;

/// Format of a packed tensor. The numbers are those of the container's manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Format {
    /// Matrix of 4-bit weights with a minimum per block (from Q4_1).
    Q4Min = 2,
    /// Matrix of 8-bit weights (from Q8_0).
    Q8 = 3,
    /// Matrix of 16-bit weights (from F16, BF16 and F32), as two of 8 bits.
    W16 = 5,
    /// Matrix of 4-bit weights of both signs (from Q4_0).
    Q4 = 6,
    /// Vector: an i32 shift, 12 zero bytes, then `cols` x i32; value = i32 * 2^-shift. `rows` is 1.
    Vector = 16,
}

/// Bytes in front of a `Vector`'s values.
pub const VECTOR_HEAD: usize = 16;

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Q4Min, Self::Q8, Self::W16, Self::Q4, Self::Vector];

    /// The number that stands for it in a manifest.
    #[must_use]
    pub const fn id(self) -> u32 {
        self as u32
    }

    /// Reads a manifest's number.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Bytes of one block of a group, its minima apart. 0 for what is no matrix.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Q4 | Self::Q4Min => SCALES + NIBBLES,
            Self::Q8 | Self::W16 => SCALES + OCTETS,
            Self::Vector => 0,
        }
    }

    /// Whether two weights share a byte.
    #[must_use]
    pub const fn has_nibbles(self) -> bool {
        matches!(self, Self::Q4 | Self::Q4Min)
    }

    /// What a low nibble is stored too large by.
    #[must_use]
    pub const fn low_excess(self) -> i8 {
        if let Self::Q4 = self { 8 } else { 0 }
    }

    /// How many blocks there are for 32 columns.
    #[must_use]
    pub const fn passes(self) -> usize {
        match self {
            Self::W16 => 2,
            _ => 1,
        }
    }

    /// Bytes of one block's minima.
    #[must_use]
    pub const fn minima_bytes(self) -> usize {
        match self {
            Self::Q4Min => SCALES,
            _ => 0,
        }
    }

    /// Bytes of one group of rows. 0 for what is no matrix.
    #[must_use]
    pub const fn group_bytes(self, cols: usize) -> usize {
        match self {
            Self::Vector => 0,
            _ => GROUP_HEAD + cols / BLOCK * self.passes() * (self.minima_bytes() + self.block_bytes()),
        }
    }

    /// Bytes of a packed tensor of this shape. `None` if the format has no such shape, or if it is larger than memory.
    #[must_use]
    pub fn packed_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        if rows == 0 || cols == 0 {
            return None;
        }
        match self {
            Self::Vector if rows == 1 => cols.checked_mul(4)?.checked_add(VECTOR_HEAD),
            Self::Vector => None,
            _ if !cols.is_multiple_of(BLOCK) => None,
            _ => {
                let block = self.passes() * (self.minima_bytes() + self.block_bytes());
                let blocks = (cols / BLOCK).checked_mul(block)?;
                blocks.checked_add(GROUP_HEAD)?.checked_mul(rows.div_ceil(GROUP))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip() {
        for format in Format::ALL {
            assert_eq!(Format::from_id(format.id()), Some(format));
        }
        assert_eq!(Format::from_id(0), None);
        assert_eq!(Format::from_id(1), None);
        assert_eq!(Format::from_id(4), None);
    }

    #[test]
    fn sizes_follow_the_layout() {
        assert_eq!(Format::Q4Min.packed_bytes(9, 32), Some(2 * (32 + 160)));
        assert_eq!(Format::Q4.packed_bytes(9, 32), Some(2 * (32 + 144)));
        assert_eq!(Format::Q8.packed_bytes(1, 32), Some(32 + 272));
        assert_eq!(Format::W16.packed_bytes(8, 32), Some(32 + 2 * 272));
        assert_eq!(Format::Vector.packed_bytes(1, 3), Some(28));
    }

    #[test]
    fn shapes_that_do_not_exist_are_refused() {
        assert_eq!(Format::Q4Min.packed_bytes(8, 33), None);
        assert_eq!(Format::Q4Min.packed_bytes(0, 32), None);
        assert_eq!(Format::Vector.packed_bytes(2, 32), None);
        assert_eq!(Format::Q8.packed_bytes(usize::MAX, 32), None);
        assert_eq!(Format::Q8.packed_bytes(8, usize::MAX - 31), None);
    }
}
