//! Rule 6: a recall always succeeds in bounded time (docs/abi.md, the SPMC's recall service).

use alloc::format;

use flexserve_abi::{
    ffa::{EndpointId, PROBE_SERVICE, RECALL_SERVICE, SPMC, UuidRegisters},
    probe::Op,
    recall::{NOTICE_NS, Status},
};
use flexserve_client::{
    Registers,
    ffa::{self, Code, Error, Function, Transfer},
    probe::{self, Outcome},
    recall, registers,
};
use flexserve_normal_runtime::{cores, exceptions, timer};

use crate::{
    bench::{Bench, dirty_bytes},
    suite::{Cases, Failure, Verdict, ensure},
};

const RULE_6: &str = "DESIGN rule 6";
const ABI: &str = "docs/abi.md, recall service";

/// Time that the borrower gets at once, in microseconds.
const SLICE: u64 = 500;
/// Slices after which a deadline that has not come never will.
const PATIENCE: u32 = 2000;

pub fn cases(cases: &mut Cases) {
    cases.add("recall", "a region that nobody has retrieved is revoked at once", ABI, |bench| {
        service(bench)?;
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        let answer = recall::revoke(&mut bench.system()?.ffa, handle);
        bench.reclaim(handle)?;
        ensure!(answer == Ok((Status::Revoked, 0)), "it answers {answer:x?}");
        Ok(())
    });
    for (name, handle) in [("0", 0), ("2^64 - 1", u64::MAX), ("that was never given", 0x1234_5678)] {
        cases.add("recall", format!("revoking a handle {name} is refused"), ABI, move |bench| {
            service(bench)?;
            let answer = recall::revoke(&mut bench.system()?.ffa, handle);
            ensure!(answer == Ok((Status::BadHandle, 0)), "it answers {answer:x?}");
            Ok(())
        });
    }
    cases.add("recall", "revoking a handle that was reclaimed is refused", ABI, |bench| {
        service(bench)?;
        let pages = bench.patterned(1)?;
        let handle = bench.lend(&pages)?;
        bench.reclaim(handle)?;
        let answer = recall::revoke(&mut bench.system()?.ffa, handle);
        ensure!(answer == Ok((Status::BadHandle, 0)), "it answers {answer:x?}");
        Ok(())
    });
    cases.add("recall", "an unknown operation of the service is refused", ABI, |bench| {
        service(bench)?;
        let mut message = [0; 14];
        message[0] = 99;
        let answer =
            bench.system()?.ffa.request(SPMC, UuidRegisters::new(RECALL_SERVICE), &message, &mut || {});
        ensure!(answer.is_ok_and(|m| m[0] == Status::NotSupported.code()), "it answers {answer:x?}");
        Ok(())
    });
    cases.add(
        "recall",
        "a borrower that holds on is noticed first, and a reclaim is denied meanwhile",
        RULE_6,
        |bench| {
            let mut held = Held::start(bench)?;
            let first = held.notice(bench)?;
            let early = bench.system()?.ffa.reclaim(held.handle);
            held.take_back(bench)?;
            ensure!((1..=NOTICE_NS).contains(&first), "it has {first} ns left");
            ensure!(early == Err(Error::Code(Code::Denied)), "the reclaim answers {early:x?}");
            Ok(())
        },
    );
    cases.add(
        "recall",
        "a page that a borrower holds stays out of the normal world's reach until it is reclaimed",
        RULE_6,
        |bench| {
            let mut held = Held::start(bench)?;
            held.notice(bench)?;
            let noticed = bench.expect_closed(cores::current(), held.page);
            held.revoke(bench)?;
            let revoked = bench.expect_closed(cores::current(), held.page);
            held.finish(bench)?;
            noticed?;
            revoked
        },
    );
    cases.add(
        "recall",
        "after its notice a borrower that holds on loses the page, which comes back zero",
        RULE_6,
        |bench| {
            let mut held = Held::start(bench)?;
            let asked = timer::now_ns();
            held.notice(bench)?;
            held.revoke(bench)?;
            let took = timer::now_ns() - asked;
            held.finish(bench)?;
            ensure!(took >= NOTICE_NS / 2, "the notice was cut short: {took} ns");
            let read = exceptions::read(held.page);
            ensure!(read.is_ok(), "it does not come back: {read:x?}");
            let dirty = dirty_bytes(held.page);
            ensure!(dirty == 0, "{dirty} bytes are not zero");
            Ok(())
        },
    );
    cases.add("recall", "a borrower that touches what it lost is aborted", RULE_6, |bench| {
        let mut held = Held::start(bench)?;
        held.notice(bench)?;
        held.revoke(bench)?;
        let aborted = held.finish(bench)?;
        ensure!(aborted, "it goes on");
        Ok(())
    });
    cases.add("recall", "an aborted borrower serves again", RULE_6, |bench| {
        let mut held = Held::start(bench)?;
        held.take_back(bench)?;
        let hostile = held.borrower;
        let again = probe::probe(&mut bench.system()?.ffa, hostile, Op::Retrieve, held.handle, &mut || {});
        ensure!(matches!(again, Ok(Outcome::Answered(1..))), "it answers {again:x?}");
        Ok(())
    });
}

/// Whether there is a recall service at all.
fn service(bench: &mut Bench) -> Verdict {
    let answer = recall::revoke(&mut bench.system()?.ffa, 0);
    match answer {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::Missing(format!("no recall service: {error}"))),
    }
}

/// A page that a partition reads for ever.
pub struct Held {
    borrower: EndpointId,
    handle: u64,
    /// The page.
    pub page: u64,
    /// What the partition's last slice ended in.
    answer: Registers,
    resume: Registers,
}

impl Held {
    /// Lends a page to the partition, which is told to hold on.
    pub fn start(bench: &mut Bench) -> Result<Self, Failure> {
        service(bench)?;
        let borrower = bench.hostile()?;
        let pages = bench.patterned(1)?;
        let ffa = &mut bench.system()?.ffa;
        let handle =
            ffa.transfer(Transfer::Lend, borrower, &ffa::regions(&pages)).map_err(|e| format!("{e}"))?;
        let uuid = UuidRegisters::new(PROBE_SERVICE);
        let hold = [borrower.into(), uuid.0, uuid.1, Op::Hold as u64, handle];
        let answer = slice(registers(Function::MsgSendDirectReq64_2.into(), &hold));
        let resume = registers(Function::Run32.into(), &[answer[1]]);
        Ok(Self { borrower, handle, page: pages[0], answer, resume })
    }

    fn go_on(&mut self) -> Verdict {
        let interrupted = ffa::is(&self.answer, Function::Interrupt32);
        ensure!(interrupted, "the borrower was to hold on: {:x?}", &self.answer[..4]);
        self.answer = slice(self.resume);
        Ok(())
    }

    /// Lets the borrower retrieve the page, then gives it notice; answers the time that is left to it.
    fn notice(&mut self, bench: &mut Bench) -> Result<u64, Failure> {
        for _ in 0..PATIENCE {
            match recall::revoke(&mut bench.system()?.ffa, self.handle).map_err(|e| format!("{e}"))? {
                (Status::Noticed, left) => return Ok(left),
                // It has not retrieved it yet.
                (Status::Revoked, _) => self.go_on()?,
                other => return Err(Failure::Wrong(format!("giving notice: {other:x?}"))),
            }
        }
        Err(Failure::Wrong("the borrower never retrieves what it is lent".into()))
    }

    fn revoke(&mut self, bench: &mut Bench) -> Verdict {
        for _ in 0..PATIENCE {
            match recall::revoke(&mut bench.system()?.ffa, self.handle).map_err(|e| format!("{e}"))? {
                (Status::Revoked, _) => return Ok(()),
                (Status::Noticed, _) => self.go_on()?,
                other => return Err(Failure::Wrong(format!("revoking: {other:x?}"))),
            }
        }
        Err(Failure::Wrong("the deadline never comes".into()))
    }

    /// Reclaims the page and lets the borrower run on; answers whether it was aborted.
    fn finish(&mut self, bench: &mut Bench) -> Result<bool, Failure> {
        bench.reclaim(self.handle)?;
        self.go_on()?;
        // On a busy machine a slice may end before the partition has run at all.
        for _ in 0..PATIENCE {
            if !ffa::is(&self.answer, Function::Interrupt32) {
                break;
            }
            self.go_on()?;
        }
        let error = ffa::is(&self.answer, Function::Error32);
        Ok(error && self.answer[2] as u32 as i32 == i32::from(Code::Aborted))
    }

    /// Notice, deadline, reclaim.
    pub fn take_back(&mut self, bench: &mut Bench) -> Verdict {
        self.notice(bench)?;
        self.revoke(bench)?;
        self.finish(bench).map(drop)
    }
}

/// Lets the partition run for a slice; answers what came back.
fn slice(call: Registers) -> Registers {
    timer::slice(SLICE, call).0
}
