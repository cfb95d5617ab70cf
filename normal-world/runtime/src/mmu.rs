//! The identity map.
//!
//! This program's image is mapped as it deserves (code read-only, data never executed). All other memory is mapped
//! readable, writable and executable *on purpose*: this normal world is the attacker, and an attack must reach the
//! granule check, not fail on the attacker's own tables.

use aarch64_paging::{
    descriptor::El1Attributes as A,
    idmap::IdMap,
    paging::{El1And0, MemoryRegion},
};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering},
};

use flexserve_platform::{DRAM, EL3, Region};

const XN: A = A::UXN.union(A::PXN);
const DEVICE: A = A::VALID.union(A::ACCESSED).union(XN);
const MEMORY: A = A::VALID.union(A::ACCESSED).union(A::ATTRIBUTE_INDEX_1).union(A::INNER_SHAREABLE);
const CODE: A = MEMORY.union(A::READ_ONLY);
const CONSTANTS: A = CODE.union(XN);
const DATA: A = MEMORY.union(XN);

/// Root SRAM and secure DRAM, mapped as memory to be attacked.
const SECURE: Region = Region { base: EL3.base, size: 0x100_0000 };

/// The tables' root, for the cores that start later.
static ROOT: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static image_start: u8;
    static text_end: u8;
    static rodata_end: u8;
    static image_end: u8;
}

/// First address behind this program's image, stacks and heap.
pub fn image_end_address() -> u64 {
    (&raw const image_end) as u64
}

/// Builds the map and switches this core to it.
pub fn enable() {
    let text = (&raw const image_start) as usize;
    let rodata = (&raw const text_end) as usize;
    let data = (&raw const rodata_end) as usize;
    let end = image_end_address() as usize;
    let (secure, secure_end) = (SECURE.base as usize, SECURE.end() as usize);
    let (dram, dram_end) = (DRAM.base as usize, DRAM.end() as usize);

    let mut map = IdMap::with_asid(0, 1, El1And0);
    for (start, end, attributes) in [
        (0, secure, DEVICE),
        (secure, secure_end, MEMORY),
        (secure_end, dram, DEVICE),
        (dram, text, MEMORY),
        (text, rodata, CODE),
        (rodata, data, CONSTANTS),
        (data, end, DATA),
        (end, dram_end, MEMORY),
    ] {
        map.map_range(&MemoryRegion::new(start, end), attributes)
            .expect("the regions are disjoint and in reach of the tables");
    }
    ROOT.store(map.root_address().0 as u64, Ordering::Release);
    // The tables live for ever: dropping the map would switch back to the boot table.
    core::mem::forget(map);
    adopt();
}

/// Switches this core to the map.
pub fn adopt() {
    let root = ROOT.load(Ordering::Acquire);
    // SAFETY: the new tables map everything that the boot table maps and that this program uses at the same addresses.
    unsafe {
        asm!(
            "dsb ishst",
            "msr ttbr0_el1, {}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            in(reg) root,
            options(nostack, preserves_flags)
        );
    }
}
