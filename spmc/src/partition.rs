//! A partition, and what its one execution context is doing.

use crate::{
    mailbox::Mailbox,
    registers::{Registers, Reply, pair},
    space::AddressSpace,
};
use arm_ffa::{FfaError, FuncId};
use flexserve_abi::ffa::{EndpointId, UuidRegisters};

/// Bits of the partition properties (DEN0077A v1.2, table 6.2).
pub mod properties {
    /// Receives `FFA_MSG_SEND_DIRECT_REQ`.
    pub const DIRECT_REQUEST: u32 = 1 << 0;
    /// Runs in AArch64.
    pub const AARCH64: u32 = 1 << 8;
    /// Receives `FFA_MSG_SEND_DIRECT_REQ2`.
    pub const DIRECT_REQUEST_2: u32 = 1 << 9;
    /// What of a manifest's `messaging-method` this SPMC provides.
    pub const PROVIDED: u32 = DIRECT_REQUEST | DIRECT_REQUEST_2;
}

/// A direct request that has not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who asked.
    pub caller: EndpointId,
    /// Which function the answer has to be.
    pub answer: FuncId,
    /// The request, until the partition has it.
    pub message: Registers,
}

/// Why a partition that has work is not running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// An interrupt of the normal world.
    Interrupted,
    /// `FFA_YIELD`.
    Yielded,
}

/// What the execution context is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has to start at the entry point.
    Fresh,
    /// Between the entry point and the first `FFA_MSG_WAIT`.
    Starting,
    /// It waits for a message.
    Waiting,
    /// It serves a message.
    Serving,
    /// It has ended, for good.
    Aborted,
}

/// A partition.
#[derive(Clone, Copy, Debug)]
pub struct Partition {
    /// Its ID.
    pub id: EndpointId,
    /// Its service.
    pub uuid: UuidRegisters,
    /// Its properties, as `FFA_PARTITION_INFO_GET` answers them.
    pub properties: u32,
    /// First byte of its own memory, at which it starts.
    pub entry: u64,
    /// Bytes of its image.
    pub image_size: u64,
    /// Whether it starts anew after an abort.
    pub restart: bool,
    /// Its address space.
    pub space: AddressSpace,
    /// Tag of its address space in the TLBs.
    pub asid: u16,
    /// Its buffers.
    pub mailbox: Option<Mailbox>,
    /// What it is doing.
    pub phase: Phase,
    /// Whether it was interrupted at it.
    pub pause: Option<Pause>,
    /// For whom.
    pub call: Option<Call>,
    /// One of its workers has failed while it was running: it ends when it comes back.
    pub failing: bool,
}

/// How to go on with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// From its entry point, with a new context.
    Start,
    /// With its context as it is.
    Resume,
    /// With an answer to its last call in x0 to x17.
    Answer(Registers),
}

/// What a core does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Answer the normal world.
    Reply(Reply),
    /// Run the partition of this index.
    Run(usize, Entry),
    /// A partition has started and waits for its first message; nobody asked for it.
    Ready,
}

impl Partition {
    /// Takes a request, if the partition can serve one now.
    ///
    /// # Errors
    ///
    /// [`FfaError::Busy`], [`FfaError::Aborted`].
    pub fn accept(&mut self, call: Call) -> Result<Entry, FfaError> {
        match self.phase {
            Phase::Waiting => {
                self.phase = Phase::Serving;
                self.call = Some(call);
                Ok(Entry::Answer(call.message))
            }
            Phase::Fresh => {
                self.phase = Phase::Starting;
                self.call = Some(call);
                Ok(Entry::Start)
            }
            Phase::Starting | Phase::Serving => Err(FfaError::Busy),
            Phase::Aborted => Err(FfaError::Aborted),
        }
    }

    /// Goes on after a pause (`FFA_RUN`).
    ///
    /// # Errors
    ///
    /// [`FfaError::Aborted`]; [`FfaError::Busy`] if it is running; [`FfaError::Denied`] if it has nothing to do.
    pub fn resume(&mut self) -> Result<Entry, FfaError> {
        match (self.phase, self.pause) {
            (Phase::Aborted, _) => Err(FfaError::Aborted),
            (Phase::Fresh | Phase::Waiting, _) => Err(FfaError::Denied),
            (Phase::Starting | Phase::Serving, None) => Err(FfaError::Busy),
            (Phase::Starting | Phase::Serving, Some(pause)) => {
                self.pause = None;
                Ok(match pause {
                    Pause::Interrupted => Entry::Resume,
                    Pause::Yielded => Entry::Answer(Reply::success(&[]).over(&[0; 18])),
                })
            }
        }
    }

    /// Stops for a while, and answers what the normal world is told.
    pub fn suspend(&mut self, pause: Pause) -> Reply {
        self.pause = Some(pause);
        let function = match pause {
            Pause::Interrupted => FuncId::Interrupt32,
            Pause::Yielded => FuncId::Yield32,
        };
        Reply::short(function, pair(self.id, 0), &[])
    }

    /// The partition waits for a message (`FFA_MSG_WAIT`): what it gets, if there is one already.
    ///
    /// # Errors
    ///
    /// [`FfaError::Denied`] if it has not answered the last one.
    pub fn wait(&mut self) -> Result<Option<Registers>, FfaError> {
        match (self.phase, self.call) {
            (Phase::Starting, Some(call)) => {
                self.phase = Phase::Serving;
                Ok(Some(call.message))
            }
            (Phase::Starting, None) => {
                self.phase = Phase::Waiting;
                Ok(None)
            }
            _ => Err(FfaError::Denied),
        }
    }

    /// The partition answers its request: what the normal world is told.
    ///
    /// # Errors
    ///
    /// [`FfaError::Denied`] if there is none; [`FfaError::InvalidParameters`] if the answer is of another kind, or not
    /// from here to whoever asked.
    pub fn answer(&mut self, function: FuncId, registers: &Registers) -> Result<Reply, FfaError> {
        let call = self.call.filter(|_| self.phase == Phase::Serving).ok_or(FfaError::Denied)?;
        if function != call.answer || registers[1] as u32 != pair(self.id, call.caller) as u32 {
            return Err(FfaError::InvalidParameters);
        }
        self.phase = Phase::Waiting;
        self.call = None;
        let mut answer = *registers;
        answer[0] = u32::from(function).into();
        answer[1] = u64::from(registers[1] as u32);
        Ok(match function {
            FuncId::MsgSendDirectResp64_2 => Reply::Full(answer),
            FuncId::MsgSendDirectResp64 => short(&answer, u64::MAX),
            _ => short(&answer, u32::MAX.into()),
        })
    }

    /// The partition has ended. Answers what its caller is told, if there is one.
    pub fn abort(&mut self) -> Option<Reply> {
        self.phase = if self.restart { Phase::Fresh } else { Phase::Aborted };
        self.pause = None;
        self.failing = false;
        self.mailbox = None;
        self.call.take().map(|_| Reply::error(FfaError::Aborted))
    }
}

fn short(registers: &Registers, mask: u64) -> Reply {
    Reply::Short(core::array::from_fn(|i| registers[i] & mask))
}
