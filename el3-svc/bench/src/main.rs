//! Counts the EL3 service's instructions, in the SPMC's place: it calls from S-EL2, as the SPMC does, and reads the counter
//! before and after. Under `-icount shift=0` the counter counts guest instructions.
//!
//! The peer of each figure comes from the same BL31, built with the service's feature `bench`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bench;

#[cfg(not(target_os = "none"))]
fn main() {}
