//! The EL3 service: the only code that changes which world a granule belongs to.
//!
//! - [`protocol`]: what every call does and refuses, without hardware;
//! - [`protection`]: the mechanism beneath it, as a trait;
//! - `gpt`: that mechanism by granule protection tables (RME), on the hardware;
//! - [`gpt_format`], [`gpt_range`]: the layout of those tables, and how ranges move in them;
//! - `tfa`: the glue that makes it a runtime service of Trusted Firmware-A's BL31.
//!
//! Only `gpt` and `tfa` use `unsafe`: the first reads and writes the tables and issues the instructions around a change,
//! the second is called by BL31.
//!
//! The feature `bench` adds what the service is measured against; `./flexserve bench smc` builds with it.
#![no_std]

#[cfg(all(target_os = "none", isolation = "gpt"))]
mod gpt;
pub mod gpt_format;
pub mod gpt_range;
#[cfg(all(target_os = "none", isolation = "stage-2"))]
mod nothing;
#[cfg(all(target_os = "none", feature = "bench"))]
mod peer;
pub mod protection;
pub mod protocol;
#[cfg(target_os = "none")]
mod tfa;
