//! Suites that run on this machine: lints, and the crates' own tests.

use super::{Tally, count};
use crate::{download, paths::Paths, process, toolchain};
use anyhow::{Result, bail};
use std::fs;

/// Formatting, clippy, the lock file, the documentation's links and that of the kernels, each a case.
///
/// # Errors
///
/// If cargo cannot be started.
pub fn lint(paths: &Paths, filter: Option<&str>) -> Result<Tally> {
    let cases: [(&str, &str, &[&str]); 4] = [
        ("lint::lock_file", "metadata", &["--locked", "--format-version=1", "--quiet"]),
        ("lint::format", "fmt", &["--all", "--check"]),
        (
            "lint::clippy",
            "clippy",
            &["--workspace", "--all-targets", "--all-features", "--locked", "--", "--deny", "warnings"],
        ),
        // The crate that others may use.
        (
            "lint::rustdoc",
            "doc",
            &["--package", "flexserve-kernels", "--no-deps", "--all-features", "--locked"],
        ),
    ];
    let mut tally = Tally::default();
    for (name, subcommand, args) in cases.iter().filter(|c| filter.is_none_or(|f| c.0.contains(f))) {
        let mut cargo = toolchain::host_cargo(paths, subcommand);
        cargo.args(*args).env("RUSTDOCFLAGS", "--deny warnings");
        let log = paths.out.join(format!("log/lint-{subcommand}.log"));
        tally.case(name, process::step(name, &mut cargo, &log));
    }
    if filter.is_none_or(|f| "lint::links".contains(f)) {
        tally.case("lint::links", links(paths));
    }
    Ok(tally)
}

/// Checks that the files exist to which the documentation links.
fn links(paths: &Paths) -> Result<()> {
    let listed = process::command("git").current_dir(&paths.root).args(["ls-files", "*.md"]).output()?;
    for page in String::from_utf8(listed.stdout)?.lines().map(|name| paths.root.join(name)) {
        let text = fs::read_to_string(&page)?;
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|t| !t.is_empty() && !t.contains("://")) {
            let file = page.with_file_name("").join(target);
            if !file.exists() {
                bail!("{} links to {target}, which does not exist", page.display());
            }
        }
    }
    Ok(())
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
