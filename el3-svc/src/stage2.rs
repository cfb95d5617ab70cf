//! The normal world's stage-2 tables on the hardware: the memory that holds them, and the instructions around a change.

use crate::{
    cpu::{flush_lines, line_shift, ticks},
    normal_world,
    protection::{GranuleProtection, Moved, Range},
    stage2_format::{Layout, physical_address_bits},
    stage2_map,
    stage2_range::{Direction, Tables, move_ranges, owner_of},
};
use core::{
    arch::asm,
    ffi::c_int,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use flexserve_abi::el3::Gpi;
use flexserve_platform::{self as platform, Region};

/// Where everything lies.
pub const LAYOUT: Layout = Layout::new(
    platform::STAGE2_TABLES.expect("the backend stage-2 needs [stage2_tables]"),
    platform::DRAM,
    platform::LENDABLE,
);

unsafe extern "C" {
    /// `include/lib/spinlock.h` of TF-A.
    fn spin_lock(lock: *mut u32);
    fn spin_unlock(lock: *mut u32);
    /// `include/lib/xlat_tables/xlat_tables_v2.h`.
    fn mmap_add_dynamic_region(base_pa: u64, base_va: usize, size: usize, attributes: u32) -> c_int;
}

/// The tables that the hardware walks for the normal world.
#[derive(Debug)]
pub struct Stage2 {
    invalidations: AtomicU64,
    /// By the bits of a set (`stage2_range::lock_of`).
    locks: [AtomicU32; 16],
}

impl Stage2 {
    /// The tables in the platform's `stage2_tables`.
    pub const fn new() -> Self {
        Self { invalidations: AtomicU64::new(0), locks: [const { AtomicU32::new(0) }; 16] }
    }

    fn access(&self) -> Access<'_> {
        Access { stage2: self, line_shift: line_shift() }
    }
}

impl GranuleProtection for Stage2 {
    const BACKEND: u64 = 2;

    fn physical_address_bits(&self) -> u64 {
        physical_address_bits(parange())
    }

    fn tlb_invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Relaxed)
    }

    fn faults(&self) -> u64 {
        normal_world::faults()
    }

    fn ticks(&self) -> u64 {
        ticks()
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        owner_of(&LAYOUT, &self.access(), base)
    }

    #[inline(never)]
    fn lend(&self, ranges: &[Range]) -> Moved {
        move_ranges(&LAYOUT, &self.access(), ranges, Direction::Lend)
    }

    #[inline(never)]
    fn give_back(&self, ranges: &[Range]) -> Moved {
        move_ranges(&LAYOUT, &self.access(), ranges, Direction::GiveBack)
    }
}

/// Maps the tables for EL3, and fills them.
///
/// # Panics
///
/// If the platform's windows cannot be mapped, or BL31 has no room for EL3's own mapping of DRAM.
pub fn init() {
    /// Attributes of `xlat_tables_v2.h`: Non-secure; data only.
    const NON_SECURE_DATA: u32 = 1 << 4 | 1 << 6;
    /// Write-back and shared, as the walks of the tables are.
    const WRITE_BACK_READ_WRITE: u32 = 2 | 1 << 3;
    /// Only to name addresses in cache maintenance.
    const NON_CACHEABLE_READ_ONLY: u32 = 1;

    let map = |region: Region, attributes: u32| {
        // SAFETY: maps, where nothing is mapped yet, memory that BL31 itself has no use for.
        let result = unsafe {
            let attributes = attributes | NON_SECURE_DATA;
            mmap_add_dynamic_region(region.base, region.base as usize, region.size as usize, attributes)
        };
        assert!(result == 0, "EL3 cannot map the normal world's memory");
    };
    map(LAYOUT.memory(), WRITE_BACK_READ_WRITE);
    // A turn for each bank.
    for bank in platform::LENDABLE {
        map(*bank, NON_CACHEABLE_READ_ONLY);
    }
    let stage2 = Stage2::new();
    let filled = stage2_map::fill(&LAYOUT, &stage2.access(), platform::DRAM, platform::NS_DEVICES);
    assert!(filled.is_ok(), "a window of the normal world cannot be mapped");
    stage2.access().publish();
}

/// Reads the entry at an address of the tables.
pub fn read(address: u64) -> u64 {
    // SAFETY: `init` has mapped the tables flat, and the address comes from their layout.
    unsafe { (address as *const u64).read_volatile() }
}

/// `ID_AA64MMFR0_EL1.PARange`, of at most 48 bits (larger ones need another format of tables).
pub fn parange() -> u64 {
    let features: u64;
    // SAFETY: reads ID_AA64MMFR0_EL1.
    unsafe { asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags)) };
    (features & 0xf).min(5)
}

/// The tables during one call.
struct Access<'a> {
    stage2: &'a Stage2,
    /// log2 of the bytes of the smallest data cache line.
    line_shift: u32,
}

impl Access<'_> {
    /// The locks of a set, in order. At most 16 turns.
    fn locks(&self, mut set: u16) -> impl Iterator<Item = &AtomicU32> {
        core::iter::from_fn(move || {
            let lock = self.stage2.locks.get(set.trailing_zeros() as usize)?;
            set &= set - 1;
            Some(lock)
        })
    }
}

impl Tables for Access<'_> {
    fn read(&self, address: u64) -> u64 {
        read(address)
    }

    fn write(&self, address: u64, entry: u64) {
        // SAFETY: as for reads; the lock for this entry is held, or no core uses the tables yet.
        unsafe { (address as *mut u64).write_volatile(entry) }
    }

    fn lock(&self, set: u16) {
        // At most 16 turns, here and in `unlock`. Each waits for the wave of another core: spinlocks are fair enough to end, not to count.
        for lock in self.locks(set) {
            // SAFETY: TF-A's `spinlock_t` is one word. Every core takes them in the same order.
            unsafe { spin_lock(lock.as_ptr()) };
        }
    }

    fn unlock(&self, set: u16) {
        for lock in self.locks(set) {
            // SAFETY: as in `lock`; this core holds it.
            unsafe { spin_unlock(lock.as_ptr()) };
        }
    }

    fn publish(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb ishst", options(nostack, preserves_flags)) }
    }

    /// TLBI ALLE1IS: there is only one VMID, and a core that has not entered the normal world yet has none to name. What
    /// TLBs hold are combinations of both stages, which only an invalidation of all of stage 1 reaches (D8.16.5); dropping
    /// stage 2 by address before that would save walks of stage 2, and cost a second instruction and barrier.
    ///
    /// EL3 must stand in the Non-secure state for it: the call may come from the Secure one. Nothing runs below EL3 meanwhile.
    fn invalidate(&self) {
        self.stage2.invalidations.fetch_add(1, Ordering::Relaxed);
        // SAFETY: dropping cached translations is always correct; SCR_EL3.NS, bit 0, is put back.
        unsafe {
            asm!(
                "dsb ishst",
                "mrs {old}, scr_el3",
                "orr {new}, {old}, #1",
                "msr scr_el3, {new}",
                "isb",
                "tlbi alle1is",
                "dsb ish",
                "msr scr_el3, {old}",
                "isb",
                old = out(reg) _,
                new = out(reg) _,
                options(nostack, preserves_flags),
            );
        }
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>) {
        // At most `WAVE` turns, for all granules of a call together at most BATCH_LIMIT * 256 lines.
        for range in ranges {
            // SAFETY: DC CIVAC changes no data, and EL3 maps the lendable banks.
            unsafe { flush_lines!("dc civac, {at}", range.base, range.count, self.line_shift) };
        }
        // SAFETY: a barrier; the outer domain, because the mapping is not cacheable.
        unsafe { asm!("dsb osh", options(nostack, preserves_flags)) }
    }
}
