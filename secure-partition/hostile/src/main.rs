//! A secure partition that attacks on request ([`flexserve_abi::probe`]). It keeps no state, so that the SPMC can start
//! it anew after each fault.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod probe;

#[cfg(not(target_os = "none"))]
fn main() {}
