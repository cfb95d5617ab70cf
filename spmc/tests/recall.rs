//! The recall service: memory comes back whatever its borrower does.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{Bench, FREE, LLM, request};
use flexserve_abi::{
    el3::Gpi,
    ffa::{LLM_PARTITION, RECALL_SERVICE, SPMC, UuidRegisters},
    recall::{NOTICE_NS, REVOKE, Status},
};

/// A region that the LLM partition has mapped and holds on to.
fn held(bench: &mut Bench) -> u64 {
    let handle = bench.lend(&[(FREE, 3)]).unwrap();
    bench.request(LLM);
    bench.map_secure(LLM);
    bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
    handle
}

#[test]
fn a_borrower_that_holds_on_loses_the_region_at_the_deadline_and_not_before() {
    let mut bench = Bench::new();
    let handle = held(&mut bench);
    bench.spmc.hardware.now_ns = 5;
    assert_eq!(bench.reclaim(handle), Err(FfaError::Denied));
    assert_eq!(bench.revoke(handle), (Status::Noticed, NOTICE_NS));
    bench.spmc.hardware.now_ns += NOTICE_NS - 1;
    assert_eq!(bench.revoke(handle), (Status::Noticed, 1));
    assert_eq!(bench.reclaim(handle), Err(FfaError::Denied));
    bench.spmc.hardware.now_ns += 1;
    let flushes = bench.spmc.hardware.flushed.len();
    assert_eq!(bench.revoke(handle), (Status::Revoked, 0));
    assert_eq!(bench.spmc.hardware.flushed.len(), flushes + 1, "what TLBs hold of the mapping is dropped");
    assert_eq!(bench.spmc.hardware.world(FREE), Gpi::Secure, "the pages stay secure until they are scrubbed");
    bench.reclaim(handle).unwrap();
    for page in 0..3 {
        assert_eq!(bench.spmc.hardware.world(FREE + page * 0x1000), Gpi::NonSecure);
        assert_eq!(bench.spmc.hardware.page(FREE + page * 0x1000), &[0; 4096]);
    }
}

#[test]
fn a_borrower_that_gives_back_and_borrows_anew_gets_a_new_notice() {
    let mut bench = Bench::new();
    let handle = held(&mut bench);
    assert_eq!(bench.revoke(handle).0, Status::Noticed);
    bench.relinquish(LLM, handle, 0).unwrap();
    assert_eq!(bench.revoke(handle).0, Status::Revoked, "nobody has it");
    bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
    bench.spmc.hardware.now_ns += 2 * NOTICE_NS;
    assert_eq!(bench.revoke(handle), (Status::Noticed, NOTICE_NS));
}

#[test]
fn what_cannot_be_revoked_is_refused() {
    let mut bench = Bench::new();
    let handle = held(&mut bench);
    assert_eq!(bench.recall(0, handle).0, Status::NotSupported);
    assert_eq!(bench.revoke(handle + 1).0, Status::BadHandle);
    assert_eq!(bench.revoke(u64::MAX).0, Status::BadHandle);
    let UuidRegisters(low, high) = UuidRegisters::new(RECALL_SERVICE);
    let wrong = bench.normal(FuncId::MsgSendDirectReq64_2, &[SPMC.into(), low ^ 1, high, REVOKE, handle]);
    assert_eq!(wrong, common::refused(FfaError::InvalidParameters));
}
