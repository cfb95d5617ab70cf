//! Runs a model on the host, by the same code as the partition.

use flexserve_container::Manifest;
use flexserve_kernels::isa::Isa;
use flexserve_llm::chat::{self, Message, Role};
use flexserve_llm::engine::{Engine, workspace_bytes};
use flexserve_llm::sampler::Sampler;
use flexserve_llm::tokenizer::{Piece, Tokenizer, scratch_bytes};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::file::{Container, Memory};

/// What to answer, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The user's message.
    pub prompt: String,
    /// Take the prompt as it is, without the chat template.
    pub raw: bool,
    /// Most tokens to answer.
    pub max_tokens: usize,
    /// Context in tokens; the model's own if it is smaller.
    pub context: usize,
    /// Q16.16; 0 is greedy.
    pub temperature: u32,
    /// Q0.16
    pub top_p: u32,
    /// Seed of the sampler.
    pub seed: u64,
    /// Plain kernels instead of the CPU's best.
    pub plain: bool,
}

/// The answer.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Answer {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: usize,
    /// Tokens answered, without the one that ended the answer.
    pub output_tokens: usize,
    /// "end_of_text", "max_tokens" or "context_full".
    pub finish: &'static str,
    /// The answer.
    pub text: String,
    /// SHA-256 over the logits of every step as little-endian i32, in hexadecimal.
    pub logits_sha256: String,
    /// The prompt's tokens.
    pub prompt_ids: Vec<u32>,
    /// The answer's tokens.
    pub output_ids: Vec<u32>,
}

/// Tokens of a text. With `template` it is a user's message; without, special tokens are read in it if `parse_special`.
///
/// # Errors
/// [`Error::Tokenize`].
pub fn tokenize(
    manifest: &Manifest,
    text: &str,
    template: bool,
    parse_special: bool,
) -> Result<Vec<u32>, Error> {
    let mut pieces = vec![Piece::Text(""); chat::pieces(1)];
    if template {
        let messages = [Message { role: Role::User, text }];
        let used = chat::render(manifest.chat(), &messages, &mut pieces).unwrap_or_default();
        pieces.truncate(used);
    } else {
        pieces = vec![if parse_special { Piece::Markup(text) } else { Piece::Text(text) }];
    }
    let bytes = pieces.iter().map(|piece| piece.text().len()).sum();
    let mut scratch = Memory::zeroed(scratch_bytes(bytes));
    // At worst each byte is a token, and there are a space, a beginning and an end.
    let mut tokens = vec![0; 3 * bytes + 8];
    let tokenizer = Tokenizer::new(manifest.tokenizer());
    let used = tokenizer.encode(&pieces, true, scratch.bytes_mut(), &mut tokens)?;
    tokens.truncate(used);
    Ok(tokens)
}

/// Answers a request. `each` is given the bytes of each token as it comes.
///
/// # Errors
/// [`Error::PromptTooLong`], [`Error::Inference`], [`Error::Tokenize`], [`Error::Container`].
pub fn run(container: &Container, request: &Request, mut each: impl FnMut(&[u8])) -> Result<Answer, Error> {
    let segments = container.segments();
    let model = container.model(&segments)?;
    let manifest = *model.manifest();
    let context = request.context.min(manifest.params().context as usize);
    let prompt = tokenize(&manifest, &request.prompt, !request.raw, false)?;
    if prompt.len() > context {
        return Err(Error::PromptTooLong { tokens: prompt.len(), context });
    }
    let mut memory = Memory::zeroed(workspace_bytes(manifest.params(), context));
    let isa = if request.plain { Isa::PLAIN } else { Isa::detect() };
    let mut engine = Engine::new(model, memory.bytes_mut(), context, isa)?;
    let mut sampler = Sampler::new(request.temperature, request.top_p, request.seed);
    let tokenizer = Tokenizer::new(manifest.tokenizer());
    let (mut hash, mut text, mut output) = (Sha256::new(), Vec::new(), Vec::new());
    engine.prefill(&prompt)?;
    let finish = loop {
        for logit in engine.logits() {
            hash.update(logit.to_le_bytes());
        }
        let token = sampler.sample(engine.logits());
        if tokenizer.is_end(token) {
            break "end_of_text";
        }
        tokenizer.decode(token, |bytes| {
            text.extend_from_slice(bytes);
            each(bytes);
        });
        output.push(token);
        if output.len() == request.max_tokens {
            break "max_tokens";
        }
        if engine.position() == engine.context() {
            break "context_full";
        }
        engine.decode(token)?;
    };
    Ok(Answer {
        prompt_tokens: prompt.len(),
        output_tokens: output.len(),
        finish,
        text: String::from_utf8_lossy(&text).into_owned(),
        logits_sha256: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        prompt_ids: prompt,
        output_ids: output,
    })
}
