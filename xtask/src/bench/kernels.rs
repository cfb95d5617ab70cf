//! Instructions for each token by instruction set, counted in an emulated process: the same on every run and every machine.

use super::Row;
use crate::{
    model,
    paths::Paths,
    process,
    test::kernels::LIBRARY_ROOT,
    toolchain::{self, Cross},
};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An instruction set: its name in the rows, the core as `qemu-aarch64 -cpu` takes it, and the features that the kernels may
/// use, as a partition is told them.
const LEVELS: [(&str, &str, u64); 5] = [
    ("neon", "cortex-a72", 0),
    ("dotprod", "max,sve=off", 1),
    ("i8mm", "max,sve=off", 3),
    ("sve2-256", "max,sve256=on", 15),
    ("sve2-512", "max,sve512=on", 15),
];
/// Tokens of a prompt that is taken in at once.
const PROMPT: u32 = 128;
/// Tokens of the prompt before an answer, and two lengths of it: the longer's instructions less the shorter's count.
const ANSWER: (u32, u32, u32) = (5, 8, 40);

/// Two rows for each instruction set.
///
/// # Errors
///
/// If the emulator with plugins or a compiler is missing, or the logits differ between instruction sets.
pub fn measure(paths: &Paths) -> Result<Vec<Row>> {
    let model = model::container(paths, None)?;
    let counter = Counter { qemu: emulator(paths)?, plugin: plugin(paths)?, program: program(paths)?, model };
    let (mut rows, mut hashes) = (Vec::new(), Vec::new());
    for (name, core, features) in LEVELS {
        let count = |prompt, answer| counter.count(core, features, prompt, answer);
        let (nothing, _) = count(0, 0)?;
        let (prefill, prefill_hash) = count(PROMPT, 0)?;
        let (short, _) = count(ANSWER.0, ANSWER.1)?;
        let (long, long_hash) = count(ANSWER.0, ANSWER.2)?;
        let row = |what, instructions: u64, tokens: u32| {
            let each = instructions as f64 / f64::from(tokens) / 1e6;
            Row::alone(format!("{what}/{name}"), "million instructions", each)
        };
        rows.push(row("decode_insn", long.saturating_sub(short), ANSWER.2 - ANSWER.1));
        rows.push(row("prefill_insn", prefill.saturating_sub(nothing), PROMPT));
        hashes.push((name, prefill_hash + &long_hash));
    }
    if let Some((name, _)) = hashes.iter().find(|(_, hash)| *hash != hashes[0].1) {
        bail!("{name} computes other logits than {}", hashes[0].0);
    }
    Ok(rows)
}

/// What it takes to count.
struct Counter {
    qemu: PathBuf,
    plugin: PathBuf,
    program: PathBuf,
    model: PathBuf,
}

impl Counter {
    /// Instructions of a process that takes in `prompt` tokens and answers with `answer`, and a hash of what it computed.
    fn count(&self, core: &str, features: u64, prompt: u32, answer: u32) -> Result<(u64, String)> {
        let mut qemu = process::command(&self.qemu);
        qemu.args(["-cpu", core, "-L", LIBRARY_ROOT, "-plugin"]).arg(&self.plugin);
        qemu.arg(&self.program).arg(&self.model);
        qemu.args([features, prompt.into(), answer.into()].map(|number: u64| number.to_string()));
        let output = qemu.output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let count = err.lines().find_map(|line| line.strip_prefix("instructions ")?.parse().ok());
        match (count, out.split_whitespace().last()) {
            (Some(count), Some(hash)) if output.status.success() => Ok((count, hash.to_owned())),
            _ => bail!("{core}: {}\n{out}{err}", output.status),
        }
    }
}

/// The program that is counted.
fn program(paths: &Paths) -> Result<PathBuf> {
    let mut cargo = Cross::find(&[toolchain::LINUX])?.linux(paths, "build");
    cargo.args(["--release", "--package", "flexserve-model-loader", "--example", "tokens"]);
    process::step("Building tokens for Arm", &mut cargo, &paths.out.join("log/tokens.log"))?;
    Ok(paths.bare_metal_target().join(toolchain::LINUX).join("release/examples/tokens"))
}

/// The counting plugin.
fn plugin(paths: &Paths) -> Result<PathBuf> {
    let library = paths.out.join("plugin/count.so");
    fs::create_dir_all(library.parent().unwrap_or(&paths.out))?;
    let mut cc = process::command("cc");
    cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=default", "-o"]);
    cc.arg(&library).arg(paths.root.join("xtask/plugin/count.c"));
    process::step("Building the counter", &mut cc, &paths.out.join("log/plugin.log"))?;
    Ok(library)
}

/// A user-mode emulator that takes plugins: the installed one, or Debian 12's, unpacked beside it.
fn emulator(paths: &Paths) -> Result<PathBuf> {
    let takes_plugins = |qemu: &Path| {
        let help = Command::new(qemu).arg("--help").output();
        help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("-plugin"))
    };
    let folder = paths.out.join("qemu-plugins");
    let unpacked = folder.join("usr/bin/qemu-aarch64");
    for qemu in [PathBuf::from("qemu-aarch64"), unpacked.clone()] {
        if takes_plugins(&qemu) {
            return Ok(qemu);
        }
    }
    fs::create_dir_all(&folder)?;
    let log = paths.out.join("log/qemu-plugins.log");
    let mut apt = process::command("apt-get");
    apt.current_dir(&folder).args(["download", "qemu-user/bookworm"]);
    process::step("Getting an emulator that takes plugins", &mut apt, &log)?;
    let package = fs::read_dir(&folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    let mut dpkg = process::command("dpkg");
    dpkg.arg("-x").arg(&package).arg(&folder);
    process::step("Unpacking it", &mut dpkg, &log)?;
    if !takes_plugins(&unpacked) {
        bail!("{} takes no plugins", unpacked.display());
    }
    Ok(unpacked)
}
