//! The secure partition that runs the model: the only code that sees weights, prompts and tokens in clear.
//!
//! | module | what |
//! |---|---|
//! | `service` | the request loop |
//! | `desk` | which session a request is for, and what sessions share |
//! | `session` | what has been lent to a session, and proving it |
//! | `weights` | a model's segments, for all sessions of that model |
//! | `answer` | a session while a complete model answers |
//! | `ring`, `memory`, `reply` | shared memory, borrowed memory, registers |
//! | `partition` | the entry, on the runtime |
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the host build serves the tests"))]
#![deny(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::float_arithmetic))]

mod answer;
mod desk;
mod memory;
#[cfg(target_os = "none")]
mod partition;
mod reply;
mod ring;
mod service;
mod session;
#[cfg(test)]
mod tests;
mod weights;

#[cfg(not(target_os = "none"))]
fn main() {}
