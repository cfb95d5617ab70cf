//! Runs a model on the host, by the same code as the partition.

use flexserve_abi::service::Finish;
use flexserve_container::Manifest;
use flexserve_kernels::isa::Isa;
use flexserve_llm::chat::{self, Message, Role};
use flexserve_llm::generator::{Generator, Settings, memory_bytes};
use flexserve_llm::tokenizer::{Piece, Tokenizer, scratch_bytes};

use crate::error::Error;
use crate::file::{Container, Memory};

/// What to answer, and how.
#[derive(Clone, Debug)]
pub struct Request {
    /// The user's message.
    pub prompt: String,
    /// Context in tokens; the model's own if it is smaller.
    pub context: usize,
    /// How tokens are chosen, and how many.
    pub settings: Settings,
    /// Plain kernels instead of the CPU's best.
    pub plain: bool,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: usize,
    /// Tokens answered, without the one that ended the answer.
    pub output_tokens: u64,
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
/// [`Error::Prompt`], [`Error::Inference`], [`Error::Container`].
pub fn run(container: &Container, request: &Request, mut each: impl FnMut(&[u8])) -> Result<Answer, Error> {
    let segments = container.segments();
    let model = container.model(&segments)?;
    let prompt_ids = tokenize(model.manifest(), &request.prompt, true, false)?;
    let context = request.context.min(model.manifest().params().context as usize);
    let mut memory = Memory::zeroed(memory_bytes(model.manifest(), context));
    let isa = if request.plain { Isa::PLAIN } else { Isa::detect() };
    let mut generator = Generator::new(model, memory.bytes_mut(), context, isa)?;
    generator.begin(&request.prompt, request.settings)?;
    let (mut text, mut output_ids) = (Vec::new(), Vec::new());
    let finish = loop {
        output_ids.extend(generator.upcoming());
        let step = generator.next(|bytes| {
            text.extend_from_slice(bytes);
            each(bytes);
        });
        match step {
            Some(Ok(Finish::Running)) => {}
            Some(Ok(Finish::EndOfText)) | None => break "end_of_text",
            Some(Ok(Finish::MaxTokens)) => break "max_tokens",
            Some(Ok(Finish::ContextFull)) => break "context_full",
            Some(Err(error)) => return Err(error.into()),
        }
    };
    let (prompt_tokens, output_tokens) = generator.counts().unwrap_or_default();
    // The last one may have ended the answer instead of being given out.
    output_ids.truncate(output_tokens as usize);
    let hash = generator.logits_sha256().unwrap_or_default();
    Ok(Answer {
        prompt_tokens,
        output_tokens,
        finish,
        text: String::from_utf8_lossy(&text).into_owned(),
        logits_sha256: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        prompt_ids,
        output_ids,
    })
}
