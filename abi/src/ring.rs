//! The buffer that the normal world shares with the LLM partition (`FFA_MEM_SHARE`).
//!
//! | bytes | what | written by |
//! |---|---|---|
//! | 0..64 | [`RingHeader`] | both, see its fields |
//! | 64..64 + capacity | the ring: the answer's UTF-8 bytes | the partition |
//! | behind it | the prompt, where `GENERATE` says | the normal world |
//!
//! Neither side trusts the other: the partition keeps `capacity` and `head` in private memory and only publishes them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Head of the shared buffer. Indices are free running, modulo 2^32; byte i of the stream lies at `64 + i % capacity`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RingHeader {
    /// [`MAGIC`]. Normal world, before `OPEN`.
    pub magic: u32,
    /// Bytes of the ring, a power of two from 64 to 2^20. Normal world, before `OPEN`.
    pub capacity: u32,
    /// Bytes written since `OPEN`. Partition.
    pub head: u32,
    /// Bytes read since `OPEN`. Normal world.
    pub tail: u32,
    /// Zero.
    pub reserved: [u32; 12],
}

const _: () = assert!(size_of::<RingHeader>() == 64);

/// "FLXR", little-endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"FLXR");
/// Least and most bytes of a ring.
pub const CAPACITY: core::ops::RangeInclusive<u32> = 64..=1 << 20;
