//! The secure partition that runs the model: the only code that sees weights, prompts and tokens in clear.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the host build serves the tests"))]

mod memory;
mod ring;

#[cfg(not(target_os = "none"))]
fn main() {}
