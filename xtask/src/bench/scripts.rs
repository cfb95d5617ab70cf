//! `bench accuracy` and `bench tokenizer`: scripts that hold our code to llama.cpp's.
//!
//! Each makes its own Python environment when it is first called, and writes its rows as this program does.

use super::Row;
use crate::{download, model, paths::Paths, process, toolchain};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What a script writes.
#[derive(Deserialize)]
pub struct Output {
    /// Its figures.
    pub rows: Vec<Row>,
    /// Targets that they miss.
    #[serde(default)]
    pub missed: Vec<String>,
}

/// How near the model is to float32, and llama.cpp.
///
/// # Errors
///
/// If the peers cannot be installed.
pub fn accuracy(paths: &Paths) -> Result<Output> {
    let mut cargo = toolchain::host_cargo(paths, "build");
    cargo.args(["--release", "--package", "flexserve-model-loader", "--example", "evaluate"]);
    process::step("Building evaluate", &mut cargo, &paths.out.join("log/evaluate.log"))?;
    let evaluate = paths.host_target().join("release/examples/evaluate");
    run(paths, "secure-partition/llm/bench/accuracy.py", "--evaluate", &evaluate)
}

/// Tokens of thousands of lines, against llama.cpp's.
///
/// # Errors
///
/// If the peer cannot be installed, or a line's tokens differ.
pub fn tokenizer(paths: &Paths) -> Result<Output> {
    let loader = model::loader(paths)?;
    run(paths, "model-loader/bench/tokenizer.py", "--tool", &loader)
}

fn run(paths: &Paths, script: &str, option: &str, program: &Path) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let json: PathBuf = folder.path().join("rows.json");
    let mut python = process::command("python3");
    python.arg(paths.root.join(script)).arg(option).arg(program);
    python.arg("--model").arg(download::default_model(paths)?);
    python.arg("--venv").arg(paths.out.join("venv")).arg("--json").arg(&json);
    let (status, _) = process::echoed(&mut python)?;
    let text = fs::read_to_string(&json).with_context(|| format!("{script} wrote no rows: {status}"))?;
    let output: Output = serde_json::from_str(&text).with_context(|| format!("{script}'s rows"))?;
    if !status.success() && output.missed.is_empty() {
        bail!("{script}: {status}");
    }
    Ok(output)
}
