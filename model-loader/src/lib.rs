//! Reads GGUF, writes the model container, and runs models on the host.
//!
//! | module | what |
//! |---|---|
//! | [`gguf`] | the GGUF reader |
//! | [`pack()`] | from GGUF to a container: tensors in the kernels' layouts, tokenizer tables, chat template, hashes |
//! | [`mod@file`] | both kinds of model file, as the command line and other tools use them |
//! | [`run`] | the partition's engine on the host |
#![forbid(unsafe_code)]

pub mod error;
pub mod file;
pub mod gguf;
mod pack;
pub mod run;

pub use error::Error;
pub use pack::{pack, pack_manifest};
