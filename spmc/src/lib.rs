//! The secure partition manager: FF-A v1.2 (Arm DEN0077A, DEN0140), without the machine under it.
//!
//! | module | what |
//! |---|---|
//! | [`spmc`] | the state behind all calls; `normal` and `secure` are the calls of the two worlds |
//! | [`partition`] | a partition and its one execution context |
//! | [`lending`] | memory regions, from the first fragment to the reclaim |
//! | `recall` | the service that takes a region from a borrower who holds on |
//! | [`descriptor`] | memory transaction descriptors, from a caller that is not trusted |
//! | [`claims`] | which pages are taken |
//! | [`mailbox`] | RX/TX buffers |
//! | [`tables`], [`space`] | translation tables in a fixed pool; a partition's address space |
//! | [`manifest`] | SP packages and their device trees |
//! | [`workers`] | lent cores that work for a partition |
//! | [`hardware`] | what all this needs of the machine |
//!
//! # How much fits
//!
//! A region's pages are recorded in the level-3 tables that map it, 8 bytes a page, taken from what is left of the SPMC's
//! place in memory. In the 4 MiB of `qemu-rme` that is more than 1.6 GiB of single scattered pages at once; a lend that
//! exceeds it is refused with `NO_MEMORY` and leaves nothing behind.
#![no_std]
#![forbid(unsafe_code)]

pub mod claims;
pub mod descriptor;
pub mod hardware;
pub mod lending;
pub mod mailbox;
pub mod manifest;
mod normal;
pub mod partition;
mod recall;
pub mod registers;
mod secure;
pub mod space;
pub mod spmc;
pub mod tables;
pub mod workers;
