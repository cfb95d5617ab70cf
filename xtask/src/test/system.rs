//! The whole system, booted: what the payload tests from inside, and what a user sees from outside.

use super::Tally;
use crate::{
    bench::size,
    download, images, model,
    paths::Paths,
    platform::Platform,
    process::{self, POLL},
    report::Report,
    run,
};
use anyhow::{Context as _, Result, bail, ensure};
use flexserve_client::job::Job;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::{
    cell::OnceCell,
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What the user asks in every test that boots.
const PROMPT: &str = "What is the capital of France?";
/// The question, as arguments.
const ASK: [&str; 4] = ["--prompt", PROMPT, "--max-tokens", "16"];
/// Cores of the machine in which the payload tests: some are lent, one is left to take them back, one runs the partition.
const CORES: u32 = 4;
/// Cores of the machine that is attacked while it answers.
const ATTACKED_CORES: u32 = 3;
/// Longest that an interrupted run may take to be gone.
const LEAVE: Duration = Duration::from_secs(10);

/// What a user sees.
struct Case {
    name: &'static str,
    scope: Scope,
    run: fn(&Bench) -> Result<()>,
}

/// Where a case is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// On every platform.
    Each,
    /// On platforms that have a Realm world.
    Realm,
    /// On one platform: it shows nothing of the board.
    Once,
}

const CASES: [Case; 11] = [
    Case { name: "el3_is_small_and_cannot_panic", scope: Scope::Each, run: el3_is_small_and_cannot_panic },
    Case {
        name: "answers_under_attack_as_without",
        scope: Scope::Each,
        run: answers_under_attack_as_without,
    },
    Case { name: "the_realm_world_is_repelled", scope: Scope::Realm, run: the_realm_world_is_repelled },
    Case { name: "logits_are_those_of_the_host", scope: Scope::Each, run: logits_are_those_of_the_host },
    Case { name: "refuses_a_missing_model", scope: Scope::Once, run: refuses_a_missing_model },
    Case { name: "refuses_a_truncated_model", scope: Scope::Once, run: refuses_a_truncated_model },
    Case { name: "refuses_a_corrupt_model", scope: Scope::Once, run: refuses_a_corrupt_model },
    Case { name: "refuses_zero_tokens", scope: Scope::Once, run: refuses_zero_tokens },
    Case {
        name: "refuses_a_prompt_longer_than_the_context",
        scope: Scope::Once,
        run: refuses_a_prompt_longer_than_the_context,
    },
    Case { name: "refuses_too_little_memory", scope: Scope::Once, run: refuses_too_little_memory },
    Case {
        name: "leaves_nothing_when_interrupted",
        scope: Scope::Once,
        run: leaves_nothing_when_interrupted,
    },
];

/// What the cases of a platform share.
struct Bench {
    paths: Paths,
    platform: Platform,
    model: PathBuf,
    folder: TempDir,
    calm: OnceCell<Value>,
    attacked: OnceCell<Value>,
}

/// On each platform, boots the payload's own tests, then tries what a user may do.
///
/// # Errors
///
/// If the images cannot be built, or the model not be had.
pub fn run(paths: &Paths, platforms: &[String], filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    for (index, name) in platforms.iter().enumerate() {
        let platform = Platform::load(paths, name)?;
        let scopes = [Scope::Each, Scope::Realm, Scope::Once];
        tally += on_platform(paths, platform, &scopes[..if index == 0 { 3 } else { 2 }], filter)?;
    }
    Ok(tally)
}

fn on_platform(paths: &Paths, platform: Platform, scopes: &[Scope], filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    let prefix = format!("system::{}", platform.name);
    let inside = inside(paths, &platform, filter).context("the tests inside the machine");
    match inside {
        Ok(report) => {
            for (name, error) in report.tests {
                let result = error.map_or(Ok(()), |e| Err(anyhow::anyhow!(e)));
                tally.case(&format!("{prefix}::inside::{name}"), result);
            }
        }
        Err(error) => tally.case(&format!("{prefix}::inside"), Err(error)),
    }
    let bench = Bench {
        paths: paths.clone(),
        platform,
        model: download::default_model(paths)?,
        folder: tempfile::tempdir()?,
        calm: OnceCell::new(),
        attacked: OnceCell::new(),
    };
    let wanted = |case: &&Case| scopes.contains(&case.scope) && filter.is_none_or(|f| case.name.contains(f));
    for case in CASES.iter().filter(wanted) {
        crate::interrupt::check()?;
        let name = format!("{prefix}::{}", case.name);
        if case.scope == Scope::Realm && bench.platform.map.rmm.is_none() {
            tally.skip(&name, "the platform has no Realm world");
        } else {
            tally.case(&name, (case.run)(&bench));
        }
    }
    Ok(tally)
}

/// The tests that the payload runs, in one boot.
fn inside(paths: &Paths, platform: &Platform, filter: Option<&str>) -> Result<Report> {
    let options = run::Options { smp: Some(CORES), ..run::Options::for_tests(&platform.name) };
    let images = images::build(paths, platform, &options.images)?;
    let container = model::container(paths, None)?;
    let tests = vec![filter.unwrap_or("all").to_owned()];
    let job = Job { tests, max_tokens: 8, prompt: PROMPT.to_owned(), ..run::job(platform, &options) };
    let report = run::boot(paths, platform, &images, &job, Some(&container), &options)?;
    let faults = report.faults();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    ensure!(filter.is_some() || !report.tests.is_empty(), "the payload ran no test");
    Ok(report)
}

fn el3_is_small_and_cannot_panic(bench: &Bench) -> Result<()> {
    size::measure(&bench.paths, &bench.platform).map(|_| ())
}

impl Bench {
    /// `flexserve run` with these arguments, in a process of its own, as the user has it.
    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = process::command(env::current_exe()?);
        command.args(["run", "--platform", &self.platform.name]).args(args);
        Ok(command)
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(args)?.output()?)
    }

    /// A run that must succeed; its `--json`.
    fn figures(&self, args: &[&str]) -> Result<Value> {
        let json = self.folder.path().join("run.json");
        let json_arg = json.to_str().context("a temporary folder with a strange name")?;
        let output = self.run(&[args, &["--json", json_arg]].concat())?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {errors}", output.status);
        Ok(serde_json::from_slice(&fs::read(json)?)?)
    }

    /// The figures of an answer.
    fn calm(&self) -> Result<&Value> {
        self.once(&self.calm, &ASK)
    }

    /// The figures of the same answer under attack: from two cores while a third one computes for it, then from that one, too.
    fn attacked(&self) -> Result<&Value> {
        self.once(&self.attacked, &[&ASK[..], &["--attack", "--smp", &ATTACKED_CORES.to_string()]].concat())
    }

    fn once<'a>(&self, cell: &'a OnceCell<Value>, args: &[&str]) -> Result<&'a Value> {
        if cell.get().is_none() {
            let _ = cell.set(self.figures(args)?);
        }
        cell.get().context("the figures have just been noted")
    }

    /// A run that must fail and say so in these words.
    fn refusal(&self, args: &[&str], words: &[&str]) -> Result<()> {
        let output = self.run(args)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "it succeeded");
        for word in words {
            ensure!(errors.contains(word), "nothing is said of {word:?}: {errors}");
        }
        Ok(())
    }

    /// A run with the model's bytes changed, which must fail and name the file.
    fn refuse_model(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut bytes = fs::read(&self.model)?;
        change(&mut bytes);
        let path = self.folder.path().join(name);
        fs::write(&path, bytes)?;
        let result = self.refusal(&["--model", &path.display().to_string()], &[name]);
        fs::remove_file(path)?;
        result
    }
}

fn answers_under_attack_as_without(bench: &Bench) -> Result<()> {
    let (calm, attacked) = (bench.calm()?, bench.attacked()?);
    let text = calm["text"].as_str().unwrap_or_default();
    ensure!(text.contains("Paris"), "the answer is {text:?}");
    for key in ["text", "logits_sha256", "prompt_tokens", "output_tokens"] {
        ensure!(calm[key] == attacked[key], "{key} differs: {} and {}", calm[key], attacked[key]);
    }
    let attacks = attacks(attacked)?;
    ensure!(attacks.iter().all(|a| a["faulted"] == true), "an attack succeeded");
    for world in ["NS-", "S-EL0"] {
        ensure!(attacks.iter().any(|a| is_from(a, world)), "no attack from {world}");
    }
    ensure!(missing(attacks, "NS-").is_empty(), "no attack from cores {:?}", missing(attacks, "NS-"));
    ensure!(calm["granules_lent"].as_u64() > Some(0), "nothing was lent");
    ensure!(attacked["lent_cores"] == 1, "{} cores were lent under attack", attacked["lent_cores"]);
    Ok(())
}

fn attacks(figures: &Value) -> Result<&Vec<Value>> {
    figures["attacks"].as_array().context("no attacks")
}

/// Cores of the attacked machine on which this world has not attacked.
fn missing(attacks: &[Value], world: &str) -> Vec<u32> {
    let attacks_on = |core: &u32| attacks.iter().any(|a| is_from(a, world) && a["core"] == *core);
    (0..ATTACKED_CORES).filter(|core| !attacks_on(core)).collect()
}

fn is_from(attack: &Value, world: &str) -> bool {
    attack["world"].as_str().is_some_and(|from| from.starts_with(world))
}

fn the_realm_world_is_repelled(bench: &Bench) -> Result<()> {
    let attacks = attacks(bench.attacked()?)?;
    let realm: Vec<_> = attacks.iter().filter(|a| is_from(a, "R-")).collect();
    ensure!(missing(attacks, "R-").is_empty(), "no attack on cores {:?}", missing(attacks, "R-"));
    ensure!(realm.iter().all(|a| a["faulted"] == true), "an attack succeeded");
    Ok(())
}

fn logits_are_those_of_the_host(bench: &Bench) -> Result<()> {
    let board = bench.calm()?;
    let container = model::container(&bench.paths, None)?;
    let mut host = process::command(model::loader(&bench.paths)?);
    let json = bench.folder.path().join("host.json");
    host.arg("run").arg(container).args(ASK).arg("--json").arg(&json);
    let status = host.stdout(Stdio::null()).status()?;
    ensure!(status.success(), "flexserve-model run: {status}");
    let host: Value = serde_json::from_slice(&fs::read(json)?)?;
    for key in ["logits_sha256", "text", "prompt_tokens", "output_tokens"] {
        ensure!(board[key] == host[key], "{key}: board {}, host {}", board[key], host[key]);
    }
    Ok(())
}

fn refuses_a_missing_model(bench: &Bench) -> Result<()> {
    bench.refusal(&["--model", "/no/such.gguf"], &["/no/such.gguf", "no such file"])
}

fn refuses_a_truncated_model(bench: &Bench) -> Result<()> {
    bench.refuse_model("half.gguf", |bytes| bytes.truncate(bytes.len() / 2))?;
    bench.refuse_model("head.gguf", |bytes| bytes.truncate(100))?;
    bench.refuse_model("empty.gguf", Vec::clear)
}

fn refuses_a_corrupt_model(bench: &Bench) -> Result<()> {
    bench.refuse_model("magic.gguf", |bytes| bytes[0] ^= 0xff)?;
    bench.refuse_model("counts.gguf", |bytes| bytes[8..24].fill(0xff))
}

fn refuses_zero_tokens(bench: &Bench) -> Result<()> {
    bench.refusal(&["--max-tokens", "0"], &["--max-tokens"])
}

fn refuses_a_prompt_longer_than_the_context(bench: &Bench) -> Result<()> {
    let prompt = "word ".repeat(200);
    bench.refusal(&["--prompt", &prompt, "--context", "64"], &["context"])
}

fn refuses_too_little_memory(bench: &Bench) -> Result<()> {
    bench.refusal(&["--memory", "256M"], &["memory", "640M"])
}

fn leaves_nothing_when_interrupted(bench: &Bench) -> Result<()> {
    // Its own folder for temporary files, to see what stays behind.
    let folder = bench.folder.path().join("tmp");
    fs::create_dir(&folder)?;
    let mut command = bench.command(&["--max-tokens", "1000"])?;
    let mut child = command.env("TMPDIR", &folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    let machine = loop {
        match socket_folder(&folder) {
            Some(machine) => break machine,
            None if started.elapsed() > Duration::from_secs(60) => bail!("it did not start a machine"),
            None => sleep(POLL),
        }
    };
    sleep(Duration::from_secs(1));
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    let asked = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if asked.elapsed() > LEAVE => {
                child.kill()?;
                bail!("it went on for {} s", LEAVE.as_secs());
            }
            None => sleep(POLL),
        }
    };
    ensure!(!status.success(), "it ended as if all were well");
    ensure!(!machine.exists(), "it left {}", machine.display());
    ensure!(!is_mentioned_by_a_process(&machine)?, "it left its QEMU running");
    Ok(())
}

fn socket_folder(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|e| e.path()).find(|path| path.join("job.json").exists())
}

/// Whether a running process has `path` on its command line.
fn is_mentioned_by_a_process(path: &Path) -> Result<bool> {
    let path = path.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")?.flatten() {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if arguments.windows(path.len()).any(|window| window == path) {
            return Ok(true);
        }
    }
    Ok(false)
}
