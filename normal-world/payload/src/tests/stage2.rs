//! The normal world under stage-2 tables that EL3 owns: what it must not reach, and what it must not notice.

use alloc::{format, string::String, vec::Vec};
use core::{
    arch::{asm, global_asm},
    sync::atomic::Ordering,
};

use flexserve_abi::{
    GRANULE_SIZE,
    el3::{Counter, Status, fid},
};
use flexserve_client::{
    Conduit as _, el3,
    ffa::{self, Function, Region, Transfer},
    registers,
};
use flexserve_platform::{PAYLOAD_BASE, STAGE2_TABLES};

use super::{Bench, ensure, others::Others};
use crate::{
    cores,
    exceptions::{self, Fault},
    system::{Lent, System, leak_pages},
};

global_asm!(
    ".pushsection .text",
    ".global probe_vttbr, probe_hcr, probe_tlbi, probe_exclusive, probe_zero, probe_translate",
    "probe_vttbr: msr vttbr_el2, x0",
    "ret",
    "probe_hcr: mrs x0, hcr_el2",
    "ret",
    "probe_tlbi: tlbi alle1",
    "ret",
    "probe_exclusive: ldxr x0, [x0]",
    "ret",
    "probe_zero: dc zva, x0",
    "ret",
    "probe_translate: at s1e1r, x0",
    "isb",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn probe_vttbr(argument: u64);
    fn probe_hcr(argument: u64);
    fn probe_tlbi(argument: u64);
    fn probe_exclusive(address: u64);
    fn probe_zero(address: u64);
    fn probe_translate(address: u64);
}

/// ESR_ELx.{DFSC, IFSC}: external abort on the access itself, the same on a walk of stage 1, and no entry at level 2.
const EXTERNAL_ABORT: u64 = 0b01_0000;
const EXTERNAL_ABORT_ON_WALK: u64 = 0b01_0111;
const TRANSLATION_FAULT_LEVEL2: u64 = 0b00_0110;
/// ESR_ELx.EC of an undefined instruction.
const UNDEFINED: u64 = 0;

/// A gigabyte of virtual addresses that this program's map leaves free, the last one.
const WINDOW: u64 = 511 << 30;
/// A level-1 or level-2 descriptor: a table, and a block of write-back memory, read-only, never executed.
const TABLE: u64 = 0b11;
const BLOCK: u64 = 0x0060_0000_0000_0785;

fn faults(system: &mut System) -> Result<u64, String> {
    el3::counter(system.ffa.conduit(), Counter::Faults).ok_or_else(|| "EL3 counts no faults".into())
}

fn status(fault: Fault) -> u64 {
    fault.esr & 0x3f
}

/// Lends pages that do not go back to the pool when they are reclaimed.
fn lend(system: &mut System, pages: &[u64]) -> Result<u64, String> {
    let partition = system.llm_partition()?;
    let handle = system.ffa.transfer(Transfer::Lend, partition, &ffa::regions(pages));
    handle.map_err(|e| format!("lending {} pages: {e}", pages.len()))
}

fn reclaim(system: &mut System, handle: u64) -> Result<(), String> {
    system.ffa.reclaim(handle).map_err(|e| format!("reclaiming: {e}"))
}

/// Every core runs at EL1; HVC and EL2's registers and instructions are undefined there, and EL3 takes no abort from it.
pub fn el2_is_out_of_reach(bench: &mut Bench) -> Result<(), String> {
    for core in 0..cores::count() {
        let level = cores::run(core, exceptions::level)?;
        ensure!(level == 1, "core {core} runs at EL{level}");
        let called = cores::run(core, exceptions::call_hypervisor)?;
        let undefined = called.is_err_and(|fault| fault.esr >> 26 == UNDEFINED);
        ensure!(undefined, "HVC on core {core} is not undefined: {called:x?}");
        for (what, probe) in [
            ("a write of VTTBR_EL2", probe_vttbr as unsafe extern "C" fn(u64)),
            ("a read of HCR_EL2", probe_hcr),
            ("TLBI ALLE1", probe_tlbi),
        ] {
            // SAFETY: undefined at EL1.
            let outcome = cores::run(core, move || exceptions::guarded(|| unsafe { probe(0) }))?;
            let undefined = outcome.is_err_and(|fault| fault.esr >> 26 == UNDEFINED);
            ensure!(undefined, "{what} on core {core} is not undefined: {outcome:x?}");
        }
    }
    let answer = bench.system.ffa.conduit().call(registers(fid::STAGE2_ABORT, &[0; 8]))[0];
    ensure!(answer == Status::NotSupported.code(), "EL3 takes an abort from EL1: {answer:#x}");
    Ok(())
}

/// The tables and EL2's code can neither be accessed, on any core, nor given away, nor be written through the SPMC.
pub fn tables_are_out_of_reach(bench: &mut Bench) -> Result<(), String> {
    let memory = STAGE2_TABLES.ok_or("this platform has no stage-2 tables")?;
    let last = memory.end() - GRANULE_SIZE as u64;
    let system = &mut bench.system;
    let partition = system.llm_partition()?;
    let (tx, rx) = system.buffers;
    for page in [memory.base, memory.base + 0x2000, memory.base + 0x4000, memory.base + 0x8000, last] {
        for core in 0..cores::count() {
            // SAFETY: not this world's memory: each faults.
            let outcomes = cores::run(core, move || unsafe {
                [
                    ("read", exceptions::read(page).map(drop)),
                    ("write", exceptions::write(page, 0)),
                    ("branch", exceptions::execute(page)),
                ]
            })?;
            for (what, outcome) in outcomes {
                let stopped = outcome.is_err_and(|f| f.is_abort() && status(f) == EXTERNAL_ABORT);
                ensure!(stopped, "a {what} at {page:#x} on core {core} ends so: {outcome:x?}");
            }
        }
        let region = [Region { address: page, page_cnt: 1 }];
        for transfer in [Transfer::Lend, Transfer::Share, Transfer::Donate] {
            let refused = system.ffa.transfer(transfer, partition, &region).is_err();
            ensure!(refused, "{transfer:?} of {page:#x} is accepted");
        }
        system.ffa.unmap_buffers().map_err(|e| format!("unmapping the buffers: {e}"))?;
        let mapped = system.ffa.simple(Function::RxTxMap64, &[tx, page, 1]);
        if mapped.is_ok() {
            system.ffa.unmap_buffers().map_err(|e| format!("unmapping the buffers: {e}"))?;
        }
        system.ffa.map_buffers(tx, rx).map_err(|e| format!("mapping the buffers again: {e}"))?;
        ensure!(mapped.is_err(), "the SPMC takes {page:#x} as a buffer");
    }
    Ok(())
}

/// On every core, each access to a lent granule ends in one external abort with the syndrome of its kind, and EL3 counts it.
pub fn every_access_is_aborted_and_counted(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    // Of the pool: the heap is never executed, whoever has it.
    let pages = system.pages.allocate(1).map_err(|e| format!("{e}"))?;
    let page = pages[0];
    let handle = lend(system, &pages)?;
    let before = faults(system)?;
    for core in 0..cores::count() {
        // SAFETY: the granule is lent: each faults.
        let outcomes = cores::run(core, move || unsafe {
            [
                ("read", exceptions::read(page).map(drop), 0x9600_0010),
                ("write", exceptions::write(page, 1), 0x9600_0050),
                ("branch", exceptions::execute(page), 0x8600_0010),
                ("exclusive read", exceptions::guarded(|| probe_exclusive(page)), 0x9600_0010),
                ("DC ZVA", exceptions::guarded(|| probe_zero(page)), 0x9600_0050),
            ]
        })?;
        for (what, outcome, syndrome) in outcomes {
            let expected = Err(Fault { esr: syndrome, far: page });
            ensure!(outcome == expected, "a {what} on core {core}: {outcome:x?}");
        }
    }
    let (counted, made) = (faults(system)? - before, 5 * cores::count() as u64);
    ensure!(counted == made, "EL3 has counted {counted} of {made} faults");
    reclaim(system, handle)?;
    for core in 0..cores::count() {
        let again = cores::run(core, move || exceptions::read(page))?;
        again.map_err(|fault| format!("after it has come back, core {core} faults: {fault}"))?;
    }
    ensure!(faults(system)? == before + made, "an access that passes is counted");
    system.pages.release(&pages);
    Ok(())
}

/// While a granule of a 2 MB block goes and comes, splitting the block and making it again, the other cores go on using
/// others of it: between the old and the new entry they fault, and notice nothing.
pub fn neighbours_notice_nothing(bench: &mut Bench) -> Result<(), String> {
    const ROUNDS: usize = 300;
    let system = &mut bench.system;
    let lent = leak_pages(1 + cores::MAX_CORES).as_ptr() as u64;
    let others = Others::begin(move |shared| {
        let kept = lent + (1 + cores::current()) as u64 * GRANULE_SIZE as u64;
        let mut count = 0;
        while !shared.stop.load(Ordering::Relaxed) {
            // SAFETY: this task's own page.
            let wrote = unsafe { exceptions::write(kept, count + 1) };
            if exceptions::read(kept) != Ok(count + 1) || wrote.is_err() {
                return None;
            }
            count += 1;
        }
        Some(count)
    })?;
    let before = faults(system)?;
    let result = (0..ROUNDS).try_for_each(|_| {
        let handle = lend(system, &[lent])?;
        reclaim(system, handle)
    });
    let rounds = others.end();
    result?;
    for (core, rounds) in rounds {
        let rounds = rounds.ok_or_else(|| format!("core {core} lost its page for a moment"))?;
        ensure!(rounds > 0, "core {core} did nothing meanwhile");
    }
    ensure!(faults(system)? == before, "{} faults were counted", faults(system)? - before);
    Ok(())
}

/// A page of this world's own translation tables, below the last entry of level 1.
struct Walked {
    page: u64,
    entry: *mut u64,
}

impl Walked {
    fn new(page: u64) -> Self {
        let root: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, ttbr0_el1", out(reg) root, options(nomem, nostack, preserves_flags)) };
        let walked = Self { page, entry: ((root & 0xffff_ffff_f000) + WINDOW / (1 << 30) * 8) as *mut u64 };
        walked.fill();
        // SAFETY: an entry of this program's level-1 table that nothing uses.
        unsafe { walked.entry.write_volatile(page | TABLE) };
        drop_translations();
        walked
    }

    /// Makes the page map this program's image at the window.
    fn fill(&self) {
        // SAFETY: this test's own page, which is not lent.
        unsafe { (self.page as *mut u64).write_volatile(PAYLOAD_BASE | BLOCK) };
        drop_translations();
    }
}

impl Drop for Walked {
    fn drop(&mut self) {
        // SAFETY: as in `new`.
        unsafe { self.entry.write_volatile(0) };
        drop_translations();
    }
}

/// Makes every core walk again.
fn drop_translations() {
    // SAFETY: dropping cached translations is always correct.
    unsafe { asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
}

/// A walk through a translation table in a lent granule is aborted, also that of an address translation instruction.
pub fn walks_through_lent_granules_are_aborted(bench: &mut Bench) -> Result<(), String> {
    let system = &mut bench.system;
    let page = leak_pages(1).as_ptr() as u64;
    let walked = Walked::new(page);
    let image = exceptions::read(PAYLOAD_BASE).map_err(|fault| format!("reading the image: {fault}"))?;
    let through = exceptions::read(WINDOW);
    ensure!(through == Ok(image), "before the table is lent: {through:x?}");
    let handle = lend(system, &[page])?;
    let before = faults(system)?;
    for core in 0..cores::count() {
        // SAFETY: the walk faults, so that nothing is executed.
        let outcomes = cores::run(core, || unsafe {
            [
                ("read", exceptions::read(WINDOW).map(drop)),
                ("branch", exceptions::execute(WINDOW)),
                ("AT S1E1R", exceptions::guarded(|| probe_translate(WINDOW))),
            ]
        })?;
        for (what, outcome) in outcomes {
            let stopped = outcome.is_err_and(|f| f.is_abort() && status(f) == EXTERNAL_ABORT_ON_WALK);
            ensure!(stopped, "a {what} through a lent table, core {core}: {outcome:x?}");
        }
    }
    let counted = faults(system)? - before;
    ensure!(counted == 3 * cores::count() as u64, "EL3 has counted {counted} faults");
    reclaim(system, handle)?;
    let cleared = exceptions::read(WINDOW);
    let empty = cleared.is_err_and(|f| status(f) == TRANSLATION_FAULT_LEVEL2);
    ensure!(empty, "after the table has come back, zero: {cleared:x?}");
    walked.fill();
    let again = exceptions::read(WINDOW);
    ensure!(again == Ok(image), "after it has been filled again: {again:x?}");
    Ok(())
}

/// Each other core, when PSCI has turned it off and on again, and when it has come back from the secure world, runs at EL1 under the
/// same tables.
pub fn cores_that_come_back_are_under_the_tables(bench: &mut Bench) -> Result<(), String> {
    ensure!(cores::count() > 1, "this test needs two cores: --smp 2");
    let system = &mut bench.system;
    let page = leak_pages(1).as_ptr() as u64;
    let handle = lend(system, &[page])?;
    let stopped = |core: usize, how: &str| {
        let (level, read) = cores::run(core, move || (exceptions::level(), exceptions::read(page)))?;
        ensure!(level == 1, "{how}, core {core} runs at EL{level}");
        let stopped = read.is_err_and(|f| f.is_abort() && status(f) == EXTERNAL_ABORT);
        ensure!(stopped, "{how}, core {core} reads a lent granule: {read:x?}");
        Ok(())
    };
    for core in 1..cores::count() {
        stopped(core, "at first")?;
        cores::turn_off(core)?;
        cores::turn_on(core, cores::entry(), cores::stack_top(core))?;
        stopped(core, "off and on")?;
        cores::lend(core)?;
        cores::take_back(core)?;
        stopped(core, "lent and back")?;
    }
    reclaim(system, handle)
}

/// Whole blocks, parts of blocks and runs across their ends come and go; what is lent is aborted, what is not is not.
pub fn blocks_of_every_shape(bench: &mut Bench) -> Result<(), String> {
    const BLOCK_PAGES: usize = 512;
    let system = &mut bench.system;
    let memory = leak_pages(4 * BLOCK_PAGES);
    let skip = memory.as_ptr().align_offset(BLOCK_PAGES * GRANULE_SIZE) / GRANULE_SIZE;
    let first = memory.as_ptr() as u64 + (skip * GRANULE_SIZE) as u64;
    let page = |index: usize| first + (index * GRANULE_SIZE) as u64;
    // From the first page of an aligned block on; three blocks, less a page, are there.
    for (from, to) in [(0, 512), (0, 1024), (1, 512), (0, 511), (511, 513), (100, 1300), (512, 1535)] {
        let pages: Vec<u64> = (from..to).map(page).collect();
        let lent = Lent { handle: lend(system, &pages)?, pages };
        let reads = |index| exceptions::read(page(index)).is_ok();
        let inside = [from, to - 1, usize::midpoint(from, to)].map(reads);
        let outside = [from.checked_sub(1).map(reads), (to < 1535).then(|| reads(to))];
        ensure!(inside == [false; 3], "pages {from}..{to} are lent, and read: {inside:?}");
        ensure!(!outside.contains(&Some(false)), "pages beside {from}..{to} fault: {outside:?}");
        reclaim(system, lent.handle)?;
        for page in &lent.pages {
            let back = exceptions::read(*page);
            ensure!(back == Ok(0), "a page of {from}..{to} comes back as {back:x?}");
        }
    }
    Ok(())
}
