//! Evaluates a model for `secure-partition/llm/bench/accuracy.py`.
//!
//! | arguments | standard input | standard output |
//! |---|---|---|
//! | `MODEL tokens TEXT` | | the tokens of a text file, as a JSON array |
//! | `MODEL logits CONTEXT` | a line a window of at most CONTEXT tokens: a JSON array of how many logits to leave out, then the tokens | of each window, the logits behind every token but those left out: i32, little-endian, Q15.16 |
//! | `MODEL answers COUNT` | a line a prompt | of each, the greedy answer of up to COUNT tokens, as a JSON object |

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::Path;

use flexserve_container::Model;
use flexserve_kernels::isa::Isa;
use flexserve_llm::engine::{Engine, workspace_bytes};
use flexserve_llm::generator::Settings;
use flexserve_model_loader::file::{Container, Memory};
use flexserve_model_loader::run::{Request, run, tokenize};
use zerocopy::IntoBytes;

/// Tokens whose logits are computed together.
const AT_ONCE: usize = 8;
/// Most tokens of a prompt and its answer together.
const CONTEXT: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, mode, last] = arguments.as_slice() else {
        return Err("usage: evaluate MODEL tokens TEXT | logits CONTEXT | answers COUNT".into());
    };
    let container = Container::open(Path::new(model), |_, _| ())?;
    let segments = container.segments();
    let model = container.model(&segments)?;
    match mode.as_str() {
        "tokens" => {
            let text = std::fs::read_to_string(last)?;
            let tokens = tokenize(model.manifest(), &text, false, false)?;
            println!("{}", serde_json::to_string(&tokens)?);
            Ok(())
        }
        "logits" => logits(model, last.parse()?),
        "answers" => answers(&container, last.parse()?),
        _ => Err("the mode is tokens, logits or answers".into()),
    }
}

fn logits(model: Model, context: usize) -> Result<(), Box<dyn Error>> {
    let params = model.manifest().params();
    let mut memory = Memory::zeroed(workspace_bytes(model.manifest(), context));
    let mut scratch = vec![0; AT_ONCE * params.vocab as usize];
    let mut engine = Engine::new(model, memory.bytes_mut(), context, Isa::detect())?;
    let mut out = stdout().lock();
    for line in stdin().lock().lines() {
        let window: Vec<u32> = serde_json::from_str(&line?)?;
        let (&skip, tokens) = window.split_first().ok_or("an empty window")?;
        let (before, scored) =
            tokens.split_at_checked(skip as usize).ok_or("more is left out than there is")?;
        engine.reset();
        if !before.is_empty() {
            engine.prefill(before)?;
        }
        let mut written = Ok(());
        engine.score(scored, &mut scratch, |_, logits| {
            if written.is_ok() {
                written = out.write_all(logits.as_bytes());
            }
        })?;
        written?;
        out.flush()?;
    }
    Ok(())
}

fn answers(container: &Container, max_tokens: u64) -> Result<(), Box<dyn Error>> {
    for prompt in stdin().lock().lines() {
        let request = Request {
            prompt: prompt?,
            context: CONTEXT,
            settings: Settings { temperature: 0, top_k: 0, top_p: 0, seed: 0, max_tokens },
            plain: false,
        };
        println!("{}", serde_json::to_string(&run(container, &request, |_| ())?)?);
    }
    Ok(())
}
