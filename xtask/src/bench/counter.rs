//! Counts instructions of programs for Arm: `qemu-aarch64` with our plugin.

use super::loops::{self, Block, Loop};
use crate::{
    paths::Paths,
    process,
    stamp::{self, Inputs},
    toolchain,
};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The Debian release whose `qemu-user` takes plugins, and plugins of this kind.
const RELEASE: &str = "bookworm";

/// An emulator that counts.
pub struct Counter {
    qemu: PathBuf,
    plugin: PathBuf,
    cache: PathBuf,
}

/// What a program counted and said.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Counts {
    /// At each mark of the program, and at its end.
    pub marks: Vec<Mark>,
    /// What it printed, messages included.
    pub output: String,
}

/// A moment in a program's life.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Mark {
    /// Instructions so far.
    pub instructions: u64,
    /// Nanoseconds so far.
    pub time: u64,
    /// Loops that the program has gone through since the mark before.
    pub loops: Vec<Loop>,
}

impl Counter {
    /// Finds or fetches the emulator, and builds the plugin.
    ///
    /// # Errors
    ///
    /// If there is none that takes plugins, or no C compiler.
    pub fn new(paths: &Paths) -> Result<Self> {
        let plugin = plugin(paths, "count")?;
        Ok(Self { qemu: emulator(paths)?, plugin, cache: paths.out.join("bench") })
    }

    /// Runs `program` on the core that `-cpu` calls `cpu`. What was counted once is not counted again: the same files
    /// have the same counts. Files among `arguments` take part by their contents.
    ///
    /// # Errors
    ///
    /// If the program fails.
    pub fn count(&self, what: &str, cpu: &str, program: &Path, arguments: &[&Path]) -> Result<Counts> {
        let mut inputs = Inputs::default().text(cpu);
        for file in [&*self.qemu, &*self.plugin, program].iter().chain(arguments) {
            inputs = match file.to_str().filter(|_| !file.is_file()) {
                Some(text) => inputs.text(text),
                None => inputs.text(&stamp::sha256_of_file(file)?),
            };
        }
        let cached = self.cache.join(format!("{}.json", &inputs.hash()[..32]));
        if let Ok(text) = fs::read_to_string(&cached) {
            return Ok(serde_json::from_str(&text)?);
        }
        let folder = tempfile::tempdir_in(&self.cache)?;
        let (out, log) = (folder.path().join("counts"), folder.path().join("log"));
        let mut qemu = process::command(&self.qemu);
        qemu.arg("-plugin").arg(format!("{},out={}", self.plugin.display(), out.display()));
        qemu.args(["-cpu", cpu, "-L", toolchain::ARM_LIBRARY_ROOT]).arg(program).args(arguments);
        process::step(what, &mut qemu, &log)?;
        let marks = fs::read_to_string(&out).context("the plugin wrote no counts")?;
        let marks = read(&marks).context("counts of an unknown form")?;
        let counts = Counts { marks, output: String::from_utf8_lossy(&fs::read(&log)?).into_owned() };
        crate::paths::write_atomically(&cached, serde_json::to_string(&counts)?.as_bytes())?;
        Ok(counts)
    }
}

/// Builds `xtask/plugin/NAME.c`.
///
/// # Errors
///
/// If there is no C compiler.
pub fn plugin(paths: &Paths, name: &str) -> Result<PathBuf> {
    let folder = paths.out.join("bench");
    fs::create_dir_all(&folder)?;
    let plugin = folder.join(format!("{name}.so"));
    let mut cc = process::command("cc");
    cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&plugin);
    cc.arg(paths.root.join(format!("xtask/plugin/{name}.c")));
    let log = paths.out.join(format!("log/{name}.log"));
    process::step("Building the counting plugin", &mut cc, &log)?;
    Ok(plugin)
}

/// Reads lines of `instructions nanoseconds`, each with the blocks executed before, a line each, behind it.
fn read(counts: &str) -> Option<Vec<Mark>> {
    let mut marks = Vec::new();
    let mut lines = counts.lines().peekable();
    while let Some(line) = lines.next() {
        let (instructions, time) = line.split_once(' ')?;
        let (instructions, time) = (instructions.parse().ok()?, time.parse().ok()?);
        let blocks = std::iter::from_fn(|| lines.next_if(|line| line.starts_with('\t')).map(Block::parse));
        let blocks: Vec<Block> = blocks.collect::<Option<_>>()?;
        marks.push(Mark { instructions, time, loops: loops::find(&blocks) });
    }
    Some(marks)
}

/// The installed `qemu-aarch64` if it takes plugins, or Debian 12's, unpacked.
fn emulator(paths: &Paths) -> Result<PathBuf> {
    let installed = which("qemu-aarch64");
    if let Some(installed) = installed.filter(|qemu| takes_plugins(qemu)) {
        return Ok(installed);
    }
    let folder = paths.out.join("bench/qemu-user");
    let qemu = folder.join("usr/bin/qemu-aarch64");
    if !qemu.is_file() {
        let temporary = tempfile::tempdir_in(paths.out.join("bench"))?;
        let log = paths.out.join("log/qemu-user.log");
        let mut apt = process::command("apt-get");
        apt.current_dir(temporary.path()).args(["download", &format!("qemu-user/{RELEASE}")]);
        process::step("Fetching a qemu-aarch64 that takes plugins (12 MB)", &mut apt, &log)
            .context("Debian 12's qemu-user is needed: a 10.x one has no -plugin")?;
        let package = fs::read_dir(temporary.path())?.next().context("apt-get brought nothing")??.path();
        let unpacked = temporary.path().join("unpacked");
        let mut dpkg = process::command("dpkg-deb");
        dpkg.arg("--extract").arg(package).arg(&unpacked);
        process::step("Unpacking it", &mut dpkg, &log)?;
        fs::rename(unpacked, &folder)?;
    }
    if !takes_plugins(&qemu) {
        bail!("{} does not start, or takes no plugins; is a library missing that ldd names?", qemu.display());
    }
    Ok(qemu)
}

fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|p| p.join(program)).find(|p| p.is_file())
}

fn takes_plugins(qemu: &Path) -> bool {
    let help = Command::new(qemu).arg("-h").output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("\n-plugin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_pairs_of_numbers_with_blocks_behind_them() {
        let marks = read("12 34\n\t3 1000 14000001\n\t3 1004 54ffffe1\n56 78\n").unwrap();
        let code = vec![0x1400_0001, 0x54ff_ffe1];
        assert_eq!(marks[0], Mark { instructions: 12, time: 34, loops: vec![Loop { turns: 3, code }] });
        assert_eq!(marks[1], Mark { instructions: 56, time: 78, loops: vec![] });
        for counts in ["12", "12 x", "\t3 1000 1", "12 34\n\tx"] {
            assert_eq!(read(counts), None, "{counts}");
        }
    }
}
