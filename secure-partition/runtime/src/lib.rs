//! flexserve-partition-runtime
#![no_std]
