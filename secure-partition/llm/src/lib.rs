//! The language model of the LLM partition: Llama-architecture inference in integers only, the same bits everywhere.
//!
//! | module | what |
//! |---|---|
//! | [`tokenizer`] | from text to tokens and back |
//! | [`chat`] | the model's chat template |
//! | [`engine`] | from tokens to logits |
//! | [`sampler`] | from logits to a token |
//! | [`generator`] | all of these: from a prompt to an answer |
//! | [`workspace`] | the memory that it needs, carved out of one slice |
//! | [`error`] | why it cannot go on |
//! | `weights` | the container's tensors as the kernels take them |
//! | `norm`, `rope`, `attention` | the parts of a layer |
//! | `fixed` | functions of fixed-point numbers |
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod attention;
pub mod chat;
pub mod engine;
pub mod error;
mod fixed;
pub mod generator;
mod norm;
mod rope;
pub mod sampler;
pub mod tokenizer;
mod weights;
pub mod workspace;

pub use engine::{Engine, workspace_bytes};
pub use error::Error;
pub use generator::Generator;
