//! `mutate`: breaks the firmware on purpose, one defect at a time, and sees whether the tests notice.
//!
//! Defects are data: `conformance/defects.toml`. Each is applied to a copy of the source tree in `out/mutate`, or to TF-A's source as
//! it was unpacked there, never to the tree itself, and built and run from there.

use crate::{
    coverage::Coverage,
    images::{self, Replacements},
    interrupt,
    paths::{self, Paths},
    platform::Platform,
    process, stamp,
    tap::Case,
    test::conformance::{self, BOOTS},
    tfa::remove,
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

/// In a boot's folder: TF-A's source there has a defect. It is still there if a run was killed.
const BROKEN: &str = "broken";

/// What `mutate` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only list the defects.
    #[arg(long)]
    list: bool,
    /// Write each case of the conformance suite, and the defects that it noticed, to this file.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
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
    /// In the tree, or behind `tf-a/` in TF-A's source for the platform and boot that should notice.
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

/// What the tests told.
struct Told {
    cases: Vec<Case>,
    /// What was wrong with the boot as a whole, or the unit test that failed.
    error: Option<String>,
}

/// What became of a defect.
enum Outcome {
    /// What failed; the suite's cases if it told any.
    Caught(Vec<String>),
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
    let mut coverage = Coverage::default();
    let mut sound = BTreeSet::new();
    let mut rows = Vec::new();
    for (defect, number) in defects.iter().zip(1..) {
        interrupt::check()?;
        if sound.insert(defect.catch.clone().whole()) {
            without_defect(paths, &scratch, &defect.catch, &mut coverage)?;
        }
        eprintln!("[{number}/{}] {}: {}", defects.len(), defect.name, defect.what);
        let outcome = with(&scratch, defect, || defect.run(paths, &scratch, &mut coverage))?;
        eprintln!("    {}", outcome.say());
        rows.push((defect, outcome));
    }
    println!("| defect | tried on | first case that fails |\n|---|---|---|");
    for (defect, outcome) in &rows {
        println!("| {}: {} | {} | {} |", defect.name, defect.what, defect.catch.name(), outcome.say());
    }
    print!("\n{}", coverage.table());
    let caught = rows.iter().filter(|(_, outcome)| matches!(outcome, Outcome::Caught(_))).count();
    println!("{caught} of {} defects caught", rows.len());
    match read(&paths.root, &[])?.len() - rows.len() {
        0 => print!("{}", coverage.never()),
        more => println!("{more} more defects were not asked for"),
    }
    if let Some(file) = &options.json {
        paths::write_atomically(file, (serde_json::to_string_pretty(&coverage.json())? + "\n").as_bytes())?;
    }
    Ok(caught == rows.len())
}

/// Checks that the tests pass as long as nothing is broken, and notes the suite's cases.
fn without_defect(paths: &Paths, scratch: &Paths, catch: &Catch, coverage: &mut Coverage) -> Result<()> {
    eprintln!("without a defect: {}", catch.name());
    if let Catch::Conformance { platform, boot, .. } = catch
        && let Some((boot, spmc)) = BOOTS.iter().find(|(name, _)| name == boot)
    {
        let folder = scratch.platform(platform).join(boot);
        if folder.join(BROKEN).exists() {
            fs::remove_dir_all(folder)?;
        }
        conformance::images(paths, &Platform::load(paths, platform)?, boot, *spmc)?;
    }
    let told = catch.clone().whole().run(paths, scratch)?;
    if let Some(error) = told.error {
        bail!("{} does not run without a defect: {error}", catch.name());
    }
    if let Some(case) = told.cases.iter().find(|case| case.failed()) {
        bail!("{} fails without a defect: {}", catch.name(), case.name);
    }
    if matches!(catch, Catch::Conformance { .. }) {
        coverage.sound(catch.name(), &told.cases);
    }
    Ok(())
}

impl Defect {
    /// The file that it changes, and the boot's folder if that is one of TF-A's.
    fn place(&self, scratch: &Paths) -> (PathBuf, Option<PathBuf>) {
        match (self.file.strip_prefix("tf-a"), &self.catch) {
            (Ok(file), Catch::Conformance { platform, boot, .. }) => {
                let folder = scratch.platform(platform).join(boot);
                (folder.join("tf-a").join(file), Some(folder))
            }
            _ => (scratch.root.join(&self.file), None),
        }
    }

    fn run(&self, paths: &Paths, scratch: &Paths, coverage: &mut Coverage) -> Result<Outcome> {
        let told = match self.catch.run(paths, scratch) {
            Ok(told) => told,
            Err(error) => {
                interrupt::check()?;
                return Ok(Outcome::Broken(format!("{error:#}")));
            }
        };
        let mut failed = match &self.catch {
            Catch::Conformance { groups, .. } => {
                coverage.broken(&self.catch.name(), &self.name, groups, &told.cases)
            }
            Catch::Unit { .. } => Vec::new(),
        };
        if failed.is_empty() {
            // A boot that ends early tells its last lines; the first is enough for a table.
            failed.extend(told.error.iter().flat_map(|text| text.lines()).take(1).map(str::to_owned));
        }
        Ok(if failed.is_empty() { Outcome::Missed } else { Outcome::Caught(failed) })
    }
}

impl Outcome {
    fn say(&self) -> String {
        match self {
            Self::Caught(cases) => {
                let more = cases.len().saturating_sub(1);
                let first = cases.first().map_or("", |case| case);
                if more == 0 { first.to_owned() } else { format!("{first}, and {more} more") }
            }
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

    /// Builds and runs the tests.
    fn run(&self, paths: &Paths, scratch: &Paths) -> Result<Told> {
        match self {
            Self::Conformance { platform, boot, groups } => {
                let platform = Platform::load(scratch, platform)?;
                let known = BOOTS.iter().find(|(name, _)| name == boot);
                let (boot, spmc) = known.with_context(|| format!("no boot {boot:?}"))?;
                // Only what may be broken is built from the copy: the EL3 service, and the SPMC unless another stands there.
                let mut sound = vec!["payload", "llm", "hostile"];
                sound.extend(spmc.map(|_| "spmc"));
                let variant = platform.variant(boot);
                let images = images::build(scratch, &variant, &Replacements::kept(paths, &variant, &sound))?;
                let (cases, error) = conformance::boot_once(scratch, &platform, boot, &images, groups)?;
                interrupt::check()?;
                Ok(Told { cases, error })
            }
            Self::Unit { packages } => Ok(Told { cases: Vec::new(), error: unit(scratch, packages)? }),
        }
    }
}

/// `cargo test` of some packages: the first test that failed.
fn unit(scratch: &Paths, packages: &[String]) -> Result<Option<String>> {
    let mut cargo = toolchain::host_cargo(scratch, "test");
    cargo.arg("--no-fail-fast").env("CARGO_TARGET_DIR", scratch.out.join("target"));
    cargo.args(packages.iter().flat_map(|package| ["--package", package]));
    let log = scratch.out.join("log/unit.log");
    let Err(error) = process::step("Running unit tests", &mut cargo, &log) else {
        return Ok(None);
    };
    let text = fs::read_to_string(&log)?;
    let failed = text.lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    failed.map(|name| Some(name.to_owned())).ok_or(error)
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

/// Runs `f` while the defect is in the copy.
fn with(scratch: &Paths, defect: &Defect, f: impl FnOnce() -> Result<Outcome>) -> Result<Outcome> {
    let (file, boot) = defect.place(scratch);
    let sound = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let broken = match apply(&sound, defect) {
        Ok(broken) => broken,
        Err(error) => return Ok(Outcome::Broken(format!("{error:#}"))),
    };
    let write = |text: &str| -> Result<()> {
        fs::write(&file, text)?;
        match &boot {
            // TF-A's source is taken for unchanged otherwise.
            Some(boot) => remove(&boot.join("bl31.stamp")),
            None => Ok(()),
        }
    };
    let note = boot.as_ref().map(|boot| boot.join(BROKEN));
    note.as_ref().map_or(Ok(()), |note| fs::write(note, &defect.name))?;
    write(&broken)?;
    let outcome = f();
    write(&sound)?;
    note.map_or(Ok(()), |note| remove(&note))?;
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
    fn every_defect_of_the_tree_applies() {
        let root = Paths::find().unwrap().root;
        for defect in defects().iter().filter(|defect| !defect.file.starts_with("tf-a")) {
            apply(&fs::read_to_string(root.join(&defect.file)).unwrap(), defect).unwrap();
        }
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
