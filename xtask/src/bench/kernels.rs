//! `bench kernels`: instructions for each token at each ISA level, ours and llama.cpp's, under user-mode emulation.

use super::{
    Row,
    counter::{Counter, Counts},
    levels::{LEVELS, Level},
    mca::{self, Mca},
    peer::{Peer, Program},
    products::{self, Product},
    scripts::Output,
};
use crate::{
    download, model,
    paths::Paths,
    process,
    toolchain::{self, Cross},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Tokens of a short prompt, behind which `model-loader/examples/steps.rs` answers, and of a long one.
const SHORT: u64 = 128;
const LONG: u64 = 512;
/// Tokens between the last two marks of an answer.
const ANSWER: u64 = 32;
/// The text that is taken in.
const TEXT: &str = "LICENSE-APACHE";

/// Measures all rows, or those of one level. What fails costs its own rows only; `failures` gets it.
///
/// # Errors
///
/// If nothing can be measured, or the logits depend on the level.
pub fn measure(paths: &Paths, only: Option<&str>, failures: &mut Vec<anyhow::Error>) -> Result<Output> {
    let bench = Bench::new(paths, only, failures)?;
    let macs = program(paths, "flexserve-kernels", "macs")?;
    let gguf = download::default_model(paths)?;
    let requantised = bench.peer.as_ref().map(|peer| peer.requantised(&gguf));
    let mut output = bench.model(paths, "", &gguf, SHORT, failures)?;
    match requantised {
        Some(Ok(gguf)) => {
            let Output { rows, missed } = bench.model(paths, "_q4_0", &gguf, SHORT, failures)?;
            output.rows.extend(rows);
            output.missed.extend(missed);
        }
        Some(Err(error)) => failures.push(error.context("no model in Q4_0")),
        None => {}
    }
    output.rows.extend(bench.products(&macs, failures));
    Ok(output)
}

/// Measures a prompt of 512 tokens, as [`measure`] does one of 128.
///
/// # Errors
///
/// Those of [`measure`].
pub fn long_prompt(paths: &Paths, only: Option<&str>, failures: &mut Vec<anyhow::Error>) -> Result<Output> {
    let gguf = download::default_model(paths)?;
    Bench::new(paths, only, failures)?.model(paths, "", &gguf, LONG, failures)
}

/// What it takes to count.
struct Bench {
    levels: Vec<&'static Level>,
    counter: Counter,
    /// Our program.
    steps: PathBuf,
    text: PathBuf,
    peer: Option<Peer>,
}

impl Bench {
    fn new(paths: &Paths, only: Option<&str>, failures: &mut Vec<anyhow::Error>) -> Result<Self> {
        let levels: Vec<&Level> =
            LEVELS.iter().filter(|level| only.is_none_or(|only| only == level.name)).collect();
        if levels.is_empty() {
            bail!("no such ISA level; there are {}", LEVELS.map(|level| level.name).join(", "));
        }
        Ok(Self {
            levels,
            counter: Counter::new(paths)?,
            steps: program(paths, "flexserve-model-loader", "steps")?,
            text: paths.root.join(TEXT),
            peer: Peer::new(paths).map_err(|error| failures.push(error.context("no llama.cpp"))).ok(),
        })
    }

    /// The rows of one model with a prompt of so many tokens, at each level.
    fn model(
        &self,
        paths: &Paths,
        suffix: &str,
        gguf: &Path,
        prompt: u64,
        failures: &mut Vec<anyhow::Error>,
    ) -> Result<Output> {
        let container = model::container(paths, Some(gguf))?;
        let (mut rows, mut missed, mut hashes) = (Vec::new(), Vec::new(), Vec::new());
        for level in &self.levels {
            let what = format!("{}{suffix}, {prompt} tokens", level.name);
            let mut keep = |figures: Result<Figures>, whose| {
                figures.map_err(|error| failures.push(error.context(format!("{whose} {what}")))).ok()
            };
            let ours = keep(self.ours(level, &container, prompt), "ours");
            let theirs =
                self.peer.as_ref().and_then(|peer| keep(self.peers(peer, level, gguf, prompt), "llama.cpp"));
            let Some(ours) = ours else { continue };
            let its_rows = ours.rows(theirs.as_ref(), suffix, level.name);
            missed.extend(its_rows.iter().filter_map(|row| level.missed(row)));
            rows.extend(its_rows);
            hashes.push((level.name, ours.hash));
        }
        if let Some((name, _)) = hashes.iter().find(|(_, hash)| *hash != hashes[0].1) {
            bail!("{name} computes other logits than {}", hashes[0].0);
        }
        Ok(Output { rows, missed })
    }

    fn ours(&self, level: &Level, container: &Path, prompt: u64) -> Result<Figures> {
        let what = format!("Counting instructions: {}", level.name);
        let counts = self.count(&what, level, &self.steps, container, prompt)?;
        let said: Said = counts
            .output
            .lines()
            .find(|line| line.starts_with('{'))
            .and_then(|line| serde_json::from_str(line).ok())
            .context("the steps ended without a result")?;
        Figures::of(&counts, prompt, said.weights + said.workspace, said.logits_sha256)
    }

    fn peers(&self, peer: &Peer, level: &Level, gguf: &Path, prompt: u64) -> Result<Figures> {
        let what = format!("Counting llama.cpp's instructions: {}", level.name);
        let program = peer.program(Program::Steps, level.march)?;
        let counts = self.count(&what, level, &program, gguf, prompt)?;
        Figures::of(&counts, prompt, buffers(&counts.output), String::new())
    }

    fn count(&self, what: &str, level: &Level, program: &Path, model: &Path, prompt: u64) -> Result<Counts> {
        let prompt = prompt.to_string();
        self.counter.count(what, level.cpu, program, &[model, &self.text, Path::new(&prompt)])
    }

    /// What single products take at some levels: multiply-accumulates for each instruction, and cycles.
    fn products(&self, macs: &Path, failures: &mut Vec<anyhow::Error>) -> Vec<Row> {
        let mca = Mca::find().map_err(|error| failures.push(error.context("no cycles"))).ok();
        let (mut instructions, mut cycles) = (Vec::new(), Vec::new());
        for level in &self.levels {
            let mut keep = |products: Result<Vec<Product>>, whose| {
                let context = || format!("products, {whose} {}", level.name);
                products.map_err(|error| failures.push(error.context(context()))).ok()
            };
            let Some(ours) = keep(self.count_products("products", level, macs), "ours") else {
                continue;
            };
            instructions.extend(ours.iter().map(|ours| ours.macs_per_instruction(level.name, level.macs)));
            let mut cores = mca::CORES.iter().filter(|core| core.level == level.name).peekable();
            let Some(mca) = mca.as_ref().filter(|_| cores.peek().is_some()) else { continue };
            let theirs = self.peer.as_ref().and_then(|peer| {
                let program = peer.program(Program::Products, level.march);
                let counted =
                    program.and_then(|program| self.count_products("llama.cpp's products", level, &program));
                keep(counted, "llama.cpp")
            });
            for core in cores {
                cycles.extend(products::cycles(
                    mca,
                    core,
                    &ours,
                    theirs.as_deref().unwrap_or_default(),
                    failures,
                ));
            }
        }
        [instructions, cycles].concat()
    }

    fn count_products(&self, what: &str, level: &Level, program: &Path) -> Result<Vec<Product>> {
        let what = format!("Counting {what}: {}", level.name);
        products::read(&self.counter.count(&what, level.cpu, program, &[])?)
    }
}

/// What `steps` prints.
#[derive(Deserialize)]
struct Said {
    logits_sha256: String,
    weights: f64,
    workspace: f64,
}

/// Bytes of all buffers that llama.cpp says it allocates: `… buffer size = 12.34 MiB`.
fn buffers(log: &str) -> f64 {
    let size = |line: &str| {
        let (_, size) = line.split_once("buffer size =")?;
        size.trim().strip_suffix("MiB")?.trim().parse::<f64>().ok()
    };
    log.lines().filter_map(size).sum::<f64>() * f64::from(1 << 20)
}

/// Of one program at one level.
struct Figures {
    /// Tokens of the prompt.
    prompt: u64,
    /// Millions of instructions for each token, and milliseconds.
    prefill: (f64, f64),
    /// Behind a short prompt.
    decode: Option<(f64, f64)>,
    /// Bytes of weights, cache and scratch.
    memory: f64,
    /// Of the logits.
    hash: String,
}

impl Figures {
    /// Of the marks before the prompt, behind it, and, if it is a short one, at two moments of the answer.
    fn of(counts: &Counts, prompt: u64, memory: f64, hash: String) -> Result<Self> {
        let between = |from: usize, to: usize, tokens: u64| {
            let (from, to) = counts.marks.get(from).zip(counts.marks.get(to))?;
            let each = |from: u64, to: u64| Some(to.checked_sub(from)? as f64 / tokens as f64 / 1e6);
            Some((each(from.instructions, to.instructions)?, each(from.time, to.time)?))
        };
        let prefill = between(0, 1, prompt).context("too few marks")?;
        let decode = between(2, 3, ANSWER);
        if prompt == SHORT && decode.is_none() {
            bail!("too few marks");
        }
        Ok(Self { prompt, prefill, decode, memory, hash })
    }

    /// The rows of a level, against those of the peer.
    fn rows(&self, peer: Option<&Self>, suffix: &str, level: &str) -> Vec<Row> {
        const COUNT: &str = "M instructions/token";
        const TIME: &str = "ms/token, emulated";
        let row = |name: &str, unit: &str, figure: fn(&Self) -> Option<f64>| {
            let name = format!("{name}{suffix}/{level}");
            let ours = figure(self)?;
            Some(match peer.and_then(figure) {
                Some(peer) => Row::against(name, unit, ours, peer),
                None => Row::alone(name, unit, ours),
            })
        };
        let rows = if self.prompt == LONG {
            vec![
                row("prefill512_insn", COUNT, |f| Some(f.prefill.0)),
                row("prefill512_wall", TIME, |f| Some(f.prefill.1)),
            ]
        } else {
            vec![
                row("decode_insn", COUNT, |f| Some(f.decode?.0)),
                row("prefill_insn", COUNT, |f| Some(f.prefill.0)),
                row("decode_wall", TIME, |f| Some(f.decode?.1)),
                row("prefill_wall", TIME, |f| Some(f.prefill.1)),
                row("memory", "bytes", |f| Some(f.memory)),
            ]
        };
        rows.into_iter().flatten().collect()
    }
}

/// A program that is counted, an example of a crate, built for Arm.
fn program(paths: &Paths, package: &str, example: &str) -> Result<PathBuf> {
    let mut cargo = Cross::find(&[toolchain::LINUX])?.linux(paths, "build");
    cargo.args(["--release", "--package", package, "--example", example]);
    cargo.args(["--features", "flexserve-kernels/std"]);
    let log = paths.out.join(format!("log/{example}.log"));
    process::step(&format!("Building {example} for Arm"), &mut cargo, &log)?;
    Ok(paths.bare_metal_target().join(toolchain::LINUX).join("release/examples").join(example))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::counter::Mark;

    fn counts(marks: &[(u64, u64)]) -> Counts {
        let mark = |&(instructions, time): &(u64, u64)| Mark { instructions, time, loops: Vec::new() };
        Counts { marks: marks.iter().map(mark).collect(), output: String::new() }
    }

    #[test]
    fn tokens_are_what_lies_between_marks() {
        let marks = [(1_000_000, 0), (129_000_000, 256_000_000), (200_000_000, 0), (264_000_000, 32_000_000)];
        let of = |marks: &[_], prompt| Figures::of(&counts(marks), prompt, 8.0, String::new());
        let figures = of(&marks, SHORT).unwrap();
        assert_eq!((figures.prefill, figures.decode), ((1.0, 2.0), Some((2.0, 1.0))));
        assert!(of(&marks[..3], SHORT).is_err());
        assert!(of(&marks[..1], LONG).is_err());
        let long = of(&marks[..2], LONG).unwrap().rows(None, "", "neon");
        assert_eq!((&*long[0].name, long[0].ours, long.len()), ("prefill512_insn/neon", 0.25, 2));
        let rows = figures.rows(Some(&figures), "_q4_0", "neon");
        assert_eq!((&*rows[0].name, rows[0].ours, rows[0].ratio), ("decode_insn_q4_0/neon", 2.0, Some(1.0)));
        assert_eq!(figures.rows(None, "", "neon")[1].peer, None);
    }

    #[test]
    fn buffers_add_up() {
        let log = "load_tensors:   CPU_Mapped model buffer size =    93.50 MiB\nother\n\
                   llama_kv_cache:        CPU KV buffer size =     0.50 MiB\n";
        assert_eq!(buffers(log), 94.0 * 1_048_576.0);
    }
}
