//! Regions that take more than one call: what is true between two of them, and who may call in the middle.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{Bench, FREE, LLM, descriptor, error, registers, request, short};
use flexserve_abi::{
    el3::Gpi,
    ffa::LLM_PARTITION,
    recall::{NOTICE_NS, Status},
};
use flexserve_spmc::{hardware::Hardware as _, lending::Slice, tables::PAGE};

/// Pages that one call does.
const SLICE: u64 = 4;

/// A manager that does four pages, or two ranges, a call.
fn sliced() -> Bench<'static> {
    let mut bench = Bench::new();
    bench.spmc.ledger.slice = Slice { pages: SLICE as u32, ranges: 2 };
    bench
}

fn page(index: u64) -> u64 {
    FREE + index * PAGE
}

/// How many of the first twelve pages are Secure, which are the first or the last of them.
fn secure(bench: &Bench) -> (usize, usize) {
    let worlds: Vec<_> = (0..12).map(|i| bench.spmc.hardware.world(page(i)) == Gpi::Secure).collect();
    let claimed: Vec<_> = (0..12).map(|i| bench.spmc.ledger.claims.is_claimed(page(i))).collect();
    assert_eq!(worlds, claimed);
    let count = worlds.iter().filter(|secure| **secure).count();
    (count, worlds.iter().position(|secure| *secure).unwrap_or(0))
}

/// Counts the work of a call.
fn work<T>(bench: &mut Bench, call: impl FnOnce(&mut Bench) -> T) -> (T, u32, u32) {
    (bench.spmc.hardware.moved, bench.spmc.hardware.zeroed) = (0, 0);
    let answer = call(bench);
    (answer, bench.spmc.hardware.moved, bench.spmc.hardware.zeroed)
}

#[test]
fn a_long_range_is_lent_and_reclaimed_a_slice_at_a_time() {
    let mut bench = sliced();
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 10)]);
    let (first, moved, _) = work(&mut bench, |bench| bench.send_first(FuncId::MemLend64, &bytes));
    let (handle, offset) = first.unwrap();
    assert_eq!((offset, moved, secure(&bench)), (Some(96), 4, (4, 0)));
    assert_eq!(bench.send_next(handle, &[]), Ok((handle, Some(96))));
    assert_eq!(secure(&bench), (8, 0));
    assert_eq!(bench.send_next(handle, &[]), Ok((handle, None)));
    assert_eq!(bench.send_next(handle, &[]), Err(FfaError::InvalidParameters), "it is whole");
    for left in [6, 2] {
        let (answer, moved, zeroed) = work(&mut bench, |bench| bench.reclaim_slice(handle));
        assert_eq!((answer, moved, zeroed), (Err(FfaError::Retry), 4, 4));
        assert_eq!(secure(&bench), (left, 10 - left));
    }
    bench.reclaim_slice(handle).unwrap();
    assert_eq!(secure(&bench).0, 0);
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::InvalidParameters), "a handle dies");
    (0..10).for_each(|i| assert_eq!(*bench.spmc.hardware.page(page(i)), [0; 4096]));
}

#[test]
fn pages_alone_cost_more_than_pages_in_a_row() {
    let mut bench = sliced();
    let ranges: Vec<_> = (0..6).map(|i| (page(2 * i), 1)).collect();
    let bytes = descriptor(LLM_PARTITION, &ranges);
    let (handle, offset) = bench.send_first(FuncId::MemLend64, &bytes).unwrap();
    assert_eq!(offset, Some(80 + 2 * 16), "the rest is wanted once more");
    assert_eq!(bench.send_next(handle, &bytes[112..]), Ok((handle, Some(80 + 4 * 16))));
    // What is sent the second time is what counts.
    let other = descriptor(LLM_PARTITION, &[(page(11), 1), (page(7), 1)]);
    assert_eq!(bench.send_next(handle, &other[80..]), Ok((handle, None)));
    assert_eq!(bench.spmc.hardware.world(page(8)), Gpi::NonSecure);
    let mut calls = 1;
    while bench.reclaim_slice(handle) == Err(FfaError::Retry) {
        calls += 1;
    }
    assert_eq!((calls, secure(&bench).0), (3, 0));
}

#[test]
fn what_fails_in_the_middle_goes_back_before_its_sender_is_told() {
    for (busy, code) in [(false, FfaError::Denied), (true, FfaError::Busy)] {
        let mut bench = sliced();
        let tables = bench.spmc.ledger.pool.available();
        let bytes = descriptor(LLM_PARTITION, &[(FREE, 12)]);
        let (handle, _) = bench.send_first(FuncId::MemLend64, &bytes).unwrap();
        bench.send_next(handle, &[]).unwrap();
        if busy {
            bench.spmc.hardware.busy = 16;
        } else {
            bench.spmc.hardware.refused = Some(page(9));
        }
        let mut answer = bench.send_next(handle, &[]);
        while answer == Ok((handle, Some(96))) {
            // The borrower is not told of it, and it is whole for nobody.
            assert_eq!(bench.revoke(handle), (Status::BadHandle, 0));
            answer = bench.send_next(handle, &[]);
        }
        assert_eq!(answer, Err(code));
        assert_eq!((secure(&bench).0, bench.spmc.ledger.pool.available()), (0, tables));
        assert_eq!(*bench.spmc.hardware.page(FREE), [0xa5; 4096], "the lender's contents stay");
        bench.spmc.hardware.refused = None;
        bench.lend(&[(FREE, 12)]).unwrap();
    }
}

#[test]
fn a_lend_can_be_given_up_between_two_slices() {
    let mut bench = sliced();
    let tables = bench.spmc.ledger.pool.available();
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 12)]);
    let (handle, _) = bench.send_first(FuncId::MemLend64, &bytes).unwrap();
    bench.send_next(handle, &[]).unwrap();
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::Retry));
    // Its sender, on another core, helps to take it back, and is told that it is gone.
    assert_eq!(bench.send_next(handle, &[]), Err(FfaError::InvalidParameters));
    assert_eq!((secure(&bench).0, bench.spmc.ledger.pool.available()), (0, tables));
    assert_eq!(*bench.spmc.hardware.page(FREE), [0xa5; 4096]);
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::InvalidParameters));
}

#[test]
fn nobody_retrieves_what_is_not_whole() {
    let mut bench = sliced();
    bench.request(LLM);
    bench.map_secure(LLM);
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 10)]);
    let (handle, _) = bench.send_first(FuncId::MemLend64, &bytes).unwrap();
    let retrieve = |bench: &mut Bench| bench.retrieve(LLM, &request(LLM_PARTITION, handle)).map(drop);
    assert_eq!(retrieve(&mut bench), Err(FfaError::InvalidParameters), "it is arriving");
    bench.send_next(handle, &[]).unwrap();
    bench.send_next(handle, &[]).unwrap();
    assert_eq!(retrieve(&mut bench), Ok(()));
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::Denied), "it is mapped");
    bench.relinquish(LLM, handle, 0).unwrap();
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::Retry));
    assert_eq!(retrieve(&mut bench), Err(FfaError::InvalidParameters), "it is leaving");
    assert_eq!(bench.relinquish(LLM, handle, 0), Err(FfaError::InvalidParameters));
    assert_eq!(bench.revoke(handle), (Status::Revoked, 0), "nobody has it");
    assert_eq!(bench.send_next(handle, &[]), Err(FfaError::InvalidParameters));
    bench.reclaim(handle).unwrap();
}

#[test]
fn a_crash_between_two_slices_changes_nothing() {
    let mut bench = sliced();
    let handle = bench.lend(&[(FREE, 10)]).unwrap();
    bench.request(LLM);
    bench.map_secure(LLM);
    bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
    bench.revoke(handle);
    bench.spmc.hardware.now_ns += NOTICE_NS;
    assert_eq!(bench.revoke(handle), (Status::Revoked, 0));
    assert_eq!(bench.reclaim_slice(handle), Err(FfaError::Retry));
    bench.spmc.aborted(LLM);
    assert_eq!(secure(&bench), (6, 4));
    bench.reclaim(handle).unwrap();
    (0..10).for_each(|i| assert_eq!(*bench.spmc.hardware.page(page(i)), [0; 4096]));
}

#[test]
fn a_page_that_is_back_can_be_lent_again_at_once() {
    let mut bench = sliced();
    let old = bench.lend(&[(FREE, 10)]).unwrap();
    assert_eq!(bench.reclaim_slice(old), Err(FfaError::Retry));
    bench.spmc.hardware.page(FREE).fill(7);
    let new = bench.lend(&[(FREE, 4)]).unwrap();
    assert_eq!(bench.lend(&[(page(4), 1)]), Err(FfaError::Denied), "this one is not back yet");
    bench.reclaim(old).unwrap();
    assert_eq!(secure(&bench), (4, 0));
    bench.reclaim(new).unwrap();
}

#[test]
fn a_borrower_that_wants_zeroes_asks_until_it_has_them() {
    let mut bench = sliced();
    let handle = bench.lend(&[(FREE, 10)]).unwrap();
    bench.request(LLM);
    bench.map_secure(LLM);
    for by_retrieving in [false, true] {
        bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
        (0..10).for_each(|i| bench.spmc.hardware.page(page(i)).fill(7));
        let flushed = bench.spmc.hardware.flushed.len();
        let (answer, _, zeroed) = work(&mut bench, |bench| bench.relinquish(LLM, handle, 1));
        assert_eq!((answer, zeroed), (Err(FfaError::Retry), 4));
        assert_eq!(bench.spmc.hardware.flushed.len(), flushed + 1, "it is unmapped at once");
        assert_eq!(bench.relinquish(LLM, handle, 0), Err(FfaError::Denied), "it is not mapped");
        assert_eq!(bench.revoke(handle), (Status::Revoked, 0));
        if by_retrieving {
            assert_eq!(bench.retrieve(LLM, &request(LLM_PARTITION, handle)).map(drop), Err(FfaError::Retry));
            bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
        } else {
            assert_eq!(bench.relinquish(LLM, handle, 1), Err(FfaError::Retry));
            bench.relinquish(LLM, handle, 1).unwrap();
            assert_eq!(bench.relinquish(LLM, handle, 1), Err(FfaError::Denied), "it is not mapped");
        }
        (0..10).for_each(|i| assert_eq!(*bench.spmc.hardware.page(page(i)), [0; 4096]));
    }
    bench.relinquish(LLM, handle, 1).unwrap_err();
    bench.reclaim(handle).unwrap();
}

#[test]
fn a_share_is_zeroed_a_slice_at_a_time() {
    let mut bench = sliced();
    bench.spmc.ledger.slice.pages = 16;
    let share = descriptor(LLM_PARTITION, &[(FREE, 5)]);
    let handle = bench.send(FuncId::MemShare64, &share).unwrap();
    let zeroed =
        |bench: &mut Bench| (0..5).filter(|i| *bench.spmc.hardware.page(page(*i)) == [0; 4096]).count();
    let reclaim = |bench: &mut Bench| bench.ok(FuncId::MemReclaim, &[handle, 0, 1]).map(drop);
    assert_eq!((reclaim(&mut bench), zeroed(&mut bench)), (Err(FfaError::Retry), 2));
    // The normal world gives a page of it away, which nobody can zero then.
    bench.spmc.hardware.worlds.insert(page(2), Gpi::Realm);
    assert_eq!(reclaim(&mut bench), Err(FfaError::Aborted));
    bench.spmc.hardware.worlds.remove(&page(2));
    assert_eq!((reclaim(&mut bench), zeroed(&mut bench)), (Err(FfaError::Retry), 4));
    assert_eq!((reclaim(&mut bench), zeroed(&mut bench)), (Ok(()), 5));
}

#[test]
fn a_fragment_may_be_empty_only_while_there_is_something_to_do() {
    let mut bench = sliced();
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 1), (page(2), 6)]);
    bench.spmc.hardware.write_normal(common::TX, &bytes).unwrap();
    let answer = short(bench.normal(FuncId::MemLend64, &[bytes.len() as u64, 96]));
    let handle = answer[1];
    assert_eq!(bench.send_next(handle, &[]), Err(FfaError::InvalidParameters));
    assert_eq!(bench.send_next(handle, &bytes[96..]), Ok((handle, Some(bytes.len()))));
    // The manager has all ranges: another one is one too many.
    let sent = bench.send_next(handle, &bytes[96..]);
    assert!(matches!(sent, Err(FfaError::InvalidParameters) | Ok((_, Some(_)))), "{sent:?}");
    while bench.send_next(handle, &[]).is_ok() {}
    assert_eq!(secure(&bench).0, 0);
    let refused = bench.spmc.normal_call(&registers(FuncId::MemFragTx, &[handle, 0, 0]));
    assert_eq!(error(&short(refused)), FfaError::InvalidParameters);
}

#[test]
fn the_default_slice_bounds_every_call() {
    let mut bench = Bench::new();
    let pages = u64::from(Slice::DEFAULT.pages);
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 3 * pages as u32)]);
    let (handle, _) = bench.send_first(FuncId::MemLend64, &bytes).unwrap();
    let mut calls = 1;
    loop {
        let (sent, moved, _) = work(&mut bench, |bench| bench.send_next(handle, &[]));
        assert!(moved <= Slice::DEFAULT.pages);
        calls += 1;
        if sent == Ok((handle, None)) {
            break;
        }
    }
    assert_eq!(calls, 3);
    loop {
        let (answer, moved, zeroed) = work(&mut bench, |bench| bench.reclaim_slice(handle));
        assert!(moved <= Slice::DEFAULT.pages && zeroed <= Slice::DEFAULT.pages);
        if answer != Err(FfaError::Retry) {
            break answer.unwrap();
        }
    }
}
