//! Layout of granule protection tables (Arm DDI 0615, "Granule protection tables"; DDI 0487, section D9), for 4 KB
//! granules.
#![forbid(unsafe_code)]

use flexserve_abi::el3::Gpi;

/// Where the tables lie and how addresses index them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    level0: u64,
    address_bits: u32,
    /// log2 of the bytes that one level-0 entry covers.
    region_shift: u32,
}

impl Layout {
    /// From the values of `GPTBR_EL3` and `GPCCR_EL3`.
    #[must_use]
    pub fn new(gptbr: u64, gpccr: u64) -> Self {
        /// Bits in a protected physical address, by GPCCR_EL3.PPS.
        static PPS: [u8; 8] = [32, 36, 40, 42, 44, 48, 52, 52];
        Self {
            // GPTBR_EL3.BADDR, bits [39:0], counts 4 KB.
            level0: (gptbr & ((1 << 40) - 1)) << 12,
            // GPCCR_EL3.PPS, bits [2:0].
            address_bits: PPS[(gpccr & 7) as usize].into(),
            // GPCCR_EL3.L0GPTSZ, bits [23:20]: 1 GB times 2^L0GPTSZ.
            region_shift: 30 + ((gpccr >> 20) & 0xf) as u32,
        }
    }

    /// Whether this value of `GPCCR_EL3` sets granules of 4 KB: PGS, bits [15:14], is zero (Arm DDI 0487, D9.6.3).
    #[must_use]
    pub const fn has_granules_of_4k(gpccr: u64) -> bool {
        gpccr >> 14 & 3 == 0
    }

    /// Bits in a protected physical address.
    #[must_use]
    pub const fn physical_address_bits(&self) -> u64 {
        self.address_bits as u64
    }

    /// One past the last byte of the level-0 table.
    #[must_use]
    pub const fn level0_end(&self) -> u64 {
        let regions = 1_u64 << self.address_bits.saturating_sub(self.region_shift);
        self.level0 + regions * 8
    }

    /// The level-1 table for `base`, by a walk through `read`, which answers the 8 bytes at a table's address. `None` past
    /// the protected addresses, or where a region has no table.
    pub fn level1(&self, base: u64, read: impl Fn(u64) -> u64) -> Option<Level1> {
        match self.level0(base, read)? {
            // Bits [51:12] are the table's address.
            entry if entry & 0xf == 0b0011 => {
                Some(Level1 { table: entry & ((1 << 52) - (1 << 12)), region_shift: self.region_shift })
            }
            _ => None,
        }
    }

    /// Who may access the granule at `base`, by the same walk. `None` past the protected addresses, or where the tables are
    /// malformed.
    pub fn owner(&self, base: u64, read: impl Fn(u64) -> u64) -> Option<Gpi> {
        let gpi = match self.level1(base, &read) {
            None => {
                let entry = self.level0(base, read)?;
                if entry & 0xf != 0b0001 {
                    return None;
                }
                entry >> 4
            }
            Some(table) => {
                let entry = read(table.entry(base));
                if Contiguous::of(entry).is_some() { entry >> 4 } else { entry >> ((base >> 12 & 0xf) * 4) }
            }
        };
        Gpi::from_bits((gpi & 0xf) as u8)
    }

    fn level0(&self, base: u64, read: impl Fn(u64) -> u64) -> Option<u64> {
        (base >> self.address_bits == 0).then(|| read(self.level0 + (base >> self.region_shift) * 8))
    }
}

/// A level-1 table: one entry for every sixteen granules of a region.
#[derive(Clone, Copy, Debug)]
pub struct Level1 {
    table: u64,
    region_shift: u32,
}

impl Level1 {
    /// Address of the entry that holds the granule at `address`, an address of this table's region.
    #[must_use]
    pub const fn entry(&self, address: u64) -> u64 {
        self.table + ((address & ((1 << self.region_shift) - 1)) >> 16) * 8
    }

    /// Whether `bytes`, a power of two, are at most what the table covers.
    #[must_use]
    pub const fn covers(&self, bytes: u64) -> bool {
        bytes <= 1 << self.region_shift
    }
}

/// Size of the block that a contiguous descriptor describes: every entry of the block holds the same descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contiguous {
    /// 2 MB, 32 entries.
    Block2M = 1,
    /// 32 MB, 512 entries.
    Block32M = 2,
    /// 512 MB, 8192 entries.
    Block512M = 3,
}

impl Contiguous {
    /// The block of an entry. `None` for an entry of sixteen granules: no GPI is 1, the type of contiguous descriptors.
    #[must_use]
    pub const fn of(entry: u64) -> Option<Self> {
        match (entry & 0xf, entry >> 8 & 3) {
            (1, 1) => Some(Self::Block2M),
            (1, 2) => Some(Self::Block32M),
            (1, 3) => Some(Self::Block512M),
            _ => None,
        }
    }

    /// Bytes of the block.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Block2M => 2 << 20,
            Self::Block32M => 32 << 20,
            Self::Block512M => 512 << 20,
        }
    }

    /// The descriptor for such a block of one GPI.
    #[must_use]
    pub const fn descriptor(self, gpi: u8) -> u64 {
        (self as u64) << 8 | (gpi as u64) << 4 | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL0: u64 = 0x1_0000;
    const LEVEL1: u64 = 0x2_0000;

    /// 1 TB protected, 1 GB a region; region 0 is a block of any, region 1 a table.
    fn owner(base: u64) -> Option<Gpi> {
        Layout::new(LEVEL0 >> 12, 2).owner(base, |address| match address {
            LEVEL0 => 0b0001 | (Gpi::Any as u64) << 4,
            a if a == LEVEL0 + 8 => LEVEL1 | 0b0011,
            a if a == LEVEL0 + 16 => 0,
            LEVEL1 => 0xb98a_9999_9999_9998,
            a if a == LEVEL1 + 8 => 0x191,
            a if a == LEVEL1 + 0x3fff * 8 => 0x8999_9999_9999_9999,
            other => panic!("nothing lies at {other:#x}"),
        })
    }

    #[test]
    fn every_kind_of_descriptor_is_read() {
        assert_eq!(owner(0x0e00_0000), Some(Gpi::Any));
        assert_eq!(owner(0x4000_0000), Some(Gpi::Secure));
        assert_eq!(owner(0x4000_1000), Some(Gpi::NonSecure));
        assert_eq!(owner(0x4000_c000), Some(Gpi::Root));
        assert_eq!(owner(0x4000_f000), Some(Gpi::Realm));
        assert_eq!(owner(0x4001_7000), Some(Gpi::NonSecure));
        assert_eq!(owner(0x7fff_f000), Some(Gpi::Secure));
    }

    #[test]
    fn other_granules_than_4k_are_told() {
        assert!([0, 2, 0x0011_3502, !0xc000].into_iter().all(Layout::has_granules_of_4k));
        assert!(![1 << 14, 2 << 14, 3 << 14, u64::MAX].into_iter().any(Layout::has_granules_of_4k));
    }

    #[test]
    fn nothing_is_read_past_the_protected_addresses_or_below_a_bad_entry() {
        assert_eq!(owner(1 << 40), None);
        assert_eq!(owner(u64::MAX), None);
        assert_eq!(owner(0x8000_0000), None);
    }
}
