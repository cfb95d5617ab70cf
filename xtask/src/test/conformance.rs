//! The conformance suite, in two boots: beside the firmware as it is, and beside a caller in the SPMC's place.

use super::Tally;
use crate::{
    images,
    paths::{self, Paths},
    platform::Platform,
    report::Report,
    run,
    tap::{Case, Verdict},
};
use anyhow::Result;
use flexserve_client::job::Job;
use serde_json::json;
use std::path::Path;

/// Cores of the machine: enough for the cases that name one.
const CORES: u32 = 4;
/// Seconds of silence after which a case is taken to hang.
const SILENCE: u64 = 60;
/// Boots: what they are called, and which package stands in the SPMC's place.
const BOOTS: [(&str, Option<&str>); 2] =
    [("conformance", None), ("conformance-secure", Some("flexserve-conformance-secure"))];

/// Runs the suite on each platform and reports it to `out/<platform>/conformance.json`; for the first one, to `json` too.
///
/// # Errors
///
/// If the images cannot be built, or a report not be written.
pub fn run(paths: &Paths, platforms: &[String], filter: Option<&str>, json: Option<&Path>) -> Result<Tally> {
    let mut tally = Tally::default();
    for (index, name) in platforms.iter().enumerate() {
        let platform = Platform::load(paths, name)?;
        eprintln!("--- conformance on {name}");
        tally += on_platform(paths, &platform, filter, json.filter(|_| index == 0))?;
    }
    Ok(tally)
}

fn on_platform(
    paths: &Paths,
    platform: &Platform,
    filter: Option<&str>,
    json: Option<&Path>,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut entries = Vec::new();
    for (boot, spmc) in BOOTS {
        let (cases, error) = boot_once(paths, platform, boot, spmc, filter)?;
        for case in &cases {
            entries.push(case.json(boot));
            count(&mut tally, case);
        }
        if let Some(error) = error {
            entries.push(json!({"boot": boot, "name": boot, "result": "fail", "detail": error}));
            tally.case(boot, Err(anyhow::anyhow!(error)));
        }
    }
    let report = json!({
        "platform": platform.name,
        "passed": tally.passed,
        "failed": tally.failed,
        "skipped": tally.skipped,
        "cases": entries,
    });
    let text = serde_json::to_string_pretty(&report)? + "\n";
    let kept = paths.platform(&platform.name).join("conformance.json");
    for file in [Some(kept.as_path()), json].into_iter().flatten() {
        paths::write_atomically(file, text.as_bytes())?;
    }
    Ok(tally)
}

/// One boot: its cases, and what was wrong with the run as a whole.
///
/// # Errors
///
/// If the images cannot be built, or the machine not be started.
fn boot_once(
    paths: &Paths,
    platform: &Platform,
    boot: &str,
    spmc: Option<&str>,
    filter: Option<&str>,
) -> Result<(Vec<Case>, Option<String>)> {
    let images = images::with_payload(paths, platform, boot, "flexserve-conformance", spmc)?;
    let mut options = run::Options::for_tests(&platform.name);
    options.smp = Some(CORES);
    options.timeout = SILENCE;
    let job = Job { tests: vec![filter.unwrap_or("all").to_owned()], ..run::job(platform, &options) };
    let mut report = Report::default();
    let ended = run::boot_into(&mut report, paths, &platform.variant(boot), &images, &job, None, &options);
    let mut faults = report.faults();
    faults.extend(ended.err().map(|error| format!("{error:#}")));
    let told = report.cases.len();
    if told < report.planned as usize || (report.planned == 0 && filter.is_none()) {
        let behind = report.cases.last().map_or("the start", |case| &case.name);
        faults.push(format!("{told} of {} cases told; nothing after {behind:?}", report.planned));
    }
    let error = (!faults.is_empty()).then(|| faults.join("\n"));
    Ok((report.cases, error))
}

fn count(tally: &mut Tally, case: &Case) {
    let name = format!("conformance::{} ({})", case.name, case.rule);
    match &case.verdict {
        Verdict::Passed => tally.case(&name, Ok(())),
        Verdict::Failed(what) => tally.case(&name, Err(anyhow::anyhow!(what.clone()))),
        Verdict::Skipped(why) => tally.skip(&name, why),
    }
}
