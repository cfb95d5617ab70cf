//! What the host asks for: an answer, tests, or figures.

use alloc::string::String;

use flexserve_client::job::Job;

use crate::{measure, prompt, tests};

#[unsafe(no_mangle)]
extern "C" fn payload_main() -> ! {
    flexserve_normal_runtime::machine::start(run)
}

fn run(job: &Job) -> Result<(), String> {
    if job.measure_recall {
        measure::run()
    } else if job.tests.is_empty() {
        prompt::run(job)
    } else {
        tests::run(job)
    }
}
