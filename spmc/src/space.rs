//! The address space of one partition: its own memory, and a window for what it borrows.
//!
//! | addresses | what |
//! |---|---|
//! | as physical, below 4 GiB | the partition's own memory, page by page |
//! | 64 GiB .. 80 GiB | borrowed regions, each from a 2 MiB boundary on, with an unmapped 2 MiB behind it |

use crate::tables::{Access, ENTRIES, OutOfTables, PAGE, Pages, Pool, TABLE_SPAN, Table, TableId, bits};

/// Where borrowed regions begin.
pub const WINDOW: u64 = 64 << 30;
const GIB: u64 = 1 << 30;
const WINDOW_ENTRIES: usize = 16;
/// Slots of [`TABLE_SPAN`] bytes in the window.
const SLOTS: usize = WINDOW_ENTRIES * ENTRIES;

/// Why memory was not mapped or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The pool has no table left.
    OutOfTables,
    /// No gap in the window is large enough.
    OutOfAddresses,
    /// The range is not the partition's own memory.
    NotOwn,
}

impl From<OutOfTables> for Error {
    fn from(_: OutOfTables) -> Self {
        Self::OutOfTables
    }
}

/// What a partition may do with a page of its own memory (DEN0140 v1.2, `FFA_MEM_PERM_SET`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Read and execute.
    Code,
    /// Read.
    Constants,
    /// Read and write.
    Data,
}

impl Permission {
    const ALL: [Self; 3] = [Self::Code, Self::Constants, Self::Data];

    const fn access(self) -> Access {
        match self {
            Self::Code => Access::UserCode,
            Self::Constants => Access::UserConstants,
            Self::Data => Access::UserData,
        }
    }
}

/// A partition's translation tables.
#[derive(Clone, Copy, Debug)]
pub struct AddressSpace {
    root: TableId,
    base: u64,
    size: u64,
}

impl AddressSpace {
    /// Maps the partition's own memory, `size` bytes at `base`: the first `image` bytes as code, the rest as data.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfTables`].
    pub fn new(pool: &mut Pool, base: u64, size: u64, image: u64) -> Result<Self, Error> {
        let space = Self { root: pool.take()?, base, size };
        let root = pool.table(space.root);
        let mut address = base;
        while address < base + size {
            let access = if address < base + image { Permission::Code } else { Permission::Data }.access();
            let middle = pool.below(root, (address / GIB) as usize % ENTRIES)?;
            let last = pool.below(middle, slot_of(address))?;
            last.set((address / PAGE) as usize % ENTRIES, access.page(address));
            address += PAGE;
        }
        Ok(space)
    }

    /// Makes the partition's own memory what it was at first.
    pub fn reset(&self, pool: &Pool, image: u64) {
        for page in 0..self.size / PAGE {
            let address = self.base + page * PAGE;
            let permission = if page * PAGE < image { Permission::Code } else { Permission::Data };
            if let Some((table, index)) = self.own_entry(pool, address) {
                table.set(index, permission.access().page(address));
            }
        }
    }

    /// The root table.
    #[must_use]
    pub fn root(&self) -> TableId {
        self.root
    }

    /// What the partition may do with the page of its own memory at `address`, a multiple of 4 KiB.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwn`].
    pub fn permission(&self, pool: &Pool, address: u64) -> Result<Permission, Error> {
        let (table, index) = self.own_entry(pool, address).ok_or(Error::NotOwn)?;
        let entry = table.get(index);
        Permission::ALL.into_iter().find(|p| p.access().page(address) == entry).ok_or(Error::NotOwn)
    }

    /// Changes what the partition may do with `pages` pages of its own memory. The caller flushes the TLBs.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwn`], and nothing is changed.
    pub fn set_permission(
        &self,
        pool: &Pool,
        address: u64,
        pages: u64,
        permission: Permission,
    ) -> Result<(), Error> {
        if !self.owns(address, pages.checked_mul(PAGE).ok_or(Error::NotOwn)?) {
            return Err(Error::NotOwn);
        }
        for page in 0..pages {
            let address = address + page * PAGE;
            let (table, index) = self.own_entry(pool, address).ok_or(Error::NotOwn)?;
            table.set(index, permission.access().page(address));
        }
        Ok(())
    }

    /// Whether the whole range is own memory that the partition may write, in pages.
    #[must_use]
    pub fn writable(&self, pool: &Pool, address: u64, pages: u64) -> bool {
        pages.checked_mul(PAGE).is_some_and(|size| self.owns(address, size))
            && (0..pages).all(|page| self.permission(pool, address + page * PAGE) == Ok(Permission::Data))
    }

    /// Hangs a region into the window and answers its address.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfAddresses`], [`Error::OutOfTables`]; nothing is mapped then.
    pub fn borrow(&self, pool: &mut Pool, pages: &Pages, read_only: bool) -> Result<u64, Error> {
        let first = self.find_gap(pool, pages.tables()).ok_or(Error::OutOfAddresses)?;
        let root = pool.table(self.root);
        for gib in first / ENTRIES..=(first + pages.tables() - 1) / ENTRIES {
            pool.below(root, window_index(gib))?;
        }
        let restriction = if read_only { bits::TABLE_READ_ONLY } else { 0 };
        for (slot, table) in (first..).zip(pages.chain(pool)) {
            let middle = self.window_table(pool, slot).ok_or(Error::OutOfTables)?;
            middle.set(slot % ENTRIES, pool.descriptor(table) | restriction);
        }
        Ok(WINDOW + first as u64 * TABLE_SPAN)
    }

    /// Unhooks a region from the window. The caller flushes the TLBs before anybody reuses the tables.
    pub fn give_back(&self, pool: &Pool, address: u64, pages: &Pages) {
        let first = ((address - WINDOW) / TABLE_SPAN) as usize;
        for slot in first..first + pages.tables() {
            if let Some(middle) = self.window_table(pool, slot) {
                middle.set(slot % ENTRIES, 0);
            }
        }
    }

    fn owns(&self, address: u64, size: u64) -> bool {
        address.is_multiple_of(PAGE)
            && size != 0
            && address >= self.base
            && address.checked_add(size).is_some_and(|end| end <= self.base + self.size)
    }

    fn own_entry<'p>(&self, pool: &Pool<'p>, address: u64) -> Option<(&'p Table, usize)> {
        if !self.owns(address, PAGE) {
            return None;
        }
        let middle = pool.target(pool.table(self.root).get((address / GIB) as usize % ENTRIES))?;
        let last = pool.target(pool.table(middle).get(slot_of(address)))?;
        Some((pool.table(last), (address / PAGE) as usize % ENTRIES))
    }

    /// The level-2 table of a slot of the window, if there is one yet.
    fn window_table<'p>(&self, pool: &Pool<'p>, slot: usize) -> Option<&'p Table> {
        let entry = pool.table(self.root).get(window_index(slot / ENTRIES));
        pool.target(entry).map(|id| pool.table(id))
    }

    /// The first of `tables` free slots in a row, with a free one on either side.
    fn find_gap(&self, pool: &Pool, tables: usize) -> Option<usize> {
        let mut free = 0;
        for slot in 0..SLOTS {
            let used = self.window_table(pool, slot).is_some_and(|middle| middle.get(slot % ENTRIES) != 0);
            free = if used { 0 } else { free + 1 };
            if free == tables + 2 {
                return Some(slot - tables);
            }
        }
        None
    }
}

fn slot_of(address: u64) -> usize {
    (address / TABLE_SPAN) as usize % ENTRIES
}

fn window_index(gib: usize) -> usize {
    (WINDOW / GIB) as usize + gib
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::tables::tests::pool;

    const BASE: u64 = 0x0e50_4000;
    const SIZE: u64 = 0x3f_c000;

    fn region(pool: &mut Pool, count: u64) -> Pages {
        let mut pages = Pages::default();
        for i in 0..count {
            pages.push(pool, Access::UserData, 0x5000_0000 + i * PAGE).unwrap();
        }
        pages
    }

    #[test]
    fn own_memory_begins_as_code_then_data() {
        let mut pool = pool(16);
        let space = AddressSpace::new(&mut pool, BASE, SIZE, 0x3000).unwrap();
        assert_eq!(space.permission(&pool, BASE), Ok(Permission::Code));
        assert_eq!(space.permission(&pool, BASE + 0x2000), Ok(Permission::Code));
        assert_eq!(space.permission(&pool, BASE + 0x3000), Ok(Permission::Data));
        assert_eq!(space.permission(&pool, BASE + SIZE - PAGE), Ok(Permission::Data));
        for outside in [BASE - PAGE, BASE + SIZE, BASE + 1, 0, !0xfff] {
            assert_eq!(space.permission(&pool, outside), Err(Error::NotOwn));
        }
    }

    #[test]
    fn permissions_change_only_inside_and_can_be_reset() {
        let mut pool = pool(16);
        let space = AddressSpace::new(&mut pool, BASE, SIZE, 0x3000).unwrap();
        space.set_permission(&pool, BASE + 0x1000, 2, Permission::Constants).unwrap();
        assert_eq!(space.permission(&pool, BASE + 0x2000), Ok(Permission::Constants));
        for (address, pages) in [
            (BASE - PAGE, 2),
            (BASE + SIZE - PAGE, 2),
            (BASE, 0),
            (BASE, u64::MAX),
            (BASE + 8, 1),
            (BASE, 1 << 52),
        ] {
            assert_eq!(space.set_permission(&pool, address, pages, Permission::Data), Err(Error::NotOwn));
        }
        assert_eq!(space.permission(&pool, BASE), Ok(Permission::Code));
        assert!(space.writable(&pool, BASE + 0x3000, 4) && !space.writable(&pool, BASE + 0x2000, 4));
        space.reset(&pool, 0x3000);
        assert_eq!(space.permission(&pool, BASE + 0x2000), Ok(Permission::Code));
    }

    #[test]
    fn borrowed_regions_are_contiguous_and_apart() {
        let mut pool = pool(32);
        let space = AddressSpace::new(&mut pool, BASE, SIZE, 0x3000).unwrap();
        let (a, b) = (region(&mut pool, 513), region(&mut pool, 1));
        let at_a = space.borrow(&mut pool, &a, false).unwrap();
        let at_b = space.borrow(&mut pool, &b, true).unwrap();
        assert_eq!((at_a, at_b), (WINDOW + TABLE_SPAN, WINDOW + 4 * TABLE_SPAN));
        let entry = |address: u64| {
            let slot = ((address - WINDOW) / TABLE_SPAN) as usize;
            space.window_table(&pool, slot).unwrap().get(slot % ENTRIES)
        };
        assert_eq!(entry(at_a) & bits::TABLE_READ_ONLY, 0);
        assert_ne!(entry(at_b) & bits::TABLE_READ_ONLY, 0);
        assert_eq!(pool.target(entry(at_a + TABLE_SPAN)), a.chain(&pool).nth(1));
        space.give_back(&pool, at_a, &a);
        assert_eq!(entry(at_a) | entry(at_a + TABLE_SPAN), 0);
        assert_eq!(space.borrow(&mut pool, &a, false), Ok(at_a));
    }

    #[test]
    fn a_region_may_cross_a_gigabyte() {
        let mut pool = pool(600);
        let space = AddressSpace::new(&mut pool, BASE, SIZE, 0x3000).unwrap();
        let (a, b) = (region(&mut pool, 505 * 512), region(&mut pool, 20 * 512));
        space.borrow(&mut pool, &a, false).unwrap();
        let at = space.borrow(&mut pool, &b, false).unwrap();
        assert!(at / GIB != (at + 20 * TABLE_SPAN - 1) / GIB);
        space.give_back(&pool, at, &b);
        assert_eq!(space.borrow(&mut pool, &b, false), Ok(at));
    }

    #[test]
    fn a_full_pool_maps_nothing() {
        let mut pool = pool(6);
        let space = AddressSpace::new(&mut pool, BASE, SIZE, 0x3000).unwrap();
        let a = region(&mut pool, 1);
        while pool.take().is_ok() {}
        assert_eq!(space.borrow(&mut pool, &a, false), Err(Error::OutOfTables));
    }
}
