//! A bare-metal normal world (BL33, at NS-EL2 or NS-EL1).
//!
//! It plays both parts that the system has to get along with: the OS that lends memory to the LLM partition and serves a
//! prompt, and the OS that attacks what it has lent.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod attack;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod machine;
#[cfg(target_os = "none")]
mod measure;
#[cfg(target_os = "none")]
mod prompt;
#[cfg(target_os = "none")]
mod session;
#[cfg(target_os = "none")]
mod tests;

#[cfg(target_os = "none")]
use flexserve_normal_runtime::{cores, exceptions, gic, random, record, system, timer, vectors};

#[cfg(not(target_os = "none"))]
fn main() {}
