//! Start and end of the run.

use alloc::{format, string::String};
use core::panic::PanicInfo;

use flexserve_client::job::{FW_CFG_NAME, Job};
use smccc::{Smc, psci};

use crate::{cores, fw_cfg, gic, heap, mmu, record, timer};

core::arch::global_asm!(include_str!("entry.S"));

/// Sets the machine up, reads the job, starts all cores and runs `run`; then powers off. Where no host hands over a job, `alone` says what
/// to do. The boot core comes here from the symbol `payload_main`, which the program defines.
pub fn start(run: fn(&Job) -> Result<(), String>, alone: fn() -> Result<Job, String>) -> ! {
    heap::init();
    mmu::enable();
    record::init();
    cores::find();
    gic::init();
    if let Err(message) = job(alone).and_then(|job| run(&job)) {
        record::error(message);
    }
    power_off()
}

fn job(alone: fn() -> Result<Job, String>) -> Result<Job, String> {
    let job = match fw_cfg::read_file(FW_CFG_NAME)? {
        Some(job) => {
            serde_json::from_slice(&job).map_err(|e| format!("the job in {FW_CFG_NAME} is malformed: {e}"))?
        }
        None => alone()?,
    };
    cores::start_all()?;
    Ok(job)
}

/// Ends the run.
pub fn power_off() -> ! {
    timer::disarm();
    // Without PSCI there is no way to report either: stop here, the host's time limit speaks.
    let _ = psci::system_off::<Smc>();
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    record::error(format!("the payload panicked: {info}"));
    power_off()
}
