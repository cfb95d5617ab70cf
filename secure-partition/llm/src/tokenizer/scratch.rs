//! Divides the caller's memory into the arrays that tokenizing needs.

use core::ops::Range;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::merge::{Candidate, Symbol};
use super::{Error, SPACE};

/// To whom a byte of the text belongs.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Owner(u32);

impl Owner {
    /// To nobody yet.
    pub const FREE: Self = Self(u32::MAX);
    /// To the special token that begins before it.
    const CONTINUED: Self = Self(u32::MAX - 1);

    pub fn is_free(self) -> bool {
        self == Self::FREE
    }

    /// The special token that begins here.
    pub fn token(self) -> Option<u32> {
        (self.0 < Self::CONTINUED.0).then_some(self.0)
    }
}

/// The arrays, each for a text of the length that was given.
pub struct Scratch<'s> {
    /// (bytes)
    pub text: &'s mut [u8],
    /// (bytes)
    pub owners: &'s mut [Owner],
    /// (symbols)
    pub symbols: &'s mut [Symbol],
    /// (3 x symbols)
    pub queue: &'s mut [Candidate],
    /// (symbols)
    escaped: &'s mut [u8],
}

/// Symbols that a text may have: bytes, each a space of three bytes at worst, and one space in front of each stretch.
const fn symbols(bytes: usize) -> usize {
    3 * bytes + SPACE.len()
}

const ALIGN: usize = 8;

/// Bytes of scratch memory for texts of this many bytes together.
#[must_use]
pub const fn scratch_bytes(bytes: usize) -> usize {
    let symbols = symbols(bytes);
    let arrays =
        bytes + bytes * size_of::<Owner>() + symbols * (size_of::<Symbol>() + 3 * size_of::<Candidate>() + 1);
    arrays + 6 * ALIGN
}

/// Takes `len` elements, aligned, from the front of `rest`.
fn take<'s, T: FromBytes + IntoBytes>(rest: &mut &'s mut [u8], len: usize) -> Result<&'s mut [T], Error> {
    let skip = rest.as_ptr().align_offset(ALIGN);
    let memory = core::mem::take(rest).get_mut(skip..).ok_or(Error::Scratch)?;
    let (taken, left) = <[T]>::mut_from_prefix_with_elems(memory, len).map_err(|_| Error::Scratch)?;
    *rest = left;
    Ok(taken)
}

impl<'s> Scratch<'s> {
    pub fn new(mut memory: &'s mut [u8], bytes: usize) -> Result<Self, Error> {
        let symbols = symbols(bytes);
        Ok(Self {
            owners: take(&mut memory, bytes)?,
            symbols: take(&mut memory, symbols)?,
            queue: take(&mut memory, 3 * symbols)?,
            text: take(&mut memory, bytes)?,
            escaped: take(&mut memory, symbols)?,
        })
    }

    /// Marks `token` wherever its text stands in `range` and is free, from left to right.
    pub fn mark(&mut self, range: Range<usize>, text: &[u8], token: u32) {
        let Some(&first) = text.first() else { return };
        let mut at = range.start;
        while at + text.len() <= range.end {
            let here = at..at + text.len();
            if self.text[at] == first
                && self.text[here.clone()] == *text
                && self.owners[here.clone()].iter().all(|owner| owner.is_free())
            {
                self.owners[here.clone()].fill(Owner::CONTINUED);
                self.owners[at] = Owner(token);
                at = here.end;
            } else {
                at += 1;
            }
        }
    }

    /// Bytes of the special token that begins at `at`.
    pub fn owned(&self, at: usize) -> usize {
        1 + self.owners[at + 1..].iter().take_while(|&&owner| owner == Owner::CONTINUED).count()
    }

    /// A stretch of text with its spaces replaced, one put before it if `prefix`, and the arrays to tokenize it with.
    pub fn escape(&mut self, range: Range<usize>, prefix: bool) -> (&[u8], &mut [Symbol], &mut [Candidate]) {
        let mut used = 0;
        let mut put = |bytes: &[u8]| {
            self.escaped[used..used + bytes.len()].copy_from_slice(bytes);
            used += bytes.len();
        };
        if prefix {
            put(SPACE);
        }
        for &byte in &self.text[range] {
            put(if byte == b' ' { SPACE } else { core::slice::from_ref(&byte) });
        }
        (&self.escaped[..used], self.symbols, self.queue)
    }
}

// Memory of unknown content becomes these without being cleared.
const _: () = {
    const fn zeroable<T: FromZeros>() {}
    zeroable::<Symbol>();
    zeroable::<Candidate>();
};
