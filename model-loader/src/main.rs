//! `flexserve-model`: packs, shows, verifies and runs models.
#![forbid(unsafe_code)]

mod inspect;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flexserve_container::Manifest;
use flexserve_llm::generator::Settings;
use flexserve_llm::sampler::TOP_P_ALL;
use flexserve_model_loader::file::{self, Container};
use flexserve_model_loader::{Error, run};
use indicatif::{ProgressBar, ProgressStyle};

/// Packs, shows, verifies and runs models.
#[derive(Parser)]
#[command(name = "flexserve-model", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a container of a GGUF model (Llama architecture; F16, BF16, F32, Q8_0, Q5_0, Q5_1, Q4_0, Q4_1, K-quants).
    Pack {
        /// The GGUF file.
        input: PathBuf,
        /// The container to write.
        #[arg(short, long)]
        output: PathBuf,
        /// Version of the model, against rollback.
        #[arg(long, default_value_t = 0)]
        security_version: u32,
    },
    /// Shows what is in a GGUF file or a container.
    Inspect {
        /// The file.
        file: PathBuf,
    },
    /// Checks every hash and every table of a container.
    Verify {
        /// The container.
        file: PathBuf,
    },
    /// Answers a prompt on this machine, with the code that the partition runs.
    Run(RunArguments),
    /// Prints tokens as JSON, one line for each line of JSON text on standard input.
    Tokenize {
        /// The GGUF file or container.
        file: PathBuf,
        /// Read special tokens in the text.
        #[arg(long)]
        special: bool,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    /// The GGUF file or container.
    file: PathBuf,
    /// The user's message.
    #[arg(long)]
    prompt: String,
    /// Most tokens to answer.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Context in tokens, at most the model's.
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Temperature; 0 always takes the likeliest token.
    #[arg(long, default_value = "0", value_parser = temperature)]
    temp: u32,
    /// Choose among so many of the likeliest tokens; 0 for all.
    #[arg(long, default_value_t = 0)]
    top_k: u32,
    /// Choose among the likeliest tokens that together have this probability.
    #[arg(long, default_value = "1", value_parser = top_p)]
    top_p: u32,
    /// Seed of the sampler.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Use the plain kernels.
    #[arg(long)]
    plain: bool,
    /// Write the answer's figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Reads a decimal number as Q16.16.
fn temperature(text: &str) -> Result<u32, String> {
    fixed(text, 1000.0)
}

/// Reads a probability as Q0.16.
fn top_p(text: &str) -> Result<u32, String> {
    fixed(text, 1.0)
}

fn fixed(text: &str, most: f64) -> Result<u32, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=most).contains(&value) {
        Ok((value * f64::from(TOP_P_ALL)).round() as u32)
    } else {
        Err(format!("not between 0 and {most}"))
    }
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err((_, Error::Io(error))) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err((file, error)) => {
            eprintln!("error: {}: {error}", file.display());
            ExitCode::FAILURE
        }
    }
}

/// Runs a command; an error comes with the file that it is about.
fn execute(command: Command) -> Result<(), (PathBuf, Error)> {
    let (file, result) = match command {
        Command::Pack { input, output, security_version } => {
            let bar = progress_bar("packing");
            let result =
                file::pack_file(&input, &output, security_version, |done, total| show(&bar, done, total));
            bar.finish_and_clear();
            (input, result)
        }
        Command::Inspect { file } => {
            let result = inspect::inspect(&file, &mut std::io::stdout().lock());
            (file, result)
        }
        Command::Verify { file } => {
            let result = verify(&file);
            (file, result)
        }
        Command::Run(arguments) => {
            let result = answer(&arguments);
            (arguments.file, result)
        }
        Command::Tokenize { file, special } => {
            let result = tokenize_lines(&file, special);
            (file, result)
        }
    };
    result.map_err(|error| (file, error))
}

fn verify(file: &Path) -> Result<(), Error> {
    let bar = progress_bar("verifying");
    let result =
        Container::read(&mut BufReader::new(File::open(file)?), |done, total| show(&bar, done, total));
    bar.finish_and_clear();
    result?;
    writeln!(std::io::stdout(), "{}: sound", file.display())?;
    Ok(())
}

fn open(file: &Path) -> Result<Container, Error> {
    let bar = progress_bar("loading");
    let container = Container::open(file, |done, total| show(&bar, done, total));
    bar.finish_and_clear();
    container
}

fn progress_bar(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
}

fn show(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}

fn answer(arguments: &RunArguments) -> Result<(), Error> {
    let container = open(&arguments.file)?;
    let request = run::Request {
        prompt: arguments.prompt.clone(),
        context: arguments.context as usize,
        settings: Settings {
            temperature: arguments.temp,
            top_k: arguments.top_k,
            top_p: arguments.top_p,
            seed: arguments.seed,
            max_tokens: arguments.max_tokens.into(),
        },
        plain: arguments.plain,
    };
    let mut output = std::io::stdout().lock();
    let mut failed = None;
    let answer = run::run(&container, &request, |bytes| {
        failed = output.write_all(bytes).and_then(|()| output.flush()).err().or(failed.take());
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    writeln!(output)?;
    if std::io::stderr().is_terminal() {
        eprintln!("({} tokens in, {} out, {})", answer.prompt_tokens, answer.output_tokens, answer.finish);
    }
    if let Some(path) = &arguments.json {
        let json = serde_json::to_vec_pretty(&answer).map_err(std::io::Error::from)?;
        file::write_whole(path, &json)?;
    }
    Ok(())
}

fn tokenize_lines(file: &Path, special: bool) -> Result<(), Error> {
    let segment_0 = file::segment_0(file)?;
    let manifest = Manifest::parse(&segment_0)?;
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?).map_err(std::io::Error::from)?;
        let tokens = run::tokenize(&manifest, &text, false, special)?;
        serde_json::to_writer(&mut output, &tokens).map_err(std::io::Error::from)?;
        writeln!(output)?;
    }
    output.flush()?;
    Ok(())
}
