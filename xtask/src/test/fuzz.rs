//! The fuzz targets, each for a bounded number of executions from its committed corpus.

use super::Tally;
use crate::{paths::Paths, process, toolchain};
use anyhow::{Context as _, Result};
use std::{env, fs, process::Command};

/// Targets; how many of a hundred executions each makes, most of those that the normal world can reach, and fewer of slow ones;
/// and their sanitizer, AddressSanitizer for what has `unsafe` code.
const TARGETS: [(&str, u64, &str); 7] = [
    ("smc", 100, "none"),
    ("gpt_range", 10, "none"),
    ("stage2_range", 10, "none"),
    ("ffa_descriptors", 100, "none"),
    ("container", 20, "none"),
    ("gguf", 20, "none"),
    ("kernels", 5, "address"),
];
/// Executions of a target, unless `FLEXSERVE_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 200_000;

/// Builds the targets and runs each: a case.
///
/// # Errors
///
/// If they do not compile, or cargo-fuzz cannot be installed.
pub fn run(paths: &Paths, filter: Option<&str>) -> Result<Tally> {
    let runs = match env::var("FLEXSERVE_FUZZ_RUNS") {
        Ok(text) => text.replace('_', "").parse().context("FLEXSERVE_FUZZ_RUNS is not a number")?,
        Err(_) => RUNS,
    };
    let log = |name: &str| paths.out.join(format!("log/fuzz-{name}.log"));
    if !toolchain::host_cargo(paths, "fuzz").arg("--version").output()?.status.success() {
        let mut install = toolchain::host_cargo(paths, "install");
        install.args(["--locked", "cargo-fuzz"]);
        process::step("Installing cargo-fuzz", &mut install, &log("install"))?;
    }
    let mut tally = Tally::default();
    for (target, share, sanitizer) in TARGETS {
        let name = format!("fuzz::{target}");
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        // New inputs go to the first folder. The committed ones are only read.
        let found = paths.out.join("fuzz").join(target);
        fs::create_dir_all(&found)?;
        let mut build = cargo(paths, "build", sanitizer);
        process::step(&format!("Building {target}"), build.arg(target), &log("build"))?;
        let mut cargo = cargo(paths, "run", sanitizer);
        cargo.arg(target).arg(&found).arg(format!("corpus/{target}"));
        cargo.args(["--", "-max_len=16384", "-print_final_stats=1", "-verbosity=0"]);
        cargo.arg(format!("-runs={}", (runs * share / 100).max(1)));
        tally.case(&name, process::step(&name, &mut cargo, &log(target)));
    }
    Ok(tally)
}

fn cargo(paths: &Paths, subcommand: &str, sanitizer: &str) -> Command {
    let mut cargo = toolchain::host_cargo(paths, "fuzz");
    cargo.current_dir(paths.root.join("fuzz")).args([subcommand, "--sanitizer", sanitizer]);
    // Coverage and sanitizers need flags that stable compilers take only so.
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", paths.host_target().join("fuzz").join(sanitizer));
    cargo
}
