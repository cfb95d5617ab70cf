//! The EL3 service: moves granules and cores between worlds.
#![no_std]
