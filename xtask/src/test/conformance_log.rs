//! `conformance-log`: what the conformance suite said on a board's UART, as `test conformance` would report it.

use super::conformance::{self, BOOTS, Run};
use crate::{
    records::{Parser, Said},
    report::Report,
};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use flexserve_client::job::Record;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The line that begins a run.
const HEADER: &str = "TAP version 14";

/// What `conformance-log` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What was captured on the UART: one run of the suite or several, among whatever the firmware says.
    file: PathBuf,
    /// What the board is called in the report.
    #[arg(long, default_value = "board")]
    platform: String,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// Prints the suite's lines of a log, without what stands between them, and their sum. Answers whether all is well.
///
/// # Errors
///
/// If the log cannot be read or is none of the suite's, or the report cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    let mut runs = Vec::new();
    for report in read(&options.file)? {
        println!("{HEADER}\n1..{}", report.planned);
        report.cases.iter().for_each(|case| println!("{case}"));
        let run = judged(report);
        if let Some(error) = &run.error {
            println!("Bail out! {}: {error}", run.boot);
        }
        runs.push(run);
    }
    let tally = conformance::tally(&runs);
    println!("# {tally}");
    conformance::write(options.json.as_deref(), &[conformance::report(&options.platform, &runs)])?;
    Ok(tally.failed == 0 && tally.passed != 0)
}

fn read(file: &Path) -> Result<Vec<Report>> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let reports = reports(&bytes);
    ensure!(
        !reports.is_empty(),
        "{} holds no line {HEADER:?}: it is not the suite's, or was cut off before the suite began",
        file.display()
    );
    Ok(reports)
}

/// What each run in a log told.
fn reports(bytes: &[u8]) -> Vec<Report> {
    // The last line counts only if it has ended: nobody could say what of it is missing.
    let said = Parser::default().push(bytes);
    let mut reports = Vec::<Report>::new();
    for said in said {
        match (said, reports.last_mut()) {
            (Said::Line(text), _) if text == HEADER => reports.push(Report::default()),
            (Said::Line(text), Some(report)) => report.tap(&text),
            (Said::Record(Record::Error { message }), Some(report)) => report.error = Some(message),
            _ => {}
        }
    }
    reports
}

/// A run, and what was wrong with it: above all, that its log is cut off.
fn judged(report: Report) -> Run {
    let [(whole, _), (secure, _)] = BOOTS;
    // The image that stands in the SPMC's place is there for these cases alone.
    let is_secure = report.cases.first().is_some_and(|case| case.name.starts_with("secure:"));
    let mut faults: Vec<String> = Vec::new();
    faults.extend(
        (report.planned == 0)
            .then(|| "the log is cut off: it does not say how many cases there are".to_owned()),
    );
    faults.extend(report.untold().map(|what| format!("the log is cut off, or the run ended early: {what}")));
    faults.extend(report.faults());
    Run {
        boot: if is_secure { secure } else { whole },
        cases: report.cases,
        error: (!faults.is_empty()).then(|| faults.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Case;

    /// Both boots of `qemu-rme`, of some cases each, as they came over the UART.
    const CAPTURED: &[u8] = include_bytes!("captured.log");

    fn runs(bytes: &[u8]) -> Vec<Run> {
        reports(bytes).into_iter().map(judged).collect()
    }

    #[test]
    fn a_captured_log_is_reported_as_the_run_was() {
        let runs = runs(CAPTURED);
        let boots: Vec<_> = runs.iter().map(|run| (run.boot, run.cases.len(), run.error.clone())).collect();
        assert_eq!(boots, [("conformance", 15, None), ("conformance-secure", 14, None)]);
        let report = conformance::report("b", &runs);
        assert_eq!(
            (&report["platform"], &report["passed"], &report["failed"]),
            (&"b".into(), &29.into(), &0.into())
        );
        assert_eq!(report["cases"].as_array().unwrap().len(), 29);
        assert_eq!(report["cases"][0]["boot"], "conformance");
        let text = String::from_utf8(CAPTURED.to_vec()).unwrap();
        let printed: Vec<String> = runs.iter().flat_map(|run| &run.cases).map(Case::to_string).collect();
        let told: Vec<&str> = text.lines().filter(|line| line.starts_with("ok ")).collect();
        assert_eq!(printed, told);
    }

    #[test]
    fn a_log_that_is_cut_off_says_so_wherever_it_ends() {
        let whole = runs(CAPTURED).len();
        let begin = CAPTURED.windows(HEADER.len()).position(|window| window == HEADER.as_bytes()).unwrap();
        assert!(runs(&CAPTURED[..begin]).is_empty());
        for end in begin..CAPTURED.len() {
            let runs = runs(&CAPTURED[..end]);
            // All that is there of one boot is no sign that the other one is missing.
            let complete = runs.iter().all(|run| run.error.is_none());
            assert!(!complete || runs.len() < whole, "cut at {end}: {:?}", runs.last());
            let cut = runs.iter().rposition(|run| run.error.is_some());
            assert!(cut.is_none_or(|cut| cut + 1 == runs.len()), "cut at {end}");
        }
        let [first, last] = [runs(&CAPTURED[..begin + 100]), runs(&CAPTURED[..CAPTURED.len() - 1])];
        let error = |runs: &[Run]| runs.last().unwrap().error.clone().unwrap();
        assert!(
            error(&first).contains("cut off") && error(&first).contains("of 15 cases"),
            "{}",
            error(&first)
        );
        assert!(error(&last).contains("13 of 14 cases"), "{}", error(&last));
    }

    #[test]
    fn what_went_wrong_is_reported() {
        let log = b"NOTICE: BL31\r\nTAP version 14\r\n1..2\r\nnot ok 1 - a: x # rule # 3\r\n\x1e{\"record\":\"error\",\"message\":\"panicked\"}\r\n";
        let [run] = runs(log).try_into().unwrap();
        let error = run.error.as_deref().unwrap();
        assert!(error.contains("1 of 2 cases told") && error.contains("panicked"), "{error}");
        assert!(run.cases[0].failed());
        assert_eq!(conformance::tally(&[run]).failed, 2);
    }
}
