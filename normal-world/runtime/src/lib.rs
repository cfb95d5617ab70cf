//! What every bare-metal normal world (BL33) of this project starts from.
//!
//! - [`machine`]: start, end, panics;
//! - [`exceptions`]: accesses that may fault, and what becomes of all other exceptions;
//! - [`cores`], [`gic`], [`timer`]: the other cores and interrupts;
//! - [`mmu`], [`heap`], [`system`]: memory, and what of it can be lent;
//! - [`random`]: numbers that a seed repeats;
//! - [`vectors`]: SIMD and SVE registers across a call;
//! - [`fw_cfg`], [`record`]: the job from the host, if there is one, and the answers to it.
//!
//! A program calls [`machine::start`] from its `payload_main` and links with `image.ld`.
#![no_std]
#![cfg(target_os = "none")]

extern crate alloc;

pub mod cores;
pub mod exceptions;
pub mod fw_cfg;
pub mod gic;
mod heap;
pub mod machine;
mod mmu;
pub mod random;
pub mod record;
pub mod system;
pub mod timer;
pub mod vectors;
