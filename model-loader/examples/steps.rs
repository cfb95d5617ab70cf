//! The steps that `flexserve bench kernels` and `bench long-prompt` count the instructions of: `steps MODEL TEXT PROMPT`.
//!
//! Takes in the first PROMPT (at most 512) tokens of a text; if they are 128, forgets them, and answers the first 5 greedily
//! with 40 tokens. A system call, `sched_yield`, marks the moments before the prompt, behind it, behind the 8th token of the
//! answer, and behind the last, for a plugin in the emulator that counts (`xtask/plugin/count.c`). Prints JSON: a hash of the
//! logits, and memory in bytes.

use std::error::Error;
use std::path::Path;
use std::thread::yield_now as mark;

use flexserve_kernels::isa::Isa;
use flexserve_llm::engine::{Engine, workspace_bytes};
use flexserve_llm::sampler::Sampler;
use flexserve_model_loader::file::{Container, Memory};
use flexserve_model_loader::run::tokenize;
use serde_json::json;
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

/// Tokens of the prompt behind which an answer is measured, too.
const SHORT: usize = 128;
/// Tokens that are answered.
const QUESTION: usize = 5;
/// Tokens of the answer at the two marks behind it.
const ANSWER: [usize; 2] = [8, 40];
/// Positions of the cache.
const CONTEXT: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, prompt] = arguments.as_slice() else {
        return Err("usage: steps MODEL TEXT PROMPT".into());
    };
    let prompt: usize = prompt.parse()?;
    let container = Container::open(Path::new(model), |_, _| ())?;
    let segments = container.segments();
    let model = container.model(&segments)?;
    let tokens = tokenize(model.manifest(), &std::fs::read_to_string(text)?, false, false)?;
    let prompt = tokens.get(..prompt).ok_or("the text has fewer tokens than the prompt")?;
    let mut memory = Memory::zeroed(workspace_bytes(model.manifest(), CONTEXT));
    let workspace = memory.bytes().len();
    let mut engine = Engine::new(model, memory.bytes_mut(), CONTEXT, Isa::detect())?;

    let mut hash = Sha256::new();
    mark();
    engine.prefill(prompt)?;
    mark();
    hash.update(engine.logits().as_bytes());
    if prompt.len() == SHORT {
        engine.reset();
        let mut greedy = Sampler::new(0, 0, 0, 0);
        let mut answer = vec![greedy.sample(engine.prefill(&prompt[..QUESTION])?)];
        for count in ANSWER {
            while answer.len() < count {
                answer.push(greedy.sample(engine.decode(answer[answer.len() - 1])?));
            }
            mark();
        }
        hash.update(engine.logits().as_bytes());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let weights: usize = segments.iter().map(|segment| segment.len()).sum();
    println!("{}", json!({ "logits_sha256": hash, "weights": weights, "workspace": workspace }));
    Ok(())
}
