//! The conformance suite: a bare-metal normal world (BL33) that holds a port of the firmware to the rules of the design
//! and of the specifications beneath it.
//!
//! One line a case on the normal world's UART, in the Test Anything Protocol: number, group, what must hold, and where
//! that is written. It knows nothing of how the SPMC works: what needs one goes through FF-A, and what needs something
//! that a port does not have (a partition to lend to, a Realm world, SVE) is skipped with a reason.
//!
//! Booted beside the image of `conformance/secure` instead of an SPMC, it makes the EL3 service's calls from the Secure world.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod observe;
#[cfg(target_os = "none")]
mod proxy;
#[cfg(target_os = "none")]
mod stress;
#[cfg(target_os = "none")]
mod suite;
#[cfg(target_os = "none")]
mod taken;

#[cfg(not(target_os = "none"))]
fn main() {}
