//! Answers from one loaded model.

use alloc::{format, string::String, sync::Arc, vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flexserve_abi::{
    ffa::{LLM_SERVICE, NORMAL_WORLD, UuidRegisters},
    service::{Finish, Op, Status},
};
use flexserve_client::{
    ffa::{Code, Error as FfaError, Ffa, Function},
    job::Job,
    llm::{Error, Llm, Prompt},
    registers,
};

use super::{Bench, ensure, messages::refused};
use crate::{
    cores, gic,
    prompt::{self, Figures, Mode},
    system::Smc,
    timer,
    vectors::{self, Vectors},
};

/// Tokens of an answer: enough to tell one from another, few enough for a slow emulator.
const TOKENS: u32 = 4;

/// What these tests ask.
pub fn question() -> Job {
    Job {
        prompt: "What is the capital of France?".into(),
        max_tokens: TOKENS,
        top_p: 1 << 16,
        ..Job::default()
    }
}

/// Rarely preempted: in practice once a second.
pub const CALM: Mode = Mode { period_us: 1_000_000, tokens_per_call: 4, stream: false };
/// Preempted every 500 microseconds.
pub const HECTIC: Mode = Mode { period_us: 500, tokens_per_call: 1, stream: false };

/// The answer, taken so.
pub fn answer(bench: &mut Bench, mode: Mode) -> Result<Figures, String> {
    let (system, session, ring) = bench.load()?;
    prompt::answer(system, session, ring, &question(), mode, |_, _| Ok(()))
}

/// The answer that all the others are compared with, and the hash of its logits.
fn calm_answer(bench: &mut Bench) -> Result<(String, [u8; 32]), String> {
    if let Some(known) = &bench.calm {
        return Ok(known.clone());
    }
    let figures = answer(bench, CALM)?;
    ensure!(figures.report.answer_tokens > 0 && !figures.text.is_empty(), "the answer is empty");
    let known = (figures.text, figures.report.logits_sha256);
    bench.calm = Some(known.clone());
    Ok(known)
}

pub fn is_calm(bench: &mut Bench, figures: &Figures) -> Result<(), String> {
    let (text, hash) = calm_answer(bench)?;
    ensure!(figures.text == text, "the answer is {:?}, it was {text:?}", figures.text);
    ensure!(figures.report.logits_sha256 == hash, "the answer's text is right, its logits differ");
    Ok(())
}

/// An answer that the timer interrupts all the time has the same text and the same logits as a calm one.
pub fn preempted_answer_is_the_same(bench: &mut Bench) -> Result<(), String> {
    let hectic = answer(bench, HECTIC)?;
    ensure!(hectic.preemptions >= 10, "only {} interrupts preempted the partition", hectic.preemptions);
    is_calm(bench, &hectic)
}

/// Prompts that are not UTF-8, not in the buffer or longer than the context are refused; the next one is answered.
pub fn bad_prompts(bench: &mut Bench) -> Result<(), String> {
    let (system, session, ring) = bench.load()?;
    let id = session.id;
    let room = super::PROMPT_ROOM;
    let offset = ring.write_prompt(&vec![0xff; 8]).map_err(|e| format!("{e}"))?;
    let good = Prompt { offset, length: 8, temperature: 0, top_k: 0, top_p: 1 << 16, seed: 0, max_tokens: 1 };
    let mut ignore = || {};
    let mut llm = session.service(system, &mut ignore);
    refused("a prompt that is not UTF-8", llm.generate(id, &good), &[Status::BadPrompt])?;
    for (offset, length) in [
        (offset, room as u64 * 2),
        (u64::MAX, 8),
        (offset, u64::MAX),
        (u64::MAX - 3, 8),
        (offset + room as u64 + 4096, 1),
    ] {
        let outside = Prompt { offset, length, ..good };
        refused("a prompt outside of the buffer", llm.generate(id, &outside), &[Status::BadPrompt])?;
    }
    ring.write_prompt(&vec![b'x'; 8]).map_err(|e| format!("{e}"))?;
    let nothing = Prompt { max_tokens: 0, ..good };
    refused("GENERATE of no tokens", llm.generate(id, &nothing), &[Status::InvalidParameters])?;
    let long = "many words ".repeat(room / 11);
    ring.write_prompt(long.as_bytes()).map_err(|e| format!("{e}"))?;
    let long = Prompt { length: long.len() as u64, ..good };
    refused("a prompt longer than the context", llm.generate(id, &long), &[Status::PromptTooLong])?;
    let after = answer(bench, CALM)?;
    is_calm(bench, &after)
}

/// Every vector and predicate register of the normal world is the same after the partition has computed, interrupted or not.
pub fn vector_registers_survive(bench: &mut Bench) -> Result<(), String> {
    let job = question();
    let (system, session, ring) = bench.load()?;
    let prompt = prompt::written(ring, &job)?;
    session
        .service(system, &mut || {})
        .generate(session.id, &prompt)
        .map_err(|e| format!("generating: {e}"))?;
    let uuid = UuidRegisters::new(LLM_SERVICE);
    let endpoints = u64::from(NORMAL_WORLD) << 16 | u64::from(session.partition);
    let next = [endpoints, uuid.0, uuid.1, Op::Next as u64, session.id, 2];
    let mut call = registers(Function::MsgSendDirectReq64_2.into(), &next);
    let sent = Vectors::pattern();
    let mut interrupts = 0;
    let answer = loop {
        timer::arm(100);
        let (answer, kept) = vectors::smc(&call, &sent);
        timer::disarm();
        gic::acknowledge();
        if let Some(register) = sent.first_difference(&kept) {
            return Err(format!("{register} changed across a call, after {interrupts} interrupts"));
        }
        if answer[0] != u64::from(u32::from(Function::Interrupt32)) {
            break answer;
        }
        interrupts += 1;
        call = registers(Function::Run32.into(), &[answer[1]]);
    };
    ensure!(answer[0] == u64::from(u32::from(Function::MsgSendDirectResp64_2)), "NEXT = {:x?}", &answer[..5]);
    ensure!(answer[7..].iter().all(|&x| x == 0), "unused registers carry {:x?}", &answer[7..]);
    ensure!(interrupts > 0, "no interrupt preempted the partition");
    Ok(())
}

/// The SPMC tells the partition of all the instructions that this machine's cores have, and of no others.
pub fn partition_knows_the_cpu(bench: &mut Bench) -> Result<(), String> {
    let (system, session, _) = bench.load()?;
    let report =
        session.service(system, &mut || {}).status(session.id).map_err(|e| format!("STATUS: {e}"))?;
    let found = vectors::isa_features();
    ensure!(report.features == found, "the partition knows {:?}, the cores have {found:?}", report.features);
    Ok(())
}

/// A second core that asks while the first is served gets `BUSY` or its answer, and neither hangs.
pub fn concurrent_callers(bench: &mut Bench) -> Result<(), String> {
    ensure!(cores::count() > 1, "this test needs two cores: --smp 2");
    let job = question();
    let (_, calm) = calm_answer(bench)?;
    let (system, session, ring) = bench.load()?;
    let (id, partition) = (session.id, session.partition);
    let stop = Arc::new(AtomicBool::new(false));
    let busy = Arc::new(AtomicU64::new(0));
    let (its_stop, its_busy) = (stop.clone(), busy.clone());
    let wrong = Arc::new(spin::Mutex::new(None));
    let its_wrong = wrong.clone();
    cores::begin(
        1,
        alloc::boxed::Box::new(move || {
            let mut ffa = Ffa::new(Smc, &mut []);
            let mut ignore = || {};
            let mut llm = Llm::new(&mut ffa, partition, &mut ignore);
            while !its_stop.load(Ordering::Relaxed) {
                match llm.status(id) {
                    Ok(_) => {}
                    Err(Error::Ffa(FfaError::Code(Code::Busy))) => {
                        its_busy.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => *its_wrong.lock() = Some(error),
                }
            }
        }),
    )?;
    let outcome = patient_answer(system, session, ring, &job);
    stop.store(true, Ordering::Relaxed);
    cores::wait(1);
    let hash = outcome?;
    if let Some(error) = wrong.lock().take() {
        return Err(format!("the other core was told: {error}"));
    }
    ensure!(busy.load(Ordering::Relaxed) > 0, "the other core was never told BUSY");
    ensure!(hash == calm, "the answer differs from the one without a second caller");
    Ok(())
}

/// Asks `job` and repeats every call that is answered `BUSY`; answers the hash of the logits.
fn patient_answer(
    system: &mut crate::system::System,
    session: &crate::session::Session,
    ring: &mut flexserve_client::ring::Ring<'static>,
    job: &Job,
) -> Result<[u8; 32], String> {
    let prompt = prompt::written(ring, job)?;
    let mut ignore = || {};
    let mut llm = session.service(system, &mut ignore);
    patiently(|| llm.generate(session.id, &prompt))?;
    while patiently(|| llm.next(session.id, 1))?.1 == Finish::Running {}
    let report = patiently(|| llm.status(session.id))?;
    ring.read().map_err(|e| format!("{e}"))?;
    Ok(report.logits_sha256)
}

fn patiently<T>(mut call: impl FnMut() -> Result<T, Error>) -> Result<T, String> {
    loop {
        match call() {
            Err(Error::Ffa(FfaError::Code(Code::Busy))) => core::hint::spin_loop(),
            other => return other.map_err(|e| format!("{e}")),
        }
    }
}

/// `FFA_MEM_RECLAIM` of what the partition holds is denied, and the partition goes on holding it.
pub fn held_memory_is_not_reclaimed(bench: &mut Bench) -> Result<(), String> {
    let (system, session, _) = bench.load()?;
    for lent in &session.lent {
        let answer = system.ffa.reclaim(lent.handle);
        ensure!(answer == Err(FfaError::Code(Code::Denied)), "reclaiming a held handle: {answer:?}");
    }
    let report =
        session.service(system, &mut || {}).status(session.id).map_err(|e| format!("STATUS: {e}"))?;
    let lent: u64 = session.lent.iter().map(|lent| lent.pages.len() as u64).sum();
    ensure!(report.granules == lent, "the partition holds {} granules of {lent}", report.granules);
    Ok(())
}

/// `RECALL` gives memory up handle by handle, an answer is refused from then on, and all that was lent comes back zero.
pub fn recall_gives_everything_back(bench: &mut Bench) -> Result<(), String> {
    bench.load()?;
    let Some((mut session, _)) = bench.loaded.take() else { return Err("no session is loaded".into()) };
    let system = &mut bench.system;
    let held = session.service(system, &mut || {}).status(session.id).map_err(|e| format!("{e}"))?.granules;
    let lent: u64 = session.lent.iter().map(|lent| lent.pages.len() as u64).sum();
    ensure!(held == lent, "the partition says it holds {held} granules, {lent} were lent");

    let recalled = session
        .service(system, &mut || {})
        .recall(session.id, 1)
        .map_err(|e| format!("recalling one: {e}"))?;
    ensure!(recalled.granules >= 1 && recalled.handles.len() == 1, "RECALL(1) = {recalled:x?}");
    let index = session.lent.iter().position(|lent| lent.handle == recalled.handles[0]);
    let first = session.lent.swap_remove(index.ok_or("RECALL(1) gave up a handle that was never lent")?);
    ensure!(recalled.granules == first.pages.len() as u64, "RECALL(1) miscounts: {recalled:x?}");
    let nonzero = system.reclaim(&first).map_err(|e| format!("reclaiming: {e}"))?;
    ensure!(nonzero == 0, "{nonzero} recalled granules came back with contents");
    let next = session.service(system, &mut || {}).next(session.id, 1);
    refused("NEXT after a recall", next, &[Status::WrongState])?;

    let returned = session.close(system)?;
    let total = returned.granules + first.pages.len() as u64;
    ensure!(total == lent, "{total} of {lent} granules came back");
    ensure!(returned.nonzero == 0, "{} granules came back with contents", returned.nonzero);
    Ok(())
}
