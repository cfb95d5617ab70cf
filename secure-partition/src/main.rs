//! The secure partition that runs the model: the only code that sees weights, prompts and tokens in clear.
//!
//! | module | what |
//! |---|---|
//! | `service` | the request loop |
//! | `session` | what has been lent to a session, and proving it |
//! | `answer` | the inner loop, while a complete model answers |
//! | `ring`, `memory`, `reply` | shared memory, borrowed memory, registers |
//! | `partition` | the entry, on the runtime |
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the host build serves the tests"))]
#![deny(unsafe_code)]

mod answer;
mod memory;
#[cfg(target_os = "none")]
mod partition;
mod reply;
mod ring;
mod service;
mod session;
#[cfg(test)]
mod tests;

#[cfg(not(target_os = "none"))]
fn main() {}
