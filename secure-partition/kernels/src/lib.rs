//! The matrix kernels of the LLM partition: integers only, the same bits on every instruction set.
//!
//! | module | what |
//! |---|---|
//! | [`format`] | how packed tensors lie in memory, and what they mean |
//! | [`matrix`] | a packed matrix, checked |
//! | [`vector`] | a packed vector, checked |
//! | [`activations`] | what it is multiplied with: 16-bit mantissas, one exponent per token |
//! | [`matmul`] | the product, on whatever instructions there are |
//! | `plain` | the kernels in plain Rust, the twin of all others |
//! | `neon`, `dotprod` | Armv8.0-A; `FEAT_DotProd` (AArch64 only) |
//! | `sse2` | x86-64, for the host's tools |
//! | `pack` | GGUF's types to those formats (host only, feature `pack`) |
//!
//! `unsafe` is in `neon`, `dotprod` and `sse2` (loads by address, instructions that a CPU may lack), and where [`matmul`] calls `dotprod`; [`isa::Isa`] is the promise that it may.
#![no_std]

#[cfg(any(test, feature = "std"))]
extern crate std;

pub mod activations;
#[cfg(target_arch = "aarch64")]
mod dotprod;
pub mod format;
pub mod isa;
pub mod matmul;
pub mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(feature = "pack")]
pub mod pack;
mod plain;
#[cfg(target_arch = "x86_64")]
mod sse2;
pub mod vector;
