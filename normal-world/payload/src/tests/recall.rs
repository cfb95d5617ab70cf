//! A borrower that keeps what it should give back.

use alloc::{format, string::String};

use flexserve_abi::{
    ffa::{PROBE_SERVICE, UuidRegisters},
    probe::Op,
    recall::Status,
};
use flexserve_client::{
    Registers,
    ffa::{self, Code, Error, Function},
    probe::{self, Outcome},
    recall, registers,
};

use super::{Bench, ensure};
use crate::timer;

/// Time that the borrower gets at once, in microseconds.
const SLICE: u64 = 500;
/// Slices after which a deadline that has not come never will: five seconds.
const PATIENCE: u32 = 10_000;

/// Lets the partition run for a slice; answers what came back.
fn slice(call: Registers) -> Registers {
    timer::slice(SLICE, call).0
}

/// A partition that reads its borrowed pages for ever loses them at the deadline, zeroed, and is aborted at its next touch.
pub fn held_memory_comes_back_at_the_deadline(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let hostile = system
        .ffa
        .find_partition(PROBE_SERVICE)
        .map_err(|e| format!("looking for the hostile partition, which the tests need: {e}"))?;
    let pages = system.pages.allocate(5).map_err(|e| format!("{e}"))?;
    let lent = system.lend(hostile, pages).map_err(|e| format!("lending: {e}"))?;
    let uuid = UuidRegisters::new(PROBE_SERVICE);
    let hold = [hostile.into(), uuid.0, uuid.1, Op::Hold as u64, lent.handle];
    let mut answer = slice(registers(Function::MsgSendDirectReq64_2.into(), &hold));
    let resume = registers(Function::Run32.into(), &[answer[1]]);

    // Until the borrower has retrieved the region, there is nothing to revoke.
    let mut first = (Status::Revoked, 0);
    for _ in 0..PATIENCE {
        ensure!(ffa::is(&answer, Function::Interrupt32), "the borrower was to hold on: {:#x}", answer[0]);
        first = recall::revoke(&mut system.ffa, lent.handle).map_err(|e| format!("giving notice: {e}"))?;
        if first.0 != Status::Revoked {
            break;
        }
        answer = slice(resume);
    }
    ensure!(matches!(first, (Status::Noticed, 1..)), "the first request for revocation: {first:x?}");
    let early = system.ffa.reclaim(lent.handle);
    ensure!(early == Err(Error::Code(Code::Denied)), "a reclaim while the borrower holds on: {early:x?}");

    for _ in 0..PATIENCE {
        ensure!(ffa::is(&answer, Function::Interrupt32), "the borrower was to hold on: {:#x}", answer[0]);
        let asked = recall::revoke(&mut system.ffa, lent.handle).map_err(|e| format!("revoking: {e}"))?;
        if asked.0 == Status::Revoked {
            let dirty = system.reclaim(&lent).map_err(|e| format!("reclaiming what was revoked: {e}"))?;
            ensure!(dirty == 0, "{dirty} granules came back with contents");
            answer = slice(resume);
            // On a busy machine a slice may end before the partition has run at all.
            for _ in 0..PATIENCE {
                if !ffa::is(&answer, Function::Interrupt32) {
                    break;
                }
                answer = slice(resume);
            }
            let aborted =
                ffa::is(&answer, Function::Error32) && answer[2] as u32 as i32 == i32::from(Code::Aborted);
            ensure!(aborted, "the borrower's next touch: {:#x} {:#x}", answer[0], answer[2]);
            let again = probe::probe(&mut system.ffa, hostile, Op::Retrieve, lent.handle, &mut || {});
            ensure!(matches!(again, Ok(Outcome::Answered(1..))), "the borrower after its abort: {again:x?}");
            return Ok(());
        }
        ensure!(asked.0 == Status::Noticed, "a request for revocation: {asked:x?}");
        answer = slice(resume);
    }
    Err("the deadline never came".into())
}
