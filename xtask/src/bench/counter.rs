//! Counts instructions of programs for Arm: `qemu-aarch64` with our plugin.

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

/// The plugin.
const PLUGIN: &str = "xtask/plugin/count.c";
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
    /// Instructions at each mark of the program, and at its end; and the time then, in nanoseconds.
    pub marks: Vec<(u64, u64)>,
    /// What it printed, messages included.
    pub output: String,
}

impl Counter {
    /// Finds or fetches the emulator, and builds the plugin.
    ///
    /// # Errors
    ///
    /// If there is none that takes plugins, or no C compiler.
    pub fn new(paths: &Paths) -> Result<Self> {
        let folder = paths.out.join("bench");
        fs::create_dir_all(&folder)?;
        let plugin = folder.join("count.so");
        let mut cc = process::command("cc");
        cc.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&plugin).arg(paths.root.join(PLUGIN));
        process::step("Building the counting plugin", &mut cc, &paths.out.join("log/count.log"))?;
        Ok(Self { qemu: emulator(paths)?, plugin, cache: folder })
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
            inputs = inputs.text(&stamp::sha256_of_file(file)?);
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
        let marks = marks.lines().map(mark).collect::<Option<_>>().context("counts of an unknown form")?;
        let counts = Counts { marks, output: String::from_utf8_lossy(&fs::read(&log)?).into_owned() };
        crate::paths::write_atomically(&cached, serde_json::to_string(&counts)?.as_bytes())?;
        Ok(counts)
    }
}

/// Reads `instructions nanoseconds`.
fn mark(line: &str) -> Option<(u64, u64)> {
    let (instructions, time) = line.split_once(' ')?;
    Some((instructions.parse().ok()?, time.parse().ok()?))
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
    fn marks_are_pairs_of_numbers() {
        assert_eq!(mark("12 34"), Some((12, 34)));
        assert_eq!(mark("12"), None);
        assert_eq!(mark("12 x"), None);
    }
}
