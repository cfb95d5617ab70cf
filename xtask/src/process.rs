//! Child processes that never outlive this one.

use crate::interrupt;
use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader, pipe},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::{sleep, spawn},
    time::Duration,
};

/// How often a waiting loop looks again.
pub const POLL: Duration = Duration::from_millis(50);

/// Lines of a failed step's output that its error shows.
const TAIL_LINES: usize = 30;

/// A command whose process the kernel ends when this one ends, however that happens, and which is a process group of
/// its own, so that its children can be ended with it.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program).stdin(Stdio::null()).process_group(0);
    command
}

/// A running process; dropping it ends its whole group.
pub struct Running(Child);

impl Running {
    /// Starts `command`, made by [`command`].
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {}", shown(command)))?;
        Ok(Self(child))
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    ///
    /// If the kernel does not tell.
    pub fn poll(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end, or for the user's wish to stop.
    ///
    /// # Errors
    ///
    /// If the user interrupts.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        // Short steps are waited for closely, long ones lazily.
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            interrupt::check()?;
            sleep(pause);
            pause = (pause * 2).min(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // The process group carries the child's number, see `command`.
            let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// Runs one step of a build behind a spinner; its output goes to `log`.
///
/// # Errors
///
/// If it fails, with the end of its output; or if the user interrupts.
pub fn step(what: &str, command: &mut Command, log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    let spinner = spinner(what);
    let status = Running::start(command)?.wait();
    spinner.finish_and_clear();
    let status = status?;
    if !status.success() {
        bail!("{what}: {status}\n{}\n(all of it: {})", tail(log), log.display());
    }
    Ok(())
}

/// Runs a command and passes on what it says, line by line, to stderr; answers how it ended and the lines.
///
/// # Errors
///
/// If it cannot be started, or the user interrupts.
pub fn echoed(command: &mut Command) -> Result<(ExitStatus, Vec<String>)> {
    let (reader, writer) = pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut running = Running::start(command)?;
    // The command holds the writing end as well; without this, the pipe would never end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let listener = spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            eprintln!("{line}");
            lines.push(line);
        }
        lines
    });
    let status = running.wait()?;
    Ok((status, listener.join().unwrap_or_default()))
}

/// A spinner on stderr that says what is being done.
pub fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed}").expect("a constant template"));
    bar.enable_steady_tick(Duration::from_millis(120));
    if bar.is_hidden() {
        eprintln!("{what}");
    }
    bar
}

/// Standard output of a short command, if it succeeds.
pub fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last lines of a file, for an error message.
pub fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn shown(command: &Command) -> String {
    // Behind "setpriv --pdeathsig TERM --".
    let args: Vec<_> = command.get_args().skip(3).map(|a| a.to_string_lossy()).collect();
    args.join(" ")
}
