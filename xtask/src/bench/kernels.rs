//! `bench kernels`: instructions for each token at each ISA level, under user-mode emulation.

use super::{
    Row,
    counter::{Counter, Counts},
};
use crate::{
    download, model,
    paths::Paths,
    process,
    toolchain::{self, Cross},
};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::path::PathBuf;

/// An ISA level.
struct Level {
    name: &'static str,
    /// A core that has no more than that, as `qemu-aarch64 -cpu` takes it.
    cpu: &'static str,
}

const LEVELS: [Level; 5] = [
    Level { name: "neon", cpu: "cortex-a72" },
    Level { name: "dotprod", cpu: "cortex-a76" },
    Level { name: "i8mm", cpu: "max,sve=off,sme=off" },
    Level { name: "sve2-256", cpu: "max,sve256=on,sme=off" },
    Level { name: "sve2-512", cpu: "max,sve512=on,sme=off" },
];

/// Tokens of the batch, and tokens between the last two marks, of `model-loader/examples/steps.rs`.
const STEPS: (u64, u64) = (128, 32);
/// The text that is evaluated.
const TEXT: &str = "LICENSE-APACHE";

/// Measures all rows, or those of one level. What fails costs its own rows only; `failures` gets it.
///
/// # Errors
///
/// If nothing can be measured.
pub fn measure(paths: &Paths, only: Option<&str>, failures: &mut Vec<anyhow::Error>) -> Result<Vec<Row>> {
    let levels: Vec<&Level> =
        LEVELS.iter().filter(|level| only.is_none_or(|only| only == level.name)).collect();
    if levels.is_empty() {
        bail!("no such ISA level; there are {}", LEVELS.map(|level| level.name).join(", "));
    }
    let counter = Counter::new(paths)?;
    let steps = steps(paths)?;
    let text = paths.root.join(TEXT);
    let container = model::container(paths, Some(&download::default_model(paths)?))?;
    let (mut rows, mut hashes) = (Vec::new(), Vec::new());
    for level in levels {
        let what = format!("Counting instructions: {}", level.name);
        match counter
            .count(&what, level.cpu, &steps, &[&container, &text])
            .and_then(|c| Ok((Tokens::of(&c)?, said(&c)?)))
        {
            Ok((ours, said)) => {
                rows.extend(ours.rows(level.name));
                hashes.push((level.name, said.logits_sha256));
            }
            Err(error) => failures.push(error.context(level.name)),
        }
    }
    if let Some((name, _)) = hashes.iter().find(|(_, hash)| *hash != hashes[0].1) {
        bail!("{name} computes other logits than {}", hashes[0].0);
    }
    Ok(rows)
}

/// Millions of instructions for each token.
struct Tokens {
    prefill: f64,
    decode: f64,
}

impl Tokens {
    /// Of the marks before the batch, behind it, and at two moments of the answer.
    fn of(counts: &Counts) -> Result<Self> {
        let mark = |index: usize| counts.marks.get(index).map(|&(instructions, _)| instructions);
        let each = |from: usize, to: usize, tokens: u64| {
            Some(mark(to)?.checked_sub(mark(from)?)? as f64 / tokens as f64 / 1e6)
        };
        let figures = each(0, 1, STEPS.0).zip(each(2, 3, STEPS.1));
        let (prefill, decode) = figures.context("too few marks")?;
        Ok(Self { prefill, decode })
    }

    fn rows(&self, level: &str) -> [Row; 2] {
        let row = |name: &str, figure| Row::alone(format!("{name}/{level}"), "M instructions/token", figure);
        [row("decode_insn", self.decode), row("prefill_insn", self.prefill)]
    }
}

/// What `steps` prints.
#[derive(Deserialize)]
struct Said {
    logits_sha256: String,
}

fn said(counts: &Counts) -> Result<Said> {
    let line = counts.output.lines().find(|line| line.starts_with('{')).context("the steps said nothing")?;
    Ok(serde_json::from_str(line)?)
}

/// The program that takes the steps that are counted, built for Arm.
fn steps(paths: &Paths) -> Result<PathBuf> {
    let mut cargo = Cross::find(&[toolchain::LINUX])?.linux(paths, "build");
    cargo.args(["--release", "--package", "flexserve-model-loader", "--example", "steps"]);
    process::step("Building the steps for Arm", &mut cargo, &paths.out.join("log/steps.log"))?;
    Ok(paths.bare_metal_target().join(toolchain::LINUX).join("release/examples/steps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_what_lies_between_marks() {
        let marks =
            vec![(1_000_000, 0), (129_000_000, 1), (200_000_000, 2), (264_000_000, 3), (264_000_001, 4)];
        let tokens = Tokens::of(&Counts { marks, output: String::new() }).unwrap();
        assert_eq!((tokens.prefill, tokens.decode), (1.0, 2.0));
        assert!(Tokens::of(&Counts { marks: vec![(1, 0); 3], output: String::new() }).is_err());
    }
}
