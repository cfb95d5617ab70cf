//! What lending and recalling costs, by the guest's clock: instructions, where the emulator counts them.

use alloc::{format, string::String, vec::Vec};

use flexserve_abi::{
    el3::Counter,
    ffa::{EndpointId, PROBE_SERVICE},
    probe::Op,
    recall::Status,
};
use flexserve_client::{
    el3,
    ffa::{self, Transfer},
    job::Record,
    probe::{self, Outcome},
    recall,
};

use crate::{
    record,
    system::{Lent, System, free_banks},
    timer::now_ns,
};

/// Granules that are lent at a time: 64 MB.
const GRANULES: u64 = 16384;
/// Bytes at a multiple of which the contiguous ones begin.
const BLOCK: u64 = 2 << 20;

/// Lends, lets the borrower map, revokes and reclaims: contiguous granules, then scattered ones.
///
/// # Errors
///
/// If a call does not do what it should, or a granule comes back with contents.
pub fn run() -> Result<(), String> {
    let mut system = System::start()?;
    let borrower = system
        .ffa
        .find_partition(PROBE_SERVICE)
        .map_err(|e| format!("looking for the hostile partition, which borrows: {e}"))?;
    measure(&mut system, borrower, "", contiguous()?)?;
    let scattered = system.pages.allocate(GRANULES as usize).map_err(|e| format!("{e}"))?;
    measure(&mut system, borrower, "_scattered", scattered)?;
    let el3 = el3::counter(system.ffa.conduit(), Counter::LongestMove).unwrap_or(0);
    figure("worst_masked_el3", "", el3);
    let spmc = recall::longest_section(&mut system.ffa).map_err(|e| format!("asking the SPMC: {e}"))?;
    figure("worst_masked_spmc", "", spmc);
    Ok(())
}

/// The last aligned ones of memory, which nothing else uses.
fn contiguous() -> Result<Vec<u64>, String> {
    const BYTES: u64 = GRANULES * ffa::PAGE_SIZE;
    let first = |(base, size): (u64, u64)| {
        let first = (base + size).checked_sub(BYTES)? & !(BLOCK - 1);
        (first >= base).then_some(first)
    };
    let first =
        free_banks().into_iter().filter_map(first).max().ok_or("there are no 64 MB of free memory")?;
    Ok((0..GRANULES).map(|i| first + i * ffa::PAGE_SIZE).collect())
}

fn measure(system: &mut System, borrower: EndpointId, shape: &str, pages: Vec<u64>) -> Result<(), String> {
    let descriptor = ffa::descriptor(Transfer::Lend, borrower, &ffa::regions(&pages));
    let start = now_ns();
    let handle = system
        .ffa
        .transfer_descriptor(Transfer::Lend, &descriptor, ffa::FRAGMENT)
        .map_err(|e| format!("lending: {e}"))?;
    figure("lend", shape, now_ns() - start);

    let start = now_ns();
    let retrieved = probe::probe(&mut system.ffa, borrower, Op::Retrieve, handle, &mut || {});
    if retrieved != Ok(Outcome::Answered(0)) {
        return Err(format!("retrieving: {retrieved:x?}"));
    }
    figure("retrieve", shape, now_ns() - start);

    let revoke =
        |system: &mut System| recall::revoke(&mut system.ffa, handle).map_err(|e| format!("revoking: {e}"));
    let (Status::Noticed, left) = revoke(system)? else { return Err("there was no notice".into()) };
    let deadline = now_ns() + left;
    while now_ns() < deadline {}
    let start = now_ns();
    if revoke(system)?.0 != Status::Revoked {
        return Err("the deadline was not kept".into());
    }
    system.ffa.reclaim(handle).map_err(|e| format!("reclaiming: {e}"))?;
    figure("return", shape, now_ns() - start);
    let dirty = system.release(&Lent { handle, pages });
    if dirty == 0 { Ok(()) } else { Err(format!("{dirty} granules came back with contents")) }
}

fn figure(name: &str, shape: &str, value: u64) {
    record::emit(&Record::Figure { name: format!("{name}{shape}"), value });
}
