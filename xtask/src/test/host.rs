//! Suites that run on this machine: lints, and the crates' own tests.

use super::{Tally, count};
use crate::{download, paths::Paths, process, toolchain};
use anyhow::{Result, bail};

/// Formatting, clippy and the lock file, each a case.
///
/// # Errors
///
/// If cargo cannot be started.
pub fn lint(paths: &Paths, filter: Option<&str>) -> Result<Tally> {
    let cases: [(&str, &str, &[&str]); 3] = [
        ("lint::lock_file", "metadata", &["--locked", "--format-version=1", "--quiet"]),
        ("lint::format", "fmt", &["--all", "--check"]),
        (
            "lint::clippy",
            "clippy",
            &["--workspace", "--all-targets", "--all-features", "--locked", "--", "--deny", "warnings"],
        ),
    ];
    let mut tally = Tally::default();
    for (name, subcommand, args) in cases.iter().filter(|c| filter.is_none_or(|f| c.0.contains(f))) {
        let mut cargo = toolchain::host_cargo(paths, subcommand);
        cargo.args(*args);
        let log = paths.out.join(format!("log/lint-{subcommand}.log"));
        tally.case(name, process::step(name, &mut cargo, &log));
    }
    Ok(tally)
}

/// Tests of the whole workspace, by nextest.
///
/// # Errors
///
/// If nextest is missing, or does not compile the tests.
pub fn unit(paths: &Paths, filter: Option<&str>) -> Result<Tally> {
    let mut cargo = toolchain::host_cargo(paths, "nextest");
    cargo.args(["run", "--workspace", "--all-features", "--no-fail-fast", "--status-level=fail"]);
    cargo.args(["--no-tests=pass", "--hide-progress-bar"]).args(filter);
    // The tokenizer's golden samples are the default model's.
    cargo.env("FLEXSERVE_MODEL", download::default_model(paths)?);
    let (status, lines) = process::echoed(&mut cargo)?;
    let Some(summary) = lines.iter().rev().find(|l| l.contains("run:") && l.contains("passed")) else {
        bail!("cargo nextest: {status}, and no summary");
    };
    let failed = count(summary, "failed") + count(summary, "out");
    // nextest calls what the filter leaves out "skipped", too; that is not news.
    let skipped = if filter.is_some() { 0 } else { count(summary, "skipped") };
    let tally = Tally { passed: count(summary, "passed"), failed, skipped };
    if !status.success() && tally.failed == 0 {
        bail!("cargo nextest: {status}");
    }
    Ok(tally)
}
