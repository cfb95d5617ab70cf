//! Caps on every count and size, so that no sum overflows and no loop over a container is unbounded.

use core::ops::RangeInclusive;

/// Segments: manifest, embedding, at least one layer, output.
pub const SEGMENTS: RangeInclusive<u32> = 4..=LAYERS_MAX + 3;
/// Bytes of a segment, up to 1 GiB.
pub const SEGMENT_BYTES: RangeInclusive<u64> = 1..=1 << 30;
/// Bytes of segment 0, up to 64 MiB.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 26;
/// Tokens of a vocabulary.
pub const VOCAB: RangeInclusive<u32> = 2..=1 << 18;
/// Width of the residual stream.
pub const EMBEDDING: RangeInclusive<u32> = 32..=1 << 14;
/// Most layers.
pub const LAYERS_MAX: u32 = 256;
/// Query heads, and key and value heads.
pub const HEADS: RangeInclusive<u32> = 1..=256;
/// Width of a head.
pub const HEAD_DIM: RangeInclusive<u32> = 2..=512;
/// Width of the feed-forward network.
pub const FEED_FORWARD: RangeInclusive<u32> = 32..=1 << 17;
/// Context in tokens.
pub const CONTEXT: RangeInclusive<u32> = 1..=flexserve_abi::service::MAX_CONTEXT as u32;
/// Bytes of one token.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// Merges of byte-pair encoding.
pub const MERGES_MAX: usize = 1 << 20;
/// Tokens that are searched for in text.
pub const SPECIALS_MAX: usize = 1 << 12;
/// Tokens that end an answer.
pub const ENDS_MAX: usize = 64;
/// Bytes of the model's name, and of each string of the chat template.
pub const STRING_BYTES_MAX: usize = 1 << 12;
