//! From a user's words to the answer's: chat template, tokenizer, engine and sampler together.

use core::fmt;
use flexserve_abi::service::Finish;
use flexserve_container::{Manifest, Model};
use flexserve_kernels::isa::Isa;
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

use crate::{
    Engine, Error,
    chat::{self, Message, Role},
    engine,
    sampler::Sampler,
    tokenizer::{self, Piece, Tokenizer, scratch_bytes},
    workers::Workers,
};

const _: () = assert!(cfg!(target_endian = "little"), "the hash is over little-endian logits");

/// Bytes of prompt for which there is memory, for each token of context: twice what English text needs.
const PROMPT_BYTES_PER_TOKEN: usize = 8;
const PIECES: usize = chat::pieces(1);

/// How an answer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Q16.16; 0 is greedy.
    pub temperature: u32,
    /// Only so many of the likeliest tokens are chosen from; 0 for all.
    pub top_k: u32,
    /// Q0.16; 0x10000 is 1.
    pub top_p: u32,
    /// Of the sampler's generator.
    pub seed: u64,
    /// Most tokens of the answer, at least 1.
    pub max_tokens: u64,
}

/// Why a prompt cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptError {
    /// The prompt has this many tokens, chat template included; the context holds fewer, or no more, so that there is no
    /// room for an answer. With 0 tokens: it is so long that it was not even tokenized.
    TooLong {
        /// Tokens of the prompt, or 0.
        tokens: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// The model has no token for any of it.
    Empty,
    /// The model cannot be evaluated.
    Model(Error),
}

impl fmt::Display for PromptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { tokens: 0, context } => {
                write!(f, "the prompt is far too long for a context of {context} tokens")
            }
            Self::TooLong { tokens, context } => {
                write!(f, "the prompt has {tokens} tokens, too many for a context of {context}")
            }
            Self::Empty => write!(f, "the prompt has no tokens"),
            Self::Model(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PromptError {}

/// A model that answers one prompt after another.
#[derive(Debug)]
pub struct Generator<'m, 'w> {
    model: Model<'m>,
    engine: Engine<'m, 'w>,
    scratch: &'w mut [u8],
    tokens: &'w mut [u32],
    answer: Option<Answer>,
}

/// An answer under way.
#[derive(Debug)]
struct Answer {
    settings: Settings,
    sampler: Sampler,
    logits: Sha256,
    prompt_tokens: usize,
    tokens: u64,
    /// The token that comes next; it has been chosen and not been given out.
    next: u32,
}

/// Bytes of memory for a [`Generator`] with this context.
#[must_use]
pub fn memory_bytes(manifest: &Manifest, context: usize) -> usize {
    engine::workspace_bytes(manifest, context).next_multiple_of(ALIGN)
        + (context * size_of::<u32>()).next_multiple_of(ALIGN)
        + scratch_bytes(context * PROMPT_BYTES_PER_TOKEN)
}

const ALIGN: usize = 64;

impl<'m, 'w> Generator<'m, 'w> {
    /// Sets up a model in `memory` (at least [`memory_bytes`], aligned to 64 bytes; its contents do not matter).
    ///
    /// # Errors
    /// Those of [`Engine::new`].
    pub fn new(model: Model<'m>, memory: &'w mut [u8], context: usize, isa: Isa) -> Result<Self, Error> {
        let workspace = engine::workspace_bytes(model.manifest(), context).next_multiple_of(ALIGN);
        let (workspace, rest) = memory.split_at_mut_checked(workspace).ok_or(Error::Workspace)?;
        let (tokens, scratch) =
            zerocopy::FromBytes::mut_from_prefix_with_elems(rest, context).map_err(|_| Error::Workspace)?;
        let engine = Engine::new(model, workspace, context, isa)?;
        Ok(Self { model, engine, scratch, tokens, answer: None })
    }

    /// The same, with help.
    #[must_use]
    pub fn with_workers(self, workers: &'w dyn Workers) -> Self {
        Self { engine: self.engine.with_workers(workers), ..self }
    }

    /// Takes in a user's message: prefill, and the choice of the answer's first token. Returns the prompt's tokens, chat
    /// template included.
    ///
    /// # Errors
    /// [`PromptError`]; there is no answer to go on with then.
    pub fn begin(&mut self, prompt: &str, settings: Settings) -> Result<usize, PromptError> {
        self.answer = None;
        self.engine.reset();
        let count = self.tokenize(prompt)?;
        let context = self.engine.context();
        if count >= context {
            return Err(PromptError::TooLong { tokens: count, context });
        }
        let logits = self.engine.prefill(&self.tokens[..count]).map_err(|error| match error {
            Error::NoTokens => PromptError::Empty,
            other => PromptError::Model(other),
        })?;
        let Settings { temperature, top_k, top_p, seed, .. } = settings;
        let mut sampler = Sampler::new(temperature, top_k, top_p, seed);
        let next = sampler.sample(logits);
        let logits = Sha256::new().chain_update(logits.as_bytes());
        self.answer = Some(Answer { settings, sampler, logits, prompt_tokens: count, tokens: 0, next });
        Ok(count)
    }

    fn tokenize(&mut self, prompt: &str) -> Result<usize, PromptError> {
        let manifest = self.model.manifest();
        let context = self.engine.context();
        let mut pieces = [Piece::Text(""); PIECES];
        let message = Message { role: Role::User, text: prompt };
        // There are as many places as one message has pieces.
        let used = chat::render(manifest.chat(), &[message], &mut pieces).unwrap_or(0);
        Tokenizer::new(manifest.tokenizer()).encode(&pieces[..used], true, self.scratch, self.tokens).map_err(
            |error| match error {
                tokenizer::Error::Scratch | tokenizer::Error::TooManyTokens => {
                    PromptError::TooLong { tokens: 0, context }
                }
            },
        )
    }

    /// Gives out the next token's text and computes what follows it. `sink` gets the text in one or more parts, before the
    /// computation begins. `None` if no answer is under way.
    ///
    /// # Errors
    /// [`Error`] if the model cannot be evaluated; the answer has ended then.
    pub fn next(&mut self, sink: impl FnMut(&[u8])) -> Option<Result<Finish, Error>> {
        let answer = self.answer.as_mut()?;
        let tokenizer = Tokenizer::new(self.model.manifest().tokenizer());
        if answer.tokens == answer.settings.max_tokens {
            return Some(Ok(Finish::MaxTokens));
        }
        if tokenizer.is_end(answer.next) {
            return Some(Ok(Finish::EndOfText));
        }
        if self.engine.position() == self.engine.context() {
            return Some(Ok(Finish::ContextFull));
        }
        tokenizer.decode(answer.next, sink);
        answer.tokens += 1;
        if answer.tokens == answer.settings.max_tokens {
            return Some(Ok(Finish::MaxTokens));
        }
        match self.engine.decode(answer.next) {
            Ok(logits) => {
                answer.logits.update(logits.as_bytes());
                answer.next = answer.sampler.sample(logits);
                Some(Ok(if tokenizer.is_end(answer.next) { Finish::EndOfText } else { Finish::Running }))
            }
            Err(error) => {
                self.answer = None;
                Some(Err(error))
            }
        }
    }

    /// The token whose text [`Self::next`] gives out, unless it ends the answer. `None` if no answer is under way.
    #[must_use]
    pub fn upcoming(&self) -> Option<u32> {
        self.answer.as_ref().map(|answer| answer.next)
    }

    /// Tokens of the prompt and of the answer so far. `None` if no answer is under way.
    #[must_use]
    pub fn counts(&self) -> Option<(usize, u64)> {
        self.answer.as_ref().map(|answer| (answer.prompt_tokens, answer.tokens))
    }

    /// SHA-256 over the logits of every step of the answer so far, as little-endian i32 in Q15.16: those behind the
    /// prompt's last token, and those behind each token of the answer that was computed with.
    #[must_use]
    pub fn logits_sha256(&self) -> Option<[u8; 32]> {
        self.answer.as_ref().map(|answer| answer.logits.clone().finalize().into())
    }
}
