//! Lending and taking back.

use alloc::{format, string::String, vec::Vec};
use core::sync::atomic::Ordering;

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Counter, Feature},
    ffa::EndpointId,
};
use flexserve_client::{
    el3,
    ffa::{self, Code, Error, Function, Region, Transfer},
};
use flexserve_platform::{DRAM, EL3, LLM_PARTITION, RMM, SPMC, STAGE2_TABLES, UART_BASE};

use super::{Bench, ensure, others::Others};
use crate::{
    cores, exceptions,
    system::{Lent, System, page_mut},
};

/// An address that no bank holds.
const NOWHERE: u64 = 0x70_0000_0000;

/// Pages of the pool, each filled with a pattern of its own.
fn patterned(system: &mut System, count: usize) -> Result<Vec<u64>, String> {
    let pages = system.pages.allocate(count).map_err(|e| format!("{e}"))?;
    fill(&pages);
    Ok(pages)
}

fn fill(pages: &[u64]) {
    for &page in pages {
        let [_, low, high, ..] = (page >> 4).to_le_bytes();
        // SAFETY: just allocated from the pool.
        for (i, byte) in unsafe { page_mut(page) }.iter_mut().enumerate() {
            *byte = low ^ high ^ (i as u8) | 1;
        }
    }
}

/// Lends pages to the LLM partition, which does not ask for them.
fn lend(system: &mut System, pages: Vec<u64>) -> Result<Lent, String> {
    let partition = system.llm_partition()?;
    let count = pages.len();
    system.lend(partition, pages).map_err(|e| format!("lending {count} pages: {e}"))
}

/// Takes pages back and counts those that are not all zero.
fn reclaim_zeroed(system: &mut System, lent: &Lent) -> Result<(), String> {
    let nonzero = system.reclaim(lent).map_err(|e| format!("reclaiming: {e}"))?;
    ensure!(nonzero == 0, "{nonzero} of {} granules came back with contents", lent.pages.len());
    Ok(())
}

/// Which mechanism stops accesses to lent granules.
fn backend(system: &mut System) -> u64 {
    el3::feature(system.ffa.conduit(), Feature::Backend)
}

/// Granules that the lender filled come back as zeroes.
pub fn reclaimed_granules_are_zero(bench: &mut Bench) -> Result<(), String> {
    let pages = patterned(&mut bench.system, 100)?;
    let lent = lend(&mut bench.system, pages)?;
    reclaim_zeroed(&mut bench.system, &lent)
}

/// One page, one run of pages, a run longer than EL3's batch limit, and single pages mixed with short runs all go and come.
pub fn contiguous_and_scattered(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let run = contiguous(system, 1500)?;
    let mixed: Vec<u64> = run.iter().copied().filter(|page| page / ffa::PAGE_SIZE % 5 != 3).rev().collect();
    for pages in [run[..1].to_vec(), run[..7].to_vec(), run.clone(), mixed] {
        fill(&pages);
        let lent = Lent { pages: pages.clone(), handle: lend_kept(system, &pages)? };
        system.ffa.reclaim(lent.handle).map_err(|e| format!("reclaiming {} pages: {e}", pages.len()))?;
        // SAFETY: just taken back.
        let dirty =
            pages.iter().filter(|&&page| unsafe { page_mut(page) }.iter().any(|&byte| byte != 0)).count();
        ensure!(dirty == 0, "{dirty} of {} granules came back with contents", pages.len());
    }
    Ok(())
}

/// Lends pages that do not go back to the pool afterwards.
fn lend_kept(system: &mut System, pages: &[u64]) -> Result<u64, String> {
    let partition = system.llm_partition()?;
    system
        .ffa
        .transfer(Transfer::Lend, partition, &ffa::regions(pages))
        .map_err(|e| format!("lending {} pages: {e}", pages.len()))
}

/// Pages that follow each other: the heap's, as the pool gives only scattered ones.
fn contiguous(_system: &mut System, count: usize) -> Result<Vec<u64>, String> {
    let base = crate::system::leak_pages(count).as_ptr() as u64;
    Ok((0..count as u64).map(|i| base + i * GRANULE_SIZE as u64).collect())
}

/// A descriptor of 5,000 constituents goes in fragments, and every page of it is lent.
pub fn fragments(bench: &mut Bench) -> Result<(), String> {
    let pages = patterned(&mut bench.system, 5000)?;
    let lent = lend(&mut bench.system, pages)?;
    for page in [lent.pages[0], lent.pages[4094], lent.pages[4095], lent.pages[4999]] {
        let read = exceptions::read(page);
        ensure!(read.is_err(), "page {page:#x} of a lend in fragments is still readable");
    }
    reclaim_zeroed(&mut bench.system, &lent)
}

/// EL3's counters count each granule once on its way out and once on its way back.
pub fn counters_count_granules(bench: &mut Bench) -> Result<(), String> {
    const COUNT: u64 = 40;
    let read = |system: &mut System| {
        [Counter::Lent, Counter::Returned].map(|counter| el3::counter(system.ffa.conduit(), counter))
    };
    let [lent_before, returned_before] = read(&mut bench.system);
    let pages = patterned(&mut bench.system, COUNT as usize)?;
    let lent = lend(&mut bench.system, pages)?;
    let [lent_after, returned_between] = read(&mut bench.system);
    reclaim_zeroed(&mut bench.system, &lent)?;
    let [_, returned_after] = read(&mut bench.system);
    ensure!(lent_after == lent_before.map(|n| n + COUNT), "lent: {lent_before:?}, then {lent_after:?}");
    ensure!(returned_between == returned_before, "a lend counts as returned");
    ensure!(
        returned_after == returned_before.map(|n| n + COUNT),
        "returned: {returned_before:?}, then {returned_after:?}"
    );
    Ok(())
}

/// Reads, writes and branches to a lent granule end in the fault of EL3's mechanism, at its address.
pub fn lent_granules_fault_on_this_core(bench: &mut Bench) -> Result<(), String> {
    let backend = backend(&mut bench.system);
    let pages = patterned(&mut bench.system, 3)?;
    let page = pages[1];
    exceptions::read(page).map_err(|fault| format!("before it is lent, it faults: {fault}"))?;
    let lent = lend(&mut bench.system, pages)?;
    // SAFETY: the granule is lent, so the write and the branch fault.
    let (written, executed) = unsafe { (exceptions::write(page, 1), exceptions::execute(page)) };
    for (what, outcome) in
        [("read", exceptions::read(page).map(drop)), ("write", written), ("branch", executed)]
    {
        let Err(fault) = outcome else { return Err(format!("a {what} goes through")) };
        ensure!(fault.is_stopped_by(backend), "a {what} ends in another fault: {fault}");
        ensure!(fault.far == page, "a {what} of {page:#x} faults elsewhere: {fault}");
    }
    reclaim_zeroed(&mut bench.system, &lent)?;
    exceptions::read(page).map_err(|fault| format!("after it has come back, it faults: {fault}"))?;
    Ok(())
}

/// Every other core, which reads a page in a loop, its translation cached, faults from the moment that this core's lend returns.
pub fn lent_granules_fault_on_other_cores(bench: &mut Bench) -> Result<(), String> {
    let backend = backend(&mut bench.system);
    let pages = patterned(&mut bench.system, 1)?;
    let page = pages[0];
    let others = Others::begin(move |shared| {
        loop {
            let too_late = shared.step.load(Ordering::SeqCst) != 0;
            match exceptions::read(page) {
                Ok(_) if too_late => return None,
                Ok(_) => shared.count(),
                Err(fault) => return Some(fault),
            }
        }
    })?;
    others.await_rounds(10_000);
    let lent = lend(&mut bench.system, pages);
    others.shared().step.store(1, Ordering::SeqCst);
    let outcomes = others.end();
    let lent = lent?;
    for (core, fault) in &outcomes {
        let stopped = fault.is_some_and(|fault| fault.is_stopped_by(backend));
        ensure!(stopped, "core {core} reads the page after the lend, or takes another fault: {fault:x?}");
    }
    reclaim_zeroed(&mut bench.system, &lent)?;
    for (core, _) in outcomes {
        let again = cores::run(core, move || exceptions::read(page))?;
        ensure!(again == Ok(0), "after it has come back, core {core} reads {again:x?}");
    }
    Ok(())
}

/// Memory that is not the lender's to give, and descriptors that contradict themselves, are refused and change nothing.
pub fn bad_descriptors(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let partition = system.llm_partition()?;
    let pages = system.pages.allocate(2).map_err(|e| format!("{e}"))?;
    let region = |address, page_cnt| Region { address, page_cnt };
    let good = region(pages[0], 1);
    let bad: &[(&str, EndpointId, &[Region])] = &[
        ("no region", partition, &[]),
        ("no pages", partition, &[region(pages[0], 0)]),
        ("an odd address", partition, &[region(pages[0] + 8, 1)]),
        ("the same page twice", partition, &[good, good]),
        ("a good page, then the SPMC's", partition, &[good, region(SPMC.base, 1)]),
        ("the LLM partition's image", partition, &[region(LLM_PARTITION.base, 1)]),
        ("EL3's memory", partition, &[region(EL3.base, 1)]),
        ("the firmware's DRAM", partition, &[region(RMM.or(STAGE2_TABLES).unwrap_or(EL3).base, 1)]),
        ("a device", partition, &[region(UART_BASE, 1)]),
        ("no memory at all", partition, &[region(NOWHERE, 1)]),
        ("pages beyond the end of DRAM", partition, &[region(DRAM.end() - ffa::PAGE_SIZE, 2)]),
        ("a range that wraps", partition, &[region(u64::MAX - 0xfff, u32::MAX)]),
        ("a receiver that does not exist", 0x8123, &[good]),
        ("the lender itself", 0, &[good]),
        ("the SPMC", 0x8000, &[good]),
    ];
    for (what, receiver, regions) in bad {
        let answer = system.ffa.transfer(Transfer::Lend, *receiver, regions);
        ensure!(matches!(answer, Err(Error::Code(_))), "lending {what}: {answer:x?}");
        let read = exceptions::read(pages[0]);
        ensure!(read.is_ok(), "after lending {what}, the page faults");
    }
    let lent = lend(system, pages)?;
    let again = system.ffa.transfer(Transfer::Lend, partition, &[good]);
    ensure!(matches!(again, Err(Error::Code(_))), "lending a lent page: {again:x?}");
    let shared = system.ffa.transfer(Transfer::Share, partition, &[good]);
    ensure!(matches!(shared, Err(Error::Code(_))), "sharing a lent page: {shared:x?}");
    reclaim_zeroed(system, &lent)
}

/// Lengths and counts that do not fit each other, and fragments that do not belong together, are refused.
pub fn bad_fragments(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let partition = system.llm_partition()?;
    let pages = system.pages.allocate(8).map_err(|e| format!("{e}"))?;
    let descriptor = ffa::descriptor(Transfer::Lend, partition, &ffa::regions(&pages));
    let length = descriptor.len();

    let mut wrong_total = descriptor.clone();
    wrong_total[64] ^= 1;
    let mut wrong_count = descriptor.clone();
    wrong_count[68] ^= 1;
    for (what, descriptor) in
        [("a wrong total of pages", wrong_total), ("a wrong count of regions", wrong_count)]
    {
        let answer = system.ffa.transfer_descriptor(Transfer::Lend, &descriptor, length);
        ensure!(matches!(answer, Err(Error::Code(_))), "{what}: {answer:x?}");
    }
    for cut in [1, 47, 64, 79, length - 16, length - 1] {
        let answer = system.ffa.transfer_descriptor(Transfer::Lend, &descriptor[..cut], cut);
        ensure!(matches!(answer, Err(Error::Code(_))), "the first {cut} bytes of {length}: {answer:x?}");
    }
    for (total, first) in [(0, 0), (length, 0), (length, length + 16), (usize::MAX, 96), (1 << 31, 96)] {
        let answer = system.ffa.simple(Function::MemLend32, &[total as u64, first as u64]);
        ensure!(matches!(answer, Err(Error::Code(_))), "{first} bytes of {total}: {answer:x?}");
    }
    let stray = system.ffa.simple(Function::MemFragTx, &[0x1234, 0, 16, 0]);
    ensure!(matches!(stray, Err(Error::Code(_))), "a fragment of nothing: {stray:x?}");

    let handle = system.ffa.transfer_descriptor(Transfer::Lend, &descriptor, 96);
    let handle = handle.map_err(|e| format!("the same descriptor in small fragments: {e}"))?;
    reclaim_zeroed(system, &Lent { handle, pages })
}

/// A handle that does not exist, or no longer does, is not reclaimed.
pub fn bad_handles(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let pages = patterned(system, 1)?;
    let lent = lend(system, pages)?;
    for handle in [0, lent.handle ^ 1 << 40, lent.handle.wrapping_add(1000), u64::MAX] {
        let answer = system.ffa.reclaim(handle);
        ensure!(answer == Err(Error::Code(Code::InvalidParameters)), "reclaiming {handle:#x}: {answer:?}");
    }
    reclaim_zeroed(system, &lent)?;
    let twice = system.ffa.reclaim(lent.handle);
    ensure!(twice == Err(Error::Code(Code::InvalidParameters)), "reclaiming twice: {twice:?}");
    Ok(())
}
