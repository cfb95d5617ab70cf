//! A normal world that calls at random, and a partition that never answers.

use alloc::{boxed::Box, format, string::String};

use flexserve_abi::{
    el3::fid,
    ffa::{LLM_SERVICE, PROBE_SERVICE, UuidRegisters},
    probe::Op,
    service,
};
use flexserve_client::{
    Conduit, Registers,
    ffa::{self, Code, Error, Ffa, Function},
    llm::Llm,
    registers,
};

use super::{Bench, ensure};
use crate::{cores, gic, random::Random, record, system::Smc, timer};

/// Calls of one run.
const CALLS: u32 = 20_000;
/// Function numbers of FF-A in the standard secure service range (DEN0077A, chapter 11).
const FFA_NUMBERS: core::ops::Range<u64> = 0x60..0xf0;
/// `FFA_RXTX_UNMAP`: after it, a random `FFA_RXTX_MAP` could make this program's own pages the RX buffer.
const RXTX_UNMAP: u64 = 0x67;

/// A session that is never open.
const NO_SESSION: u64 = u64::MAX;

/// A call of FF-A or the EL3 service with random arguments.
fn random_call(random: &mut Random) -> Registers {
    let mut call: Registers = core::array::from_fn(|_| random.argument());
    let wide = 0x8400_0000 | random.below(2) << 30;
    call[0] = match random.below(4) {
        0 => u64::from(fid::VERSION) + random.below(0x30),
        1 => {
            let UuidRegisters(low, high) = UuidRegisters::new(LLM_SERVICE);
            [call[1], call[2], call[3]] = [0x8001, low, high];
            // CLOSE and RECALL of a session that another test holds would be obeyed; no session is open here.
            call[4] = random.below(9);
            u32::from(Function::MsgSendDirectReq64_2).into()
        }
        _ => wide | FFA_NUMBERS.start + random.below(FFA_NUMBERS.end - FFA_NUMBERS.start),
    };
    if call[0] & 0xff == RXTX_UNMAP {
        call[0] += 1;
    }
    if call[0] & 0xff == 0x6f || call[1] as u16 == 0x8002 {
        // The hostile partition obeys, and can be told to spin for ever.
        call[1] = 0x8001;
    }
    call
}

/// Makes random calls. A partition that one of them preempts or starts is run to its end.
fn storm(seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..CALLS {
        let mut answer = Smc.call(random_call(&mut random));
        while answer[0] == u64::from(u32::from(Function::Interrupt32)) {
            gic::acknowledge();
            answer = Smc.call(registers(Function::Run32.into(), &[answer[1]]));
        }
    }
}

/// Puts back what a random call may have changed by right, and checks that everybody still answers.
fn survivors(bench: &mut Bench) -> Result<(), String> {
    let (tx, rx) = bench.system.buffers;
    let ffa = &mut bench.system.ffa;
    let version = ffa.version();
    ensure!(version == Ok(ffa::VERSION), "FFA_VERSION = {version:x?}");
    let _ = ffa.simple(Function::RxRelease, &[]);
    ffa.unmap_buffers().map_err(|e| format!("unmapping the buffers: {e}"))?;
    ffa.map_buffers(tx, rx).map_err(|e| format!("mapping the buffers: {e}"))?;
    let partition = ffa.find_partition(LLM_SERVICE).map_err(|e| format!("finding the LLM partition: {e}"))?;
    let answer = Llm::new(ffa, partition, &mut || {}).status(NO_SESSION);
    super::messages::refused("STATUS afterwards", answer, &[service::Status::NoSession])
}

/// Seed of a run: the clock's, so that every run is another one; it is reported to be repeated by hand.
fn seed() -> u64 {
    let seed = timer::now_ns();
    record::emit(&flexserve_client::job::Record::Progress {
        what: format!("random calls, seed {seed:#x}"),
        done: 0,
        total: CALLS.into(),
    });
    seed
}

/// Twenty thousand random calls of FF-A and the EL3 service from one core.
pub fn random_calls(bench: &mut Bench) -> Result<(), String> {
    storm(seed());
    survivors(bench)
}

/// The same from two cores at once.
pub fn random_calls_on_two_cores(bench: &mut Bench) -> Result<(), String> {
    ensure!(cores::count() > 1, "this test needs two cores: --smp 2");
    let seed = seed();
    cores::begin(1, Box::new(move || storm(!seed)))?;
    storm(seed);
    cores::wait(1);
    survivors(bench)
}

/// A partition that spins for ever is preempted again and again, others are served meanwhile, and it stays busy.
pub fn spinning_partition_is_preempted(bench: &mut Bench) -> Result<(), String> {
    let ffa = &mut bench.system.ffa;
    let hostile = ffa
        .find_partition(PROBE_SERVICE)
        .map_err(|e| format!("looking for the hostile partition, which the tests need: {e}"))?;
    let UuidRegisters(low, high) = UuidRegisters::new(PROBE_SERVICE);
    let mut call =
        registers(Function::MsgSendDirectReq64_2.into(), &[hostile.into(), low, high, Op::Spin as u64]);
    for round in 0..20 {
        let (answer, fired) = timer::slice(500, call);
        ensure!(
            answer[0] == u64::from(u32::from(Function::Interrupt32)) && fired,
            "round {round}: the spinning partition answered {:#x}, interrupt pending: {fired}",
            answer[0]
        );
        call = registers(Function::Run32.into(), &[answer[1]]);
    }
    let partition = ffa.find_partition(LLM_SERVICE).map_err(|e| format!("finding the LLM partition: {e}"))?;
    let answer = Llm::new(ffa, partition, &mut || {}).status(NO_SESSION);
    super::messages::refused(
        "STATUS while another partition is preempted",
        answer,
        &[service::Status::NoSession],
    )?;
    let mut message = [0; 14];
    message[0] = Op::Read as u64;
    let again = Ffa::new(Smc, &mut []).request(hostile, UuidRegisters(low, high), &message, &mut || {});
    ensure!(again == Err(Error::Code(Code::Busy)), "a second request to the spinning partition: {again:x?}");
    Ok(())
}
