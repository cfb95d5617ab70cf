//! `bench recall`: 64 MB lent and recalled through the whole stack, in instructions of the whole machine.
//!
//! The payload lends to the hostile partition, which maps the region and keeps it; it revokes the region and reclaims it.

use super::Row;
use crate::{
    images::{self, Replacements},
    paths::Paths,
    platform::Platform,
    run,
};
use anyhow::{Context as _, Result, bail};
use flexserve_client::job::Job;

/// Granules of 64 MB.
const GRANULES: f64 = 16384.0;

/// Measures all rows.
///
/// # Errors
///
/// If the images do not build, or the payload reports a failure.
pub fn measure(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    let options =
        run::Options { smp: Some(1), count_instructions: true, ..run::Options::for_tests(&platform.name) };
    let images = images::build(paths, platform, &Replacements::default())?;
    let job = Job { measure_recall: true, ..Job::default() };
    let report = run::boot(paths, platform, &images, &job, None, &options)?;
    let faults = report.faults();
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    let figure = |name: &str| {
        let found = report.figures.iter().find(|(figure, _)| figure == name);
        found.map(|(_, value)| *value as f64).with_context(|| format!("the payload did not measure {name}"))
    };
    let mut rows = Vec::new();
    for shape in ["", "_scattered"] {
        for what in ["lend", "retrieve", "return"] {
            let name = format!("recall_{what}_insn_per_granule{shape}");
            let each = figure(&format!("{what}{shape}"))? / GRANULES;
            rows.push(Row::alone(name, "instructions", each));
        }
    }
    for what in ["worst_masked_el3", "worst_masked_spmc"] {
        rows.push(Row::alone(format!("recall_{what}"), "instructions", figure(what)?));
    }
    Ok(rows)
}
