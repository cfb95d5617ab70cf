//! The SPMC's image: entry code, exceptions, and the machine under [`flexserve_spmc`].
//!
//! It runs at S-EL2 with HCR_EL2.{E2H,TGE} = {1,1} and names the `_EL1` registers, so that the same source can run at
//! S-EL1 where there is no S-EL2. `unsafe` is confined to `machine`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod machine;

#[cfg(not(target_os = "none"))]
fn main() {}
