//! The LLM partition's service (`flexserve_abi::service`) as typed calls.

use alloc::vec::Vec;
use core::fmt;

use flexserve_abi::{
    ffa::{EndpointId, LLM_SERVICE, UuidRegisters},
    isa::IsaFeatures,
    service::{Finish, Op, RECALL_HANDLES, State, Status, WORKSPACE},
};

use crate::{
    Conduit,
    ffa::{self, Ffa, Message},
};

/// Why a call to the service did not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// FF-A did not deliver the request or its answer.
    Ffa(ffa::Error),
    /// The service refused. The two numbers are x5 and x6 of its answer.
    Refused(Status, u64, u64),
    /// The answer's register x4, or the one named, has a value that the service does not define.
    Malformed(&'static str, u64),
}

impl From<ffa::Error> for Error {
    fn from(error: ffa::Error) -> Self {
        Self::Ffa(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match self {
            Self::Ffa(ffa::Error::Code(ffa::Code::Aborted)) => {
                return write!(f, "the LLM partition has stopped (FFA_ERROR(Aborted)): its log says where");
            }
            Self::Ffa(error) => return write!(f, "the LLM partition cannot be reached: {error}"),
            Self::Malformed(what, value) => {
                return write!(f, "the LLM partition answered {what} = {value:#x}, which means nothing");
            }
            // So long that the partition did not even tokenize it.
            Self::Refused(Status::PromptTooLong, 0, context) => {
                return write!(
                    f,
                    "the prompt is far longer than the context of {context} tokens: shorten it, or take a larger context"
                );
            }
            Self::Refused(Status::PromptTooLong, tokens, context) => {
                return write!(
                    f,
                    "the prompt has {tokens} tokens, but the context is {context}: shorten the prompt, or take a larger context"
                );
            }
            Self::Refused(status, ..) => status,
        };
        f.write_str(match status {
            Status::Success => "the LLM partition refused with a status that means success",
            Status::NotSupported => "the LLM partition does not know this operation: payload and partition are of different versions",
            Status::InvalidParameters => "the LLM partition was given an argument out of its range",
            Status::NoSession => "the LLM partition has no such session",
            Status::Busy => "the LLM partition has as many sessions open as it can have",
            Status::WrongState => "the LLM partition is not in the state for this: the model is incomplete, or nothing is being generated",
            Status::BadMemory => "the LLM partition could not map the memory that it was lent, or it is too small",
            Status::BadHash => "a segment of the model does not have the hash that its manifest gives: the container is damaged; pack the model again",
            Status::BadModel => "the container is malformed, or of a version or architecture that the LLM partition does not know; pack the model again",
            Status::PromptTooLong => "the prompt does not fit the context",
            Status::BadPrompt => "the prompt is not UTF-8, or lies outside the shared buffer",
            Status::BadRing => "the indices of the shared ring contradict each other",
        })
    }
}

/// What `LOAD` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Segments of the model.
    pub segments: u64,
    /// Segments that are loaded.
    pub loaded: u64,
    /// Granules of working memory that the model needs.
    pub workspace_granules: u64,
    /// The partition has given the handle up: another session has loaded the same segment, and this one shares its model.
    pub shared: bool,
}

/// What `GENERATE` is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Where the prompt lies in the shared buffer, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Temperature in Q16.16; 0 is greedy.
    pub temperature: u32,
    /// Only so many of the likeliest tokens are chosen from; 0 for all.
    pub top_k: u32,
    /// Top-p in Q0.16; 0x10000 is 1.
    pub top_p: u32,
    /// Seed of the sampler.
    pub seed: u64,
    /// Most tokens to answer.
    pub max_tokens: u64,
}

/// What `STATUS` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// State of the session.
    pub state: State,
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: u64,
    /// Tokens answered.
    pub answer_tokens: u64,
    /// SHA-256 over the logits of every step.
    pub logits_sha256: [u8; 32],
    /// Granules that the partition holds.
    pub granules: u64,
    /// What the SPMC has told the partition of the CPU.
    pub features: IsaFeatures,
}

/// What `RECALL` answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recalled {
    /// Granules given up.
    pub granules: u64,
    /// The handles they came under.
    pub handles: Vec<u64>,
}

/// The service of one partition.
pub struct Llm<'a, 'tx, C> {
    ffa: &'a mut Ffa<'tx, C>,
    partition: EndpointId,
    interrupted: &'a mut dyn FnMut(),
}

impl<'a, 'tx, C: Conduit> Llm<'a, 'tx, C> {
    /// Speaks to `partition`; `interrupted` is called whenever an interrupt of this world preempts it.
    pub fn new(ffa: &'a mut Ffa<'tx, C>, partition: EndpointId, interrupted: &'a mut dyn FnMut()) -> Self {
        Self { ffa, partition, interrupted }
    }

    /// FF-A, to lend and reclaim between the calls.
    pub fn ffa(&mut self) -> &mut Ffa<'tx, C> {
        self.ffa
    }

    /// The partition's endpoint.
    pub fn partition(&self) -> EndpointId {
        self.partition
    }

    /// Sends x4 = `operation` and x5.. = `arguments`; answers x5.. of a success.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn call(&mut self, operation: u64, arguments: &[u64]) -> Result<[u64; 13], Error> {
        let mut message: Message = [0; 14];
        message[0] = operation;
        message[1..=arguments.len()].copy_from_slice(arguments);
        let uuid = UuidRegisters::new(LLM_SERVICE);
        let [status, results @ ..] =
            self.ffa.request(self.partition, uuid, &message, &mut *self.interrupted)?;
        match Status::from_code(status) {
            Some(Status::Success) => Ok(results),
            Some(status) => Err(Error::Refused(status, results[0], results[1])),
            None => Err(Error::Malformed("x4", status)),
        }
    }

    /// `OPEN` with the handle of the shared buffer and a context in tokens (0 = the model's); answers the session.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn open(&mut self, shared: u64, context: u64) -> Result<u64, Error> {
        Ok(self.call(Op::Open as u64, &[shared, context])?[0])
    }

    /// `CLOSE`.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn close(&mut self, session: u64) -> Result<(), Error> {
        self.call(Op::Close as u64, &[session]).map(drop)
    }

    /// `LOAD` of the model's segment that was lent under `handle`.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn load(&mut self, session: u64, handle: u64, segment: u64) -> Result<Loaded, Error> {
        let [segments, loaded, workspace_granules, shared, ..] =
            self.call(Op::Load as u64, &[session, handle, segment])?;
        Ok(Loaded { segments, loaded, workspace_granules, shared: shared != 0 })
    }

    /// `LOAD` of working memory.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn load_workspace(&mut self, session: u64, handle: u64) -> Result<Loaded, Error> {
        self.load(session, handle, WORKSPACE)
    }

    /// `GENERATE`; answers the prompt's tokens.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn generate(&mut self, session: u64, prompt: &Prompt) -> Result<u64, Error> {
        let arguments = [
            session,
            prompt.offset,
            prompt.length,
            prompt.temperature.into(),
            prompt.top_p.into(),
            prompt.seed,
            prompt.max_tokens,
            prompt.top_k.into(),
        ];
        Ok(self.call(Op::Generate as u64, &arguments)?[0])
    }

    /// `NEXT`: at most `tokens` more; answers how many came, and whether that was all.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn next(&mut self, session: u64, tokens: u64) -> Result<(u64, Finish), Error> {
        let [added, finish, ..] = self.call(Op::Next as u64, &[session, tokens])?;
        let finish = Finish::from_code(finish).ok_or(Error::Malformed("x6", finish))?;
        Ok((added, finish))
    }

    /// `RECALL` of at least `granules`, or of all there are.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn recall(&mut self, session: u64, granules: u64) -> Result<Recalled, Error> {
        let [granules, n, handles @ ..] = self.call(Op::Recall as u64, &[session, granules])?;
        match usize::try_from(n) {
            Ok(n) if n <= RECALL_HANDLES => Ok(Recalled { granules, handles: handles[..n].to_vec() }),
            _ => Err(Error::Malformed("x6", n)),
        }
    }

    /// `STATUS`.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn status(&mut self, session: u64) -> Result<Report, Error> {
        let [state, prompt_tokens, answer_tokens, h0, h1, h2, h3, granules, features, ..] =
            self.call(Op::Status as u64, &[session])?;
        let mut logits_sha256 = [0; 32];
        for (bytes, word) in logits_sha256.chunks_exact_mut(8).zip([h0, h1, h2, h3]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let state = match state {
            0 => State::Loading,
            1 => State::Ready,
            2 => State::Generating,
            other => return Err(Error::Malformed("x5", other)),
        };
        let features = IsaFeatures::from_bits(features);
        Ok(Report { state, prompt_tokens, answer_tokens, logits_sha256, granules, features })
    }
}

#[cfg(test)]
#[path = "llm_tests.rs"]
mod tests;
