//! The conformance suite, in two boots: beside the firmware as it is, and beside a caller in the SPMC's place.

use super::Tally;
use crate::{
    images::{self, Images},
    paths::{self, Paths},
    platform::Platform,
    report::Report,
    run,
    tap::{Case, Verdict},
};
use anyhow::Result;
use flexserve_client::job::Job;
use serde_json::{Value, json};
use std::path::Path;

/// Cores of the machine: enough for the cases that name one.
const CORES: u32 = 4;
/// Seconds of silence after which a case is taken to hang.
const SILENCE: u64 = 60;
/// Boots: what they are called, and which package stands in the SPMC's place.
pub const BOOTS: [(&str, Option<&str>); 2] =
    [("conformance", None), ("conformance-secure", Some("flexserve-conformance-secure"))];

/// What one run of the suite told.
#[derive(Debug)]
pub struct Run {
    /// Which of [`BOOTS`].
    pub boot: &'static str,
    /// The cases.
    pub cases: Vec<Case>,
    /// What was wrong with the run as a whole.
    pub error: Option<String>,
}

/// Runs the suite on each platform and reports it to `json`, if that is a file, and to `out/<platform>/conformance.json`.
///
/// # Errors
///
/// If the images cannot be built, or a report not be written.
pub fn run(paths: &Paths, platforms: &[String], filter: Option<&str>, json: Option<&Path>) -> Result<Tally> {
    let mut sum = Tally::default();
    let mut reports = Vec::new();
    for name in platforms {
        let platform = Platform::load(paths, name)?;
        let runs = one(paths, &platform, filter)?;
        let report = report(name, &runs);
        let kept = paths.platform(name).join("conformance.json");
        paths::write_atomically(&kept, (serde_json::to_string_pretty(&report)? + "\n").as_bytes())?;
        reports.push(report);
        sum += tally(&runs);
    }
    write(json, &reports)?;
    Ok(sum)
}

/// Both boots of one platform; says how each case went.
fn one(paths: &Paths, platform: &Platform, filter: Option<&str>) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    let words = [filter.unwrap_or("all").to_owned()];
    for (boot, spmc) in BOOTS {
        let images = images(paths, platform, boot, spmc)?;
        let (cases, error) = boot_once(paths, platform, boot, &images, &words)?;
        say(&platform.name, &cases);
        if let Some(error) = &error {
            eprintln!("FAIL {boot} on {}: {error}", platform.name);
        }
        runs.push(Run { boot, cases, error });
    }
    Ok(runs)
}

/// Counts the cases of some runs, and each run that failed as a whole.
pub fn tally(runs: &[Run]) -> Tally {
    let mut tally = Tally::default();
    for run in runs {
        for case in &run.cases {
            match case.verdict {
                Verdict::Passed => tally.passed += 1,
                Verdict::Failed(_) => tally.failed += 1,
                Verdict::Skipped(_) => tally.skipped += 1,
            }
        }
        tally.failed += u32::from(run.error.is_some());
    }
    tally
}

/// The report of a platform's runs.
pub fn report(platform: &str, runs: &[Run]) -> Value {
    let tally = tally(runs);
    let entries: Vec<Value> = runs
        .iter()
        .flat_map(|Run { boot, cases, error }| {
            let whole = error
                .as_ref()
                .map(|error| json!({"boot": boot, "name": boot, "result": "fail", "detail": error}));
            cases.iter().map(|case| case.json(boot)).chain(whole)
        })
        .collect();
    json!({
        "platform": platform,
        "passed": tally.passed,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "cases": entries,
    })
}

/// Writes platforms' reports, if there is a file to write.
///
/// # Errors
///
/// If it cannot be written.
pub fn write(file: Option<&Path>, reports: &[Value]) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(&json!({"platforms": reports}))? + "\n";
    paths::write_atomically(file, text.as_bytes())
}

/// Runs the stress test on each platform: `operations` of all cores, decided by `seed`.
///
/// # Errors
///
/// If the images cannot be built.
pub fn stress(paths: &Paths, platforms: &[String], operations: u64, seed: u64) -> Result<Tally> {
    let (boot, spmc) = BOOTS[0];
    let mut sum = Tally::default();
    for name in platforms {
        let platform = Platform::load(paths, name)?;
        eprintln!("stress on {name}: {operations} operations, --seed {seed:#x}");
        let job = |job: Job| Job { operations, seed, tests: vec!["stress".to_owned()], ..job };
        let images = images(paths, &platform, boot, spmc)?;
        let (cases, error) = boot_with(paths, &platform, boot, &images, job)?;
        say(name, &cases);
        if let Some(error) = &error {
            eprintln!("FAIL stress on {name}: {error}");
        }
        sum += tally(&[Run { boot, cases, error }]);
    }
    Ok(sum)
}

/// The images of a boot.
///
/// # Errors
///
/// If they cannot be built.
pub fn images(paths: &Paths, platform: &Platform, boot: &str, spmc: Option<&str>) -> Result<Images> {
    images::with_payload(paths, platform, boot, "flexserve-conformance", spmc)
}

/// One boot, of the cases whose names contain one of these words: the cases, and what was wrong with the run as a whole.
///
/// # Errors
///
/// If the machine cannot be started.
pub fn boot_once(
    paths: &Paths,
    platform: &Platform,
    boot: &str,
    images: &Images,
    words: &[String],
) -> Result<(Vec<Case>, Option<String>)> {
    let job = |job: Job| Job { tests: words.to_vec(), ..job };
    let (cases, error) = boot_with(paths, platform, boot, images, job)?;
    let none = cases.is_empty() && error.is_none() && words == ["all"];
    Ok((cases, error.or(none.then(|| "no case was told".to_owned()))))
}

fn boot_with(
    paths: &Paths,
    platform: &Platform,
    boot: &str,
    images: &Images,
    job: impl FnOnce(Job) -> Job,
) -> Result<(Vec<Case>, Option<String>)> {
    let mut options = run::Options::for_tests(&platform.name);
    options.smp = Some(CORES);
    options.timeout = SILENCE;
    let job = job(run::job(platform, &options));
    // All cases are what the suite runs of itself: with no job, as on a board.
    options.alone = job.operations == 0 && job.tests == ["all"];
    let mut report = Report::default();
    let ended = run::boot_into(&mut report, paths, &platform.variant(boot), images, &job, None, &options);
    let mut faults: Vec<String> = report.untold().into_iter().collect();
    faults.extend(report.faults());
    faults.extend(ended.err().map(|error| format!("{error:#}")));
    let error = (!faults.is_empty()).then(|| faults.join("\n"));
    Ok((report.cases, error))
}

/// Says how cases went.
fn say(platform: &str, cases: &[Case]) {
    for case in cases {
        let name = format!("{platform}::{} ({})", case.name, case.rule);
        match &case.verdict {
            Verdict::Passed => eprintln!("PASS {name}"),
            Verdict::Failed(what) => eprintln!("FAIL {name}: {what}"),
            Verdict::Skipped(why) => eprintln!("SKIP {name}: {why}"),
        }
    }
}
