//! flexserve-llm
#![no_std]
