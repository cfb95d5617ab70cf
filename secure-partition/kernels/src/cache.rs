//! Keys and values of a key-value head as octets under one scale for each position.
//!
//! | part | shape |
//! |---|---|
//! | columns | dimensions, filled up to a whole [`CHUNK`]; of [`Width::Word`] as many again, of lower octets |
//! | octets of keys | (positions / [`POSITIONS`], columns / 4, [`POSITIONS`], 4): a dot product of four bytes is of four columns |
//! | octets of values | (positions / [`POSITIONS`], columns, [`POSITIONS`]): it is of four positions |
//! | scales | (positions) |
//!
//! A number is `octet * scale`, or `(octet + lower octet / 128) * scale`. A scale is `f * 2^e` with f in 1/2..1: an i32 that is f in
//! Q0.31, but for its low byte, which is e. So it is an operand of SQRDMULH, and of SQRSHL, which takes a shift from the low byte.
//! For numbers in Q15.16, e is in -29..=12, or -64 if all are zero.

use core::array::from_fn;

use crate::attention::{COLS_MAX, HEAD_DIM_MAX, LOG2_E};
use crate::matrix::ShapeError;

/// Positions whose octets lie together.
pub const POSITIONS: usize = 4;
/// Columns are a multiple of this.
pub const CHUNK: usize = 16;
/// Numbers of a query or a key that [`turn`] mixes.
pub(crate) const MIXED: usize = 16;
/// Which of them are multiplied with a matrix of four: the first one, and how far apart they are.
pub(crate) const TURNS: [(usize, usize); 8] =
    [(0, 1), (4, 1), (8, 1), (12, 1), (0, 4), (1, 4), (2, 4), (3, 4)];
/// The scale of nothing but zeros: smaller than any other.
const NO_SCALE: i32 = 0x80 | 0x40;
/// Largest octet.
const OCTET_MAX: u64 = 127;
/// Largest number of two octets, the lower one of which is in -64..64.
const WORD_MAX: u64 = 127 * 128 + 63;

/// Octets of a cached number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One.
    Octet,
    /// Two: 15 bits.
    Word,
}

/// How the keys and the values of a head lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    head_dim: usize,
    width: Width,
    /// What turns a dot product into an exponent of 2: `log2(e) / sqrt(head_dim)`, Q2.30.
    factor: u32,
}

/// Keys or values.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// [`Layout::octets`], written by [`Layout::put_key`] or [`Layout::put_value`]. If one is -128, which they never write, the
    /// result depends on the instruction set.
    pub octets: &'a [i8],
    /// [`Layout::scales`]
    pub scales: &'a [i32],
}

/// Keys or values that can be written.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// [`Layout::octets`]
    pub octets: &'a mut [i8],
    /// [`Layout::scales`]
    pub scales: &'a mut [i32],
}

impl<'a> Rows<'a> {
    /// The whole groups that hold some positions from the `first` on, which begins one.
    pub(crate) fn some(&self, layout: &Layout, first: usize, positions: usize) -> Result<Self, ShapeError> {
        let end = first + positions;
        let octets = self.octets.get(layout.octets(first)..layout.octets(end)).ok_or(ShapeError)?;
        let scales = self.scales.get(Layout::scales(first)..Layout::scales(end)).ok_or(ShapeError)?;
        Ok(Self { octets, scales })
    }
}

impl Layout {
    /// Of a head.
    ///
    /// # Errors
    /// [`ShapeError`] if it has no dimensions, or more than [`HEAD_DIM_MAX`].
    pub const fn new(head_dim: usize, width: Width) -> Result<Self, ShapeError> {
        if head_dim == 0 || head_dim > HEAD_DIM_MAX {
            return Err(ShapeError);
        }
        let root = ((head_dim as u128) << 100).isqrt();
        let factor = (((LOG2_E as u128) << 20) / root) as u32;
        Ok(Self { head_dim, width, factor })
    }

    /// Dimensions.
    #[must_use]
    pub const fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Columns.
    pub(crate) const fn cols(&self) -> usize {
        let upper = self.head_dim.next_multiple_of(CHUNK);
        match self.width {
            Width::Octet => upper,
            Width::Word => 2 * upper,
        }
    }

    /// The first column of lower octets.
    pub(crate) const fn lower(&self) -> Option<usize> {
        match self.width {
            Width::Octet => None,
            Width::Word => Some(self.cols() / 2),
        }
    }

    /// Octets of the keys, or of the values, of so many positions.
    #[must_use]
    pub const fn octets(&self, positions: usize) -> usize {
        positions.next_multiple_of(POSITIONS) * self.cols()
    }

    /// Scales of the keys, or of the values, of so many positions.
    #[must_use]
    pub const fn scales(positions: usize) -> usize {
        positions.next_multiple_of(POSITIONS)
    }

    /// Stores `key`, in Q15.16, as that of a position.
    ///
    /// # Errors
    /// [`ShapeError`] if `key` is not (`head_dim`), or `keys` are too short. Nothing was written then.
    pub fn put_key(&self, keys: RowsMut, position: usize, key: &[i32]) -> Result<(), ShapeError> {
        let mut room = [0; HEAD_DIM_MAX];
        let (key, exponent) = turned(key, &mut room)?;
        self.put(keys, position, key, (self.factor, exponent), |octets, lane, columns| {
            for (octets, columns) in octets.as_chunks_mut::<16>().0.iter_mut().zip(columns.as_chunks::<4>().0)
            {
                octets.as_chunks_mut::<4>().0[lane] = *columns;
            }
        })
    }

    /// Stores `value`, in Q15.16, as that of a position.
    ///
    /// # Errors
    /// [`ShapeError`] if `value` is not (`head_dim`), or `values` are too short. Nothing was written then.
    pub fn put_value(&self, values: RowsMut, position: usize, value: &[i32]) -> Result<(), ShapeError> {
        self.put(values, position, value, (1 << 30, 0), |octets, lane, columns| {
            let octets = octets.as_chunks_mut::<POSITIONS>().0;
            octets.iter_mut().zip(columns).for_each(|(octets, column)| octets[lane] = *column);
        })
    }

    /// Stores `numbers * factor`, a factor being of Q2.30 and an exponent of 2. `write(octets of its group, position in it, columns)`
    /// puts the octets where they belong.
    #[inline(always)]
    fn put(
        &self,
        rows: RowsMut,
        position: usize,
        numbers: &[i32],
        factor: (u32, i32),
        write: impl Fn(&mut [i8], usize, &[i8]),
    ) -> Result<(), ShapeError> {
        let (group, lane, cols) = (position / POSITIONS, position % POSITIONS, self.cols());
        let octets = rows.octets.chunks_exact_mut(POSITIONS * cols).nth(group).ok_or(ShapeError)?;
        let scale = rows.scales.get_mut(position).ok_or(ShapeError)?;
        if numbers.len() != self.head_dim {
            return Err(ShapeError);
        }
        let magnitude = magnitude(numbers);
        *scale = self.scale(magnitude, factor);
        let mut columns = [0; COLS_MAX];
        let (upper, lower) = columns.split_at_mut(self.lower().unwrap_or(cols));
        // At most 2^54, rounded down, so that no number becomes larger than `most`; 31 bits of it.
        let reciprocal = (self.most() << 40) / u64::from(magnitude.max(1));
        let spare = (64 - reciprocal.leading_zeros()).saturating_sub(31);
        let (reciprocal, shift) = (i64::from((reciprocal >> spare) as i32), 40 - spare);
        let half = 1 << (shift - 1);
        let rounded = numbers.iter().map(|&number| ((i64::from(number) * reciprocal + half) >> shift) as i32);
        if self.width == Width::Octet {
            upper.iter_mut().zip(rounded).for_each(|(upper, word)| *upper = word as i8);
        } else {
            for ((upper, lower), word) in upper.iter_mut().zip(lower).zip(rounded) {
                *upper = ((word + 64) >> 7) as i8;
                *lower = (word - (i32::from(*upper) << 7)) as i8;
            }
        }
        write(octets, lane, &columns[..cols]);
        Ok(())
    }

    /// What the largest number is rounded to.
    const fn most(&self) -> u64 {
        match self.width {
            Width::Octet => OCTET_MAX,
            Width::Word => WORD_MAX,
        }
    }

    /// The scale of numbers in Q15.16 up to `magnitude`, times a factor.
    fn scale(&self, magnitude: u32, (factor, exponent): (u32, i32)) -> i32 {
        let largest = u64::from(magnitude) * u64::from(factor);
        if largest == 0 {
            return NO_SCALE;
        }
        let up = largest.leading_zeros().cast_signed();
        // 50 bits or more.
        let scale = (largest << up) / self.most();
        let bits = 64 - scale.leading_zeros().cast_signed();
        let unit = if self.width == Width::Word { 7 } else { 0 };
        let exponent = exponent + bits - up - 46 + unit;
        (scale >> (bits - 31)) as i32 & !0xff | exponent & 0xff
    }
}

/// Turns a query or a key in Q15.16, so that the few large numbers that keys have are spread among many columns, and the rest is
/// rounded less coarsely. Both are turned by the same orthogonal matrix, which does not change their dot products. Answers the
/// numbers, and the exponent of 2 of a unit in Q15.16. Heads whose dimensions are not a multiple of [`MIXED`] stay as they are.
pub(crate) fn turned<'a>(
    numbers: &[i32],
    room: &'a mut [i32; HEAD_DIM_MAX],
) -> Result<(&'a [i32], i32), ShapeError> {
    let room = room.get_mut(..numbers.len()).ok_or(ShapeError)?;
    if !numbers.len().is_multiple_of(MIXED) {
        room.copy_from_slice(numbers);
        return Ok((room, 0));
    }
    // 26 bits, of which 16 are added up.
    let up = magnitude(numbers).leading_zeros().cast_signed() - 6;
    if up >= 0 {
        room.iter_mut().zip(numbers).for_each(|(turned, &number)| *turned = number << up);
    } else {
        let half = 1 << (-up - 1);
        let down = |number: i32| (i64::from(number) + half) >> -up;
        room.iter_mut().zip(numbers).for_each(|(turned, &number)| *turned = down(number) as i32);
    }
    if numbers.len().is_multiple_of(4 * MIXED) {
        #[cfg(target_arch = "aarch64")]
        room.as_chunks_mut().0.as_chunks_mut().0.iter_mut().for_each(crate::attention_neon::turn);
        #[cfg(not(target_arch = "aarch64"))]
        room.as_chunks_mut().0.as_chunks_mut().0.iter_mut().for_each(turn::<4>);
    } else {
        room.as_chunks_mut().0.as_chunks_mut().0.iter_mut().for_each(turn::<1>);
    }
    // The matrix is four times an orthogonal one.
    Ok((room, -up - 2))
}

/// Multiplies each [`MIXED`] numbers, `N` apart, with a Hadamard matrix.
pub(crate) fn turn<const N: usize>(block: &mut [[i32; N]; MIXED]) {
    for (first, step) in TURNS {
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| block[first + i * step]);
        block[first] = from_fn(|i| a[i] + b[i] + c[i] + d[i]);
        block[first + step] = from_fn(|i| a[i] - b[i] + c[i] - d[i]);
        block[first + 2 * step] = from_fn(|i| a[i] + b[i] - c[i] - d[i]);
        block[first + 3 * step] = from_fn(|i| a[i] - b[i] - c[i] + d[i]);
    }
}

/// The largest magnitude.
pub(crate) fn magnitude(numbers: &[i32]) -> u32 {
    numbers.iter().fold(0, |most, number| most.max(number.unsigned_abs()))
}

/// The exponent of a scale.
#[inline(always)]
pub(crate) const fn exponent(scale: i32) -> i32 {
    scale as i8 as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Puts numbers as position 5 of 6 and reads them again, as reals.
    fn stored(width: Width, numbers: &[i32], keys: bool) -> Vec<f64> {
        let layout = Layout::new(numbers.len(), width).unwrap();
        let (mut octets, mut scales) = (std::vec![-128; layout.octets(6)], std::vec![77; Layout::scales(6)]);
        let rows = RowsMut { octets: &mut octets, scales: &mut scales };
        if keys {
            layout.put_key(rows, 5, numbers).unwrap();
        } else {
            layout.put_value(rows, 5, numbers).unwrap();
        }
        let group = POSITIONS * layout.cols();
        assert!(octets[..group].iter().all(|&octet| octet == -128), "another group was written to");
        assert_eq!(scales.iter().filter(|&&scale| scale == 77).count(), 7);
        let place = |col: usize| if keys { col / 4 * 16 + 4 + col % 4 } else { col * 4 + 1 };
        let octet = |col: usize| f64::from(octets[group + place(col)]);
        let scale = f64::from(scales[5] & !0xff) * 2f64.powi(exponent(scales[5]) - 31);
        let factor = core::f64::consts::LOG2_E / (numbers.len() as f64).sqrt();
        let scale = if keys { scale / factor } else { scale };
        let lower = |col| layout.lower().map_or(0.0, |lower| octet(lower + col) / 128.0);
        (0..numbers.len()).map(|col| (octet(col) + lower(col)) * scale).collect()
    }

    #[test]
    fn numbers_come_back_within_half_a_step() {
        let wave = |shift: u32| -> Vec<i32> {
            (0..80_u32).map(|i| (i * i).wrapping_mul(0x9e37_79b9).cast_signed() >> shift).collect()
        };
        let extremes = std::vec![i32::MIN, i32::MAX, 0, 1, -1];
        for numbers in
            [wave(0), wave(11), wave(29), extremes, std::vec![0; 7], std::vec![1], std::vec![-3; 256]]
        {
            for (width, steps) in [(Width::Octet, 127.0), (Width::Word, 16319.0)] {
                for keys in [false, true] {
                    let mut room = [0; HEAD_DIM_MAX];
                    let (stored, (numbers, unit)) = (
                        stored(width, &numbers, keys),
                        if keys { turned(&numbers, &mut room).unwrap() } else { (&numbers[..], 0) },
                    );
                    let unit = 2f64.powi(unit - 16);
                    let step = f64::from(magnitude(numbers)) * unit / steps;
                    for (number, stored) in numbers.iter().zip(stored) {
                        let error = (f64::from(*number) * unit - stored).abs();
                        // The scale's 23 bits are a 500th of a step.
                        assert!(error <= 0.503 * step, "{number} is {stored}, {width:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn octets_keep_their_limits() {
        for width in [Width::Octet, Width::Word] {
            let layout = Layout::new(5, width).unwrap();
            for shift in 0..31 {
                for largest in [i32::MAX, i32::MIN, 0x5555_5555, 0x4000_0000, 0x7fff_0001] {
                    let largest = largest >> shift;
                    let numbers = [largest, largest / 2, largest / 3, largest - largest / 256, largest / 200];
                    let (mut octets, mut scales) = (std::vec![0; layout.octets(1)], [0; 4]);
                    layout
                        .put_value(RowsMut { octets: &mut octets, scales: &mut scales }, 0, &numbers)
                        .unwrap();
                    let (upper, lower) = octets.split_at(POSITIONS * layout.lower().unwrap_or(layout.cols()));
                    assert!(upper.iter().all(|octet| octet.unsigned_abs() <= 127));
                    assert!(lower.iter().all(|octet| octet.unsigned_abs() <= 64));
                    assert!((-27..=10).contains(&exponent(scales[0])) && scales[0] >= 1 << 30);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert_eq!(Layout::new(0, Width::Octet).err(), Some(ShapeError));
        assert_eq!(Layout::new(HEAD_DIM_MAX + 1, Width::Octet).err(), Some(ShapeError));
        let layout = Layout::new(20, Width::Word).unwrap();
        assert_eq!((layout.octets(1), layout.octets(4), layout.octets(5)), (256, 256, 512));
        let (mut octets, mut scales) = ([3; 512], [3; 8]);
        let put = |octets: usize, scales: usize, position, numbers: &[i32]| {
            let rows = RowsMut { octets: &mut [3; 512][..octets], scales: &mut [3; 8][..scales] };
            layout.put_key(rows, position, numbers)
        };
        assert_eq!(put(512, 8, 7, &[1; 20]), Ok(()));
        assert_eq!(put(511, 8, 7, &[1; 20]), Err(ShapeError));
        assert_eq!(put(512, 7, 7, &[1; 20]), Err(ShapeError));
        assert_eq!(put(512, 8, 8, &[1; 20]), Err(ShapeError));
        assert_eq!(put(512, 8, usize::MAX, &[1; 20]), Err(ShapeError));
        let rows = RowsMut { octets: &mut octets, scales: &mut scales };
        assert_eq!(layout.put_value(rows, 0, &[1; 19]), Err(ShapeError));
        assert_eq!((octets, scales), ([3; 512], [3; 8]), "nothing is written");
    }
}
