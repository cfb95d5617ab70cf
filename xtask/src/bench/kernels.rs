//! `bench kernels`: instructions for each token at each ISA level, ours and llama.cpp's, under user-mode emulation.

use super::{
    Row,
    counter::{Counter, Counts},
    mca::{self, Mca},
    peer::{Peer, Program},
    products::{self, Product},
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

/// An ISA level.
struct Level {
    name: &'static str,
    /// A core that has no more than that, as `qemu-aarch64 -cpu` takes it.
    cpu: &'static str,
    /// What the peer is compiled for.
    march: &'static str,
    /// Products of two octets that its widest instruction sums up.
    macs: f64,
}

const LEVELS: [Level; 6] = [
    Level { name: "neon", cpu: "cortex-a72", march: "armv8-a", macs: 8.0 },
    Level { name: "dotprod", cpu: "cortex-a76", march: "armv8.2-a+dotprod", macs: 16.0 },
    Level { name: "i8mm", cpu: "max,sve=off,sme=off", march: "armv8.6-a+i8mm+dotprod", macs: 32.0 },
    Level { name: "sve-512", cpu: "a64fx", march: "armv8.2-a+sve", macs: 64.0 },
    Level { name: "sve2-256", cpu: "max,sve256=on,sme=off", march: "armv8.6-a+sve2+i8mm", macs: 64.0 },
    Level { name: "sve2-512", cpu: "max,sve512=on,sme=off", march: "armv8.6-a+sve2+i8mm", macs: 128.0 },
];

/// Tokens of the batch, and tokens between the last two marks, of `model-loader/examples/steps.rs`.
const STEPS: (u64, u64) = (128, 32);
/// The text that is taken in.
const TEXT: &str = "LICENSE-APACHE";

/// Measures all rows, or those of one level. What fails costs its own rows only; `failures` gets it.
///
/// # Errors
///
/// If nothing can be measured, or the logits depend on the level.
pub fn measure(paths: &Paths, only: Option<&str>, failures: &mut Vec<anyhow::Error>) -> Result<Vec<Row>> {
    let levels: Vec<&Level> =
        LEVELS.iter().filter(|level| only.is_none_or(|only| only == level.name)).collect();
    if levels.is_empty() {
        bail!("no such ISA level; there are {}", LEVELS.map(|level| level.name).join(", "));
    }
    let text = paths.root.join(TEXT);
    let steps = program(paths, "flexserve-model-loader", "steps")?;
    let macs = program(paths, "flexserve-kernels", "macs")?;
    let bench = Bench { counter: Counter::new(paths)?, steps, macs, text };
    let peer = Peer::new(paths).map_err(|error| failures.push(error.context("no llama.cpp"))).ok();
    let gguf = download::default_model(paths)?;
    let requantised = peer.as_ref().map(|peer| peer.requantised(&gguf));
    let mut models = vec![("", gguf)];
    match requantised {
        Some(Ok(requantised)) => models.push(("_q4_0", requantised)),
        Some(Err(error)) => failures.push(error.context("no model in Q4_0")),
        None => {}
    }
    let mut rows = Vec::new();
    for (suffix, gguf) in &models {
        let container = model::container(paths, Some(gguf))?;
        let mut hashes = Vec::new();
        for level in &levels {
            let what = format!("{}{suffix}", level.name);
            let mut keep = |figures: Result<Figures>, whose| {
                figures.map_err(|error| failures.push(error.context(format!("{whose} {what}")))).ok()
            };
            let ours = keep(bench.ours(level, &container), "ours");
            let theirs = peer.as_ref().and_then(|peer| keep(bench.peers(peer, level, gguf), "llama.cpp"));
            let Some(ours) = ours else { continue };
            rows.extend(ours.rows(theirs.as_ref(), suffix, level.name));
            hashes.push((level.name, ours.hash));
        }
        if let Some((name, _)) = hashes.iter().find(|(_, hash)| *hash != hashes[0].1) {
            bail!("{name} computes other logits than {}", hashes[0].0);
        }
    }
    rows.extend(bench.products(&levels, peer.as_ref(), failures));
    Ok(rows)
}

/// What it takes to count.
struct Bench {
    counter: Counter,
    /// Our programs.
    steps: PathBuf,
    macs: PathBuf,
    text: PathBuf,
}

impl Bench {
    fn ours(&self, level: &Level, container: &Path) -> Result<Figures> {
        let what = format!("Counting instructions: {}", level.name);
        let counts = self.counter.count(&what, level.cpu, &self.steps, &[container, &self.text])?;
        let said: Said = counts
            .output
            .lines()
            .find(|line| line.starts_with('{'))
            .and_then(|line| serde_json::from_str(line).ok())
            .context("the steps ended without a result")?;
        Figures::of(&counts, said.weights + said.workspace, said.logits_sha256)
    }

    fn peers(&self, peer: &Peer, level: &Level, gguf: &Path) -> Result<Figures> {
        let what = format!("Counting llama.cpp's instructions: {}", level.name);
        let program = peer.program(Program::Steps, level.march)?;
        let counts = self.counter.count(&what, level.cpu, &program, &[gguf, &self.text])?;
        Figures::of(&counts, buffers(&counts.output), String::new())
    }

    /// What single products take at some levels: multiply-accumulates for each instruction, and cycles.
    fn products(
        &self,
        levels: &[&Level],
        peer: Option<&Peer>,
        failures: &mut Vec<anyhow::Error>,
    ) -> Vec<Row> {
        let mca = Mca::find().map_err(|error| failures.push(error.context("no cycles"))).ok();
        let (mut instructions, mut cycles) = (Vec::new(), Vec::new());
        for level in levels {
            let mut keep = |products: Result<Vec<Product>>, whose| {
                let context = || format!("products, {whose} {}", level.name);
                products.map_err(|error| failures.push(error.context(context()))).ok()
            };
            let Some(ours) = keep(self.count_products("products", level, &self.macs), "ours") else {
                continue;
            };
            instructions.extend(ours.iter().map(|ours| ours.macs_per_instruction(level.name, level.macs)));
            let mut cores = mca::CORES.iter().filter(|core| core.level == level.name).peekable();
            let Some(mca) = mca.as_ref().filter(|_| cores.peek().is_some()) else { continue };
            let theirs = peer.and_then(|peer| {
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
    /// Millions of instructions for each token, and milliseconds.
    prefill: (f64, f64),
    decode: (f64, f64),
    /// Bytes of weights, cache and scratch.
    memory: f64,
    /// Of the logits.
    hash: String,
}

impl Figures {
    /// Of the marks before the batch, behind it, and at two moments of the answer.
    fn of(counts: &Counts, memory: f64, hash: String) -> Result<Self> {
        let between = |from: usize, to: usize, tokens: u64| {
            let (from, to) = counts.marks.get(from).zip(counts.marks.get(to))?;
            let each = |from: u64, to: u64| Some(to.checked_sub(from)? as f64 / tokens as f64 / 1e6);
            Some((each(from.instructions, to.instructions)?, each(from.time, to.time)?))
        };
        let prefill = between(0, 1, STEPS.0).context("too few marks")?;
        let decode = between(2, 3, STEPS.1).context("too few marks")?;
        Ok(Self { prefill, decode, memory, hash })
    }

    /// The rows of a level, against those of the peer.
    fn rows(&self, peer: Option<&Self>, suffix: &str, level: &str) -> Vec<Row> {
        let row = |name: &str, unit: &str, figure: fn(&Self) -> f64| {
            let name = format!("{name}{suffix}/{level}");
            match peer {
                Some(peer) => Row::against(name, unit, figure(self), figure(peer)),
                None => Row::alone(name, unit, figure(self)),
            }
        };
        vec![
            row("decode_insn", "M instructions/token", |f| f.decode.0),
            row("prefill_insn", "M instructions/token", |f| f.prefill.0),
            row("decode_wall", "ms/token, emulated", |f| f.decode.1),
            row("prefill_wall", "ms/token, emulated", |f| f.prefill.1),
            row("memory", "bytes", |f| f.memory),
        ]
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
        let figures = Figures::of(&counts(&marks), 8.0, String::new()).unwrap();
        assert_eq!((figures.prefill, figures.decode), ((1.0, 2.0), (2.0, 1.0)));
        assert!(Figures::of(&counts(&marks[..3]), 8.0, String::new()).is_err());
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
