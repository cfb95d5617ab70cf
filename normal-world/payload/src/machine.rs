//! What the host asks for: an answer, tests, or figures.

use alloc::{format, string::String};

use flexserve_client::job::{FW_CFG_NAME, Job};

use crate::{measure, prompt, tests};

#[unsafe(no_mangle)]
extern "C" fn payload_main() -> ! {
    flexserve_normal_runtime::machine::start(run, alone)
}

/// There is nobody to answer.
fn alone() -> Result<Job, String> {
    Err(format!("there is no job: start QEMU with -fw_cfg name={FW_CFG_NAME},…"))
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
