//! Malformed messages to the LLM partition: each gets its status, and the partition goes on serving.

use alloc::{format, string::String, vec::Vec};

use flexserve_abi::{
    ffa::{LLM_SERVICE, UuidRegisters},
    service::Status,
};
use flexserve_client::{
    ffa::{self, Code},
    llm::{Error, Llm, Prompt},
};

use super::{Bench, ensure};
use crate::{
    session::{Container, Session},
    system::{System, page_mut},
};

/// A prompt of length zero at the start of the buffer.
const PROMPT: Prompt =
    Prompt { offset: 0, length: 0, temperature: 0, top_k: 0, top_p: 1 << 16, seed: 0, max_tokens: 1 };

/// Checks that a call was refused with one of these statuses.
pub fn refused<T: core::fmt::Debug>(
    what: &str,
    answer: Result<T, Error>,
    statuses: &[Status],
) -> Result<(), String> {
    match answer {
        Err(Error::Refused(status, ..)) if statuses.contains(&status) => Ok(()),
        other => Err(format!("{what}: {other:x?} instead of {statuses:?}")),
    }
}

/// Without a session every operation but `OPEN` is refused, and so are unknown operations.
pub fn no_session(bench: &mut Bench) -> Result<(), String> {
    let partition = bench.system.llm_partition()?;
    let mut ignore = || {};
    let mut llm = Llm::new(&mut bench.system.ffa, partition, &mut ignore);
    for operation in [0, 8, 99, u64::MAX] {
        refused("an unknown operation", llm.call(operation, &[]), &[Status::NotSupported])?;
    }
    let none = &[Status::NoSession];
    refused("CLOSE", llm.close(1), none)?;
    refused("LOAD", llm.load(1, 0, 0), none)?;
    refused("GENERATE", llm.generate(1, &PROMPT), none)?;
    refused("NEXT", llm.next(1, 1), none)?;
    refused("RECALL", llm.recall(1, 1), none)?;
    refused("STATUS", llm.status(1), none)?;
    refused("OPEN with a handle of nothing", llm.open(0x1234_5678, 0), &[Status::BadMemory])?;
    refused(
        "OPEN with a huge context",
        llm.open(0x1234_5678, u64::MAX),
        &[Status::InvalidParameters, Status::BadMemory],
    )
}

/// Requests to nobody, to the sender, to another service, or from somebody else are FF-A errors.
pub fn bad_receivers(bench: &mut Bench) -> Result<(), String> {
    let partition = bench.system.llm_partition()?;
    let ffa = &mut bench.system.ffa;
    let uuid = UuidRegisters::new(LLM_SERVICE);
    for (what, receiver, uuid) in [
        ("nobody", 0x8123, uuid),
        ("the normal world", 0, uuid),
        ("another service", partition, UuidRegisters::new(LLM_SERVICE ^ 1)),
    ] {
        let answer = ffa.request(receiver, uuid, &[0; 14], &mut || {});
        ensure!(matches!(answer, Err(ffa::Error::Code(_))), "a request to {what}: {answer:x?}");
    }
    for (what, endpoints) in
        [("itself", 0x8001_8001_u64), ("the SPMC", 0x8000_8001), ("the hostile one", 0x8002_8001)]
    {
        let answer = ffa.simple(ffa::Function::MsgSendDirectReq64_2, &[endpoints, uuid.0, uuid.1, 7]);
        ensure!(matches!(answer, Err(ffa::Error::Code(_))), "a request in the name of {what}: {answer:x?}");
    }
    for target in [0x8001_0000_u64, 0x8001_0001, 0x8123_0000, 0, u64::from(u32::MAX)] {
        let answer = ffa.simple(ffa::Function::Run32, &[target]);
        let refused = matches!(answer, Err(ffa::Error::Code(code)) if code != Code::Aborted);
        ensure!(refused, "FFA_RUN({target:#x}) of what does not wait for it: {answer:x?}");
    }
    Ok(())
}

/// Opens a session that holds nothing.
fn open(system: &mut System) -> Result<Session, String> {
    Ok(Session::open(system, 0, 0)?.0)
}

/// Closes it and takes everything back.
fn close(session: Session, system: &mut System) -> Result<(), String> {
    let returned = session.close(system)?;
    ensure!(returned.nonzero == 0, "{} granules came back with contents", returned.nonzero);
    Ok(())
}

/// An `OPEN` without a buffer, other sessions' numbers, a layer before its manifest, an answer before its model.
pub fn loading_out_of_order(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let mut session = open(system)?;
    let id = session.id;
    let mut ignore = || {};
    let mut llm = session.service(system, &mut ignore);
    refused("a second OPEN, with nothing shared", llm.open(1, 0), &[Status::BadMemory])?;
    for wrong in [id ^ 1, id.wrapping_add(1), u64::MAX] {
        refused("STATUS of another session", llm.status(wrong), &[Status::NoSession])?;
    }
    refused("LOAD of a handle of nothing", llm.load(id, 0x1234, 0), &[Status::BadMemory])?;
    refused("GENERATE without a model", llm.generate(id, &PROMPT), &[Status::WrongState])?;
    refused("NEXT without a model", llm.next(id, 1), &[Status::WrongState])?;

    let garbage = system.pages.allocate(2).map_err(|e| format!("{e}"))?;
    // SAFETY: just allocated.
    garbage.iter().for_each(|&page| unsafe { page_mut(page) }.fill(0xa5));
    let first = session.lend_and_load(system, garbage, 7);
    refused("LOAD of segment 7 before segment 0", first, &[Status::WrongState])?;
    let garbage = system.pages.allocate(2).map_err(|e| format!("{e}"))?;
    // SAFETY: just allocated.
    garbage.iter().for_each(|&page| unsafe { page_mut(page) }.fill(0xa5));
    let manifest = session.lend_and_load(system, garbage, 0);
    refused("LOAD of garbage as segment 0", manifest, &[Status::BadModel])?;
    close(session, system)
}

/// Reads a segment from disk into fresh pages.
fn read(system: &mut System, model: &mut Container, index: usize) -> Result<Vec<u64>, String> {
    let segment = *model.segments.get(index).ok_or("the model has too few segments for this test")?;
    let pages = system.pages.allocate(segment.granules as usize).map_err(|e| format!("{e}"))?;
    model.read(&segment, &pages)?;
    Ok(pages)
}

/// One wrong bit in a segment is found, memory that is too small is refused, and the right segment still loads.
pub fn corrupt_segment(bench: &mut Bench) -> Result<(), String> {
    const LAYER: usize = 2;
    let system = &mut bench.system;
    let mut model = Container::open()?;
    let mut session = open(system)?;
    let pages = read(system, &mut model, 0)?;
    session.lend_and_load(system, pages, 0).map_err(|e| format!("the manifest: {e}"))?;

    let pages = read(system, &mut model, LAYER)?;
    // SAFETY: a page of the pool that is not yet lent.
    let middle = unsafe { page_mut(pages[pages.len() / 2]) };
    middle[1234] ^= 0x10;
    let wrong = session.lend_and_load(system, pages, LAYER as u64);
    refused("LOAD of a segment with a wrong bit", wrong, &[Status::BadHash])?;

    let mut pages = read(system, &mut model, LAYER)?;
    let last = pages.pop().ok_or("a layer without granules")?;
    let short = session.lend_and_load(system, pages, LAYER as u64);
    system.pages.release(&[last]);
    refused("LOAD of a segment without its last granule", short, &[Status::BadMemory])?;

    let pages = read(system, &mut model, LAYER)?;
    let right = session
        .lend_and_load(system, pages, LAYER as u64)
        .map_err(|e| format!("the right segment after two wrong ones: {e}"))?;
    ensure!(right.loaded == 2, "{} of {} segments are loaded instead of 2", right.loaded, right.segments);

    let pages = read(system, &mut model, LAYER)?;
    let beyond = session.lend_and_load(system, pages, right.segments);
    refused("LOAD of a segment that does not exist", beyond, &[Status::InvalidParameters])?;
    close(session, system)
}
