//! Cases, and how they are run and reported.

use alloc::{boxed::Box, format, string::String, vec, vec::Vec};

use flexserve_client::job::Job;
use flexserve_normal_runtime::{machine, record};

use crate::{bench::Bench, cases, stress};

/// Why a case did not pass.
pub enum Failure {
    /// The rule does not hold: what was seen instead.
    Wrong(String),
    /// The rule cannot be looked at here: what is missing.
    Missing(String),
}

impl From<String> for Failure {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

/// What a case answers.
pub type Verdict = Result<(), Failure>;

/// Ends a case with a sentence unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::suite::Failure::Wrong(alloc::format!($($what)+)));
        }
    };
}
pub(crate) use ensure;

/// One rule, and how it is looked at.
struct Case {
    /// `group: what must hold`.
    name: String,
    /// Where that is written: a rule of the design, or document, revision and section.
    rule: &'static str,
    run: Box<dyn Fn(&mut Bench) -> Verdict>,
}

/// The cases of a run, in their order.
#[derive(Default)]
pub struct Cases(Vec<Case>);

impl Cases {
    /// Adds a case.
    pub fn add(
        &mut self,
        group: &str,
        name: impl AsRef<str>,
        rule: &'static str,
        run: impl Fn(&mut Bench) -> Verdict + 'static,
    ) {
        let name = format!("{group}: {}", name.as_ref());
        self.0.push(Case { name, rule, run: Box::new(run) });
    }
}

#[unsafe(no_mangle)]
extern "C" fn payload_main() -> ! {
    machine::start(run, all)
}

/// Without a host, as on a board, every case.
fn all() -> Result<Job, String> {
    Ok(Job { tests: vec!["all".into()], ..Job::default() })
}

/// Runs the cases whose names contain one of the job's words; "all" stands for every case.
fn run(job: &Job) -> Result<(), String> {
    let mut bench = Bench::start();
    if job.operations != 0 {
        record::line("TAP version 14\n1..1");
        let name = format!("stress: {} operations, seed {:#x}", job.operations, job.seed);
        report(1, &name, "DESIGN rules 1 to 6", stress::run(bench, job.operations, job.seed));
        return Ok(());
    }
    let Cases(mut cases) = cases::all(&bench);
    cases.retain(|case| job.tests.iter().any(|word| word == "all" || case.name.contains(word.as_str())));
    record::line(&format!("TAP version 14\n1..{}", cases.len()));
    for (case, number) in cases.iter().zip(1..) {
        let Case { name, rule, run } = case;
        let verdict = run(&mut bench);
        report(number, name, rule, verdict);
    }
    Ok(())
}

/// One line of the protocol.
fn report(number: u32, name: &str, rule: &str, verdict: Verdict) {
    record::line(&match verdict {
        Ok(()) => format!("ok {number} - {name} # {rule}"),
        Err(Failure::Missing(what)) => format!("ok {number} - {name} # SKIP {what} # {rule}"),
        Err(Failure::Wrong(what)) => format!("not ok {number} - {name} # {rule} # {what}"),
    });
}
