//! flexserve-kernels
#![no_std]
