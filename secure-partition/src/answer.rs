//! A session while a complete model answers.
//!
//! The model borrows the session's memory and the weights, so it lives only as long as [`serve`]: an event that takes memory away
//! ends it, and goes back to the session's own loop.

use crate::{
    desk::{Desk, Event},
    memory::{Borrow, SharedBytes},
    reply::{Args, Reply, failure, success},
    ring::Ring,
    session::{Prompts, Session},
    weights::SEGMENTS_MAX,
};
use flexserve_abi::{
    isa::IsaFeatures,
    service::{Finish, Op, State, Status},
};
use flexserve_container::{Manifest, Model, limits};
use flexserve_llm::{
    Generator,
    generator::{PromptError, Settings},
};
use heapless::Vec;

/// Answers a `GENERATE`, and all that follows up to an event for the session's own loop, which is returned.
#[allow(
    clippy::await_holding_refcell_ref,
    reason = "weights that are borrowed stay, and who wants them waits for it"
)]
pub async fn serve<B: Borrow>(session: &mut Session<B>, desk: &Desk<'_, B>, first: Args) -> Event {
    let granules = session.granules(desk);
    let (Some(model), Some(workspace)) = (session.model, &mut session.workspace) else {
        desk.answer(failure(Status::WrongState));
        return desk.event().await;
    };
    let weights = desk.places[model.place].weights.borrow();
    let segments: Vec<&[u8], SEGMENTS_MAX> = weights.loaded().collect();
    let generator = Manifest::parse(segments.first().copied().unwrap_or_default())
        .and_then(|manifest| Model::new(manifest, &segments))
        .ok()
        .and_then(|weights| Generator::new(weights, &mut workspace.bytes, model.context, desk.own.isa).ok())
        .map(|generator| generator.with_workers(desk.own.workers));
    let Some(generator) = generator else {
        desk.answer(failure(Status::BadModel));
        return desk.event().await;
    };
    let mut answering = Answering {
        generator,
        ring: &mut session.ring,
        shared: &session.shared,
        pending: Vec::new(),
        granules,
        features: desk.own.features,
    };
    let mut event = Event::Request(Op::Generate, first);
    loop {
        match event {
            Event::Request(Op::Generate, args) => {
                desk.answer(answering.generate(&args, &mut desk.own.prompt.borrow_mut()));
            }
            Event::Request(Op::Next, args) => desk.answer(answering.more(args[1])),
            Event::Request(Op::Status, _) => desk.answer(answering.status()),
            Event::LetGo(place) if place != model.place => {}
            _ => return event,
        }
        event = desk.event().await;
    }
}

struct Answering<'a, S> {
    generator: Generator<'a, 'a>,
    ring: &'a mut Ring,
    shared: &'a S,
    /// Text that did not fit into the ring.
    pending: Vec<u8, { limits::TOKEN_BYTES_MAX }>,
    granules: u64,
    features: IsaFeatures,
}

impl<S: SharedBytes> Answering<'_, S> {
    /// `GENERATE`.
    fn generate(&mut self, args: &Args, room: &mut [u8]) -> Reply {
        let [_, offset, bytes, temperature, top_p, seed, max_tokens, top_k, ..] = *args;
        self.pending.clear();
        let [Ok(temperature), Ok(top_k), Ok(top_p)] = [temperature, top_k, top_p].map(u32::try_from) else {
            return failure(Status::InvalidParameters);
        };
        if max_tokens == 0 {
            return failure(Status::InvalidParameters);
        }
        let Some(prompt) = self.shared.prompt(offset, bytes, room) else {
            return failure(Status::BadPrompt);
        };
        let settings = Settings { temperature, top_k, top_p, seed, max_tokens };
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
        reply[9] = self.features.bits();
        reply
    }
}
