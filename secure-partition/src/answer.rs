//! The part of the request loop in which a complete model answers.
//!
//! The model borrows the session's memory, so it lives only as long as this loop: a request that takes memory away ends it,
//! and goes back to the loop outside.

use crate::{
    memory::{Borrow, SharedBytes},
    reply::{Args, Reply, failure, success},
    ring::Ring,
    service::{Link, Message, Resources},
    session::{Prompts, SEGMENTS_MAX, Session},
};
use flexserve_abi::service::{Finish, Op, State, Status};
use flexserve_container::{Manifest, Model, limits};
use flexserve_llm::{
    Generator,
    generator::{PromptError, Settings},
};
use heapless::Vec;

/// Serves `first`, and all that follows, up to a request for the loop outside, which is returned.
pub fn serve<B: Borrow>(
    session: &mut Session<B>,
    link: &mut impl Link,
    first: Message,
    own: &mut Resources,
) -> Option<Message> {
    let (id, granules) = (session.id(), session.granules());
    let Some((context, parts)) = session.parts() else {
        return link.exchange(failure(Status::WrongState));
    };
    let segments: Vec<&[u8], SEGMENTS_MAX> = parts.segments.iter().flatten().map(|r| &*r.bytes).collect();
    let generator = Manifest::parse(segments.first().copied().unwrap_or_default())
        .and_then(|manifest| Model::new(manifest, &segments))
        .ok()
        .and_then(|model| Generator::new(model, parts.workspace, context, own.isa).ok())
        .map(|generator| generator.with_workers(own.workers));
    let Some(generator) = generator else {
        return link.exchange(failure(Status::BadModel));
    };
    let mut answering =
        Answering { generator, ring: parts.ring, shared: parts.shared, pending: Vec::new(), granules };
    let mut next = Some(first);
    while let Some(message) = next {
        let reply = match Op::from_code(message.op) {
            _ if message.args[0] != id => return next,
            Some(Op::Generate) => answering.generate(&message.args, own.prompt),
            Some(Op::Next) => answering.more(message.args[1]),
            Some(Op::Status) => answering.status(),
            _ => return next,
        };
        next = link.exchange(reply);
    }
    None
}

struct Answering<'a, S> {
    generator: Generator<'a, 'a>,
    ring: &'a mut Ring,
    shared: &'a S,
    /// Text that did not fit into the ring.
    pending: Vec<u8, { limits::TOKEN_BYTES_MAX }>,
    granules: u64,
}

impl<S: SharedBytes> Answering<'_, S> {
    /// `GENERATE`.
    fn generate(&mut self, args: &Args, room: &mut [u8]) -> Reply {
        let [_, offset, bytes, temperature, top_p, seed, max_tokens, ..] = *args;
        self.pending.clear();
        let (Ok(temperature), Ok(top_p)) = (u32::try_from(temperature), u32::try_from(top_p)) else {
            return failure(Status::InvalidParameters);
        };
        if max_tokens == 0 {
            return failure(Status::InvalidParameters);
        }
        let Some(prompt) = self.shared.prompt(offset, bytes, room) else {
            return failure(Status::BadPrompt);
        };
        let settings = Settings { temperature, top_p, seed, max_tokens };
        let reply = match self.generator.begin(prompt, settings) {
            Ok(tokens) => success(&[tokens as u64]),
            Err(PromptError::TooLong { tokens, context }) => {
                let mut reply = failure(Status::PromptTooLong);
                reply[1..3].copy_from_slice(&[tokens as u64, context as u64]);
                reply
            }
            Err(PromptError::Empty) => failure(Status::BadPrompt),
            Err(PromptError::Model(_)) => failure(Status::BadModel),
        };
        room[..bytes as usize].fill(0);
        reply
    }

    /// `NEXT`: up to `most` tokens, fewer if the ring is full.
    fn more(&mut self, most: u64) -> Reply {
        let Some((_, before)) = self.generator.counts() else {
            return failure(Status::WrongState);
        };
        let mut finish = Finish::Running;
        for _ in 0..most {
            match self.flush() {
                Ok(true) => {}
                Ok(false) => break,
                Err(status) => return failure(status),
            }
            let pending = &mut self.pending;
            // A token's text is at most as long as `pending`, which is empty here: nothing is cut off.
            let step = self.generator.next(|text| _ = pending.extend_from_slice(text));
            finish = match step {
                Some(Ok(finish)) => finish,
                Some(Err(_)) | None => return failure(Status::BadModel),
            };
            if finish != Finish::Running {
                break;
            }
        }
        match self.flush() {
            Ok(true) => {}
            // The reader learns that the answer has ended once it has made room for the last of it.
            Ok(false) => finish = Finish::Running,
            Err(status) => return failure(status),
        }
        let after = self.generator.counts().map_or(before, |(_, tokens)| tokens);
        success(&[after - before, finish as u64])
    }

    /// Writes what is pending. Whether all of it found room.
    fn flush(&mut self) -> Result<bool, Status> {
        let written = self.ring.write(self.shared, &self.pending)?;
        self.pending.rotate_left(written);
        self.pending.truncate(self.pending.len() - written);
        Ok(self.pending.is_empty())
    }

    /// `STATUS` while a model is at work.
    fn status(&self) -> Reply {
        let (prompt, tokens) = self.generator.counts().unwrap_or((0, 0));
        let state = if self.generator.counts().is_some() { State::Generating } else { State::Ready };
        let mut reply = success(&[state as u64, prompt as u64, tokens]);
        let digest = self.generator.logits_sha256().unwrap_or_default();
        for (word, bytes) in reply[4..8].iter_mut().zip(digest.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        reply[8] = self.granules;
        reply
    }
}
