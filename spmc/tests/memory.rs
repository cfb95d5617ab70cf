//! Lending, retrieving, relinquishing, reclaiming, and what refuses them.

mod common;

use arm_ffa::{FfaError, FuncId};
use common::{BANK, Bench, FREE, HOSTILE, LLM, RX, TX, descriptor, error, registers, request, short};
use flexserve_abi::{
    el3::Gpi,
    ffa::{HOSTILE_PARTITION, LLM_PARTITION},
};
use flexserve_spmc::{hardware::Hardware as _, partition::Step, tables::PAGE};

fn worlds(bench: &Bench, pages: impl IntoIterator<Item = u64>) -> Vec<Gpi> {
    pages.into_iter().map(|page| bench.spmc.hardware.world(page)).collect()
}

/// Nothing is lent, and no table is taken but those of a fresh manager.
fn assert_clean(bench: &Bench, tables: usize) {
    assert!(bench.spmc.hardware.worlds.values().all(|world| *world == Gpi::NonSecure));
    assert_eq!(bench.spmc.ledger.pool.available(), tables);
}

#[test]
fn a_region_goes_there_and_comes_back_as_zeroes() {
    let mut bench = Bench::new();
    let pages = [FREE, FREE + 7 * PAGE, FREE + 2 * PAGE];
    let handle = bench.lend(&[(pages[0], 1), (pages[1], 1), (pages[2], 1)]).unwrap();
    assert_eq!(worlds(&bench, pages), [Gpi::Secure; 3]);
    bench.request(LLM);
    bench.map_secure(LLM);
    let (address, count) = bench.retrieve(LLM, &request(LLM_PARTITION, handle)).unwrap();
    assert_eq!((address % PAGE, count), (0, 3));
    assert_eq!(bench.reclaim(handle), Err(FfaError::Denied), "it is mapped");
    bench.relinquish(LLM, handle, 0).unwrap();
    bench.reclaim(handle).unwrap();
    for page in pages {
        assert_eq!(*bench.spmc.hardware.page(page), [0; 4096]);
    }
    assert_eq!(worlds(&bench, pages), [Gpi::NonSecure; 3]);
    assert_eq!(bench.reclaim(handle), Err(FfaError::InvalidParameters), "a handle dies");
    bench.lend(&[(FREE, 8)]).unwrap();
}

#[test]
fn runs_longer_than_a_batch_are_continued() {
    let mut bench = Bench::new();
    let handle = bench.lend(&[(FREE, 1030)]).unwrap();
    assert!(worlds(&bench, (0..1030).map(|i| FREE + i * PAGE)).iter().all(|world| *world == Gpi::Secure));
    bench.reclaim(handle).unwrap();
    assert!(bench.spmc.hardware.worlds.values().all(|world| *world == Gpi::NonSecure));
}

#[test]
fn a_refused_granule_takes_everything_back() {
    let mut bench = Bench::new();
    let tables = bench.spmc.ledger.pool.available();
    bench.spmc.hardware.refused = Some(FREE + 9 * PAGE);
    assert_eq!(bench.lend(&[(FREE, 12)]), Err(FfaError::Denied));
    assert_clean(&bench, tables);
    assert_eq!(*bench.spmc.hardware.page(FREE), [0xa5; 4096], "the lender's contents stay");
    bench.spmc.hardware.refused = None;
    bench.lend(&[(FREE, 12)]).unwrap();
}

#[test]
fn a_granule_of_another_world_cannot_be_lent_or_shared() {
    let mut bench = Bench::new();
    bench.spmc.hardware.worlds.insert(FREE + PAGE, Gpi::Realm);
    assert_eq!(bench.lend(&[(FREE, 2)]), Err(FfaError::Denied));
    let share = descriptor(LLM_PARTITION, &[(FREE, 2)]);
    assert_eq!(bench.send(FuncId::MemShare64, &share), Err(FfaError::Denied));
    assert_eq!(bench.spmc.hardware.world(FREE), Gpi::NonSecure);
}

#[test]
fn el3_may_be_busy_for_a_while_but_not_for_ever() {
    let mut bench = Bench::new();
    bench.spmc.hardware.busy = 10;
    let handle = bench.lend(&[(FREE, 2)]).unwrap();
    bench.spmc.hardware.busy = 1_000;
    assert_eq!(bench.reclaim(handle), Err(FfaError::Busy));
    bench.spmc.hardware.busy = 0;
    bench.reclaim(handle).unwrap();
    bench.spmc.hardware.busy = 1_000;
    assert_eq!(bench.lend(&[(FREE, 2)]), Err(FfaError::Busy));
    bench.spmc.hardware.busy = 0;
    bench.lend(&[(FREE, 2)]).unwrap();
}

#[test]
fn an_interrupted_reclaim_goes_on_where_it_stopped() {
    let mut bench = Bench::new();
    let handle = bench.lend(&[(FREE, 600)]).unwrap();
    bench.spmc.hardware.refused = Some(FREE + 550 * PAGE);
    assert_eq!(bench.reclaim(handle), Err(FfaError::Denied));
    // The fake faults if a granule that is back is zeroed again.
    bench.spmc.hardware.page(FREE)[0] = 7;
    bench.spmc.hardware.refused = None;
    bench.reclaim(handle).unwrap();
    assert_eq!(bench.spmc.hardware.page(FREE)[0], 7);
}

#[test]
fn a_page_is_in_one_place_at_a_time() {
    let mut bench = Bench::new();
    let tables = bench.spmc.ledger.pool.available();
    for ranges in
        [&[(FREE, 1), (FREE, 1)][..], &[(FREE, 4), (FREE + 3 * PAGE, 1)], &[(TX, 1)], &[(RX - PAGE, 2)]]
    {
        assert_eq!(bench.lend(ranges), Err(FfaError::Denied), "{ranges:x?}");
        assert_clean(&bench, tables);
    }
    bench.lend(&[(FREE, 2)]).unwrap();
    assert_eq!(bench.lend(&[(FREE + PAGE, 2)]), Err(FfaError::Denied));
    let share = descriptor(LLM_PARTITION, &[(FREE + PAGE, 1)]);
    assert_eq!(bench.send(FuncId::MemShare64, &share), Err(FfaError::Denied));
    bench.lend(&[(FREE + 2 * PAGE, 1)]).unwrap();
}

#[test]
fn memory_that_nobody_may_lend_is_refused() {
    let mut bench = Bench::new();
    for (base, pages) in [
        (BANK.base - PAGE, 1),
        (BANK.end() - PAGE, 2),
        (0x0e10_0000, 1),
        (0x0e00_0000, 1),
        (0, 1),
        (u64::MAX - PAGE + 1, 1),
        (FREE + 1, 1),
        (FREE, u32::MAX),
        (FREE, 0),
    ] {
        assert_eq!(bench.lend(&[(base, pages)]), Err(FfaError::InvalidParameters), "{base:#x} {pages}");
    }
}

#[test]
fn fragments_arrive_one_after_another() {
    let mut bench = Bench::new();
    let ranges: Vec<(u64, u32)> = (0..300).map(|i| (FREE + i * 2 * PAGE, 1)).collect();
    let bytes = descriptor(LLM_PARTITION, &ranges);
    let total = bytes.len() as u64;
    bench.spmc.hardware.write_normal(TX, &bytes[..96]).unwrap();
    let first = short(bench.normal(FuncId::MemLend64, &[total, 96]));
    assert_eq!((first[0] as u32, first[3]), (u32::from(FuncId::MemFragRx), 96));
    let (handle, mut sent) = ([first[1], first[2]], 96);
    assert_eq!(worlds(&bench, [FREE, ranges[1].0]), [Gpi::Secure, Gpi::NonSecure], "with their fragment");
    for size in [16, 1600, 3168] {
        bench.spmc.hardware.write_normal(TX, &bytes[sent..sent + size]).unwrap();
        let answer = short(bench.normal(FuncId::MemFragTx, &[handle[0], handle[1], size as u64]));
        sent += size;
        let expected = if sent == bytes.len() { FuncId::Success32 } else { FuncId::MemFragRx };
        assert_eq!(answer[0] as u32, u32::from(expected));
    }
    assert!(worlds(&bench, ranges.iter().map(|r| r.0)).iter().all(|world| *world == Gpi::Secure));
    let again = bench.ok(FuncId::MemFragTx, &[handle[0], handle[1], 16]);
    assert_eq!(again, Err(FfaError::InvalidParameters));
    bench.reclaim(handle[1] << 32 | handle[0]).unwrap();
}

/// Sends the head of a descriptor of two ranges, and answers its handle.
fn half_sent(bench: &mut Bench) -> [u64; 2] {
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 1), (FREE + 4 * PAGE, 1)]);
    bench.spmc.hardware.write_normal(TX, &bytes[..96]).unwrap();
    let answer = short(bench.normal(FuncId::MemLend64, &[bytes.len() as u64, 96]));
    assert_eq!(answer[0] as u32, u32::from(FuncId::MemFragRx));
    [answer[1], answer[2]]
}

#[test]
fn a_bad_fragment_ends_the_transaction() {
    for (fragment, length, code) in [
        (descriptor(0, &[(FREE, 1)])[80..].to_vec(), 16, FfaError::Denied),
        (vec![0xff; 16], 16, FfaError::InvalidParameters),
        (vec![0; 16], 15, FfaError::InvalidParameters),
        (
            descriptor(0, &[(FREE + 8 * PAGE, 1), (FREE + 9 * PAGE, 1)])[80..].to_vec(),
            32,
            FfaError::InvalidParameters,
        ),
        (descriptor(0, &[(FREE + 8 * PAGE, 2)])[80..].to_vec(), 16, FfaError::InvalidParameters),
    ] {
        let mut bench = Bench::new();
        let tables = bench.spmc.ledger.pool.available();
        let [low, high] = half_sent(&mut bench);
        bench.spmc.hardware.write_normal(TX, &fragment).unwrap();
        assert_eq!(bench.ok(FuncId::MemFragTx, &[low, high, length]), Err(code));
        assert_clean(&bench, tables);
        assert_eq!(bench.reclaim(low), Err(FfaError::InvalidParameters), "its handle is dead");
    }
}

#[test]
fn an_unfinished_transaction_can_be_given_up() {
    let mut bench = Bench::new();
    let tables = bench.spmc.ledger.pool.available();
    let [low, _] = half_sent(&mut bench);
    bench.request(LLM);
    bench.map_secure(LLM);
    assert_eq!(bench.retrieve(LLM, &request(LLM_PARTITION, low)), Err(FfaError::InvalidParameters));
    bench.reclaim(low).unwrap();
    assert_clean(&bench, tables);
}

#[test]
fn fragment_lengths_are_checked_before_anything_is_read() {
    let mut bench = Bench::new();
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    bench.spmc.hardware.write_normal(TX, &bytes).unwrap();
    let len = bytes.len() as u64;
    for args in [
        [len, len + 1, 0, 0],
        [len, 0, 0, 0],
        [len, len - 16, 0, 0],
        [len - 1, len - 1, 0, 0],
        [len, 40, 0, 0],
        [0x20_0000, 0x10_0010, 0, 0],
        [len, len, TX, 0],
        [len, len, 0, 1],
    ] {
        let answer = short(bench.normal(FuncId::MemLend64, &args));
        // A first fragment without ranges is allowed; nothing else here is.
        if args[1] == len - 16 {
            assert_eq!(answer[0] as u32, u32::from(FuncId::MemFragRx));
            continue;
        }
        assert_eq!(error(&answer), FfaError::InvalidParameters, "{args:x?}");
    }
}

#[test]
fn buffers_that_moved_to_another_world_are_survived() {
    let mut bench = Bench::new();
    bench.spmc.hardware.worlds.insert(TX, Gpi::Realm);
    let answer = short(bench.normal(FuncId::MemLend64, &[96, 96]));
    assert_eq!(error(&answer), FfaError::Aborted);
    bench.spmc.hardware.worlds.insert(RX, Gpi::Realm);
    assert_eq!(bench.ok(FuncId::PartitionInfoGet, &[0; 5]), Err(FfaError::Aborted));
}

#[test]
fn a_fragment_in_a_page_that_moved_is_survived_and_leaves_nothing() {
    let mut bench = Bench::new();
    let tables = bench.spmc.ledger.pool.available();
    let ranges: Vec<(u64, u32)> = (0..300).map(|i| (FREE + i * PAGE, 1)).collect();
    let bytes = descriptor(LLM_PARTITION, &ranges);
    bench.spmc.hardware.write_normal(TX, &bytes).unwrap();
    bench.spmc.hardware.worlds.insert(TX + PAGE, Gpi::Realm);
    let len = bytes.len() as u64;
    assert_eq!(bench.ok(FuncId::MemLend64, &[len, len]), Err(FfaError::Aborted));
    bench.spmc.hardware.worlds.remove(&(TX + PAGE));
    assert_clean(&bench, tables);
}

#[test]
fn no_memory_leaves_nothing_behind() {
    let mut bench = Bench::with_tables(16);
    bench.map(16).unwrap();
    let tables = bench.spmc.ledger.pool.available();
    let too_much = 512 * (tables as u32 + 1);
    assert_eq!(bench.lend(&[(FREE, too_much)]), Err(FfaError::NoMemory));
    assert_clean(&bench, tables);
    bench.lend(&[(FREE, 512)]).unwrap();
}

#[test]
fn handles_run_out_cleanly() {
    let mut bench = Bench::with_tables(600);
    bench.map(16).unwrap();
    let lend = |bench: &mut Bench, i: u64| bench.lend(&[(FREE + i * PAGE, 1)]);
    let handles: Vec<u64> = (0..256).map(|i| lend(&mut bench, i).unwrap()).collect();
    assert_eq!(lend(&mut bench, 256), Err(FfaError::NoMemory));
    bench.reclaim(handles[100]).unwrap();
    lend(&mut bench, 256).unwrap();
}

#[test]
fn only_the_borrower_retrieves_and_only_as_it_was_lent() {
    let mut bench = Bench::new();
    let handle = bench.lend(&[(FREE, 2)]).unwrap();
    for partition in [LLM, HOSTILE] {
        bench.request(partition);
        bench.map_secure(partition);
    }
    let good = request(LLM_PARTITION, handle);
    assert_eq!(
        bench.retrieve(HOSTILE, &request(HOSTILE_PARTITION, handle)),
        Err(FfaError::InvalidParameters)
    );
    assert_eq!(bench.retrieve(HOSTILE, &good), Err(FfaError::InvalidParameters));
    let changed = |at: usize, value: u8| {
        let mut request = good.clone();
        request[at] = value;
        request
    };
    for (at, value, code) in [
        (0, 1, FfaError::InvalidParameters),         // lender
        (2, 0x10, FfaError::Denied),                 // device memory
        (4, 0b01 << 3, FfaError::InvalidParameters), // a share
        (4, 1, FfaError::InvalidParameters),         // zero it first
        (8, 99, FfaError::InvalidParameters),        // handle
        (16, 1, FfaError::InvalidParameters),        // tag
        (24, 17, FfaError::InvalidParameters),       // size of an access descriptor
        (28, 2, FfaError::InvalidParameters),        // two borrowers
        (32, 0x31, FfaError::InvalidParameters),     // offset of the access descriptor
        (40, 1, FfaError::InvalidParameters),        // reserved
        (48, 2, FfaError::InvalidParameters),        // borrower
        (50, 0b1010, FfaError::Denied),              // executable
        (50, 0b10010, FfaError::InvalidParameters),  // reserved
        (51, 1, FfaError::InvalidParameters),        // flags
        (52, 64, FfaError::InvalidParameters),       // names ranges
        (56, 1, FfaError::InvalidParameters),        // reserved
    ] {
        assert_eq!(bench.retrieve(LLM, &changed(at, value)), Err(code), "byte {at}");
    }
    bench.retrieve(LLM, &good).unwrap();
    assert_eq!(bench.retrieve(LLM, &good), Err(FfaError::Denied), "it is mapped already");
    assert_eq!(bench.relinquish(HOSTILE, handle, 0), Err(FfaError::InvalidParameters));
    assert_eq!(bench.relinquish(LLM, handle, 2), Err(FfaError::InvalidParameters));
    bench.relinquish(LLM, handle, 1).unwrap();
    assert_eq!(*bench.spmc.hardware.page(FREE), [0; 4096]);
    assert_eq!(bench.relinquish(LLM, handle, 0), Err(FfaError::Denied), "it is not mapped");
}

#[test]
fn a_read_only_region_is_never_writable() {
    let mut bench = Bench::new();
    let mut bytes = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    bytes[50] = 0b01;
    let handle = bench.send(FuncId::MemLend32, &bytes).unwrap();
    bench.request(LLM);
    bench.map_secure(LLM);
    let mut ask = request(LLM_PARTITION, handle);
    assert_eq!(bench.retrieve(LLM, &ask), Err(FfaError::Denied));
    ask[50] = 0;
    bench.retrieve(LLM, &ask).unwrap();
}

#[test]
fn shared_memory_stays_in_the_normal_world() {
    let mut bench = Bench::new();
    let handle = bench.send(FuncId::MemShare64, &descriptor(LLM_PARTITION, &[(FREE, 2)])).unwrap();
    assert_eq!(bench.spmc.hardware.world(FREE), Gpi::NonSecure);
    bench.request(LLM);
    bench.map_secure(LLM);
    let mut ask = request(LLM_PARTITION, handle);
    assert_eq!(bench.retrieve(LLM, &ask), Err(FfaError::InvalidParameters), "not a lend");
    ask[4] = 0b01 << 3;
    bench.retrieve(LLM, &ask).unwrap();
    assert_eq!(bench.relinquish(LLM, handle, 1), Err(FfaError::Denied), "not the borrower's to zero");
    bench.relinquish(LLM, handle, 0).unwrap();
    bench.reclaim(handle).unwrap();
    assert_eq!(*bench.spmc.hardware.page(FREE), [0xa5; 4096], "and keeps its contents");
    let handle = bench.send(FuncId::MemShare64, &descriptor(LLM_PARTITION, &[(FREE, 1)])).unwrap();
    bench.ok(FuncId::MemReclaim, &[handle, 0, 1]).unwrap();
    assert_eq!(*bench.spmc.hardware.page(FREE), [0; 4096], "unless the lender asks for zeroes");
}

#[test]
fn donated_memory_stays_once_it_is_taken() {
    let mut bench = Bench::new();
    let bytes = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    let handle = bench.send(FuncId::MemDonate64, &bytes).unwrap();
    bench.reclaim(handle).unwrap();
    let handle = bench.send(FuncId::MemDonate64, &bytes).unwrap();
    bench.request(LLM);
    bench.map_secure(LLM);
    let mut ask = request(LLM_PARTITION, handle);
    ask[4] = 0b11 << 3;
    bench.retrieve(LLM, &ask).unwrap();
    assert_eq!(bench.relinquish(LLM, handle, 0), Err(FfaError::Denied));
    assert_eq!(bench.reclaim(handle), Err(FfaError::Denied));
}

#[test]
fn a_crash_counts_as_relinquishing() {
    for partition in [LLM, HOSTILE] {
        let mut bench = Bench::new();
        let id = bench.spmc.partition(partition).id;
        let bytes = descriptor(id, &[(FREE, 1)]);
        let handles: Vec<u64> = (0..3)
            .map(|i: u64| {
                let mut bytes = bytes.clone();
                bytes[80..88].copy_from_slice(&(FREE + i * PAGE).to_le_bytes());
                bench.send(FuncId::MemLend64, &bytes).unwrap()
            })
            .collect();
        bench.request(partition);
        bench.map_secure(partition);
        for handle in &handles {
            bench.retrieve(partition, &request(id, *handle)).unwrap();
        }
        let Step::Reply(reply) = bench.spmc.aborted(partition) else { panic!("somebody waits") };
        assert_eq!(error(&reply.over(&[0; 18])), FfaError::Aborted);
        for (i, handle) in handles.iter().enumerate() {
            bench.reclaim(*handle).unwrap();
            assert_eq!(*bench.spmc.hardware.page(FREE + i as u64 * PAGE), [0; 4096]);
        }
    }
}

#[test]
fn every_field_of_a_lend_descriptor_is_checked() {
    let good = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    for (at, value, code) in [
        (0, 1, FfaError::Denied),                // sender
        (2, 0x10, FfaError::Denied),             // device memory
        (2, 0x6f, FfaError::Denied),             // Non-secure
        (4, 2, FfaError::InvalidParameters),     // time slicing
        (8, 1, FfaError::InvalidParameters),     // handle
        (24, 0, FfaError::InvalidParameters),    // size of an access descriptor
        (28, 0, FfaError::InvalidParameters),    // no borrower
        (28, 2, FfaError::InvalidParameters),    // two
        (32, 0, FfaError::InvalidParameters),    // offset of the access descriptor
        (35, 0xff, FfaError::InvalidParameters), // far out
        (40, 1, FfaError::InvalidParameters),    // reserved
        (48, 9, FfaError::InvalidParameters),    // unknown borrower
        (50, 0b00, FfaError::Denied),            // no permission
        (50, 0b11, FfaError::Denied),            // reserved permission
        (50, 0b1010, FfaError::Denied),          // executable
        (51, 1, FfaError::InvalidParameters),    // flags
        (52, 48, FfaError::InvalidParameters),   // composite inside the access descriptor
        (52, 65, FfaError::InvalidParameters),   // misaligned
        (55, 0xff, FfaError::InvalidParameters), // far out
        (56, 1, FfaError::InvalidParameters),    // reserved
        (64, 2, FfaError::InvalidParameters),    // more pages than the ranges have
        (64, 0, FfaError::InvalidParameters),    // none
        (68, 2, FfaError::InvalidParameters),    // more ranges than the length has
        (68, 0, FfaError::InvalidParameters),    // none
        (72, 1, FfaError::InvalidParameters),    // reserved
        (92, 1, FfaError::InvalidParameters),    // reserved
    ] {
        let mut bench = Bench::new();
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(bench.send(FuncId::MemLend64, &bytes), Err(code), "byte {at} = {value}");
        assert_eq!(bench.lend(&[(FREE, 1)]).map(|handle| handle != 0), Ok(true), "byte {at} = {value}");
    }
}

#[test]
fn zeroing_at_the_lend_is_for_what_is_taken_away() {
    let mut bench = Bench::new();
    let mut bytes = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    bytes[4] = 1;
    assert_eq!(bench.send(FuncId::MemShare64, &bytes), Err(FfaError::InvalidParameters));
    bench.send(FuncId::MemLend64, &bytes).unwrap();
    assert_eq!(*bench.spmc.hardware.page(FREE), [0; 4096]);
}

#[test]
fn a_descriptor_of_version_1_2_is_larger() {
    let mut bench = Bench::new();
    let mut bytes = descriptor(LLM_PARTITION, &[(FREE, 1)]);
    bytes.splice(64..64, [0; 16]);
    bytes[24] = 32;
    bytes[52] = 80;
    bench.send(FuncId::MemLend64, &bytes).unwrap();
    bytes[70] = 1;
    bytes[96..104].copy_from_slice(&(FREE + PAGE).to_le_bytes());
    assert_eq!(bench.send(FuncId::MemLend64, &bytes), Err(FfaError::InvalidParameters));
}

#[test]
fn the_normal_world_cannot_retrieve_or_relinquish() {
    let mut bench = Bench::new();
    for function in
        [FuncId::MemRetrieveReq32, FuncId::MemRetrieveReq64, FuncId::MemRelinquish, FuncId::MemPermSet64]
    {
        let step = bench.spmc.normal_call(&registers(function, &[64, 64]));
        assert_eq!(error(&short(step)), FfaError::NotSupported);
    }
}
