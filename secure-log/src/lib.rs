//! defmt logs of EL3 and of the SPMC over the secure UART.
//!
//! Each image calls [`init`] once per boot. Frames of the worlds may interleave byte by byte on the UART
//! ([`flexserve_abi::log`]), so no lock is shared between worlds; within a world one lock keeps frames whole.
#![no_std]

#[cfg(target_os = "none")]
mod uart;
#[cfg(target_os = "none")]
pub use uart::{emit, init};
