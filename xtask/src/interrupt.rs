//! Ctrl-C, SIGTERM and SIGHUP: noted here, obeyed by whoever waits.

use anyhow::{Context as _, Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Exit code of a run that the user ended, as shells have it for SIGINT.
pub const EXIT_CODE: u8 = 130;

/// From now on the signals only set a flag, so that everything is cleaned up on the way out.
///
/// # Errors
///
/// If the handler cannot be installed.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).context("cannot handle signals")
}

/// Whether the user has asked to stop.
pub fn requested() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Fails once the user has asked to stop.
///
/// # Errors
///
/// If the user has asked to stop.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}
