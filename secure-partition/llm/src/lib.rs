//! The language model of the LLM partition: Llama-architecture inference in integers only, the same bits everywhere.
//!
//! | module | what |
//! |---|---|
//! | [`tokenizer`] | from text to tokens and back |
//! | [`chat`] | the model's chat template |
//! | [`engine`] | from tokens to logits |
//! | [`sampler`] | from logits to a token |
//! | [`generator`] | all of these: from a prompt to an answer |
//! | [`workers`] | the other cores that take part |
//! | [`workspace`] | the memory that it needs, carved out of one slice |
//! | [`error`] | why it cannot go on |
//! | `weights` | the container's tensors as the kernels take them |
//! | `rope` | the angles of rotary positions; a layer's other operations are kernels |
//! | `products` | matrix products, divided among the cores |
//! | `fixed` | functions of fixed-point numbers |
//!
//! # Numbers
//!
//! | what | held as |
//! |---|---|
//! | residual stream | i64, Q39.24: outliers of trained models exceed 2^14, and embeddings are below 2^-3 |
//! | inputs of a matrix | i32 under one exponent per token, rounded to octets with scales: [`flexserve_kernels::activations`] |
//! | queries, keys, values, gate, up, logits | i32, Q15.16, saturated |
//! | keys and values in the cache | octets, or two, under one scale per head and position: [`flexserve_kernels::cache`] |
//! | softmax weights | Q2.30 for their sum; 15 bits under one exponent per head and 512 positions for the mixture |
//! | rotations, sigmoid | Q2.30 |
//!
//! Sums of products are exact in i32 or i64, so their order does not matter; attention goes through its 512 positions at a time in order,
//! on one core. Rounding is to nearest, halves up, wherever
//! something becomes a mantissa or leaves a matrix. `./flexserve bench accuracy` compares with float32, and says what each of
//! these roundings costs: docs/benchmarks.md.
#![no_std]
#![cfg_attr(not(test), deny(clippy::float_arithmetic))]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod chat;
pub mod engine;
pub mod error;
mod fixed;
pub mod generator;
mod products;
mod rope;
pub mod sampler;
pub mod tokenizer;
mod weights;
pub mod workers;
pub mod workspace;

pub use engine::{Engine, workspace_bytes};
pub use error::Error;
pub use generator::Generator;
