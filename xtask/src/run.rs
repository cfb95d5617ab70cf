//! `run`: a prompt, answered inside the secure world.

use crate::{
    images::{self, Images},
    interrupt,
    logs::{Reader, Severity, Tables},
    model,
    paths::{self, Paths},
    platform::Platform,
    process,
    qemu::{COUNT_INSTRUCTIONS, Event, Qemu, Setup},
    records::{Parser, Said},
    report::{Fault, Report},
};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use flexserve_client::job::{Job, Record, Target};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Write as _, stdout},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long the logs may trail behind the machine's end, or behind a panic.
const GRACE: Duration = Duration::from_millis(500);
/// One in Q16.16, and in Q0.16.
const ONE: f64 = 65536.0;

/// What `run` can be told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The platform, a folder of fvp/.
    #[arg(long, default_value = "qemu-rme")]
    pub platform: String,
    /// A GGUF file, or a container that `model pack` made (.flx). Default: SmolLM2-135M-Instruct.
    #[arg(long, value_name = "FILE")]
    pub model: Option<PathBuf>,
    /// The message to answer.
    #[arg(long, default_value = "What is the capital of France?")]
    pub prompt: String,
    /// Most tokens to answer.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: u32,
    /// Cores of the machine.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub smp: Option<u32>,
    /// RAM of the machine, as QEMU takes it: 3G, 512M.
    #[arg(long)]
    pub memory: Option<String>,
    /// Temperature of the sampler; 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.0, value_parser = temperature)]
    pub temp: f64,
    /// Sample among so many of the likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Sample among the likeliest tokens that make up this probability.
    #[arg(long, default_value_t = 1.0, value_parser = probability)]
    pub top_p: f64,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens of context; 0 lets the payload choose.
    #[arg(long, default_value_t = 0)]
    pub context: u32,
    /// Attack from every world while the model is resident.
    #[arg(long)]
    pub attack: bool,
    /// Write the figures of the run here, as JSON.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Show the logs of all worlds, not only warnings and errors.
    #[arg(long, short)]
    pub verbose: bool,
    /// Give up if the machine says nothing for so many seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
    /// Let the guest's clock count instructions, a nanosecond each. Needs `--smp 1`.
    #[arg(skip)]
    pub count_instructions: bool,
    /// Leave the payload alone with what it does on a board, without a job.
    #[arg(skip)]
    pub alone: bool,
    /// A plugin of the emulator's, with its arguments.
    #[arg(skip)]
    pub plugin: Option<String>,
    /// Images that are built elsewhere.
    #[command(flatten)]
    pub images: images::Replacements,
}

impl Options {
    /// What a run without arguments has, on this platform.
    pub fn for_tests(platform: &str) -> Self {
        #[derive(clap::Parser)]
        struct Bare {
            #[command(flatten)]
            options: Options,
        }
        <Bare as clap::Parser>::parse_from(["run", "--platform", platform]).options
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    bounded(text, 0.0, 100.0)
}

fn probability(text: &str) -> Result<f64, String> {
    bounded(text, 0.0, 1.0)
}

fn bounded(text: &str, low: f64, high: f64) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(low..=high).contains(&value) {
        return Err(format!("not between {low} and {high}"));
    }
    Ok(value)
}

/// Builds, boots, shows the answer, judges.
///
/// # Errors
///
/// If anything at all went wrong, with cause and remedy.
pub fn run(paths: &Paths, options: &Options) -> Result<()> {
    let platform = Platform::load(paths, &options.platform)?;
    if let Some(out) = &options.json {
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("--json {}: {} is no folder", out.display(), folder.display());
        }
    }
    if let Some(memory) = &options.memory {
        platform.map.check_memory(memory)?;
    }
    let model = model::container(paths, options.model.as_deref())?;
    let images = images::build(paths, &platform, &options.images)?;
    let job = job(&platform, options);
    let report = boot(paths, &platform, &images, &job, Some(&model), options)?;
    println!();
    if let Some(out) = &options.json {
        let text = serde_json::to_string_pretty(&report.json())? + "\n";
        paths::write_atomically(out, text.as_bytes())?;
    }
    let faults = report.faults();
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    if report.done.is_none() {
        bail!("the machine stopped before the answer was complete");
    }
    summary(&report);
    Ok(())
}

/// The job that these options ask for.
pub fn job(platform: &Platform, options: &Options) -> Job {
    let map = &platform.map;
    Job {
        prompt: options.prompt.clone(),
        max_tokens: options.max_tokens,
        temperature: (options.temp * ONE).round() as u32,
        top_k: options.top_k,
        top_p: (options.top_p * ONE).round() as u32,
        seed: options.seed,
        context: options.context,
        attack: options.attack,
        targets: [
            ("el3", Some(map.el3.base + map.el3.size / 2)),
            ("spmc", Some(map.spmc.base)),
            ("llm_partition", Some(map.llm_partition.base)),
            ("hostile_partition", Some(map.hostile_partition.base)),
            ("rmm", map.rmm.map(|r| r.base)),
            ("stage2_tables", map.stage2_tables.map(|r| r.base)),
        ]
        .into_iter()
        .filter_map(|(name, base)| Some(Target { name: name.to_owned(), base: base? }))
        .collect(),
        operations: 0,
        tests: Vec::new(),
        measure_recall: false,
    }
}

/// Boots the machine with a job and listens until it stops.
///
/// # Errors
///
/// If the machine does not start, hangs, ends badly, or the user interrupts.
pub fn boot(
    paths: &Paths,
    platform: &Platform,
    images: &Images,
    job: &Job,
    model: Option<&Path>,
    options: &Options,
) -> Result<Report> {
    let mut report = Report::default();
    boot_into(&mut report, paths, platform, images, job, model, options)?;
    Ok(report)
}

/// The same; what the machine told before an error is in `report` all the same.
///
/// # Errors
///
/// Those of [`boot`].
pub fn boot_into(
    report: &mut Report,
    paths: &Paths,
    platform: &Platform,
    images: &Images,
    job: &Job,
    model: Option<&Path>,
    options: &Options,
) -> Result<()> {
    let log = paths.platform(&platform.name).join("run.log");
    let tables = Tables::read(&images.logs)?;
    let job_file = serde_json::to_vec(job)?;
    let machine = platform.machine()?;
    let mut extra = if options.count_instructions { COUNT_INSTRUCTIONS.to_vec() } else { Vec::new() };
    extra.extend(options.plugin.iter().flat_map(|plugin| ["-plugin", plugin]));
    let setup = Setup {
        flash: &images.flash,
        cores: options.smp.unwrap_or(machine.cores),
        memory: options.memory.as_deref().unwrap_or(&machine.memory),
        job: (!options.alone).then_some(&job_file),
        model,
        extra: &extra,
    };
    let mut qemu = Qemu::start(machine, &setup)?;
    let mut listener = Listener {
        records: Parser::default(),
        logs: tables.reader(),
        file: File::create(&log).with_context(|| format!("cannot write {}", log.display()))?,
        bar: progress(),
        verbose: options.verbose,
        attacked: job.attack || !job.tests.is_empty(),
        report,
    };
    let silence = Duration::from_secs(options.timeout);
    let mut heard = Instant::now();
    let mut ending: Option<Instant> = None;
    let status = loop {
        interrupt::check()?;
        match qemu.next(process::POLL) {
            Some(event) => {
                heard = Instant::now();
                listener.hear(event)?;
            }
            // Everything was read that was sent before the end.
            None => {
                if let Some(status) = qemu.poll()? {
                    break Some(status);
                }
            }
        }
        if listener.report.panic.is_some() && ending.get_or_insert_with(Instant::now).elapsed() > GRACE {
            break None;
        }
        if heard.elapsed() > silence {
            listener.finish()?;
            bail!(
                "the machine has said nothing for {} s (--timeout); the end of its log:\n{}\n(all of it: {})",
                silence.as_secs(),
                process::tail(&log),
                log.display()
            );
        }
    };
    listener.finish()?;
    if let Some(status) = status.filter(|s| !s.success()) {
        bail!("QEMU ended with {status}: {}", qemu.messages());
    }
    let report = listener.report;
    // How many tests there should have been, their caller knows.
    let told = report.done.is_some()
        || !report.figures.is_empty()
        || report.error.is_some()
        || report.panic.is_some();
    if job.tests.is_empty() && !told {
        bail!(
            "the machine stopped before the job was done; the end of its log:\n{}\n{}",
            process::tail(&log),
            qemu.messages()
        );
    }
    Ok(())
}

/// Turns what the machine says into a report, a log file and what the user sees.
struct Listener<'t> {
    records: Parser,
    logs: Reader<'t>,
    file: File,
    bar: ProgressBar,
    verbose: bool,
    attacked: bool,
    report: &'t mut Report,
}

impl Listener<'_> {
    fn hear(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Normal(bytes) => {
                for said in self.records.push(&bytes) {
                    self.said(said)?;
                }
            }
            Event::Secure(bytes) => {
                for line in self.logs.push(&bytes) {
                    self.logged(line)?;
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        if let Some(said) = self.records.finish() {
            self.said(said)?;
        }
        if let Some(line) = self.logs.finish() {
            self.logged(line)?;
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    fn said(&mut self, said: Said) -> Result<()> {
        match said {
            Said::Record(record) => self.record(record),
            Said::Line(text) => {
                self.tap(&text);
                self.note("NS", Severity::Info, &text)
            }
            Said::Garbled(text) => self.note("NS", Severity::Warning, &format!("garbled record: {text}")),
        }
    }

    fn tap(&mut self, text: &str) {
        self.report.tap(text);
        if let Some(case) = self.report.cases.last() {
            self.bar.set_length(self.report.planned.into());
            self.bar.set_position(case.number.into());
        }
    }

    fn record(&mut self, record: Record) -> Result<()> {
        writeln!(self.file, "NS     {record:?}")?;
        match record {
            Record::Progress { what, done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                self.bar.set_message(what);
            }
            Record::Text { text } => {
                self.bar.finish_and_clear();
                print!("{text}");
                stdout().flush()?;
                self.report.text.push_str(&text);
            }
            Record::Attack(attack) => self.report.attacks.push(attack),
            Record::Test { name, error } => self.report.tests.push((name, error)),
            Record::Figure { name, value } => self.report.figures.push((name, value)),
            Record::Done(done) => self.report.done = Some(done),
            Record::Error { message } => self.report.error = Some(message),
        }
        Ok(())
    }

    fn logged(&mut self, line: crate::logs::Line) -> Result<()> {
        if line.is_panic() {
            self.report.panic.get_or_insert_with(|| format!("{}: {}", line.label, line.text));
        }
        let fault = Fault::parse(&line.text);
        self.report.partition_faults.extend(fault);
        // Under attack, the hostile partition's faults are what is hoped for.
        let severity = if fault.is_some() && self.attacked { Severity::Info } else { line.severity };
        self.note(line.label, severity, &line.text)
    }

    fn note(&mut self, label: &str, severity: Severity, text: &str) -> Result<()> {
        writeln!(self.file, "{label:<6} {text}")?;
        if self.verbose || severity >= Severity::Warning {
            self.bar.suspend(|| eprintln!("{label:<6} {text}"));
        }
        Ok(())
    }
}

fn progress() -> ProgressBar {
    let style = "{msg} [{bar:30}] {percent}%";
    ProgressBar::new(0).with_style(ProgressStyle::with_template(style).expect("a constant template"))
}

fn summary(report: &Report) {
    let json = report.json();
    eprintln!(
        "{} prompt tokens, {} answered; first after {:.0} ms, then {:.2}/s. {} granules lent, all recalled and zero.",
        json["prompt_tokens"],
        json["output_tokens"],
        json["ttft_ms"].as_f64().unwrap_or_default(),
        json["tokens_per_s"].as_f64().unwrap_or_default(),
        json["granules_lent"],
    );
    let mut repelled = BTreeMap::new();
    for attack in &report.attacks {
        *repelled.entry((&attack.world, attack.core)).or_insert(0) += 1;
    }
    for ((world, core), count) in repelled {
        eprintln!("{count} attacks by {world} on core {core}: all repelled (--json lists them)");
    }
}
