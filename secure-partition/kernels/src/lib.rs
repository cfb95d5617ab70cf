//! The matrix kernels of the LLM partition: integers only, the same bits on every instruction set.
//!
//! | module | what |
//! |---|---|
//! | [`format`] | how packed tensors lie in memory, and what they mean |
//! | `pack` | GGUF's types to those formats (host only, feature `pack`) |
#![no_std]

pub mod format;
#[cfg(feature = "pack")]
pub mod pack;
