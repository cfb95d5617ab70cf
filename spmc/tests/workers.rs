//! Partitions that take lent cores as workers.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{Bench, HOSTILE, LLM, error, short};
use flexserve_abi::ffa::HOSTILE_PARTITION;
use flexserve_spmc::partition::{Entry, Phase, Step};

const REGISTER: FuncId = FuncId::SecondaryEpRegister64;

/// The hostile partition ends, and is started anew by a request: it is in front of its first `FFA_MSG_WAIT`.
fn starting() -> (Bench<'static>, u64) {
    let mut bench = Bench::new();
    bench.request(HOSTILE);
    bench.spmc.aborted(HOSTILE);
    let step = bench.normal(FuncId::MsgSendDirectReq64_2, &[HOSTILE_PARTITION.into()]);
    assert_eq!(step, Step::Run(HOSTILE, Entry::Start));
    let entry = bench.spmc.partition(HOSTILE).entry;
    (bench, entry)
}

#[test]
fn workers_start_in_the_partitions_own_code() {
    let (mut bench, entry) = starting();
    for bad in [entry + 2, entry - 4, entry + 0x2000, entry + 0xfc000, 0, !3] {
        let answer = bench.secure_ok(HOSTILE, REGISTER, &[bad]);
        assert_eq!(answer, Err(FfaError::InvalidParameters), "{bad:#x}");
    }
    assert!(bench.spmc.hardware.workers.is_none());
    bench.secure_ok(HOSTILE, REGISTER, &[entry + 0x1ffc]).unwrap();
    assert_eq!(bench.spmc.hardware.workers, Some((HOSTILE, entry + 0x1ffc)));
    assert_eq!(bench.secure_ok(HOSTILE, REGISTER, &[entry]), Err(FfaError::Denied));
}

#[test]
fn workers_are_asked_for_before_the_first_message() {
    let mut bench = Bench::new();
    bench.request(LLM);
    let entry = bench.spmc.partition(LLM).entry;
    assert_eq!(bench.secure_ok(LLM, REGISTER, &[entry]), Err(FfaError::Denied));
}

#[test]
fn a_partition_that_ends_has_no_workers() {
    let (mut bench, entry) = starting();
    bench.secure_ok(HOSTILE, REGISTER, &[entry]).unwrap();
    bench.spmc.aborted(LLM);
    assert!(bench.spmc.hardware.workers.is_some());
    bench.spmc.aborted(HOSTILE);
    assert!(bench.spmc.hardware.workers.is_none());
}

#[test]
fn a_worker_that_fails_ends_a_partition_that_waits() {
    let mut bench = Bench::new();
    bench.spmc.worker_failed(LLM);
    assert_eq!(bench.spmc.partition(LLM).phase, Phase::Aborted);
    bench.spmc.worker_failed(LLM);
    let refused = short(bench.normal(FuncId::MsgSendDirectReq64_2, &[0x8001]));
    assert_eq!(error(&refused), FfaError::Aborted);
}

#[test]
fn a_worker_that_fails_ends_a_partition_that_was_preempted() {
    let mut bench = Bench::new();
    bench.request(LLM);
    bench.spmc.interrupted(LLM);
    bench.spmc.worker_failed(LLM);
    assert_eq!(bench.spmc.partition(LLM).phase, Phase::Aborted);
    let refused = short(bench.normal(FuncId::Run32, &[0x8001_0000]));
    assert_eq!(error(&refused), FfaError::Aborted);
}

#[test]
fn a_worker_that_fails_ends_a_partition_that_runs_when_it_comes_back() {
    let mut bench = Bench::new();
    bench.request(LLM);
    bench.spmc.worker_failed(LLM);
    assert!(bench.spmc.partition(LLM).failing);
    assert_eq!(bench.spmc.partition(LLM).phase, Phase::Serving);
    let step = bench.spmc.aborted(LLM);
    assert_eq!(error(&short(step)), FfaError::Aborted);
    assert!(!bench.spmc.partition(LLM).failing);
}
