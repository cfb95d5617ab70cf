//! The secure partition manager (FF-A v1.2).
#![no_std]
