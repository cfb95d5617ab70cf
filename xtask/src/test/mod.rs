//! `test`: every suite, counted case by case.

pub mod conformance;
pub mod conformance_log;
mod fuzz;
mod host;
mod kernels;
mod system;

use crate::{interrupt, paths::Paths, platform::Platform};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::{
    fmt,
    ops::AddAssign,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

/// What `test` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The platform that is booted. Otherwise each of them is.
    #[arg(long)]
    platform: Option<String>,
    /// Write the report of the conformance suite here, as JSON.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
    /// Operations of the stress test.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    operations: u64,
    /// Seed of the stress test; the clock's otherwise. Decimal, or hexadecimal behind 0x.
    #[arg(long, value_parser = seed)]
    seed: Option<u64>,
    /// Only this suite; all of them but `fuzz` otherwise.
    suite: Option<Suite>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// A group of tests that are run alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Formatting, clippy, the lock file.
    Lint,
    /// Tests of all crates on this machine.
    Unit,
    /// The kernels' tests on emulated Arm cores of several kinds.
    Kernels,
    /// The whole system, booted.
    System,
    /// The rules that every port keeps, booted, case by case.
    Conformance,
    /// Cores that lend, touch, recall and call garbage at random, against a shadow.
    Stress,
    /// The fuzz targets, briefly; only if asked for.
    Fuzz,
}

/// Cases that passed, failed, and were not run on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    /// Counts one case and says how it went.
    fn case(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => {
                self.passed += 1;
                eprintln!("PASS {name}");
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("FAIL {name}: {error:#}");
            }
        }
    }

    /// Counts a case that could not be run or does not apply, and says why.
    fn skip(&mut self, name: &str, why: &str) {
        self.skipped += 1;
        eprintln!("SKIP {name}: {why}");
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped != 0 { write!(f, ", {} skipped", self.skipped) } else { Ok(()) }
    }
}

/// Runs the suites; the last line on standard output is their sum. Answers whether all is well.
///
/// # Errors
///
/// If the user interrupts.
pub fn run(paths: &Paths, options: &Options) -> Result<bool> {
    let filter = options.filter.as_deref();
    let platforms = options.platform.clone().map_or_else(|| Platform::emulated(paths), |name| vec![name]);
    let mut sum = Tally::default();
    let wanted = |suite: &&Suite| options.suite.map_or(**suite != Suite::Fuzz, |only| only == **suite);
    for suite in Suite::value_variants().iter().filter(wanted) {
        let name = format!("{suite:?}").to_lowercase();
        eprintln!("--- {name}");
        let tally = match suite {
            Suite::Lint => host::lint(paths, filter),
            Suite::Unit => host::unit(paths, filter),
            Suite::Kernels => kernels::run(paths, filter),
            Suite::System => system::run(paths, &platforms, filter),
            Suite::Conformance => conformance::run(paths, &platforms, filter, options.json.as_deref()),
            Suite::Stress => {
                let seed = options.seed.unwrap_or_else(clock);
                conformance::stress(paths, &platforms, options.operations, seed)
            }
            Suite::Fuzz => fuzz::run(paths, filter),
        };
        interrupt::check()?;
        // A suite that cannot run is a failure, not an absence.
        let tally = tally.unwrap_or_else(|error| {
            eprintln!("FAIL {name}: it did not run: {error:#}");
            Tally { failed: 1, ..Tally::default() }
        });
        println!("{name}: {tally}");
        sum += tally;
    }
    println!("{sum}");
    Ok(sum.failed == 0 && sum.passed != 0)
}

fn seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|e| e.to_string())
}

/// A seed that differs from run to run.
fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The number before `word` in a summary such as `12 passed, 1 failed`.
fn count(text: &str, word: &str) -> u32 {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || ",;:()".contains(c)).collect();
    let words: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
    words.windows(2).filter(|pair| pair[1] == word).filter_map(|pair| pair[0].parse::<u32>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_line_names_what_was_skipped_only_if_something_was() {
        let mut sum = Tally { passed: 2, failed: 0, skipped: 0 };
        assert_eq!(sum.to_string(), "2 passed, 0 failed");
        sum += Tally { passed: 1, failed: 1, skipped: 3 };
        assert_eq!(sum.to_string(), "3 passed, 1 failed, 3 skipped");
    }

    #[test]
    fn summaries_of_nextest_and_libtest_are_understood() {
        let nextest =
            "     Summary [   1.5s] 45 tests run: 43 passed (1 slow), 1 failed, 1 timed out, 2 skipped";
        assert_eq!(
            (count(nextest, "passed"), count(nextest, "failed"), count(nextest, "skipped")),
            (43, 1, 2)
        );
        let libtest = "test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s";
        assert_eq!(
            (count(libtest, "passed"), count(libtest, "failed"), count(libtest, "ignored")),
            (7, 2, 1)
        );
    }

    #[test]
    fn a_case_counts_once() {
        let mut tally = Tally::default();
        tally.case("good", Ok(()));
        tally.case("bad", Err(anyhow::anyhow!("no")));
        assert_eq!(tally, Tally { passed: 1, failed: 1, skipped: 0 });
    }
}
