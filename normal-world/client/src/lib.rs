//! What the OS side of the normal world speaks: the records it exchanges with the host ([`job`]), and FF-A as a borrower's
//! counterpart.
#![no_std]
#![forbid(unsafe_code)]

pub mod job;
