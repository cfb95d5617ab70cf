//! Evaluates a model for `secure-partition/llm/bench/accuracy.py`: prints JSON, one object a line.
//!
//! `evaluate MODEL perplexity TEXT` divides a text's tokens into windows, and for each prints its tokens and, behind all
//! but the last, the negative logarithm of what the model thought of the next one. `evaluate MODEL answers COUNT` answers
//! each line of standard input greedily by up to COUNT tokens.

use std::error::Error;
use std::io::{BufRead, stdin};
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use flexserve_container::Model;
use flexserve_kernels::isa::Isa;
use flexserve_llm::engine::{Engine, FRAC, workspace_bytes};
use flexserve_llm::generator::Settings;
use flexserve_model_loader::file::{Container, Memory};
use flexserve_model_loader::run::{Request, run, tokenize};
use serde::Serialize;

/// Tokens of a window: each is evaluated on its own.
const WINDOW: usize = 512;
/// Tokens whose logits are computed together.
const AT_ONCE: usize = 8;

/// One window of the text.
#[derive(Serialize)]
struct Window {
    tokens: Vec<u32>,
    nll: Vec<f64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, mode, last] = arguments.as_slice() else {
        return Err("usage: evaluate MODEL perplexity TEXT | evaluate MODEL answers COUNT".into());
    };
    let container = Container::open(Path::new(model), |_, _| ())?;
    match mode.as_str() {
        "perplexity" => perplexity(&container, &std::fs::read_to_string(last)?),
        "answers" => answers(&container, last.parse()?),
        _ => Err("the mode is perplexity or answers".into()),
    }
}

fn perplexity(container: &Container, text: &str) -> Result<(), Box<dyn Error>> {
    let segments = container.segments();
    let model = container.model(&segments)?;
    let tokens = tokenize(model.manifest(), text, false, false)?;
    let windows: Vec<&[u32]> = tokens.chunks(WINDOW).filter(|window| window.len() > 1).collect();
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let Some(&tokens) = windows.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((tokens, nll(model, tokens)));
        }
        done
    };
    let mut results = thread::scope(|scope| {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let workers: Vec<_> = (0..count).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_default()).collect::<Vec<_>>()
    });
    results.sort_by_key(|(tokens, _)| tokens.as_ptr());
    for (tokens, nll) in results {
        println!("{}", serde_json::to_string(&Window { tokens: tokens.to_vec(), nll: nll? })?);
    }
    Ok(())
}

/// Negative log-likelihood of each token but the first, given those before it.
fn nll(model: Model, tokens: &[u32]) -> Result<Vec<f64>, flexserve_llm::Error> {
    let params = model.manifest().params();
    let mut memory = Memory::zeroed(workspace_bytes(params, WINDOW));
    let mut scratch = vec![0; AT_ONCE * params.vocab as usize];
    let mut engine = Engine::new(model, memory.bytes_mut(), WINDOW, Isa::detect())?;
    let mut result = Vec::new();
    engine.score(tokens, &mut scratch, |index, logits| {
        let Some(&token) = tokens.get(index + 1) else { return };
        let top = logits.iter().copied().max().unwrap_or(0);
        let value = |logit: i32| (f64::from(logit) - f64::from(top)) / f64::from(1 << FRAC);
        let sum: f64 = logits.iter().map(|&logit| value(logit).exp()).sum();
        result.push(sum.ln() - value(logits[token as usize]));
    })?;
    Ok(result)
}

fn answers(container: &Container, max_tokens: u64) -> Result<(), Box<dyn Error>> {
    for prompt in stdin().lock().lines() {
        let request = Request {
            prompt: prompt?,
            context: 1024,
            settings: Settings { temperature: 0, top_p: 0, seed: 0, max_tokens },
            plain: false,
        };
        println!("{}", serde_json::to_string(&run(container, &request, |_| ())?)?);
    }
    Ok(())
}
