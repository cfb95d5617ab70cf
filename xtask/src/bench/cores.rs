//! `bench cores`: how an answer gets faster with lent cores, in instructions' time, whatever the host's cores do meanwhile.
//!
//! The machine boots as `run --smp N` does. [A plugin](../../plugin/cores.c) keeps its cores equally fast and reads their clock at the
//! payload's marks, one behind each call for [`CALL`] tokens.

use super::{Row, counter::plugin};
use crate::{
    images::{self, Images},
    model,
    paths::Paths,
    platform::Platform,
    run,
};
use anyhow::{Context as _, Result, bail, ensure};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Tokens between two marks: `tokens_per_call` of the payload's `STREAM`.
const CALL: usize = 4;
/// The text that the long prompt begins with, and how many of its bytes: about 1,500 tokens.
const TEXT: &str = "LICENSE-APACHE";
const LONG: usize = 6_800;

/// An answer to measure.
struct Case {
    name: &'static str,
    prompt: String,
    max_tokens: u32,
    /// Of the machine. The first alone is what the others are compared with.
    cores: &'static [u32],
}

/// Measures all rows.
///
/// # Errors
///
/// If the images do not build, an answer fails, or depends on the number of cores.
pub fn measure(paths: &Paths, platform: &Platform) -> Result<Vec<Row>> {
    let bench = Bench {
        paths,
        platform,
        plugin: plugin(paths, "cores")?,
        model: model::container(paths, None)?,
        images: images::build(paths, platform, &images::Replacements::default())?,
    };
    let text = fs::read_to_string(paths.root.join(TEXT))?;
    let text = text.get(..LONG).context("the text is too short")?;
    let cases = [
        Case {
            name: "decode",
            prompt: "Give me a recipe for pancakes.".to_owned(),
            max_tokens: 24,
            cores: &[1, 2, 3, 4, 8],
        },
        Case {
            name: "decode_long",
            prompt: format!("{text}\n\nWhat is this text about?"),
            max_tokens: 16,
            cores: &[1, 2, 4],
        },
    ];
    let mut rows = Vec::new();
    for case in &cases {
        let mut alone: Option<(f64, String)> = None;
        for &cores in case.cores {
            let (time, logits) = bench.time(case, cores)?;
            let name = format!("cores_{}/{cores}", case.name);
            rows.push(match &alone {
                None => Row::alone(name, "million instructions", time),
                Some((peer, same)) => {
                    ensure!(logits == *same, "{cores} cores compute other logits than one");
                    Row::against(name, "million instructions", time, *peer)
                }
            });
            alone.get_or_insert((time, logits));
        }
    }
    Ok(rows)
}

/// What it takes to measure.
struct Bench<'a> {
    paths: &'a Paths,
    platform: &'a Platform,
    plugin: PathBuf,
    model: PathBuf,
    images: Images,
}

impl Bench<'_> {
    /// Time of a token, in millions of instructions, and the hash of all logits.
    fn time(&self, case: &Case, cores: u32) -> Result<(f64, String)> {
        let folder = tempfile::tempdir_in(self.paths.out.join("bench"))?;
        let counts = folder.path().join("counts");
        let options = run::Options {
            prompt: case.prompt.clone(),
            max_tokens: case.max_tokens,
            smp: Some(cores),
            plugin: Some(format!("{},out={}", self.plugin.display(), counts.display())),
            timeout: 3600,
            ..run::Options::for_tests(&self.platform.name)
        };
        let job = run::job(self.platform, &options);
        let report = run::boot(self.paths, self.platform, &self.images, &job, Some(&self.model), &options)?;
        println!();
        let faults = report.faults();
        if !faults.is_empty() {
            bail!("{}", faults.join("\n"));
        }
        let done = report.done.context("the machine stopped before the answer was complete")?;
        ensure!(done.lent_cores == u64::from(cores) - 1, "{} cores were lent", done.lent_cores);
        Ok((per_token(&counts)?, done.logits_sha256))
    }
}

/// Millions of instructions for each token between the first mark and the last but one: the call before the last mark may have been
/// for fewer tokens.
fn per_token(counts: &Path) -> Result<f64> {
    let counts = fs::read_to_string(counts).context("the plugin wrote no counts")?;
    let clock = |line: &str| line.split(' ').next()?.parse::<f64>().ok();
    let clocks: Vec<f64> =
        counts.lines().map(clock).collect::<Option<_>>().context("counts of an unknown form")?;
    let [first, .., last, _] = clocks[..] else { bail!("an answer too short to measure") };
    Ok((last - first) / (CALL * (clocks.len() - 2)) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_calls_count() {
        let folder = tempfile::tempdir().unwrap();
        let counts = folder.path().join("counts");
        fs::write(&counts, "1000000 9 9\n5000000 9 9\n9000000 9 9\n9500000 9 9\n").unwrap();
        assert_eq!(per_token(&counts).unwrap(), 1.0);
        fs::write(&counts, "1000000 9 9\n5000000 9 9\n").unwrap();
        assert!(per_token(&counts).is_err());
    }
}
