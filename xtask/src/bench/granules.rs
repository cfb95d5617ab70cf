//! `bench smc` and `bench granules`: instructions of the EL3 service's calls, against BL31's own library.
//!
//! The image `el3-svc/bench` stands in the SPMC's place and counts by the emulator's instruction counter.

use super::Row;
use crate::{
    images, interrupt,
    logs::Tables,
    paths::Paths,
    platform::Platform,
    process,
    qemu::{COUNT_INSTRUCTIONS, Event, Qemu, Setup},
};
use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// How long the whole measurement may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Figures come as hundredths.
const HUNDREDTHS: f64 = 100.0;

/// Measures all rows.
///
/// # Errors
///
/// If the image does not build, or the machine reports a failure.
pub fn measure(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    let images = images::el3_bench(paths, platform)?;
    let tables = Tables::read(&images.logs)?;
    let mut reader = tables.reader();
    let machine = platform.machine()?;
    let setup = Setup {
        flash: &images.flash,
        cores: 1,
        memory: &machine.memory,
        job: None,
        model: None,
        extra: &COUNT_INSTRUCTIONS,
    };
    let qemu = Qemu::start(machine, &setup)?;
    let begun = Instant::now();
    let mut rows = Vec::new();
    while begun.elapsed() < PATIENCE {
        interrupt::check()?;
        let Some(Event::Secure(bytes)) = qemu.next(process::POLL) else { continue };
        for line in reader.push(&bytes) {
            if line.is_panic() {
                bail!("the measurement failed: {}", line.text);
            }
            if line.text == "bench done" {
                return Ok(rows);
            }
            rows.extend(row(&line.text));
        }
    }
    bail!("the measurement did not end within {} s\n{}", PATIENCE.as_secs(), qemu.messages())
}

/// Reads `row <name> <ours> <peer>`; a peer of 0 is none.
fn row(line: &str) -> Option<Row> {
    let mut words = line.strip_prefix("row ")?.split(' ');
    let name = words.next()?.to_owned();
    let mut figure = || words.next()?.parse::<f64>().ok().map(|f| f / HUNDREDTHS);
    let (ours, peer) = (figure()?, figure()?);
    let unit = if name.starts_with("tlbi") { "TLBIs" } else { "instructions" };
    Some(if peer > 0.0 { Row::against(name, unit, ours, peer) } else { Row::alone(name, unit, ours) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_from_log_lines() {
        let with_peer = row("row granule_single_lend 45000 90000").unwrap();
        assert_eq!((with_peer.ours, with_peer.peer, with_peer.ratio), (450.0, Some(900.0), Some(0.5)));
        let alone = row("row tlbi_per_2mb 100 0").unwrap();
        assert_eq!((alone.ours, alone.peer, &*alone.unit), (1.0, None, "TLBIs"));
        assert!(row("granule service").is_none());
        assert!(row("row null_smc x 1").is_none());
    }
}
