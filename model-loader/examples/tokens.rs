//! Runs a model for an instruction counter: `tokens MODEL FEATURES PROMPT COUNT` takes in a prompt of PROMPT tokens and then
//! COUNT tokens, one by one, each the likeliest, and prints a hash of them and of the last logits. FEATURES (a number) are the
//! instruction sets that may be used, as the partition is told them.

use std::error::Error;
use std::path::Path;

use flexserve_kernels::isa::Isa;
use flexserve_llm::engine::{Engine, workspace_bytes};
use flexserve_model_loader::file::{Container, Memory};
use sha2::{Digest, Sha256};
use zerocopy::IntoBytes;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, features, prompt, count] = arguments.as_slice() else {
        return Err("usage: tokens MODEL FEATURES PROMPT COUNT".into());
    };
    let (isa, prompt, count) =
        (Isa::detect_within(features.parse()?), prompt.parse::<u32>()?, count.parse::<usize>()?);
    let container = Container::open(Path::new(model), |_, _| ())?;
    let segments = container.segments();
    let model = container.model(&segments)?;
    let params = model.manifest().params();
    let context = prompt as usize + count + 1;
    let mut memory = Memory::zeroed(workspace_bytes(params, context));
    let mut engine = Engine::new(model, memory.bytes_mut(), context, isa)?;
    let mut hash = Sha256::new();
    if prompt > 0 {
        // Any tokens do; these are words.
        let tokens: Vec<u32> = (0..prompt).map(|i| (500 + i * 37) % params.vocab).collect();
        engine.prefill(&tokens)?;
        for _ in 0..count {
            let logits = engine.logits();
            let top = logits.iter().copied().max();
            let best = logits.iter().position(|&logit| Some(logit) == top).unwrap_or(0) as u32;
            hash.update(best.to_le_bytes());
            engine.decode(best)?;
        }
        hash.update(engine.logits().as_bytes());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{isa:?} {hash}");
    Ok(())
}
