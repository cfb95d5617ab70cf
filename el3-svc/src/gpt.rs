//! Granule protection tables on the hardware: the tables that BL31 has set up, and the instructions around a change.

use crate::{
    gpt_format::Layout,
    gpt_range::{Tables, move_range},
    protection::{GranuleProtection, Moved},
};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};

/// Bytes that one bit of BL31's lock covers: `RME_GPT_BITLOCK_BLOCK` (1) times 512 MB.
const LOCK_BYTES: u64 = 512 << 20;

unsafe extern "C" {
    /// `include/lib/spinlock.h` of TF-A.
    fn bit_lock(lock: *mut u8, mask: u8);
    fn bit_unlock(lock: *mut u8, mask: u8);
}

/// The tables that the hardware walks.
#[derive(Debug)]
pub struct GranuleProtectionTables {
    invalidations: AtomicU64,
}

impl GranuleProtectionTables {
    /// The tables that GPTBR_EL3 points to.
    pub const fn new() -> Self {
        Self { invalidations: AtomicU64::new(0) }
    }

    fn transfer(&self, base: u64, count: u64, from: Gpi, to: Gpi) -> Moved {
        let layout = layout();
        let locks = layout.level0_end() as *mut u8;
        let access = Access { locks, line: cache_line(), invalidations: &self.invalidations };
        move_range(&layout, &access, (base, count), from, to)
    }
}

impl GranuleProtection for GranuleProtectionTables {
    const BACKEND: u64 = 1;

    fn physical_address_bits(&self) -> u64 {
        layout().physical_address_bits()
    }

    fn tlb_invalidations(&self) -> u64 {
        self.invalidations.load(Ordering::Relaxed)
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        layout().owner(base, read)
    }

    fn lend(&self, base: u64, count: u64) -> Moved {
        self.transfer(base, count, Gpi::NonSecure, Gpi::Secure)
    }

    fn give_back(&self, base: u64, count: u64) -> Moved {
        self.transfer(base, count, Gpi::Secure, Gpi::NonSecure)
    }
}

/// The tables during one call.
struct Access<'a> {
    /// BL31 keeps its locks, a bit for each 512 MB, behind the level-0 table.
    locks: *mut u8,
    /// Bytes of the smallest data cache line.
    line: u64,
    invalidations: &'a AtomicU64,
}

impl Access<'_> {
    fn lock_for(&self, base: u64) -> (*mut u8, u8) {
        let index = base / LOCK_BYTES;
        (self.locks.wrapping_add((index / 8) as usize), 1 << (index % 8))
    }
}

impl Tables for Access<'_> {
    fn read(&self, address: u64) -> u64 {
        read(address)
    }

    fn write(&self, address: u64, entry: u64) {
        // SAFETY: as for reads; the lock for this entry is held, and BL31's own library takes the same one.
        unsafe { (address as *mut u64).write_volatile(entry) }
    }

    fn lock(&self, base: u64) {
        let (lock, mask) = self.lock_for(base);
        // SAFETY: the byte is BL31's, of its type, and mapped.
        unsafe { bit_lock(lock, mask) }
    }

    fn unlock(&self, base: u64) {
        let (lock, mask) = self.lock_for(base);
        // SAFETY: as in `lock`; this core holds the bit.
        unsafe { bit_unlock(lock, mask) }
    }

    fn invalidate(&self, base: u64, bytes: u64) {
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        let operand = range_operand(base, bytes);
        // SAFETY: TLBI RPALOS (Arm DDI 0487, C5.5) drops cached copies of entries, which are always correct to drop.
        unsafe {
            asm!("dsb oshst", "sys #6, c8, c4, #7, {}", "dsb osh", in(reg) operand, options(nostack, preserves_flags));
        }
    }

    fn flush(&self, base: u64, bytes: u64, pas: Gpi) {
        let line = self.line;
        // Bit 63 is NS, bit 62 NSE: Secure 00, Non-secure 10.
        let space = if pas == Gpi::NonSecure { 1 << 63 } else { 0 };
        let mut at = base | space;
        for _ in 0..bytes / (4 * line) {
            // SAFETY: DC CIPAPA (Arm DDI 0487, C5.3) writes back and drops lines; it changes no data.
            unsafe {
                asm!(
                    "sys #6, c7, c14, #1, {at}",
                    "add {at}, {at}, {line}",
                    "sys #6, c7, c14, #1, {at}",
                    "add {at}, {at}, {line}",
                    "sys #6, c7, c14, #1, {at}",
                    "add {at}, {at}, {line}",
                    "sys #6, c7, c14, #1, {at}",
                    "add {at}, {at}, {line}",
                    at = inout(reg) at,
                    line = in(reg) line,
                    options(nostack, preserves_flags),
                );
            }
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb osh", options(nostack, preserves_flags)) }
    }
}

fn read(address: u64) -> u64 {
    // SAFETY: BL31 maps its tables flat, and the address comes from the registers that the hardware walks them by.
    unsafe { (address as *const u64).read_volatile() }
}

fn layout() -> Layout {
    let (gptbr, gpccr): (u64, u64);
    // SAFETY: reads GPTBR_EL3 and GPCCR_EL3 (Arm DDI 0487, D24.2), which exist wherever this backend is used.
    unsafe {
        asm!("mrs {}, S3_6_C2_C1_4", "mrs {}, S3_6_C2_C1_6", out(reg) gptbr, out(reg) gpccr,
            options(nomem, nostack, preserves_flags));
    }
    Layout::new(gptbr, gpccr)
}

/// Bytes of the smallest data cache line, a power of two from 16 to 1024 (CTR_EL0.DminLine).
fn cache_line() -> u64 {
    let ctr: u64;
    // SAFETY: reads CTR_EL0.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
    (4 << (ctr >> 16 & 0xf)).min(GRANULE_SIZE as u64 / 4)
}

/// Operand of TLBI RPALOS for the smallest aligned range that holds `bytes` at `base`: the size's code in bits [47:44], the
/// address in 4 KB in bits [39:0].
fn range_operand(base: u64, bytes: u64) -> u64 {
    const SIZES: [u32; 7] = [12, 14, 16, 21, 25, 29, 30];
    let last = base + bytes - 1;
    let code = SIZES.iter().position(|shift| base >> shift == last >> shift).unwrap_or(SIZES.len() - 1);
    (code as u64) << 44 | (base >> SIZES[code] << SIZES[code]) >> 12
}
