//! What an S-EL0 partition stands on: entry code, FF-A calls to the SPMC, borrowed memory, logs, the panic handler.
//!
//! A partition is a binary crate that supplies the function `partition_main`:
//!
//! ```ignore
//! #[unsafe(no_mangle)]
//! extern "Rust" fn partition_main(isa: IsaFeatures) -> ! {
//!     let mut request = flexserve_partition_runtime::wait();
//!     loop {
//!         let reply = serve(&request);
//!         request = request.respond_and_wait(reply);
//!     }
//! }
//! ```
//!
//! Its build script passes the linker `-Tpartition.ld`, `-Tdefmt.x`, `--defsym=PARTITION_BASE=…` and
//! `--defsym=PARTITION_SIZE=…` (the region of the platform's `platform.toml`).
//!
//! | module | what | `unsafe` |
//! |---|---|---|
//! | `message` | requests and errors, from and to registers | forbidden |
//! | `descriptor` | what `FFA_MEM_RETRIEVE_REQ` sends and gets | forbidden |
//! | `conduit` | the SVC instruction | one instruction |
//! | `memory` | RX/TX buffers, `Lent` and `Shared` regions | addresses that the SPMC answers |
//! | `team` | one job, divided among cores that may vanish | where a job's closure is kept |
//! | `workers` | entry and stacks of workers on lent cores | entry code, a register |
//! | `entry`, `log` | start-up, defmt by `FFA_CONSOLE_LOG`, panics | linker symbols |
#![no_std]
// The host tests the pure modules; what uses them there are only those tests.
#![cfg_attr(not(target_os = "none"), allow(dead_code))]

mod descriptor;
mod message;
mod team;

#[cfg(target_os = "none")]
mod conduit;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
pub mod workers;

pub use arm_ffa::FfaError;
pub use flexserve_abi::isa::IsaFeatures;
pub use message::{Error, Request};

#[cfg(target_os = "none")]
pub use conduit::{raw_call, wait};
#[cfg(target_os = "none")]
pub use memory::{Borrower, Lent, Shared};
