//! [`Hardware`] on the real machine: windows, EL3 calls, caches and TLBs, the log.

use super::{
    gic,
    layout::{NORMAL_WINDOW, SECURE_WINDOW},
    lent::{self, WORKERS},
    registers::{cntfrq, cntpct, dczid, flush_asid, smc, zero_blocks},
    serve,
};
use flexserve_abi::{
    el3::{Gpi, LIST_LIMIT, Status, fid},
    ffa::{EndpointId, HOSTILE_PARTITION, LLM_PARTITION},
    log::World,
};
use flexserve_spmc::{
    hardware::{Hardware, Range, Unreachable},
    tables::PAGE,
};

unsafe extern "C" {
    fn guarded_copy(to: *mut u8, from: *const u8, bytes: usize) -> u64;
}

/// The machine.
pub struct Machine;

/// A call of the EL3 service: its status, and x1.
pub fn call(function: u32, args: &[u64]) -> (Option<Status>, u64) {
    let mut registers = [0; 18];
    registers[0] = function.into();
    registers[1..=args.len()].copy_from_slice(args);
    let answer = smc(registers);
    (Status::from_code(answer[0]), answer[1])
}

/// Zeroes Secure memory.
///
/// # Safety
///
/// The pages are mapped in the Secure window, belong to the Secure world, and nobody references them.
pub unsafe fn zero_pages(physical: u64, pages: u32) {
    const PROHIBITED: u64 = 1 << 4;
    let start = SECURE_WINDOW + physical;
    let end = start + u64::from(pages) * PAGE;
    let dczid = dczid();
    if dczid & PROHIBITED != 0 {
        // SAFETY: by the caller.
        unsafe { core::ptr::write_bytes(start as *mut u8, 0, (end - start) as usize) };
        return;
    }
    // SAFETY: by the caller; blocks are at most 2 KiB and divide a page.
    unsafe { zero_blocks(start, end, 4 << (dczid & 0xf)) };
}

impl Hardware for Machine {
    fn set_granules(&mut self, ranges: &[Range], to: Gpi) -> (Status, u64) {
        let mut args = [0; 1 + LIST_LIMIT];
        args[0] = to as u64;
        for (arg, (base, count)) in args[1..].iter_mut().zip(ranges) {
            *arg = base | u64::from(*count);
        }
        let (status, done) = call(fid::GRANULE_SET_LIST, &args);
        (status.unwrap_or(Status::NotSupported), done)
    }

    fn granule(&mut self, base: u64) -> Option<Gpi> {
        let (status, gpi) = call(fid::GRANULE_GET, &[base]);
        (status == Some(Status::Success)).then(|| Gpi::from_bits(gpi as u8)).flatten()
    }

    fn read_normal(&mut self, physical: u64, to: &mut [u8]) -> Result<(), Unreachable> {
        // SAFETY: the address is in a lendable bank, all of which the window maps; a fault is caught.
        let fault =
            unsafe { guarded_copy(to.as_mut_ptr(), (NORMAL_WINDOW + physical) as *const u8, to.len()) };
        if fault == 0 { Ok(()) } else { Err(Unreachable) }
    }

    fn write_normal(&mut self, physical: u64, from: &[u8]) -> Result<(), Unreachable> {
        // SAFETY: as in `read_normal`; no Rust object lives in the normal world's memory.
        let fault = unsafe { guarded_copy((NORMAL_WINDOW + physical) as *mut u8, from.as_ptr(), from.len()) };
        if fault == 0 { Ok(()) } else { Err(Unreachable) }
    }

    fn read_secure(&mut self, physical: u64, to: &mut [u8]) {
        // SAFETY: the range is a partition's, which the window maps; the partition does not run on another core, since
        // it is the one that calls.
        unsafe {
            core::ptr::copy_nonoverlapping(
                (SECURE_WINDOW + physical) as *const u8,
                to.as_mut_ptr(),
                to.len(),
            );
        }
    }

    fn write_secure(&mut self, physical: u64, from: &[u8]) {
        // SAFETY: as in `read_secure`.
        unsafe {
            core::ptr::copy_nonoverlapping(from.as_ptr(), (SECURE_WINDOW + physical) as *mut u8, from.len());
        }
    }

    fn zero(&mut self, physical: u64, pages: u32) {
        // SAFETY: the caller's contract: granules that were moved to the Secure world and that no partition has mapped.
        unsafe { zero_pages(physical, pages) };
    }

    fn flush(&mut self, asid: u16) {
        flush_asid(asid);
    }

    fn now_ns(&mut self) -> u64 {
        // A frequency of zero is a firmware that forgot to set it: time stands still, and notices never end.
        let elapsed = u128::from(cntpct()) * 1_000_000_000;
        elapsed.checked_div(cntfrq().into()).unwrap_or(0) as u64
    }

    fn longest_section(&mut self) -> u64 {
        serve::longest_section()
    }

    fn take_workers(&mut self, partition: usize, entry: u64) -> bool {
        WORKERS.employ(partition, entry).map(gic::interrupt).is_some()
    }

    fn stop_workers(&mut self, partition: usize) {
        lent::dismiss(partition);
    }

    fn log(&mut self, partition: EndpointId, bytes: &[u8]) {
        let world = match partition {
            LLM_PARTITION => World::LlmPartition,
            HOSTILE_PARTITION => World::HostilePartition,
            _ => return,
        };
        flexserve_secure_log::emit(world, bytes);
    }
}
