//! `mutate`: breaks the firmware on purpose, one defect at a time, and sees whether the tests notice.
//!
//! Defects are data: `conformance/defects.toml`. Each is applied to a copy of the source tree in `out/mutate`, never to the
//! tree itself, and built and run from there.

use crate::{
    images::{self, Replacements},
    interrupt,
    paths::{self, Paths},
    platform::Platform,
    process, stamp,
    test::conformance::{self, BOOTS},
    toolchain,
};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// What `mutate` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only list the defects.
    #[arg(long)]
    list: bool,
    /// Only defects whose name contains one of these.
    names: Vec<String>,
}

/// The file of defects.
#[derive(Deserialize)]
struct Defects {
    defect: Vec<Defect>,
}

/// A defect, and the tests that should notice it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Defect {
    name: String,
    /// What is wrong then.
    what: String,
    file: PathBuf,
    /// Replacements, each of a text that the file holds exactly once.
    edits: Vec<[String; 2]>,
    catch: Catch,
}

/// Who should notice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Catch {
    /// A boot of the conformance suite, and of its groups those that are worth running.
    Conformance { platform: String, boot: String, groups: Vec<String> },
    /// The tests of packages on this machine.
    Unit { packages: Vec<String> },
}

/// What became of a defect.
enum Outcome {
    /// The first case that failed.
    Caught(String),
    Missed,
    /// It could not be tried.
    Broken(String),
}

/// Tries the defects and prints a table. Answers whether all were caught.
///
/// # Errors
///
/// If the tests fail without a defect, or the user interrupts.
pub fn run(paths: &Paths, options: &Options) -> Result<bool> {
    let defects = read(&paths.root, &options.names)?;
    if options.list {
        defects.iter().for_each(|d| println!("{:<28} {}", d.name, d.what));
        return Ok(true);
    }
    let scratch = scratch(paths)?;
    let mut sound = BTreeSet::new();
    let mut rows = Vec::new();
    for (defect, number) in defects.iter().zip(1..) {
        interrupt::check()?;
        if sound.insert(defect.catch.clone().whole()) {
            without_defect(paths, &scratch, &defect.catch)?;
        }
        eprintln!("[{number}/{}] {}: {}", defects.len(), defect.name, defect.what);
        let outcome = with(&scratch.root, defect, || defect.catch.run(paths, &scratch))?;
        eprintln!("    {}", outcome.say());
        rows.push((defect, outcome));
    }
    println!("| defect | tried on | first case that fails |\n|---|---|---|");
    for (defect, outcome) in &rows {
        println!("| {}: {} | {} | {} |", defect.name, defect.what, defect.catch.name(), outcome.say());
    }
    let caught = rows.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Caught(_))).count();
    println!("{caught} of {} defects caught", rows.len());
    Ok(caught == rows.len())
}

/// Checks that the tests pass as long as nothing is broken.
fn without_defect(paths: &Paths, scratch: &Paths, catch: &Catch) -> Result<()> {
    eprintln!("without a defect: {}", catch.name());
    if let Catch::Conformance { platform, boot, .. } = catch
        && let Some((boot, spmc)) = BOOTS.iter().find(|(name, _)| name == boot)
    {
        conformance::images(paths, &Platform::load(paths, platform)?, boot, *spmc)?;
    }
    match catch.clone().whole().run(paths, scratch)? {
        Outcome::Missed => Ok(()),
        Outcome::Caught(case) => bail!("{} fails without a defect: {case}", catch.name()),
        Outcome::Broken(why) => bail!("{} does not run without a defect: {why}", catch.name()),
    }
}

impl Outcome {
    fn say(&self) -> String {
        match self {
            Self::Caught(case) => case.clone(),
            Self::Missed => "NONE: not caught".to_owned(),
            Self::Broken(why) => format!("NOT TRIED: {why}"),
        }
    }
}

impl Catch {
    fn name(&self) -> String {
        match self {
            Self::Conformance { platform, boot, .. } => format!("{boot}, {platform}"),
            Self::Unit { packages } => format!("unit tests of {}", packages.join(", ")),
        }
    }

    /// The same, all groups of it.
    fn whole(self) -> Self {
        match self {
            Self::Conformance { platform, boot, .. } => {
                Self::Conformance { platform, boot, groups: vec!["all".to_owned()] }
            }
            unit => unit,
        }
    }

    fn run(&self, paths: &Paths, scratch: &Paths) -> Result<Outcome> {
        match self {
            Self::Conformance { platform, boot, groups } => {
                let platform = Platform::load(scratch, platform)?;
                let known = BOOTS.iter().find(|(name, _)| name == boot);
                let (boot, spmc) = known.with_context(|| format!("no boot {boot:?}"))?;
                // Only what may be broken is built from the copy: the EL3 service, and the SPMC unless another stands there.
                let mut sound = vec!["payload", "llm", "hostile"];
                sound.extend(spmc.map(|_| "spmc"));
                let variant = platform.variant(boot);
                let told = images::build(scratch, &variant, &Replacements::kept(paths, &variant, &sound))
                    .and_then(|images| conformance::boot_once(scratch, &platform, boot, &images, groups));
                let told = match told {
                    Ok(told) => told,
                    Err(error) => {
                        interrupt::check()?;
                        return Ok(Outcome::Broken(format!("{error:#}")));
                    }
                };
                interrupt::check()?;
                let (cases, error) = told;
                let failed = cases.iter().find(|case| case.failed()).map(|case| case.name.clone());
                // A boot that ends early tells its last lines; the first is enough for a table.
                let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
                Ok(failed.or(error.map(first)).map_or(Outcome::Missed, Outcome::Caught))
            }
            Self::Unit { packages } => unit(scratch, packages),
        }
    }
}

/// `cargo test` of some packages.
fn unit(scratch: &Paths, packages: &[String]) -> Result<Outcome> {
    let mut cargo = toolchain::host_cargo(scratch, "test");
    cargo.arg("--no-fail-fast").env("CARGO_TARGET_DIR", scratch.out.join("target"));
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let log = scratch.out.join("log/unit.log");
    let Err(error) = process::step("Running unit tests", &mut cargo, &log) else {
        return Ok(Outcome::Missed);
    };
    interrupt::check()?;
    let text = fs::read_to_string(&log)?;
    let failed = text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    Ok(failed.map_or_else(|| Outcome::Broken(format!("{error:#}")), |name| Outcome::Caught(name.to_owned())))
}

fn read(root: &Path, names: &[String]) -> Result<Vec<Defect>> {
    let file = root.join("conformance/defects.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let Defects { mut defect } =
        toml::from_str(&text).with_context(|| format!("{} is malformed", file.display()))?;
    defect.retain(|d| names.is_empty() || names.iter().any(|name| d.name.contains(name.as_str())));
    ensure!(!defect.is_empty(), "no defect is called so; --list names them");
    Ok(defect)
}

/// Runs `f` while the defect is in the tree at `root`.
fn with(root: &Path, defect: &Defect, f: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    let file = root.join(&defect.file);
    let sound = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let broken = match apply(&sound, defect) {
        Ok(broken) => broken,
        Err(error) => return Ok(Outcome::Broken(format!("{error:#}"))),
    };
    fs::write(&file, broken)?;
    let outcome = f();
    fs::write(&file, sound)?;
    outcome
}

fn apply(text: &str, defect: &Defect) -> Result<String> {
    let mut text = text.to_owned();
    for [old, new] in &defect.edits {
        let found = text.matches(old.as_str()).count();
        ensure!(
            found == 1,
            "defect {} no longer applies: {} holds {old:?} {found} times",
            defect.name,
            defect.file.display()
        );
        text = text.replace(old.as_str(), new);
    }
    Ok(text)
}

/// A copy of the source tree, with a folder of build products of its own; files that did not change keep their times.
fn scratch(paths: &Paths) -> Result<Paths> {
    let folder = paths.out.join("mutate");
    let scratch = Paths { root: folder.join("tree"), out: folder.join("out") };
    fs::create_dir_all(&scratch.out)?;
    fs::create_dir_all(paths.download())?;
    if !scratch.download().exists() {
        symlink(paths.download(), scratch.download())?;
    }
    let mut git = process::command("git");
    git.current_dir(&paths.root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = git.output()?;
    ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout)?;
    let names: Vec<&str> =
        listed.split('\0').filter(|n| !n.is_empty() && paths.root.join(n).is_file()).collect();

    let note = folder.join("files");
    let before = fs::read_to_string(&note).unwrap_or_default();
    for gone in before.lines().filter(|name| !names.contains(name)) {
        let _ = fs::remove_file(scratch.root.join(gone));
    }
    for name in &names {
        let (from, to) = (paths.root.join(name), scratch.root.join(name));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        let same = to.is_file() && stamp::sha256_of_file(&from)? == stamp::sha256_of_file(&to)?;
        if !same {
            // With its permissions, and the time of now.
            fs::copy(&from, &to).with_context(|| format!("cannot copy {name}"))?;
        }
    }
    paths::write_if_changed(&note, names.join("\n").as_bytes())?;
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defects() -> Vec<Defect> {
        read(&Paths::find().unwrap().root, &[]).unwrap()
    }

    #[test]
    fn there_are_enough_defects_and_no_two_of_one_name() {
        let defects = defects();
        let names: BTreeSet<&str> = defects.iter().map(|d| &*d.name).collect();
        assert_eq!(names.len(), defects.len());
        assert!(defects.len() >= 20);
        let on_the_board = |d: &&Defect| matches!(d.catch, Catch::Conformance { .. });
        assert!(defects.iter().filter(on_the_board).count() >= 20);
    }

    #[test]
    fn a_defect_that_no_longer_applies_is_named() {
        let mut defects = defects();
        let defect = &mut defects[0];
        let once = format!("a {} b", defect.edits[0][0]);
        assert!(apply(&once, defect).is_ok());
        let error = apply("something else", defect).unwrap_err().to_string();
        assert!(error.contains(&defect.name) && error.contains("0 times"), "{error}");
        assert!(apply(&once.repeat(2), defect).is_err());
    }
}
