//! The request loop: [`flexserve_abi::service`].

use crate::{
    desk::{Desk, sit},
    memory::Borrow,
    reply::{Args, Reply, failure},
};
use core::{cell::RefCell, pin::pin};
use flexserve_abi::{
    isa::IsaFeatures,
    service::{Op, SESSIONS, Status},
};
use flexserve_kernels::isa::Isa;
use flexserve_llm::workers::Workers;

/// A request: x4, and x5 on.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    /// The operation, not proven.
    pub op: u64,
    /// Its arguments, not proven.
    pub args: Args,
}

/// The way to whoever asks.
pub trait Link {
    /// Answers the last request and waits for the next one. `None` at the end of a test.
    fn exchange(&mut self, reply: Reply) -> Option<Message>;
}

/// What the partition has besides borrowed memory.
pub struct Resources<'a> {
    /// Room for a prompt.
    pub prompt: RefCell<&'a mut [u8]>,
    /// Instructions that the kernels may use.
    pub isa: Isa,
    /// What the SPMC says of the CPU.
    pub features: IsaFeatures,
    /// Cores that compute together.
    pub workers: &'a dyn Workers,
}

/// Serves from the first request on.
pub fn serve<'a, B: Borrow>(borrower: &'a mut B, link: &mut impl Link, first: Message, own: Resources<'a>) {
    let desk = Desk::new(borrower, own);
    let mut seats: [_; SESSIONS] =
        [pin!(sit(&desk, 0)), pin!(sit(&desk, 1)), pin!(sit(&desk, 2)), pin!(sit(&desk, 3))];
    let mut next = Some(first);
    while let Some(message) = next {
        let reply = match Op::from_code(message.op) {
            None => failure(Status::NotSupported),
            Some(op) => desk.ask(&mut seats, op, message.args),
        };
        next = link.exchange(reply);
    }
}
