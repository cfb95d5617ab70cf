//! The model container: format and reader (design contract 4; hashed, not yet sealed).
//!
//! A container is a run of segments, each a whole number of granules, in the order in which inference needs them:
//!
//! | segment | holds |
//! |---|---|
//! | 0 | head, segment table, manifest, tokenizer |
//! | 1 | token embedding, which is the output head too if the head is tied |
//! | 2 … layers + 1 | one layer each |
//! | layers + 2 | final norm; output head if it is not tied |
//!
//! A loader needs [`Header`] alone: it reads one granule, asks [`Header::bytes_needed`] how many leading bytes hold the
//! segment table, and parses them. The partition makes a [`Manifest`] of segment 0 and a [`Model`] of all segments, each
//! of which may be mapped anywhere. Parsing checks hashes, caps, order and shapes once; what comes out is proven, borrowed
//! from the container, and costs no allocation.
#![no_std]
#![forbid(unsafe_code)]

mod error;
mod header;
pub mod limits;
mod manifest;
mod model;
mod tables;
pub mod wire;

pub use error::Error;
pub use header::{Header, Segment, SegmentKind, hash_of_head};
pub use manifest::{Architecture, Manifest, Params, TensorInfo, TensorKind};
pub use model::{Model, TensorView};
pub use tables::{Chat, ChatKind, PreTokenizer, TokenKind, Tokenizer, TokenizerKind};
