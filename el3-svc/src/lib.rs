//! The EL3 service: the only code that changes which world a granule belongs to.
//!
//! - [`protocol`]: what every call does and refuses, without hardware;
//! - [`cores`]: cores that change worlds;
//! - [`protection`]: the mechanism beneath it, as a trait;
//! - `gpt`: that mechanism by granule protection tables (RME), on the hardware;
//! - [`gpt_format`], [`gpt_range`]: the layout of those tables, and how ranges move in them;
//! - `stage2`: that mechanism by stage-2 translation tables of the normal world, on the hardware;
//! - [`stage2_format`], [`stage2_map`], [`stage2_range`]: the layout of those, what is in them at boot, and how ranges move;
//! - `normal_world`: keeps the normal world below those tables: EL2's registers, and the stub in EL2;
//! - [`stage2_fault`], [`gpt_fault`]: what the normal world sees when an access does not pass;
//! - [`exception`]: how an exception level takes an exception, which both make it do;
//! - `reflect`: sends granule protection faults through EL3, on the hardware;
//! - `cpu`: what both mechanisms ask of the CPU: its counter, cache lines and registers;
//! - `psci`: the machine's cores, by PSCI, GIC and SPMD of BL31;
//! - `tfa`: the glue that makes it a runtime service of Trusted Firmware-A's BL31.
//!
//! A platform links one of the two mechanisms (`isolation` in its `platform.toml`). Only `gpt`, `reflect`, `stage2`,
//! `normal_world`, `cpu`, `psci`, `tfa` and `peer` use `unsafe`: they read and write tables and registers, or call BL31 and are called by it.
//!
//! The feature `bench` adds `peer`, what the service is measured against; `./flexserve bench smc` builds with it.
#![no_std]

pub mod cores;
#[cfg(target_os = "none")]
mod cpu;
pub mod exception;
#[cfg(all(target_os = "none", isolation = "gpt"))]
mod gpt;
#[cfg(any(test, fuzzing))]
pub mod gpt_fake;
pub mod gpt_fault;
pub mod gpt_format;
pub mod gpt_range;
#[cfg(all(target_os = "none", isolation = "stage-2"))]
mod normal_world;
#[cfg(all(target_os = "none", feature = "bench"))]
mod peer;
pub mod protection;
pub mod protocol;
#[cfg(target_os = "none")]
mod psci;
#[cfg(all(target_os = "none", isolation = "gpt"))]
mod reflect;
#[cfg(all(target_os = "none", isolation = "stage-2"))]
mod stage2;
#[cfg(any(test, fuzzing))]
pub mod stage2_fake;
pub mod stage2_fault;
pub mod stage2_format;
pub mod stage2_map;
pub mod stage2_range;
#[cfg(target_os = "none")]
mod tfa;
