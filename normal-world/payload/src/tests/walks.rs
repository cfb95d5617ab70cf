//! Walks of translation tables that lie in a granule on its way between the worlds.

use alloc::{format, string::String};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use flexserve_client::ffa::{self, Transfer};
use flexserve_platform::{ISOLATION, Isolation, PAYLOAD_BASE};

use super::{
    Bench, ensure,
    others::{Others, Shared},
};
use crate::{
    exceptions::{self, Fault},
    system::leak_pages,
};

/// The first address of the upper half, whose root is at level 1 with a size as that of the lower half.
///
/// The table is a root, as QEMU 10.0 ends with a failed assertion if a walk meets another world's granule at level 2 or 3.
const UPPER: u64 = u64::MAX << 39;
/// A block of a gigabyte, write-back, read-only, never executed.
const BLOCK: u64 = 0x0060_0000_0000_0785;
const GIGABYTE: u64 = 1 << 30;

/// ESR_ELx.{DFSC, IFSC} of a walk that EL3's mechanism stops: a granule protection fault at level 1; of stage 2, whose level is not
/// known, an external abort.
const STOPPED: u64 = match ISOLATION {
    Isolation::GranuleProtectionTable => 0b10_0101,
    Isolation::Stage2 => 0b01_0111,
};
/// The same of an entry at level 1 that is zero.
const EMPTY: u64 = 0b00_0101;

/// Where the table is, as the low bits of a step count tell.
const FILLED: u64 = 0;
const LENT: u64 = 2;
const STEPS: u64 = 4;

/// This core's upper half, walked from a table, until it is dropped.
struct UpperHalf {
    control: u64,
}

impl UpperHalf {
    fn walked_from(root: u64) -> Self {
        /// TCR_EL1: no walk of the upper half (EPD1), and its size, attributes and granule (T1SZ to TG1) like the lower half's.
        const NO_WALK: u64 = 1 << 23;
        const UPPER_FIELDS: u64 = 0xffff << 16;
        const LIKE_LOWER: u64 = 25 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
        let control: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, tcr_el1", out(reg) control, options(nomem, nostack, preserves_flags)) };
        set(control & !NO_WALK & !UPPER_FIELDS | LIKE_LOWER, root);
        Self { control }
    }
}

impl Drop for UpperHalf {
    fn drop(&mut self) {
        set(self.control, 0);
    }
}

fn set(control: u64, root: u64) {
    // SAFETY: nothing of this program lies in the upper half.
    unsafe {
        asm!("msr ttbr1_el1, {root}", "msr tcr_el1, {control}", "isb", "tlbi vmalle1", "dsb nsh", "isb",
            root = in(reg) root, control = in(reg) control, options(nostack, preserves_flags));
    }
}

/// What walks have found.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    passed: u64,
    stopped: u64,
    empty: u64,
}

/// Walks again and again, until it is told to stop or finds what it must not: through a table that is this world's the right data, through
/// one that is lent nothing, and in between either, or zeroes.
fn walk(table: u64, image: u64, shared: &Shared) -> Result<Found, String> {
    let _upper_half = UpperHalf::walked_from(table);
    let mut found = Found::default();
    while !shared.stop.load(SeqCst) {
        let step = shared.step.load(SeqCst);
        // SAFETY: dropping cached translations is always correct.
        unsafe { asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack, preserves_flags)) };
        let outcome = exceptions::read(UPPER + PAYLOAD_BASE % GIGABYTE);
        let place = (shared.step.load(SeqCst) == step).then_some(step % STEPS);
        let status = |fault: Fault| fault.esr & 0x3f;
        match outcome {
            Ok(value) if value == image && place != Some(LENT) => found.passed += 1,
            Err(fault) if status(fault) == STOPPED && place != Some(FILLED) => found.stopped += 1,
            Err(fault) if status(fault) == EMPTY && !matches!(place, Some(FILLED | LENT)) => found.empty += 1,
            other => {
                return Err(format!(
                    "at step {step}, still there: {}, it ends in {other:x?}",
                    place.is_some()
                ));
            }
        }
        shared.count();
    }
    Ok(found)
}

/// All other cores walk a table while the granule that holds it is lent and comes back, again and again.
pub fn tables_move_under_walks(bench: &mut Bench) -> Result<(), String> {
    const ROUNDS: u64 = 100;
    let system = &mut bench.system;
    let partition = system.llm_partition()?;
    let table = leak_pages(1).as_ptr() as u64;
    let image = exceptions::read(PAYLOAD_BASE).map_err(|fault| format!("reading the image: {fault}"))?;
    let fill = || {
        // SAFETY: this test's own page, which is not lent, and shared with walks only.
        let entry = unsafe { AtomicU64::from_ptr(table as *mut u64) };
        entry.store(PAYLOAD_BASE & !(GIGABYTE - 1) | BLOCK, SeqCst);
        // SAFETY: a barrier: walks see the entry.
        unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    };
    fill();
    let others = Others::begin(move |shared| walk(table, image, shared))?;
    let step = || others.shared().step.fetch_add(1, SeqCst);
    let result = (0..ROUNDS).try_for_each(|round| {
        // Now and then each core meets the table at rest; mostly it does not.
        let rest = |rounds| {
            if round % 16 == 0 {
                others.await_rounds(rounds)
            }
        };
        rest(2);
        step();
        let handle = system.ffa.transfer(Transfer::Lend, partition, &ffa::regions(&[table]));
        let handle = handle.map_err(|e| format!("lending the table: {e}"))?;
        step();
        rest(2);
        step();
        system.ffa.reclaim(handle).map_err(|e| format!("reclaiming the table: {e}"))?;
        fill();
        step();
        Ok::<_, String>(())
    });
    let walks = others.end();
    result?;
    for (core, found) in walks {
        let Found { passed, stopped, empty } = found.map_err(|error| format!("core {core}: {error}"))?;
        ensure!(
            passed > 0 && stopped > 0,
            "core {core}: {passed} passed, {stopped} stopped, {empty} found zeroes"
        );
    }
    Ok(())
}
