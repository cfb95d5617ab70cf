//! The matrix kernels of the LLM partition: integers only, the same bits on every instruction set.
//!
//! | module | what |
//! |---|---|
//! | [`format`] | how packed tensors lie in memory, and what they mean |
//! | [`matrix`] | a packed matrix, checked |
//! | [`vector`] | a packed vector, checked |
//! | [`activations`] | what it is multiplied with: octets, a scale for each block of a token |
//! | [`matmul`] | the product, on whatever instructions there are |
//! | [`norm`], [`rope`], [`silu`] | a layer's other operations: RMS norm, rotations, the gate by SiLU or GELU |
//! | [`narrow`] | long words to words, for activations |
//! | [`cache`] | keys and values of a head in octets |
//! | [`attention`] | of a query head to them; `attention_plain` its loops, and `attention_neon` their twins |
//! | `word` | what vector instructions do with a word, in plain Rust |
//! | `words_sve` | those operations, and what is done with sums, with scalable vectors |
//! | `plain` | the kernels in plain Rust, the twin of all others |
//! | `arm` | which kernel of an Arm CPU does what |
//! | `neon`, `dotprod` | one token: Armv8.0-A; `FEAT_DotProd` |
//! | `minima` | what minima add, for all kernels of an Arm CPU |
//! | `batch`, `tile`, `i8mm` | many tokens, whose weights are unpacked once: for all; Armv8.0-A and `FEAT_DotProd`; `FEAT_I8MM` |
//! | `sve`, `sve_batch` | one token with scalable vectors, and many with `FEAT_SVE2` and `FEAT_I8MM` |
//! | `sse2` | x86-64, for the host's tools |
//! | `pack` | GGUF's types to those formats (host only, feature `pack`) |
//!
//! `unsafe` is in the modules that use vector instructions (loads by address, instructions that a CPU may lack), and where
//! [`matmul`] and [`attention`] call them; [`isa::Isa`] is the promise that it may.
#![no_std]
#![cfg_attr(not(test), deny(clippy::float_arithmetic))]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod activations;
#[cfg(target_arch = "aarch64")]
mod arm;
pub mod attention;
#[cfg(target_arch = "aarch64")]
mod attention_neon;
mod attention_plain;
#[cfg(target_arch = "aarch64")]
mod batch;
pub mod cache;
#[cfg(target_arch = "aarch64")]
mod dotprod;
pub mod format;
#[cfg(all(test, target_arch = "aarch64"))]
#[path = "../tests/guarded/mod.rs"]
mod guarded;
#[cfg(target_arch = "aarch64")]
mod i8mm;
pub mod isa;
pub mod matmul;
pub mod matrix;
#[cfg(target_arch = "aarch64")]
mod minima;
pub mod narrow;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod norm;
#[cfg(feature = "pack")]
#[allow(clippy::float_arithmetic, reason = "of the host's tools")]
pub mod pack;
mod plain;
pub mod rope;
pub mod silu;
#[cfg(target_arch = "x86_64")]
mod sse2;
#[cfg(target_arch = "aarch64")]
mod sve;
#[cfg(target_arch = "aarch64")]
mod sve_batch;
#[cfg(target_arch = "aarch64")]
mod sve_minima;
#[cfg(target_arch = "aarch64")]
mod tile;
pub mod vector;
mod word;
#[cfg(target_arch = "aarch64")]
mod words_sve;
