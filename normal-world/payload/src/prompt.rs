//! The main job: a prompt is answered inside the secure world.

use alloc::{format, string::String};
use core::{cell::RefCell, ops::Range};

use flexserve_abi::{el3::Feature, service::Finish};
use flexserve_client::{
    el3,
    job::{Done, Job, Record},
    llm::{Prompt, Report},
    ring::{Error, Ring, Text},
};

use crate::{
    attack, cores, gic, record,
    session::{Container, Session},
    system::System,
    timer,
};

/// How an answer is taken.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Microseconds between two interrupts that take the core back from the partition.
    pub period_us: u64,
    /// Most tokens that one `NEXT` adds.
    pub tokens_per_call: u64,
    /// Whether the text goes to the host as it comes.
    pub stream: bool,
}

/// How a prompt of the host's is answered.
pub const STREAM: Mode = Mode { period_us: 5000, tokens_per_call: 4, stream: true };

/// The answer as it comes.
struct Answer<'a> {
    ring: &'a mut Ring<'static>,
    text: Text,
    /// All of the text so far.
    whole: String,
    /// When the first and the last piece came.
    first: Option<u64>,
    last: u64,
    preemptions: u64,
    /// What was wrong with the ring, if something was.
    broken: Option<Error>,
    mode: Mode,
}

impl<'a> Answer<'a> {
    fn new(ring: &'a mut Ring<'static>, mode: Mode) -> Self {
        Self {
            ring,
            text: Text::default(),
            whole: String::new(),
            first: None,
            last: 0,
            preemptions: 0,
            broken: None,
            mode,
        }
    }

    /// Takes what there is and sends it on.
    fn drain(&mut self) {
        match self.ring.read() {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => {
                self.last = timer::now_ns();
                self.first.get_or_insert(self.last);
                let text = self.text.push(&bytes);
                self.send(text);
            }
            Err(error) => self.broken = Some(error),
        }
    }

    /// An interrupt has preempted the partition.
    fn interrupted(&mut self) {
        self.preemptions += 1;
        gic::acknowledge();
        self.drain();
        timer::arm(self.mode.period_us);
    }

    fn send(&mut self, text: String) {
        self.whole.push_str(&text);
        if self.mode.stream && !text.is_empty() {
            record::emit(&Record::Text { text });
        }
    }

    /// The answer is complete.
    fn figures(mut self, started: u64, finish: Finish, report: Report) -> Result<Figures, String> {
        if let Some(error) = self.broken {
            return Err(format!("reading the answer: {error}"));
        }
        let rest = self.text.finish();
        self.send(rest);
        let first = self.first.unwrap_or(started);
        Ok(Figures {
            text: self.whole,
            report,
            finish,
            ttft_ns: first - started,
            decode_ns: self.last.saturating_sub(first),
            preemptions: self.preemptions,
        })
    }
}

/// What an answer was, and how long it took.
pub struct Figures {
    /// The answer.
    pub text: String,
    /// The partition's own account.
    pub report: Report,
    /// Why it ended.
    pub finish: Finish,
    /// Nanoseconds from the request to the first text.
    pub ttft_ns: u64,
    /// Nanoseconds from the first to the last text.
    pub decode_ns: u64,
    /// Times an interrupt preempted the partition.
    pub preemptions: u64,
}

/// Runs the job.
///
/// # Errors
///
/// A sentence for the user: cause and remedy.
pub fn run(job: &Job) -> Result<(), String> {
    if job.max_tokens == 0 {
        return Err("at least one token must be asked for: --max-tokens is 0".into());
    }
    if job.prompt.is_empty() {
        return Err("the prompt is empty: say something with --prompt".into());
    }
    let mut system = System::start()?;
    let mut model = Container::open()?;
    let (mut session, mut ring) = Session::open(&mut system, job.prompt.len(), job.context.into())?;
    session.load(&mut system, &mut model)?;
    let workers = lend_cores(&mut system, job)?;
    let figures = answer(&mut system, &session, &mut ring, job, STREAM, |system, session| {
        if job.attack { attack::run(system, session, &job.targets, workers.clone()) } else { Ok(()) }
    })?;
    // Those that attacked are back already.
    if !job.attack {
        workers.clone().try_for_each(cores::take_back)?;
    }
    let granules_lent = session.granules_lent;
    let returned = session.close(&mut system)?;
    record::emit(&Record::Done(Done {
        prompt_tokens: figures.report.prompt_tokens,
        output_tokens: figures.report.answer_tokens,
        finish: finish_name(figures.finish).into(),
        ttft_ns: figures.ttft_ns,
        decode_ns: figures.decode_ns,
        granules_lent,
        granules_recalled: returned.granules,
        granules_nonzero_after_recall: returned.nonzero,
        preemptions: figures.preemptions,
        lent_cores: workers.len() as u64,
        el3: el3::counters(system.ffa.conduit()),
        logits_sha256: hexadecimal(&figures.report.logits_sha256),
    }));
    Ok(())
}

/// Lends the partition all cores but this one. One more stays to attack, if that is the job.
fn lend_cores(system: &mut System, job: &Job) -> Result<Range<usize>, String> {
    let lendable = match el3::feature(system.ffa.conduit(), Feature::Cores) {
        u64::MAX => 0,
        cores => cores as usize,
    };
    let first = if job.attack { 2 } else { 1 };
    let lent = first..cores::count().min(lendable).max(first);
    lent.clone().try_for_each(cores::lend)?;
    Ok(lent)
}

/// Writes the job's prompt into a session's ring; answers what `GENERATE` is to be asked.
///
/// # Errors
///
/// A sentence for the user.
pub fn written(ring: &mut Ring<'static>, job: &Job) -> Result<Prompt, String> {
    Ok(Prompt {
        offset: ring.write_prompt(job.prompt.as_bytes()).map_err(|e| format!("{e}"))?,
        length: job.prompt.len() as u64,
        temperature: job.temperature,
        top_k: job.top_k,
        top_p: job.top_p,
        seed: job.seed,
        max_tokens: job.max_tokens.into(),
    })
}

/// Has the job's prompt answered; `between` runs once, in the middle of the answer.
///
/// # Errors
///
/// A sentence for the user.
pub fn answer(
    system: &mut System,
    session: &Session,
    ring: &mut Ring<'static>,
    job: &Job,
    mode: Mode,
    between: impl FnOnce(&mut System, &Session) -> Result<(), String>,
) -> Result<Figures, String> {
    let prompt = written(ring, job)?;
    let answer = RefCell::new(Answer::new(ring, mode));
    let mut interrupted = || answer.borrow_mut().interrupted();
    let failed = |e| format!("answering the prompt: {e}");

    let started = timer::now_ns();
    timer::arm(mode.period_us);
    session.service(system, &mut interrupted).generate(session.id, &prompt).map_err(failed)?;
    let mut between = Some(between);
    let finish = loop {
        timer::arm(mode.period_us);
        let step = session.service(system, &mut interrupted).next(session.id, mode.tokens_per_call);
        timer::mark();
        timer::disarm();
        gic::acknowledge();
        answer.borrow_mut().drain();
        if let Some(between) = between.take() {
            between(system, session)?;
        }
        match step.map_err(failed)? {
            (_, Finish::Running) => {}
            (_, finish) => break finish,
        }
    };
    let report = session.service(system, &mut || {}).status(session.id).map_err(failed)?;
    let answer = answer.into_inner();
    answer.figures(started, finish, report)
}

fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Running => "running",
        Finish::EndOfText => "end_of_text",
        Finish::MaxTokens => "max_tokens",
        Finish::ContextFull => "context_full",
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
