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
        let (tally, report) = one(paths, &platform, filter)?;
        let kept = paths.platform(name).join("conformance.json");
        paths::write_atomically(&kept, (serde_json::to_string_pretty(&report)? + "\n").as_bytes())?;
        reports.push(report);
        sum += tally;
    }
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&json!({"platforms": reports}))? + "\n";
        paths::write_atomically(file, text.as_bytes())?;
    }
    Ok(sum)
}

/// Both boots of one platform, and their report.
fn one(paths: &Paths, platform: &Platform, filter: Option<&str>) -> Result<(Tally, Value)> {
    let mut tally = Tally::default();
    let mut entries = Vec::new();
    let words = [filter.unwrap_or("all").to_owned()];
    for (boot, spmc) in BOOTS {
        let images = images(paths, platform, boot, spmc)?;
        let (cases, error) = boot_once(paths, platform, boot, &images, &words)?;
        for case in &cases {
            entries.push(case.json(boot));
            count(&mut tally, platform, case);
        }
        if let Some(error) = error {
            entries.push(json!({"boot": boot, "name": boot, "result": "fail", "detail": error}));
            tally.case(&format!("{boot} on {}", platform.name), Err(anyhow::anyhow!(error)));
        }
    }
    let report = json!({
        "platform": platform.name,
        "passed": tally.passed,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "cases": entries,
    });
    Ok((tally, report))
}

/// Runs the stress test on each platform: `operations` of all cores, decided by `seed`.
///
/// # Errors
///
/// If the images cannot be built.
pub fn stress(paths: &Paths, platforms: &[String], operations: u64, seed: u64) -> Result<Tally> {
    let (boot, spmc) = BOOTS[0];
    let mut tally = Tally::default();
    for name in platforms {
        let platform = Platform::load(paths, name)?;
        eprintln!("stress on {name}: {operations} operations, --seed {seed:#x}");
        let job = |job: Job| Job { operations, seed, tests: vec!["stress".to_owned()], ..job };
        let images = images(paths, &platform, boot, spmc)?;
        let (cases, error) = boot_with(paths, &platform, boot, &images, job)?;
        cases.iter().for_each(|case| count(&mut tally, &platform, case));
        if let Some(error) = error {
            tally.case(&format!("stress on {name}"), Err(anyhow::anyhow!(error)));
        }
    }
    Ok(tally)
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
    let mut report = Report::default();
    let ended = run::boot_into(&mut report, paths, &platform.variant(boot), images, &job, None, &options);
    let mut faults = Vec::new();
    let told = report.cases.len();
    if told < report.planned as usize {
        let behind = report.cases.last().map_or("the start", |case| &case.name);
        faults.push(format!("{told} of {} cases told; nothing after {behind:?}", report.planned));
    }
    faults.extend(report.faults());
    faults.extend(ended.err().map(|error| format!("{error:#}")));
    let error = (!faults.is_empty()).then(|| faults.join("\n"));
    Ok((report.cases, error))
}

fn count(tally: &mut Tally, platform: &Platform, case: &Case) {
    let name = format!("{}::{} ({})", platform.name, case.name, case.rule);
    match &case.verdict {
        Verdict::Passed => tally.case(&name, Ok(())),
        Verdict::Failed(what) => tally.case(&name, Err(anyhow::anyhow!(what.clone()))),
        Verdict::Skipped(why) => tally.skip(&name, why),
    }
}
