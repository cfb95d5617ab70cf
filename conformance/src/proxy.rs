//! Calls and accesses in the Secure world, made for the suite by the image that stands in the SPMC's place.

use flexserve_abi::{
    ffa::SPMC,
    probe::{SECURE_CALLER, SecureOp},
};
use flexserve_client::{
    Registers,
    ffa::{self, Function},
};
use flexserve_normal_runtime::exceptions::Fault;

use crate::bench::call;

/// The Secure world's caller, on the core that asks.
#[derive(Clone, Copy)]
pub struct Proxy(());

impl Proxy {
    /// Looks for it.
    pub fn find() -> Option<Self> {
        (ask(SecureOp::Hello, 0, [0; 4])?[0] == SECURE_CALLER).then_some(Self(()))
    }

    /// An SMC from the Secure world with x1 and what follows; x0..x17 on return.
    pub fn call(self, function: u32, arguments: &[u64]) -> Registers {
        let mut all = [0; 20];
        all[0] = u64::from(function);
        all[1..=arguments.len()].copy_from_slice(arguments);
        for (index, four) in all.as_chunks().0.iter().enumerate() {
            self.expect(SecureOp::Put, 4 * index, *four);
        }
        self.expect(SecureOp::Call, 0, [0; 4]);
        let mut answer = [0; 18];
        for (index, four) in answer.chunks_mut(4).enumerate() {
            let got = self.expect(SecureOp::Get, 4 * index, [0; 4]);
            four.copy_from_slice(&got[..four.len()]);
        }
        answer
    }

    /// Reads 8 bytes in the Secure physical address space.
    ///
    /// # Errors
    ///
    /// The fault that the read ended in.
    pub fn read(self, address: u64) -> Result<u64, Fault> {
        match self.expect(SecureOp::Read, 0, [address, 0, 0, 0]) {
            [0, value, ..] => Ok(value),
            [esr, far, ..] => Err(Fault { esr, far }),
        }
    }

    /// Writes 8 bytes there.
    ///
    /// # Errors
    ///
    /// The fault that the write ended in.
    pub fn write(self, address: u64, value: u64) -> Result<(), Fault> {
        match self.expect(SecureOp::Write, 0, [address, value, 0, 0]) {
            [0, ..] => Ok(()),
            [esr, far, ..] => Err(Fault { esr, far }),
        }
    }

    /// Rounds of work that a lent core has done, and in how many of them an interrupt of another world was signalled to it.
    pub fn work(self, mpidr: u64) -> [u64; 2] {
        let [rounds, signalled, ..] = self.expect(SecureOp::Work, 0, [mpidr, 0, 0, 0]);
        [rounds, signalled]
    }

    /// Once it has been found it answers, or the run is lost.
    fn expect(self, op: SecureOp, index: usize, values: [u64; 4]) -> [u64; 4] {
        ask(op, index, values).expect("the Secure world's caller answers")
    }
}

fn ask(op: SecureOp, index: usize, [a, b, c, d]: [u64; 4]) -> Option<[u64; 4]> {
    let function = u32::from(Function::MsgSendDirectReq64);
    let answer = call(function, &[u64::from(SPMC), 0, op as u64 | (index as u64) << 8, a, b, c, d]);
    let answered = ffa::is(&answer, Function::MsgSendDirectResp64);
    answered.then(|| [answer[4], answer[5], answer[6], answer[7]])
}
