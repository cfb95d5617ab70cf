//! What the normal world reaches when it starts: DRAM, less the tables themselves, and its devices, each at its own address.
#![forbid(unsafe_code)]

use crate::{
    stage2_format::{BLOCK, GIGABYTE, Kind, Layout, PAGE, UNMAPPED, table},
    stage2_range::Tables,
};
use flexserve_platform::Region;

/// Fills the tables, which no core uses yet.
///
/// # Errors
///
/// [`Unmappable`] for the first window that does not fit.
pub fn fill(
    layout: &Layout,
    tables: &impl Tables,
    dram: Region,
    devices: &[Region],
) -> Result<(), Unmappable> {
    // At boot, once: the entries of all tables above level 3.
    for entry in (layout.level1()..layout.level2_end()).step_by(8) {
        tables.write(entry, UNMAPPED);
    }
    let mut map = Map { layout, tables, spare: layout.spare() };
    let hole = layout.memory();
    let below = Region { base: dram.base, size: hole.base - dram.base };
    let above = Region { base: hole.end(), size: dram.end() - hole.end() };
    // Two turns, then one for each window of the platform's.
    for part in [below, above] {
        map.window(part, Kind::Memory)?;
    }
    devices.iter().try_for_each(|window| map.window(*window, Kind::Device))
}

/// A window that cannot be mapped: it is not whole pages, ends past 1 TB, begins past DRAM's last gigabyte and is not whole
/// gigabytes, overlaps a lendable bank or another window, or wants more tables than there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmappable(pub Region);

struct Map<'a, T> {
    layout: &'a Layout,
    tables: &'a T,
    /// The next spare table.
    spare: u64,
}

impl<T: Tables> Map<'_, T> {
    /// Maps a window by the largest blocks that fit, up to 2 MB where there are level-2 tables. At most one turn for each page of two
    /// blocks, and one for each block between them.
    fn window(&mut self, window: Region, kind: Kind) -> Result<(), Unmappable> {
        let mut at = window.base;
        while at < window.end() {
            let left = window.end() - at;
            at += self.entry(at, left, kind).ok_or(Unmappable(window))?;
        }
        Ok(())
    }

    /// Maps the largest block at `at` that is not longer than `left`. Answers its bytes.
    fn entry(&mut self, at: u64, left: u64, kind: Kind) -> Option<u64> {
        let fits = |bytes: u64| at.is_multiple_of(bytes) && left >= bytes;
        let level1 = self.layout.level1_entry(at)?;
        let Some(level2) = self.layout.level2(at) else {
            return (fits(GIGABYTE) && self.set(level1, kind.block(at))).then_some(GIGABYTE);
        };
        self.tables.write(level1, table(level2));
        let entry = self.layout.level2_entry(at)?;
        if fits(BLOCK) {
            return self.set(entry, kind.block(at)).then_some(BLOCK);
        }
        let page = self.level3(at, entry)? + at % BLOCK / PAGE * 8;
        (fits(PAGE) && self.set(page, kind.page(at))).then_some(PAGE)
    }

    /// Writes an entry that maps nothing yet. Whether it was one.
    fn set(&self, address: u64, entry: u64) -> bool {
        let free = self.tables.read(address) == UNMAPPED;
        if free {
            self.tables.write(address, entry);
        }
        free
    }

    /// The level-3 table below a level-2 entry, made if there is none.
    fn level3(&mut self, at: u64, entry: u64) -> Option<u64> {
        if self.layout.level3(at).is_some() {
            return None;
        }
        // The tables were made here: this is the one place where a pointer in them is believed.
        match self.tables.read(entry) {
            UNMAPPED if self.spare < self.layout.memory().end() => {
                let made = self.spare;
                self.spare += PAGE;
                // 512 turns.
                for word in (made..self.spare).step_by(8) {
                    self.tables.write(word, UNMAPPED);
                }
                self.tables.write(entry, table(made));
                Some(made)
            }
            old if old & 0b11 == 0b11 => Some(old & !(PAGE - 1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stage2_fake::{BANK, DRAM, Fake, LAYOUT, MEMORY};
    use flexserve_platform::{self as platform, Isolation};
    use proptest::prelude::*;
    use std::vec::Vec;

    const GIC: Region = Region { base: 0x0800_0000, size: 0x40_0000 };
    const UART: Region = Region { base: 0x0900_0000, size: 0x4_0000 };
    const ABOVE: Region = Region { base: 0x80_0000_0000, size: GIGABYTE };

    #[test]
    fn the_normal_world_has_dram_and_its_devices_and_nothing_else() {
        let fake = Fake::new(&[GIC, UART, ABOVE]);
        for window in [GIC, UART, ABOVE] {
            for ipa in [window.base, window.end() - 1] {
                assert!(!fake.walk(ipa, false).unwrap().executable, "{ipa:#x}");
            }
            assert_eq!(fake.walk(window.end(), false), None);
        }
        for ipa in [DRAM.base, MEMORY.base - 1, MEMORY.end(), BANK.base, BANK.end() - 1, DRAM.end() - 1] {
            assert!(fake.walk(ipa, false).unwrap().executable, "{ipa:#x}");
        }
        for ipa in [0, DRAM.base - 1, MEMORY.base, MEMORY.end() - 1, DRAM.end(), (1 << 40) - 1] {
            assert_eq!(fake.walk(ipa, false), None, "{ipa:#x}");
        }
    }

    #[test]
    fn what_cannot_be_mapped_is_named() {
        let fake = Fake::new(&[]);
        for bad in [
            Region { base: UART.base + 1, size: PAGE },
            Region { base: UART.base, size: PAGE + 1 },
            Region { base: BANK.base, size: PAGE },
            Region { base: DRAM.base, size: BLOCK },
            Region { base: ABOVE.base, size: PAGE },
            Region { base: (1 << 40) - GIGABYTE, size: 2 * GIGABYTE },
        ] {
            assert_eq!(fill(&LAYOUT, &fake, DRAM, &[bad]), Err(Unmappable(bad)));
        }
        assert_eq!(fill(&LAYOUT, &fake, DRAM, &[UART, UART]), Err(Unmappable(UART)));
        let scattered: Vec<_> = (0..512).map(|i| Region { base: i * BLOCK, size: PAGE }).collect();
        assert!(fill(&LAYOUT, &fake, DRAM, &scattered).is_err());
    }

    #[test]
    fn this_platform_can_be_mapped() {
        if platform::ISOLATION != Isolation::Stage2 {
            return;
        }
        let memory = platform::STAGE2_TABLES.expect("the backend's tables have a place");
        let layout = Layout::new(memory, platform::DRAM, platform::LENDABLE);
        let map = core::cell::RefCell::new(std::collections::BTreeMap::new());
        struct Plain<'a>(&'a core::cell::RefCell<std::collections::BTreeMap<u64, u64>>);
        impl Tables for Plain<'_> {
            fn read(&self, address: u64) -> u64 {
                self.0.borrow()[&address]
            }
            fn write(&self, address: u64, entry: u64) {
                self.0.borrow_mut().insert(address, entry);
            }
            fn lock(&self, _: u16) {}
            fn unlock(&self, _: u16) {}
            fn publish(&self) {}
            fn invalidate(&self) {}
            fn flush(&self, _: impl Iterator<Item = crate::protection::Range>) {}
        }
        fill(&layout, &Plain(&map), platform::DRAM, platform::NS_DEVICES).unwrap();
        assert!(map.borrow().keys().all(|address| memory.contains(*address, 8)));
    }

    proptest! {
        /// Every page of a window is mapped to itself, and no other page.
        #[test]
        fn windows_are_mapped_exactly(first in 0..2000_u64, pages in 1..2000_u64) {
            let window = Region { base: 0x0900_0000 + first * PAGE, size: pages * PAGE };
            let fake = Fake::new(&[window]);
            for page in 0..4100 {
                let ipa = 0x0900_0000 + page * PAGE;
                let found = fake.walk(ipa, false);
                prop_assert_eq!(found.is_some(), window.contains(ipa, 1), "{:#x}", ipa);
                prop_assert!(found.is_none_or(|t| t.output == t.base));
            }
            fake.publish();
        }
    }
}
