//! The bytes of a container: little-endian structures without padding, readable at any alignment.
//!
//! Nothing here is checked; [`crate::Header`] and [`crate::Manifest`] do that.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First eight bytes of a container.
pub const MAGIC: [u8; 8] = *b"FLXMODEL";
/// Version of this layout.
pub const VERSION: u32 = 2;
/// Alignment in bytes of every section of segment 0 and of every tensor in its segment.
pub const ALIGN: usize = 64;
/// "No such token", "no such layer".
pub const NONE: u32 = u32::MAX;

/// The head of a container, followed by [`Self::segments`] times [`Segment`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Head {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// Segments, segment 0 included.
    pub segments: U32,
    /// Bytes of the whole container.
    pub file_bytes: U64,
    /// Grows with every release of a model that must not be rolled back.
    pub security_version: U32,
    /// Offset of the [`Manifest`] from the start of the container.
    pub manifest: U32,
    /// SHA-256 of the head and the segment table, this field taken as zero.
    pub sha256: [u8; 32],
}

const _: () = assert!(size_of::<Head>() == 64);

/// One segment of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Segment {
    /// Offset in the file, a multiple of the granule size.
    pub offset: U64,
    /// Bytes in use; zeroes fill the last granule.
    pub bytes: U64,
    /// [`crate::SegmentKind`].
    pub kind: U32,
    /// Layer, or [`NONE`].
    pub layer: U32,
    /// Whole granules.
    pub granules: U32,
    /// Zero.
    pub reserved: U32,
    /// SHA-256 of the whole granules; for segment 0 without the head and the segment table.
    pub sha256: [u8; 32],
}

const _: () = assert!(size_of::<Segment>() == 64);

/// A section of segment 0: offset from the start of the container, and bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Span {
    /// Offset from the start of the container.
    pub offset: U32,
    /// Bytes.
    pub bytes: U32,
}

const _: () = assert!(size_of::<Span>() == 8);

/// What the model is.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Manifest {
    /// [`crate::Architecture`].
    pub architecture: U32,
    /// [`TIED_HEAD`].
    pub flags: U32,
    /// Tokens of the vocabulary.
    pub vocab: U32,
    /// Width of the residual stream.
    pub embedding: U32,
    /// Layers.
    pub layers: U32,
    /// Query heads.
    pub heads: U32,
    /// Key and value heads.
    pub kv_heads: U32,
    /// Width of a head.
    pub head_dim: U32,
    /// Width of the feed-forward network.
    pub feed_forward: U32,
    /// Context that the model was trained for, in tokens.
    pub context: U32,
    /// Leading dimensions of a head that are rotated.
    pub rope_dims: U32,
    /// Base of the rotary frequencies, as IEEE 754 single precision. For people; the model uses [`Self::rope_steps`].
    pub rope_base: U32,
    /// Epsilon of the RMS norms, Q0.32.
    pub rms_epsilon: U32,
    /// Zero.
    pub reserved: U32,
    /// The model's name, UTF-8.
    pub name: Span,
    /// [`U64`] for each rotated pair: fraction of a turn per position, Q0.64.
    pub rope_steps: Span,
    /// [`Tensor`]s, sorted by layer, then kind.
    pub tensors: Span,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template.
    pub chat: Chat,
}

const _: () = assert!(size_of::<Manifest>() == 80 + 96 + 64);

/// [`Manifest::flags`]: the output head is the token embedding.
pub const TIED_HEAD: u32 = 1;

/// One tensor in a segment.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tensor {
    /// Layer, or [`NONE`].
    pub layer: U32,
    /// [`crate::TensorKind`].
    pub kind: U32,
    /// Segment that holds it.
    pub segment: U32,
    /// Packed layout, by the number that the kernels give it.
    pub format: U32,
    /// Outputs.
    pub rows: U32,
    /// Inputs.
    pub cols: U32,
    /// Offset in the segment, a multiple of [`ALIGN`].
    pub offset: U64,
    /// Bytes.
    pub bytes: U64,
    /// GGML's number of the type it was packed from. For people.
    pub source_type: U32,
    /// Zero.
    pub reserved: U32,
}

const _: () = assert!(size_of::<Tensor>() == 48);

/// Where the tokenizer's tables are.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tokenizer {
    /// [`crate::TokenizerKind`].
    pub kind: U32,
    /// [`crate::PreTokenizer`].
    pub pre: U32,
    /// [`ADD_BOS`], [`ADD_EOS`], [`ADD_SPACE_PREFIX`], [`IGNORE_MERGES`].
    pub flags: U32,
    /// Beginning of text, or [`NONE`].
    pub bos: U32,
    /// End of text, or [`NONE`].
    pub eos: U32,
    /// Stands for what cannot be encoded, or [`NONE`].
    pub unknown: U32,
    /// [`U32`] for each token and one more: where its bytes begin in [`Self::bytes`].
    pub offsets: Span,
    /// The tokens' bytes, one after the other.
    pub bytes: Span,
    /// For each token one byte, [`crate::TokenKind`].
    pub kinds: Span,
    /// [`U32`] token IDs, sorted by the tokens' bytes. Those that the merging algorithm may produce.
    pub index: Span,
    /// [`Merge`]s, sorted by left, then right. Byte-pair encoding only.
    pub merges: Span,
    /// [`U32`] for each token: rank of its score, the highest merges first. SentencePiece only.
    pub ranks: Span,
    /// [`U32`] for each byte value: the token that stands for it, or [`NONE`].
    pub byte_ids: Span,
    /// [`U32`] IDs of the tokens that are found in text before it is divided, in the order of search.
    pub specials: Span,
    /// [`U32`] IDs of the tokens that end an answer, sorted.
    pub ends: Span,
}

const _: () = assert!(size_of::<Tokenizer>() == 96);

/// [`Tokenizer::flags`]: a text begins with [`Tokenizer::bos`].
pub const ADD_BOS: u32 = 1;
/// [`Tokenizer::flags`]: a text ends with [`Tokenizer::eos`].
pub const ADD_EOS: u32 = 2;
/// [`Tokenizer::flags`]: a space is put before a text.
pub const ADD_SPACE_PREFIX: u32 = 4;
/// [`Tokenizer::flags`]: a word that is a token is not merged from its bytes.
pub const IGNORE_MERGES: u32 = 8;

/// One rule of byte-pair encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Merge {
    /// Left token.
    pub left: U32,
    /// Right token.
    pub right: U32,
    /// The lowest rank merges first.
    pub rank: U32,
    /// What they become.
    pub result: U32,
}

const _: () = assert!(size_of::<Merge>() == 16);

/// The chat template as the strings around each message. Special tokens in them are meant as such.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Chat {
    /// [`crate::ChatKind`].
    pub kind: U32,
    /// [`SYSTEM_IN_USER`].
    pub flags: U32,
    /// System message if there is none; empty for no system message at all.
    pub default_system: Span,
    /// Before and behind a system message.
    pub system: [Span; 2],
    /// Before and behind a user message.
    pub user: [Span; 2],
    /// Before and behind an assistant message; the part before it also opens the answer.
    pub assistant: [Span; 2],
}

const _: () = assert!(size_of::<Chat>() == 64);

/// [`Chat::flags`]: the system message stands inside the first user message, whose own prefix is left out.
pub const SYSTEM_IN_USER: u32 = 1;
