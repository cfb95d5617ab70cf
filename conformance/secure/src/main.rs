//! The Secure world's caller of the conformance suite (`flexserve_abi::probe::SecureOp`).
//!
//! It stands in the SPMC's place, at S-EL2 or S-EL1, with the MMU off, and does what the suite in the normal world asks:
//! SMCs with any registers, and accesses to the Secure physical address space. Nothing of an SPMC is in it.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod caller;

#[cfg(not(target_os = "none"))]
fn main() {}
