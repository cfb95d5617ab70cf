//! The model container: format and reader.
#![no_std]
#![forbid(unsafe_code)]
