//! What the OS side of the normal world speaks.
//!
//! | module | what |
//! |---|---|
//! | [`job`] | the records exchanged with the host |
//! | [`ffa`] | FF-A v1.2 as a lender and requester: setup, memory, direct messages |
//! | [`llm`] | the LLM partition's service as typed calls |
//! | [`probe`] | the hostile partition's |
//! | [`el3`] | what the EL3 service answers to the normal world |
//! | [`ring`] | the buffer shared with the LLM partition, and text out of its bytes |
//! | [`scatter`] | which pages to lend |
//!
//! Everything goes through a [`Conduit`], so that all of it runs against a fake one in tests.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod el3;
pub mod ffa;
pub mod job;
pub mod llm;
pub mod probe;
pub mod recall;
pub mod ring;
pub mod scatter;

/// Registers x0..x17 of a call (SMCCC v1.2).
pub type Registers = [u64; 18];

/// Makes a call to the firmware and the secure world.
pub trait Conduit {
    /// Passes x0..x17 and answers them as they are on return.
    fn call(&mut self, registers: Registers) -> Registers;
}

/// x0..x17 with `arguments` from x1 on; the rest is zero.
#[must_use]
pub fn registers(function: u32, arguments: &[u64]) -> Registers {
    let mut registers = [0; 18];
    registers[0] = u64::from(function);
    registers[1..=arguments.len()].copy_from_slice(arguments);
    registers
}
