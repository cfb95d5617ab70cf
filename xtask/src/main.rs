//! Builds, runs, tests and measures FlexServe. `./flexserve` is its front door.
#![forbid(unsafe_code)]

mod bench;
mod coverage;
mod download;
mod elf;
mod images;
mod interrupt;
mod logs;
mod model;
mod mutate;
mod package;
mod paths;
mod platform;
mod process;
mod qemu;
mod records;
mod report;
mod run;
mod stamp;
mod tap;
mod test;
mod tfa;
mod toolchain;

use anyhow::Result;
use clap::{Parser, Subcommand};
use paths::Paths;
use platform::Platform;
use std::{ffi::OsString, process::ExitCode};

/// FlexServe: a language model served from inside the secure world.
#[derive(Parser)]
#[command(name = "flexserve", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the firmware and its images into out/<platform>/.
    Build {
        /// The platform, a folder of fvp/.
        #[arg(long, default_value = "qemu-rme")]
        platform: String,
        #[command(flatten)]
        images: images::Replacements,
    },
    /// Boot the machine and answer a prompt.
    Run(run::Options),
    /// Run the tests; the last line is their sum.
    Test(test::Options),
    /// Report what the conformance suite said on a board's UART, as `test conformance` does of an emulated board.
    ConformanceLog(test::conformance_log::Options),
    /// Break a copy of the firmware on purpose, defect by defect, and see that the tests notice.
    Mutate(mutate::Options),
    /// Measure.
    Bench(bench::Options),
    /// Pack, inspect, verify or run a model on this host.
    #[command(disable_help_flag = true)]
    Model {
        /// Arguments of flexserve-model.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = interrupt::install().and_then(|()| dispatch(cli.command));
    match code {
        Ok(code) => ExitCode::from(code),
        Err(_) if interrupt::requested() => {
            eprintln!("interrupted");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<u8> {
    let paths = Paths::find()?;
    match command {
        Command::Build { platform, images } => {
            let platform = Platform::load(&paths, &platform)?;
            let images = images::build(&paths, &platform, &images)?;
            println!("{}", images.flash.display());
            Ok(0)
        }
        Command::Run(options) => run::run(&paths, &options).map(|()| 0),
        Command::Test(options) => test::run(&paths, &options).map(|well| u8::from(!well)),
        Command::ConformanceLog(options) => test::conformance_log::run(&options).map(|well| u8::from(!well)),
        Command::Mutate(options) => mutate::run(&paths, &options).map(|well| u8::from(!well)),
        Command::Bench(options) => bench::run(&paths, &options).map(|()| 0),
        Command::Model { args } => model::forward(&paths, &args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rejects_what_makes_no_sense() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["flexserve"], args].concat()).is_ok();
        assert!(parse(&["run", "--max-tokens", "1", "--temp", "0.8", "--top-p", "1"]));
        assert!(!parse(&["run", "--max-tokens", "0"]));
        assert!(!parse(&["run", "--smp", "0"]));
        assert!(!parse(&["run", "--top-p", "1.5"]));
        assert!(!parse(&["run", "--temp", "NaN"]));
        assert!(!parse(&["build", "--image", "bl2=x"]));
    }
}
