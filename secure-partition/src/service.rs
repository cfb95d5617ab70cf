//! The request loop: [`flexserve_abi::service`].

use crate::{
    answer,
    memory::Borrow,
    reply::{Args, Reply, failure},
    session::Session,
};
use flexserve_abi::service::{Op, Status};
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
    pub prompt: &'a mut [u8],
    /// Instructions that the kernels may use.
    pub isa: Isa,
    /// Cores that compute together.
    pub workers: &'a dyn Workers,
}

/// Serves from the first request on.
pub fn serve<B: Borrow>(borrower: &mut B, link: &mut impl Link, first: Message, mut own: Resources) {
    let mut sessions = 0;
    let mut session: Option<Session<B>> = None;
    let mut next = Some(first);
    while let Some(message) = next {
        let reply = match Op::from_code(message.op) {
            None => failure(Status::NotSupported),
            Some(Op::Open) if session.is_some() => failure(Status::Busy),
            Some(Op::Open) => match Session::open(sessions + 1, &message.args, borrower) {
                Ok((opened, reply)) => {
                    sessions += 1;
                    session = Some(opened);
                    reply
                }
                Err(status) => failure(status),
            },
            Some(op) => match (session.as_mut().filter(|open| open.id() == message.args[0]), op) {
                (None, _) => failure(Status::NoSession),
                (Some(open), Op::Load) => open.load(&message.args, borrower),
                (Some(open), Op::Recall) => open.recall(&message.args, borrower),
                (Some(open), Op::Status) => open.status(),
                (Some(open), Op::Generate) if open.complete() => {
                    next = answer::serve(open, link, message, &mut own);
                    continue;
                }
                (Some(_), Op::Close) => {
                    session.take().map_or(failure(Status::NoSession), |open| open.close(borrower))
                }
                (Some(_), _) => failure(Status::WrongState),
            },
        };
        next = link.exchange(reply);
    }
}
