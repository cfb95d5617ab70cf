//! Granule protection tables on the hardware: the tables that BL31 has set up, and the instructions around a change.

use crate::{
    cpu::{flush_lines, line_shift, ticks},
    gpt_format::Layout,
    gpt_range::{Tables, for_each_joined, move_ranges},
    protection::{GranuleProtection, Moved, Range},
    reflect,
};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};

macro_rules! barrier {
    ($instruction:literal) => {
        // SAFETY: a barrier.
        unsafe { asm!($instruction, options(nostack, preserves_flags)) }
    };
}

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

    #[inline(always)]
    fn transfer(&self, ranges: &[Range], from: Gpi, to: Gpi) -> Moved {
        let layout = layout();
        let locks = layout.level0_end() as *mut u8;
        let lines = Lines { shift: line_shift(), tagged: has_tags() };
        let access = Access { locks, lines, invalidations: &self.invalidations };
        move_ranges(&layout, &access, ranges, from, to)
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

    fn faults(&self) -> u64 {
        reflect::faults()
    }

    fn ticks(&self) -> u64 {
        ticks()
    }

    fn owner(&self, base: u64) -> Option<Gpi> {
        layout().owner(base, read)
    }

    #[inline(never)]
    fn lend(&self, ranges: &[Range]) -> Moved {
        self.transfer(ranges, Gpi::NonSecure, Gpi::Secure)
    }

    #[inline(never)]
    fn give_back(&self, ranges: &[Range]) -> Moved {
        self.transfer(ranges, Gpi::Secure, Gpi::NonSecure)
    }
}

/// The tables during one call.
struct Access<'a> {
    /// BL31 keeps its locks, a bit for each 512 MB, behind the level-0 table.
    locks: *mut u8,
    lines: Lines,
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

    fn invalidate(&self, stale: impl Iterator<Item = Range>) {
        let mut made = 0;
        barrier!("dsb oshst");
        for_each_joined(stale, |range| {
            made += 1;
            let operand = range_operand(&range);
            // SAFETY: TLBI RPALOS (Arm DDI 0487, C5.5) drops cached copies of entries, which are always correct to drop.
            unsafe { asm!("sys #6, c8, c4, #7, {}", in(reg) operand, options(nostack, preserves_flags)) };
        });
        barrier!("dsb osh");
        self.invalidations.fetch_add(made, Ordering::Relaxed);
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi) {
        // Bit 63 is NS, bit 62 NSE: Secure 00, Non-secure 10.
        let space = if space == Gpi::NonSecure { 1 << 63 } else { 0 };
        // At most `WAVE` turns, for all granules of a call together at most BATCH_LIMIT * 256 lines.
        for range in ranges {
            let (at, Lines { shift, tagged }) = (range.base | space, self.lines);
            // SAFETY: DC CIGDPAPA, which takes allocation tags too, and DC CIPAPA (Arm DDI 0487, C5.3) change no data.
            unsafe {
                if tagged {
                    flush_lines!("sys #6, c7, c14, #5, {at}", at, range.count, shift);
                } else {
                    flush_lines!("sys #6, c7, c14, #1, {at}", at, range.count, shift);
                }
            }
        }
        barrier!("dsb osh");
    }
}

/// What cache maintenance has to know of the machine.
#[derive(Clone, Copy)]
struct Lines {
    /// log2 of the bytes of the smallest data cache line.
    shift: u32,
    /// Memory has allocation tags, which are cached like data.
    tagged: bool,
}

fn read(address: u64) -> u64 {
    // SAFETY: BL31 maps its tables flat, and the address comes from the registers that the hardware walks them by.
    unsafe { (address as *const u64).read_volatile() }
}

fn layout() -> Layout {
    let (gptbr, gpccr) = registers();
    Layout::new(gptbr, gpccr)
}

/// Whether BL31 has set up tables that this service can change.
pub fn is_supported() -> bool {
    Layout::has_granules_of_4k(registers().1)
}

/// GPTBR_EL3 and GPCCR_EL3.
#[inline(always)]
fn registers() -> (u64, u64) {
    let (gptbr, gpccr);
    // SAFETY: reads GPTBR_EL3 and GPCCR_EL3 (Arm DDI 0487, D24.2), which exist wherever this backend is used.
    unsafe {
        asm!("mrs {}, S3_6_C2_C1_4", "mrs {}, S3_6_C2_C1_6", out(reg) gptbr, out(reg) gpccr,
            options(nomem, nostack, preserves_flags));
    }
    (gptbr, gpccr)
}

/// Whether the CPU has allocation tags in memory (FEAT_MTE2, ID_AA64PFR1_EL1.MTE).
fn has_tags() -> bool {
    let features: u64;
    // SAFETY: reads ID_AA64PFR1_EL1.
    unsafe { asm!("mrs {}, id_aa64pfr1_el1", out(reg) features, options(nomem, nostack, preserves_flags)) };
    features >> 8 & 0xf >= 2
}

/// Operand of TLBI RPALOS for the smallest aligned range that holds this one: the size's code in bits [47:44], the address
/// in 4 KB in bits [39:0].
fn range_operand(range: &Range) -> u64 {
    const SIZES: [u32; 7] = [12, 14, 16, 21, 25, 29, 30];
    // Most calls move one granule.
    if range.count == 1 {
        return range.base >> 12;
    }
    let last = range.base + range.count * GRANULE_SIZE as u64 - 1;
    let needed = u64::BITS - (range.base ^ last).leading_zeros();
    // At most seven turns.
    let code = SIZES.iter().position(|shift| needed <= *shift).unwrap_or(SIZES.len() - 1);
    (code as u64) << 44 | (range.base >> SIZES[code] << SIZES[code]) >> 12
}
