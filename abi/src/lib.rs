//! Every number and structure that crosses a world boundary.
//!
//! | module | between |
//! |---|---|
//! | [`el3`] | any world and the EL3 service (SMC64, OEM range) |
//! | [`ffa`] | endpoints: their IDs and UUIDs; the calls themselves are FF-A v1.2's (Arm DEN0077A) |
//! | [`isa`] | the SPMC and the partitions: instruction-set features |
//! | [`workers`] | the SPMC and a partition: several cores in it |
//! | [`service`] | the normal world and the LLM partition (direct messages) |
//! | [`ring`] | the same two, through shared memory |
//! | [`recall`] | the normal world and the SPMC (direct messages) |
//! | [`probe`] | the attack tests and the hostile partition |
//! | [`log`] | the secure worlds and whoever reads the secure UART |
#![no_std]
#![forbid(unsafe_code)]

pub mod el3;
pub mod ffa;
pub mod isa;
pub mod log;
pub mod probe;
pub mod recall;
pub mod ring;
pub mod service;
pub mod workers;

/// Bytes in a granule, the unit in which memory changes worlds (Arm DDI 0615, GPCCR_EL3.PGS = 4 KB).
pub const GRANULE_SIZE: usize = 4096;
