//! Layout of the normal world's stage-2 translation tables (Arm DDI 0487, sections D8.2 and D8.3), for 4 KB granules.
//!
//! Everything has its place from the start: EL3 never follows a pointer that it reads from memory, and no move can fail for
//! want of a table. From the first byte of the reserved memory on:
//!
//! - the EL2 stub, 4 KB, and 4 KB unused;
//! - the level-1 table: 1 TB, two concatenated 4 KB tables;
//! - a level-2 table for each of the first gigabytes, up to the end of DRAM;
//! - a level-3 table for each 2 MB from the first lendable bank to the end of the last;
//! - spare tables, for windows of devices that are no multiple of 2 MB.
#![forbid(unsafe_code)]

use flexserve_abi::{GRANULE_SIZE, el3::Gpi};
use flexserve_platform::Region;

/// Bytes of a page, and of a table.
pub const PAGE: u64 = GRANULE_SIZE as u64;
/// Bytes that a level-2 entry covers.
pub const BLOCK: u64 = 2 << 20;
/// Granules of a block.
pub const GRANULES: u64 = BLOCK / PAGE;
/// Bytes that a level-1 entry covers.
pub const GIGABYTE: u64 = 1 << 30;
/// Bits of an intermediate physical address.
pub const IPA_BITS: u32 = 40;

/// Where the tables lie and how addresses index them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    memory: Region,
    /// How many gigabytes have a level-2 table.
    gigabytes: u64,
    /// From the first lendable bank to the end of the last.
    lendable: Region,
}

impl Layout {
    /// The tables in `memory`, for DRAM and its `lendable` banks, which are in order.
    ///
    /// # Panics
    ///
    /// If `memory` is too small, or `memory` or a bank does not begin and end on a multiple of 2 MB. Called when the firmware is built.
    #[must_use]
    pub const fn new(memory: Region, dram: Region, lendable: &[Region]) -> Self {
        let first = lendable[0];
        let last = lendable[lendable.len() - 1];
        let mut i = 0;
        // A turn for each bank.
        while i < lendable.len() {
            assert!(
                lendable[i].base.is_multiple_of(BLOCK) && lendable[i].size.is_multiple_of(BLOCK),
                "a bank is not whole blocks"
            );
            assert!(dram.contains(lendable[i].base, lendable[i].size), "a bank is not in DRAM");
            i += 1;
        }
        assert!(
            memory.base.is_multiple_of(BLOCK) && memory.size.is_multiple_of(BLOCK),
            "the tables' memory is not whole blocks"
        );
        let layout = Self {
            memory,
            gigabytes: dram.end().div_ceil(GIGABYTE),
            lendable: Region { base: first.base, size: last.end() - first.base },
        };
        assert!(layout.spare() <= memory.end(), "stage2_tables is too small");
        layout
    }

    /// Page of the EL2 stub.
    #[must_use]
    pub const fn stub(&self) -> u64 {
        self.memory.base
    }

    /// The memory that holds everything.
    #[must_use]
    pub const fn memory(&self) -> Region {
        self.memory
    }

    /// The level-1 table, 8 KB at a multiple of 8 KB.
    #[must_use]
    pub const fn level1(&self) -> u64 {
        self.memory.base + 2 * PAGE
    }

    /// Address of the level-1 entry for `ipa`. `None` past the 1 TB.
    #[must_use]
    pub const fn level1_entry(&self, ipa: u64) -> Option<u64> {
        if ipa >> IPA_BITS == 0 { Some(self.level1() + ipa / GIGABYTE * 8) } else { None }
    }

    /// The level-2 table for `ipa`. `None` past the end of DRAM.
    #[must_use]
    pub const fn level2(&self, ipa: u64) -> Option<u64> {
        let index = ipa / GIGABYTE;
        if index < self.gigabytes { Some(self.level1() + (2 + index) * PAGE) } else { None }
    }

    /// One past the last level-2 table.
    #[must_use]
    pub const fn level2_end(&self) -> u64 {
        self.level1() + (2 + self.gigabytes) * PAGE
    }

    /// Address of the level-2 entry for `ipa`. `None` past the end of DRAM.
    #[must_use]
    pub const fn level2_entry(&self, ipa: u64) -> Option<u64> {
        match self.level2(ipa) {
            Some(table) => Some(table + ipa % GIGABYTE / BLOCK * 8),
            None => None,
        }
    }

    /// The level-3 table for `ipa`. `None` outside the lendable banks (and what lies between them).
    #[must_use]
    pub const fn level3(&self, ipa: u64) -> Option<u64> {
        if !self.lendable.contains(ipa, 1) {
            return None;
        }
        Some(self.level2_end() + (ipa - self.lendable.base) / BLOCK * PAGE)
    }

    /// The first spare table.
    #[must_use]
    pub const fn spare(&self) -> u64 {
        self.level2_end() + self.lendable.size / BLOCK * PAGE
    }

    /// Whether the granule at `ipa` is the normal world's, as a core finds it that looks without a lock: the answer is true
    /// of some moment during the call. `None` while its block is being changed.
    ///
    /// `read` answers the 8 bytes at a table's address.
    pub fn reaches(&self, ipa: u64, read: impl Fn(u64) -> u64) -> Option<bool> {
        let (Some(entry), Some(table)) = (self.level2_entry(ipa), self.level3(ipa)) else {
            return Some(false);
        };
        match Level2::of(read(entry)) {
            Level2::Changing { .. } => None,
            Level2::Block => Some(true),
            Level2::Table { .. } => Some(owner(read(table + ipa % BLOCK / PAGE * 8)) == Some(Gpi::NonSecure)),
            Level2::Secure | Level2::Unmapped => Some(false),
        }
    }
}

/// An entry that the hardware does not use, whatever else it says (D8.3.1). Its other bits are ours.
const VALID: u64 = 1;
/// Level 1 and 2: an entry that points to a table. Level 3: a page.
const TABLE: u64 = 0b11;
/// Nobody's: the normal world has nothing there.
pub const UNMAPPED: u64 = 0;
/// A granule, or a block of granules, that the Secure world has.
pub const SECURE: u64 = (Gpi::Secure as u64) << 4;
/// A block whose entry is about to change: between the old and the new one no core may hold either (D8.16.1,
/// break-before-make). Its level-3 table says whose each granule is.
const CHANGING: u64 = 1 << 12;

/// What a window may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything.
    Memory,
    /// Anything but execution.
    Device,
}

impl Kind {
    /// The attributes of a block or page. Stage 1 decides what kind of memory it is and how it is cached: MemAttr and SH leave
    /// what it says, S2AP allows reads and writes, AF is set.
    const fn attributes(self) -> u64 {
        const MEM_ATTR_WRITE_BACK: u64 = 0b1111 << 2;
        const READ_WRITE: u64 = 0b11 << 6;
        const INNER_SHAREABLE: u64 = 0b11 << 8;
        const ACCESSED: u64 = 1 << 10;
        const EXECUTE_NEVER: u64 = 1 << 54;
        let execution = match self {
            Self::Memory => 0,
            Self::Device => EXECUTE_NEVER,
        };
        MEM_ATTR_WRITE_BACK | READ_WRITE | INNER_SHAREABLE | ACCESSED | execution
    }

    /// The level-1 or level-2 entry that maps the block at `base` to itself.
    #[must_use]
    pub const fn block(self, base: u64) -> u64 {
        base | self.attributes() | VALID
    }

    /// The level-3 entry that maps the page at `base` to itself.
    #[must_use]
    pub const fn page(self, base: u64) -> u64 {
        base | self.attributes() | TABLE
    }
}

/// The level-1 entry that points to a level-2 table, or a level-2 entry to a level-3 table of devices.
#[must_use]
pub const fn table(address: u64) -> u64 {
    address | TABLE
}

/// A level-2 entry of the lendable banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level2 {
    /// All granules are the normal world's.
    Block,
    /// The level-3 table says whose each granule is.
    Table {
        /// How many granules are the Secure world's.
        secure: u64,
    },
    /// All granules are the Secure world's.
    Secure,
    /// Between two entries: the hardware finds none, and the level-3 table says whose each granule is.
    Changing {
        /// How many granules are the Secure world's.
        secure: u64,
    },
    /// Nothing is there.
    Unmapped,
}

impl Level2 {
    /// Reads an entry.
    #[must_use]
    pub const fn of(entry: u64) -> Self {
        match entry {
            SECURE => Self::Secure,
            _ if entry & 0b11 == TABLE => Self::Table { secure: entry >> 2 & 0x3ff },
            _ if entry & 0b11 == VALID => Self::Block,
            _ if entry & (CHANGING | VALID) == CHANGING => Self::Changing { secure: entry >> 2 & 0x3ff },
            _ => Self::Unmapped,
        }
    }

    /// The entry that points to the level-3 table at `address`. Hardware ignores bits `[11:2]`: they count the granules that
    /// are Secure.
    #[must_use]
    pub const fn table(address: u64, secure: u64) -> u64 {
        table(address) | (secure & 0x3ff) << 2
    }

    /// The entry between two others.
    #[must_use]
    pub const fn changing(secure: u64) -> u64 {
        CHANGING | (secure & 0x3ff) << 2
    }
}

/// Whose the granule of a level-3 entry is. `None` if nobody's.
#[must_use]
pub const fn owner(entry: u64) -> Option<Gpi> {
    match entry {
        SECURE => Some(Gpi::Secure),
        _ if entry & 0b11 == TABLE => Some(Gpi::NonSecure),
        _ => None,
    }
}

/// `VTTBR_EL2`: the level-1 table, VMID 1.
#[must_use]
pub const fn vttbr(layout: &Layout) -> u64 {
    layout.level1() | 1 << 48
}

/// `VTCR_EL2` for `parange`, the encoding of physical address sizes in `ID_AA64MMFR0_EL1`: walks begin at level 1 and are
/// coherent with the caches (inner shareable, write-back).
#[must_use]
pub const fn vtcr(parange: u64) -> u64 {
    const RES1: u64 = 1 << 31;
    const SHARED_WRITE_BACK: u64 = 0b11 << 12 | 0b01 << 10 | 0b01 << 8;
    const START_AT_LEVEL1: u64 = 0b01 << 6;
    let size = 64 - IPA_BITS as u64;
    RES1 | (parange & 7) << 16 | SHARED_WRITE_BACK | START_AT_LEVEL1 | size
}

/// Bits of a physical address, by the encoding in `ID_AA64MMFR0_EL1.PARange`.
#[must_use]
pub const fn physical_address_bits(parange: u64) -> u64 {
    const BITS: [u64; 8] = [32, 36, 40, 42, 44, 48, 52, 56];
    BITS[(parange & 7) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Region = Region { base: 0x4100_0000, size: 8 << 20 };
    const DRAM: Region = Region { base: 0x4000_0000, size: 0xc000_0000 };
    const BANK: Region = Region { base: 0x4200_0000, size: 0xbe00_0000 };
    const LAYOUT: Layout = Layout::new(MEMORY, DRAM, &[BANK]);

    #[test]
    fn every_table_has_a_place_of_its_own() {
        assert_eq!(LAYOUT.stub(), MEMORY.base);
        assert_eq!(LAYOUT.level1() % 0x2000, 0);
        assert_eq!(LAYOUT.level2(0), Some(LAYOUT.level1() + 0x2000));
        assert_eq!(LAYOUT.level2(DRAM.end() - 1), Some(LAYOUT.level1() + 0x5000));
        assert_eq!(LAYOUT.level3(BANK.base), Some(LAYOUT.level1() + 0x6000));
        assert_eq!(LAYOUT.level3(BANK.end() - 1).unwrap() + PAGE, LAYOUT.spare());
        assert!(LAYOUT.spare() < MEMORY.end());
    }

    #[test]
    fn nothing_is_indexed_past_its_table() {
        assert_eq!(LAYOUT.level1_entry((1 << 40) - 1), Some(LAYOUT.level1() + 0x1ff8));
        assert_eq!(LAYOUT.level1_entry(1 << 40), None);
        assert_eq!(LAYOUT.level1_entry(u64::MAX), None);
        assert_eq!(LAYOUT.level2_entry(DRAM.end() - 1), Some(LAYOUT.level1() + 0x5ff8));
        assert_eq!(LAYOUT.level2_entry(DRAM.end()), None);
        assert_eq!(LAYOUT.level3(BANK.base - 1), None);
        assert_eq!(LAYOUT.level3(BANK.end()), None);
        assert_eq!(LAYOUT.level3(u64::MAX), None);
    }

    #[test]
    fn entries_are_what_the_architecture_says() {
        assert_eq!(Kind::Memory.block(0x4200_0000), 0x4200_07fd);
        assert_eq!(Kind::Memory.page(0x4200_1000), 0x4200_17ff);
        assert_eq!(Kind::Device.page(0x0900_0000), 0x0040_0000_0900_07ff);
        assert_eq!(vttbr(&LAYOUT), 0x0001_0000_4100_2000);
        assert_eq!(vtcr(4), 0x8004_3558);
        assert_eq!((physical_address_bits(2), physical_address_bits(4)), (40, 44));
    }

    #[test]
    fn entries_are_read_as_they_were_written() {
        for secure in [0, 1, 300, 512] {
            assert_eq!(Level2::of(Level2::table(0x4100_8000, secure)), Level2::Table { secure });
            assert_eq!(Level2::of(Level2::changing(secure)), Level2::Changing { secure });
        }
        assert_eq!(Level2::of(Kind::Memory.block(0x4200_0000)), Level2::Block);
        assert_eq!(Level2::of(SECURE), Level2::Secure);
        assert_eq!(Level2::of(UNMAPPED), Level2::Unmapped);
        assert_eq!(owner(SECURE), Some(Gpi::Secure));
        assert_eq!(owner(Kind::Memory.page(0x4200_1000)), Some(Gpi::NonSecure));
        assert_eq!(owner(UNMAPPED), None);
        for ours in [SECURE, UNMAPPED, Level2::changing(1)] {
            assert_eq!(ours & VALID, 0, "the hardware uses {ours:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "too small")]
    fn too_little_memory_is_refused() {
        let _ = Layout::new(Region { base: MEMORY.base, size: BLOCK }, DRAM, &[BANK]);
    }

    #[test]
    #[should_panic(expected = "not whole blocks")]
    fn a_bank_of_half_a_block_is_refused() {
        let _ = Layout::new(MEMORY, DRAM, &[Region { base: BANK.base + PAGE, size: BLOCK }]);
    }
}
