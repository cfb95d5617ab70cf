//! Two sessions that share one model's weights.

use alloc::{format, string::String, vec::Vec};

use flexserve_abi::{
    el3::Counter,
    service::{Finish, State, Status},
};
use flexserve_client::{
    el3,
    job::{Job, Record},
    ring::Ring,
};

use super::{
    Bench, ensure,
    inference::{CALM, question},
    messages::refused,
};
use crate::{
    prompt, record,
    session::{Container, Session},
    system::System,
};

/// What is asked in each session.
fn questions() -> [Job; 2] {
    [question(), Job { prompt: "Name three colours.".into(), ..question() }]
}

/// Text and hash of the logits.
type Answer = (String, [u8; 32]);

/// A second session lends nothing but a workspace; both answer at the same time, token by token, what each answers alone; and a
/// recall of weights stops both, until they are lent again.
pub fn two_sessions_share_weights(bench: &mut Bench) -> Result<(), String> {
    let context = bench.job.context.into();
    let (system, session, ring) = bench.load()?;
    let mut alone: Vec<Answer> = Vec::new();
    for job in &questions() {
        let figures = prompt::answer(system, session, ring, job, CALM, |_, _| Ok(()))?;
        alone.push((figures.text, figures.report.logits_sha256));
        progress("alone", alone.len() as u64);
    }
    ensure!(alone[0] != alone[1], "both questions have the same answer");

    let before = held(system);
    let mut model = Container::open()?;
    let (mut second, mut second_ring) = Session::open(system, super::PROMPT_ROOM, context)?;
    second.load(system, &mut model)?;
    let workspace = match &second.lent[..] {
        [workspace] => workspace.pages.len() as u64,
        more => return Err(format!("the second session holds {} handles, not just a workspace", more.len())),
    };
    let more = held(system) - before;
    ensure!(more == workspace, "{more} granules more are lent, the workspace has {workspace}");

    let together = answers(system, [(session, ring), (&second, &mut second_ring)])?;
    for (job, (alone, together)) in questions().iter().zip(alone.iter().zip(&together)) {
        ensure!(alone == together, "{:?}: {together:?} together, {alone:?} alone", job.prompt);
    }

    let recalled = second.service(system, &mut || {}).recall(second.id, workspace + 1);
    let recalled = recalled.map_err(|e| format!("recalling weights: {e}"))?;
    let [first, weights] = recalled.handles[..] else {
        return Err(format!("RECALL of a workspace and a granule of weights: {recalled:x?}"));
    };
    take_back(system, &mut second, first)?;
    take_back(system, session, weights)?;
    for (what, id) in [("the session that was asked", second.id), ("the other session", session.id)] {
        let mut ignore = || {};
        let mut llm = session.service(system, &mut ignore);
        refused(&format!("NEXT of {what}"), llm.next(id, 1), &[Status::WrongState])?;
        let state = llm.status(id).map_err(|e| format!("STATUS of {what}: {e}"))?.state;
        ensure!(state == State::Loading, "{what} is {state:?}");
    }

    let last = model.segments.len() - 1;
    let segment = model.segments[last];
    let pages = system.pages.allocate(segment.granules as usize).map_err(|e| format!("{e}"))?;
    model.read(&segment, &pages)?;
    session.lend_and_load(system, pages, last as u64).map_err(|e| format!("the last segment again: {e}"))?;
    let returned = second.close(system)?;
    ensure!(returned.nonzero == 0, "{} granules came back with contents", returned.nonzero);
    let figures = prompt::answer(system, session, ring, &questions()[0], CALM, |_, _| Ok(()))?;
    ensure!((figures.text, figures.report.logits_sha256) == alone[0], "after all that the answer is another");
    ensure!(held(system) == before, "{} granules are lent now, {before} were before", held(system));
    Ok(())
}

/// Says that the test goes on: a slow emulator takes minutes for it.
fn progress(what: &str, done: u64) {
    record::emit(&Record::Progress { what: format!("prompts taken in {what}"), done, total: 2 });
}

/// Granules that are lent now, as EL3 counts them.
fn held(system: &mut System) -> u64 {
    let [lent, returned] =
        [Counter::Lent, Counter::Returned].map(|counter| el3::counter(system.ffa.conduit(), counter));
    lent.unwrap_or_default() - returned.unwrap_or_default()
}

/// Asks both sessions, takes a token of each in turn, and answers what came.
fn answers(
    system: &mut System,
    mut sessions: [(&Session, &mut Ring<'static>); 2],
) -> Result<[Answer; 2], String> {
    let failed = |e| format!("answering together: {e}");
    let mut done = 0;
    for ((session, ring), job) in sessions.iter_mut().zip(questions()) {
        let prompt = prompt::written(ring, &job)?;
        session.service(system, &mut || {}).generate(session.id, &prompt).map_err(failed)?;
        done += 1;
        progress("together", done);
    }
    let mut running = [true; 2];
    while running != [false; 2] {
        for ((session, _), running) in sessions.iter().zip(&mut running).filter(|(_, running)| **running) {
            let (_, finish) = session.service(system, &mut || {}).next(session.id, 1).map_err(failed)?;
            *running = finish == Finish::Running;
        }
    }
    let mut answers: [Answer; 2] = Default::default();
    for ((session, ring), answer) in sessions.iter_mut().zip(&mut answers) {
        let bytes = ring.read().map_err(|e| format!("{e}"))?;
        let text = String::from_utf8(bytes).map_err(|e| format!("{e}"))?;
        let report = session.service(system, &mut || {}).status(session.id).map_err(failed)?;
        *answer = (text, report.logits_sha256);
    }
    Ok(answers)
}

/// Reclaims a handle that the partition has given up.
fn take_back(system: &mut System, session: &mut Session, handle: u64) -> Result<(), String> {
    let index = session.lent.iter().position(|lent| lent.handle == handle);
    let lent = session.lent.swap_remove(index.ok_or("RECALL gave up a handle of another session")?);
    let nonzero = system.reclaim(&lent).map_err(|e| format!("reclaiming: {e}"))?;
    ensure!(nonzero == 0, "{nonzero} granules came back with contents");
    Ok(())
}
