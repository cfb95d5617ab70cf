//! A packed vector, checked.

use crate::format::{Format, VECTOR_HEAD};
use crate::matrix::ShapeError;

/// A packed vector. Any bytes are a valid vector: only the size is checked.
#[derive(Clone, Copy, Debug)]
pub struct Vector<'a> {
    shift: i32,
    mantissas: &'a [[u8; 4]],
}

impl<'a> Vector<'a> {
    /// Takes the packed bytes of a vector; `bytes` may be longer than it needs.
    ///
    /// # Errors
    /// [`ShapeError`].
    pub fn new(cols: usize, bytes: &'a [u8]) -> Result<Self, ShapeError> {
        let needed = Format::Vector.packed_bytes(1, cols).ok_or(ShapeError)?;
        let (head, mantissas) = bytes.get(..needed).ok_or(ShapeError)?.split_at(VECTOR_HEAD);
        let shift = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        Ok(Self { shift, mantissas: mantissas.as_chunks().0 })
    }

    /// Every value is its mantissa * 2^-shift.
    #[must_use]
    pub const fn shift(&self) -> i32 {
        self.shift
    }

    /// The mantissas' bytes.
    pub(crate) const fn words(&self) -> &'a [[u8; 4]] {
        self.mantissas
    }

    /// The mantissas.
    pub fn mantissas(&self) -> impl ExactSizeIterator<Item = i32> + use<'a> {
        self.mantissas.iter().map(|&bytes| i32::from_le_bytes(bytes))
    }
}
