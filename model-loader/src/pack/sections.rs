//! Builds segment 0: aligned sections behind each other.

use flexserve_container::wire::{ALIGN, Span};
use zerocopy::{Immutable, IntoBytes};

/// The bytes of segment 0 as they grow.
#[derive(Debug)]
pub struct Sections(Vec<u8>);

impl Sections {
    /// Leaves `bytes` of zeroes at the front for what is known last.
    #[must_use]
    pub fn after(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    /// Adds a section.
    pub fn add<T: IntoBytes + Immutable + ?Sized>(&mut self, content: &T) -> Span {
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        let offset = self.0.len() as u32;
        self.0.extend_from_slice(content.as_bytes());
        Span { offset: offset.into(), bytes: (content.as_bytes().len() as u32).into() }
    }

    /// All bytes.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
