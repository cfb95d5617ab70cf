//! The tests of the kernels and of the engine on emulated Arm cores: the same bits on every instruction set and vector length.

use super::{Tally, count};
use crate::{
    paths::Paths,
    process,
    toolchain::{self, Cross},
};
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::PathBuf;

/// Cores as `qemu-aarch64 -cpu` takes them: Armv8.0; everything but SVE; SVE of the first version; and vectors of SVE of every
/// length that is a power of two, and of some others, which the architecture once allowed.
const CORES: [&str; 11] = [
    "cortex-a72",
    "max,sve=off,sme=off",
    "a64fx",
    "max,sve128=on",
    "max,sve256=on",
    "max,sve384=on",
    "max,sve512=on",
    "max,sve768=on",
    "max,sve1024=on",
    "max,sve1536=on",
    "max,sve2048=on",
];

/// Builds the tests once and runs them on each kind of core.
///
/// # Errors
///
/// If they do not compile, or the emulator is missing.
pub fn run(paths: &Paths, filter: Option<&str>) -> Result<Tally> {
    let programs = build(paths)?;
    let mut tally = Tally::default();
    for core in CORES {
        for program in &programs {
            let mut qemu = process::command("qemu-aarch64");
            qemu.args(["-cpu", core, "-L", toolchain::ARM_LIBRARY_ROOT]).arg(program).args(filter);
            let name = format!("kernels on {core}");
            eprintln!("{name}: {}", program.file_name().unwrap_or_default().display());
            let (status, lines) = process::echoed(&mut qemu)?;
            let Some(summary) = lines.iter().rev().find(|l| l.starts_with("test result:")) else {
                tally.case(&name, Err(anyhow::anyhow!("{status}, and no summary")));
                continue;
            };
            tally += Tally {
                passed: count(summary, "passed"),
                failed: count(summary, "failed"),
                skipped: count(summary, "ignored"),
            };
        }
    }
    Ok(tally)
}

fn build(paths: &Paths) -> Result<Vec<PathBuf>> {
    // With rustup, the target for Linux may be installed or not; Debian's compiler always can.
    let cross = Cross::find(&[toolchain::LINUX])?;
    let cargo = || {
        let mut cargo = cross.linux(paths, "test");
        cargo.args(["--release", "--no-run", "--all-features"]);
        cargo.args(["--package", "flexserve-kernels", "--package", "flexserve-llm"]);
        cargo
    };
    let log = paths.out.join("log/kernels.log");
    process::step("Building the kernels' tests for Arm", &mut cargo(), &log)?;
    // Once more, with nothing left to build, to hear where the programs are.
    let messages = cargo().arg("--message-format=json").output()?.stdout;
    let programs: Vec<PathBuf> = String::from_utf8_lossy(&messages).lines().filter_map(program).collect();
    if programs.is_empty() {
        bail!("cargo built no test ({})", log.display());
    }
    Ok(programs)
}

/// The test program that one of cargo's JSON messages announces, if it does.
fn program(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    is_test.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_test_programs_are_run() {
        let line = r#"{"reason":"compiler-artifact","profile":{"test":true},"executable":"/x/deps/twins-1"}"#;
        assert_eq!(program(line), Some(PathBuf::from("/x/deps/twins-1")));
        assert_eq!(program(&line.replace("true", "false")), None);
        assert_eq!(program(&line.replace("\"/x/deps/twins-1\"", "null")), None);
        assert_eq!(program("   Compiling x"), None);
    }
}
