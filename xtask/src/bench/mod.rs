//! `bench`: figures, one row each, by name.

mod cores;
mod counter;
mod granules;
mod kernels;
mod levels;
mod loops;
mod mca;
mod peer;
mod products;
mod recall;
mod scripts;
pub mod size;

use crate::{
    images, model,
    paths::{self, Paths},
    platform::Platform,
    run,
};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;

/// What `bench` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The platform to measure.
    #[arg(long, default_value = "qemu-rme")]
    platform: String,
    /// Only these; all of them otherwise.
    benches: Vec<Bench>,
    /// Of `kernels` and `long-prompt`, only this ISA level: neon, dotprod, i8mm, sve-512, sve2-256, sve2-512.
    #[arg(long)]
    level: Option<String>,
    /// Write the rows here, as JSON.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// A group of figures that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Instructions of a call to EL3 that does nothing.
    Smc,
    /// Instructions for each granule that moves between worlds, and TLB invalidations.
    Granules,
    /// Instructions for each granule of 64 MB that is lent and recalled, and how long interrupts are masked at most.
    Recall,
    /// Lines, bytes and stack of the EL3 part, and what memory the images take.
    Size,
    /// Perplexity and more against a float32 evaluation and llama.cpp.
    Accuracy,
    /// Tokens against llama.cpp's.
    Tokenizer,
    /// Instructions for each token of a prompt and of an answer, at each ISA level.
    Kernels,
    /// The same for each token of a prompt of 512.
    LongPrompt,
    /// How many instructions' time a token takes with 1, 2, 3, … cores, behind a short and a long prompt.
    Cores,
    /// From the prompt to the first token, and tokens per second, by the guest's clock; and the whole machine's instructions.
    Ttft,
}

/// One figure.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Row {
    /// Stable name.
    pub name: String,
    /// Unit of `ours` and `peer`.
    pub unit: String,
    /// Measured here.
    pub ours: f64,
    /// The same figure of whom it is compared with, if there is one.
    pub peer: Option<f64>,
    /// `ours / peer`.
    pub ratio: Option<f64>,
}

impl Row {
    fn alone(name: impl Into<String>, unit: &str, ours: f64) -> Self {
        Self { name: name.into(), unit: unit.to_owned(), ours, peer: None, ratio: None }
    }

    fn against(name: String, unit: &str, ours: f64, peer: f64) -> Self {
        Self { name, unit: unit.to_owned(), ours, peer: Some(peer), ratio: Some(ours / peer) }
    }
}

/// Measures, prints a line a figure, and writes `--json`.
///
/// # Errors
///
/// If a measurement fails, or a target is missed.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    let wanted = |bench: &Bench| options.benches.is_empty() || options.benches.contains(bench);
    let mut commands = Vec::new();
    let (mut rows, mut missed, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    let level = options.level.as_deref();
    let mut judged = |output: scripts::Output| {
        missed.extend(output.missed);
        output.rows
    };
    let platform = Platform::load(paths, &options.platform)?;
    // Both groups come from one run.
    let counted = if wanted(&Bench::Smc) || wanted(&Bench::Granules) {
        granules::measure(paths, &platform)?
    } else {
        vec![]
    };
    let (calls, moves): (Vec<Row>, Vec<Row>) = counted.into_iter().partition(|row| row.name == "null_smc");
    for bench in Bench::value_variants().iter().filter(|b| wanted(b)) {
        let value = bench.to_possible_value();
        commands.extend(value.map(|value| format!("./flexserve bench {}", value.get_name())));
        rows.extend(match bench {
            Bench::Smc => calls.clone(),
            Bench::Granules => moves.clone(),
            Bench::Recall => recall::measure(paths, &platform)?,
            Bench::Size => size::measure(paths, &platform)?,
            Bench::Accuracy => judged(scripts::accuracy(paths)?),
            Bench::Tokenizer => judged(scripts::tokenizer(paths)?),
            Bench::Kernels => judged(kernels::measure(paths, level, &mut failures)?),
            Bench::LongPrompt => judged(kernels::long_prompt(paths, level, &mut failures)?),
            Bench::Cores => cores::measure(paths, &platform)?,
            Bench::Ttft => [ttft(paths, &platform)?, machine(paths, &platform)?].concat(),
        });
    }
    for row in &rows {
        let peer = match (row.peer, row.ratio) {
            (Some(peer), Some(ratio)) => format!(", peer {}, ratio {ratio:.3}", readable(peer)),
            _ => String::new(),
        };
        println!("{:<32} {:>14} {}{peer}", row.name, readable(row.ours), row.unit);
    }
    if let Some(out) = &options.json {
        let text = serde_json::to_string_pretty(&json!({ "commands": commands, "rows": rows }))? + "\n";
        paths::write_atomically(out, text.as_bytes())?;
    }
    if !missed.is_empty() {
        bail!("targets missed:\n{}", missed.join("\n"));
    }
    if !failures.is_empty() {
        bail!("not measured:\n{}", failures.iter().map(|f| format!("{f:#}\n")).collect::<String>());
    }
    Ok(())
}

/// A figure, however small.
fn readable(figure: f64) -> String {
    if figure == 0.0 || figure.abs() >= 0.1 { format!("{figure:.2}") } else { format!("{figure:.2e}") }
}

/// From the prompt to the first token, and tokens per second, by the guest's clock.
fn ttft(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    let json = answer(paths, platform, false)?;
    let figure = |key: &str| json[key].as_f64().unwrap_or_default();
    let rows = [("ttft_ms", "ms"), ("tokens_per_s", "1/s"), ("granules_lent", "granules")];
    Ok(rows.map(|(name, unit)| Row::alone(name, unit, figure(name))).into())
}

/// Instructions of the whole machine, interrupts and world switches included, for each token.
fn machine(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    const MILLION: f64 = 1e6;
    let json = answer(paths, platform, true)?;
    let figure = |key: &str| json[key].as_f64().unwrap_or_default();
    let prefill = figure("ttft_ms") * MILLION / figure("prompt_tokens");
    let decode = 1e9 / figure("tokens_per_s");
    let row = |name, instructions: f64| Row::alone(name, "million instructions", instructions / MILLION);
    Ok(vec![row("prefill_per_token", prefill), row("decode_per_token", decode)])
}

/// The report of one greedy answer of 32 tokens by the default model.
fn answer(paths: &Paths, platform: &Platform, count_instructions: bool) -> Result<serde_json::Value> {
    let options = run::Options {
        prompt: "Give me a recipe for pancakes.".to_owned(),
        max_tokens: 32,
        smp: Some(1),
        count_instructions,
        ..run::Options::for_tests(&platform.name)
    };
    let model = model::container(paths, None)?;
    let images = images::build(paths, platform, &options.images)?;
    let job = run::job(platform, &options);
    let report = run::boot(paths, platform, &images, &job, Some(&model), &options)?;
    println!();
    let faults = report.faults();
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(report.json())
}
