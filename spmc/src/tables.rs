//! Translation tables of 4 KiB pages (VMSAv8-64, DDI 0487, section D8.3), in a fixed pool.
//!
//! Tables are words that the MMU reads while they change, so every entry is an atomic. The pool hands out whole tables
//! and can chain them: a lent region *is* a chain of level-3 tables, filled once when it is lent; to map it is to hang
//! the chain under a partition's level 2, and the region needs no other record of its pages.

use core::sync::atomic::{AtomicU64, Ordering};
use flexserve_platform::{ISOLATION, Isolation};

/// Bytes in a page, and in a table.
pub const PAGE: u64 = 4096;
/// Entries of a table.
pub const ENTRIES: usize = 512;
/// Bytes that one level-3 table maps.
pub const TABLE_SPAN: u64 = PAGE * ENTRIES as u64;

/// One translation table.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; ENTRIES]);

impl Table {
    /// A table that maps nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }

    /// Reads an entry.
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Relaxed)
    }

    /// Writes an entry. Whoever changes a live one sees to barriers and TLBs.
    pub fn set(&self, index: usize, entry: u64) {
        self.0[index].store(entry, Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// Bits of descriptors.
pub mod bits {
    /// The descriptor is valid.
    pub const VALID: u64 = 1;
    /// Next-level table at levels 0 to 2, page at level 3 (otherwise a block).
    pub const TABLE_OR_PAGE: u64 = 1 << 1;
    /// Where AttrIndx begins.
    pub const ATTRIBUTE_SHIFT: u32 = 2;
    /// Output addresses are Non-secure.
    pub const NON_SECURE: u64 = 1 << 5;
    /// EL0 may access.
    pub const EL0: u64 = 1 << 6;
    /// Nobody may write.
    pub const READ_ONLY: u64 = 1 << 7;
    /// Inner shareable.
    pub const INNER_SHAREABLE: u64 = 0b11 << 8;
    /// Accessed: no access-flag fault.
    pub const ACCESSED: u64 = 1 << 10;
    /// Belongs to one ASID.
    pub const NOT_GLOBAL: u64 = 1 << 11;
    /// The privileged level may not execute.
    pub const PRIVILEGED_NO_EXECUTE: u64 = 1 << 53;
    /// EL0 may not execute (of a page of TTBR1: nor, with E2H, anybody unprivileged).
    pub const USER_NO_EXECUTE: u64 = 1 << 54;
    /// In a table descriptor: nothing below may be written (`APTable[1]`).
    pub const TABLE_READ_ONLY: u64 = 1 << 62;
    /// Output address of a table, block or page.
    pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
}

/// Index into MAIR of normal write-back memory.
pub const NORMAL: u64 = 0;
/// Index into MAIR of device memory (nGnRE).
pub const DEVICE: u64 = 1;
/// What MAIR holds: write-back non-transient allocating memory, then nGnRE.
pub const MAIR: u64 = 0x04ff;

const NORMAL_MEMORY: u64 =
    bits::VALID | (NORMAL << bits::ATTRIBUTE_SHIFT) | bits::INNER_SHAREABLE | bits::ACCESSED;

/// The physical address space of lent granules: the granule protection table moves them to the Secure one, stage-2 tables
/// of the normal world leave them in the Non-secure one.
const LENT: u64 = match ISOLATION {
    Isolation::GranuleProtectionTable => 0,
    Isolation::Stage2 => bits::NON_SECURE,
};

/// Who may do what with a page or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The SPMC's code: read and execute.
    SpmcCode,
    /// The SPMC's code at the addresses where it runs while the MMU is turned on: read and execute, not global.
    SpmcStartCode,
    /// The SPMC's constants: read.
    SpmcConstants,
    /// Data that the SPMC reads and writes, in the Secure physical address space.
    SpmcData,
    /// Data that the SPMC reads and writes, in the Non-secure physical address space.
    SpmcNonSecureData,
    /// Lent granules, which the SPMC zeroes.
    SpmcLentData,
    /// Registers of a device.
    SpmcDevice,
    /// A partition's code: EL0 reads and executes, the SPMC does neither.
    UserCode,
    /// A partition's constants: EL0 reads.
    UserConstants,
    /// A partition's data: EL0 reads and writes.
    UserData,
    /// Lent granules: EL0 reads and writes them.
    UserLentData,
    /// Memory shared with the normal world: EL0 reads and writes it in the Non-secure physical address space.
    UserNonSecureData,
}

impl Access {
    /// Descriptor bits, without address and without the bit that tells pages from blocks.
    #[must_use]
    pub const fn bits(self) -> u64 {
        use bits::{EL0, NON_SECURE, NOT_GLOBAL, PRIVILEGED_NO_EXECUTE, READ_ONLY, USER_NO_EXECUTE};
        const NO_EXECUTE: u64 = PRIVILEGED_NO_EXECUTE | USER_NO_EXECUTE;
        const USER: u64 = NORMAL_MEMORY | EL0 | NOT_GLOBAL | PRIVILEGED_NO_EXECUTE;
        match self {
            Self::SpmcCode => NORMAL_MEMORY | READ_ONLY | USER_NO_EXECUTE,
            Self::SpmcStartCode => NORMAL_MEMORY | READ_ONLY | USER_NO_EXECUTE | NOT_GLOBAL,
            Self::SpmcConstants => NORMAL_MEMORY | READ_ONLY | NO_EXECUTE,
            Self::SpmcData => NORMAL_MEMORY | NO_EXECUTE,
            Self::SpmcNonSecureData => NORMAL_MEMORY | NO_EXECUTE | NON_SECURE,
            Self::SpmcLentData => NORMAL_MEMORY | NO_EXECUTE | LENT,
            Self::SpmcDevice => bits::VALID | (DEVICE << bits::ATTRIBUTE_SHIFT) | bits::ACCESSED | NO_EXECUTE,
            Self::UserCode => USER | READ_ONLY,
            Self::UserConstants => USER | READ_ONLY | USER_NO_EXECUTE,
            Self::UserData => USER | USER_NO_EXECUTE,
            Self::UserLentData => USER | USER_NO_EXECUTE | LENT,
            Self::UserNonSecureData => USER | USER_NO_EXECUTE | NON_SECURE,
        }
    }

    /// The descriptor of a page at `physical`.
    #[must_use]
    pub const fn page(self, physical: u64) -> u64 {
        (physical & bits::ADDRESS) | self.bits() | bits::TABLE_OR_PAGE
    }
}

/// The pool has no table left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTables;

/// Number of a table in its pool.
pub type TableId = u16;

/// End of a chain.
const NONE: TableId = TableId::MAX;

/// A fixed pool of tables at known physical addresses.
pub struct Pool<'a> {
    tables: &'a [Table],
    links: &'a mut [TableId],
    free: TableId,
    available: usize,
    base: u64,
}

impl<'a> Pool<'a> {
    /// A pool of all `tables`, the first of which lies at the physical address `base`. `links` is its book-keeping, one
    /// entry a table.
    #[must_use]
    pub fn new(tables: &'a [Table], links: &'a mut [TableId], base: u64) -> Self {
        let count = tables.len().min(links.len()).min(usize::from(NONE));
        for (i, link) in links.iter_mut().enumerate().take(count) {
            *link = if i + 1 < count { i as TableId + 1 } else { NONE };
        }
        Self { tables, links, free: if count == 0 { NONE } else { 0 }, available: count, base }
    }

    /// Tables that nobody uses.
    #[must_use]
    pub fn available(&self) -> usize {
        self.available
    }

    /// Takes a table that maps nothing.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`].
    pub fn take(&mut self) -> Result<TableId, OutOfTables> {
        let id = self.free;
        if id == NONE {
            return Err(OutOfTables);
        }
        self.free = self.links[usize::from(id)];
        self.links[usize::from(id)] = NONE;
        self.available -= 1;
        self.table(id).clear();
        Ok(id)
    }

    /// Gives a table back.
    pub fn give(&mut self, id: TableId) {
        self.links[usize::from(id)] = self.free;
        self.free = id;
        self.available += 1;
    }

    /// A table.
    #[must_use]
    pub fn table(&self, id: TableId) -> &'a Table {
        &self.tables[usize::from(id)]
    }

    /// The descriptor that points to a table.
    #[must_use]
    pub fn descriptor(&self, id: TableId) -> u64 {
        (self.base + u64::from(id) * PAGE) | bits::VALID | bits::TABLE_OR_PAGE
    }

    /// Which table a descriptor points to, if to one of this pool.
    #[must_use]
    pub fn target(&self, descriptor: u64) -> Option<TableId> {
        if descriptor & (bits::VALID | bits::TABLE_OR_PAGE) != bits::VALID | bits::TABLE_OR_PAGE {
            return None;
        }
        let index = (descriptor & bits::ADDRESS).checked_sub(self.base)? / PAGE;
        TableId::try_from(index).ok().filter(|id| usize::from(*id) < self.tables.len())
    }

    /// The table after `id` in its chain.
    #[must_use]
    pub fn next(&self, id: TableId) -> Option<TableId> {
        Some(self.links[usize::from(id)]).filter(|next| *next != NONE)
    }

    fn link(&mut self, id: TableId, next: TableId) {
        self.links[usize::from(id)] = next;
    }

    /// The table below entry `index` of `parent`, made if the entry is empty.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`].
    ///
    /// # Panics
    ///
    /// If the entry is a block: callers map each range once.
    pub fn below(&mut self, parent: &Table, index: usize) -> Result<&'a Table, OutOfTables> {
        let entry = parent.get(index);
        if entry & bits::VALID == 0 {
            let id = self.take()?;
            parent.set(index, self.descriptor(id));
            return Ok(self.table(id));
        }
        Ok(self.table(self.target(entry).expect("the entry is a table of this pool")))
    }
}

/// A sequence of page descriptors, a chain of level-3 tables: it grows at its end, then shrinks from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    ends: Option<(TableId, TableId)>,
    /// Entries of the first table that are in it no more.
    gone: u32,
    len: u32,
}

impl Pages {
    /// Pages in it.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Level-3 tables that hold it.
    #[must_use]
    pub fn tables(&self) -> usize {
        ((self.gone + self.len) as usize).div_ceil(ENTRIES)
    }

    /// Appends the page at `physical`.
    ///
    /// # Errors
    ///
    /// [`OutOfTables`]; the sequence is as before.
    pub fn push(&mut self, pool: &mut Pool, access: Access, physical: u64) -> Result<(), OutOfTables> {
        let slot = (self.gone + self.len) as usize % ENTRIES;
        let (first, last) = match self.ends {
            Some(ends) if slot != 0 => ends,
            Some((first, last)) => {
                let id = pool.take()?;
                pool.link(last, id);
                (first, id)
            }
            None => {
                let id = pool.take()?;
                (id, id)
            }
        };
        self.ends = Some((first, last));
        pool.table(last).set(slot, access.page(physical));
        self.len += 1;
        Ok(())
    }

    /// The tables, in order.
    pub fn chain<'p>(&self, pool: &'p Pool) -> impl Iterator<Item = TableId> + use<'p> {
        core::iter::successors(self.ends.map(|ends| ends.0), |id| pool.next(*id))
    }

    /// Runs of physically contiguous pages, in order, from page `skip` on: address and pages of each.
    pub fn runs<'p>(&self, pool: &'p Pool, skip: u32) -> Runs<'p> {
        let table = self.ends.map(|ends| ends.0);
        let mut runs = Runs { pool, table, slot: self.gone as usize, left: self.len };
        runs.skip_pages(skip);
        runs
    }

    /// Takes the first `count` pages out, and gives the tables back that only they needed.
    pub fn drop_front(&mut self, pool: &mut Pool, count: u32) {
        let count = count.min(self.len);
        self.len -= count;
        self.gone += count;
        while let Some((first, last)) = self.ends {
            if self.len != 0 && self.gone < ENTRIES as u32 {
                return;
            }
            self.gone = self.gone.saturating_sub(ENTRIES as u32);
            self.ends = pool.next(first).map(|next| (next, last));
            pool.give(first);
        }
        self.gone = 0;
    }
}

/// Iterator of [`Pages::runs`].
#[derive(Clone)]
pub struct Runs<'p> {
    pool: &'p Pool<'p>,
    table: Option<TableId>,
    slot: usize,
    left: u32,
}

impl Runs<'_> {
    /// The first `count` pages of them.
    #[must_use]
    pub fn first(&self, count: u32) -> Self {
        Self { left: self.left.min(count), ..*self }
    }

    /// Leaves out the next `count` pages.
    pub fn skip_pages(&mut self, count: u32) {
        let count = count.min(self.left);
        self.left -= count;
        self.slot += count as usize;
        while self.slot >= ENTRIES {
            self.slot -= ENTRIES;
            self.table = self.table.and_then(|id| self.pool.next(id));
        }
    }

    fn peek(&self) -> Option<u64> {
        let table = self.table.filter(|_| self.left != 0)?;
        Some(self.pool.table(table).get(self.slot) & bits::ADDRESS)
    }
}

impl Iterator for Runs<'_> {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        let base = self.peek()?;
        let mut pages = 0;
        while self.peek() == Some(base + u64::from(pages) * PAGE) {
            pages += 1;
            self.skip_pages(1);
        }
        Some((base, pages))
    }
}

/// Maps `[physical, physical + size)` at `address` with the largest blocks that fit, under a level-1 table.
///
/// # Errors
///
/// [`OutOfTables`].
pub fn map_range(
    pool: &mut Pool,
    root: &Table,
    address: u64,
    physical: u64,
    size: u64,
    access: Access,
) -> Result<(), OutOfTables> {
    const GIB: u64 = 1 << 30;
    let mut done = 0;
    while done < size {
        let (to, from, left) = (address + done, physical + done, size - done);
        let fits = |span: u64| (to | from) % span == 0 && left >= span;
        let index = |shift: u32| (to >> shift) as usize % ENTRIES;
        if fits(GIB) {
            root.set(index(30), (from & bits::ADDRESS) | access.bits());
            done += GIB;
            continue;
        }
        let middle = pool.below(root, index(30))?;
        if fits(TABLE_SPAN) {
            middle.set(index(21), (from & bits::ADDRESS) | access.bits());
            done += TABLE_SPAN;
            continue;
        }
        pool.below(middle, index(21))?.set(index(12), access.page(from));
        done += PAGE;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use std::{boxed::Box, vec, vec::Vec};

    /// A pool of its own for each test.
    pub(crate) fn pool(tables: usize) -> Pool<'static> {
        let storage: Vec<Table> = (0..tables).map(|_| Table::new()).collect();
        Pool::new(
            Box::leak(storage.into_boxed_slice()),
            Box::leak(vec![0; tables].into_boxed_slice()),
            0x8000_0000,
        )
    }

    fn walk(pool: &Pool, root: &Table, address: u64) -> Option<(u64, u64)> {
        let mut table = root;
        for (level, shift) in [(1, 30), (2, 21), (3, 12)] {
            let entry = table.get((address >> shift) as usize % ENTRIES);
            if entry & bits::VALID == 0 {
                return None;
            }
            match pool.target(entry) {
                Some(id) if level < 3 => table = pool.table(id),
                _ => return Some((entry, (entry & bits::ADDRESS) + address % (1 << shift))),
            }
        }
        None
    }

    #[test]
    fn tables_come_and_go() {
        let mut pool = pool(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(pool.take(), Err(OutOfTables));
        pool.table(a).set(3, 7);
        pool.give(a);
        assert_eq!(pool.take(), Ok(a));
        assert_eq!(pool.table(a).get(3), 0, "a table that is taken maps nothing");
        assert_eq!(pool.available(), 0);
    }

    #[test]
    fn pages_grow_over_tables_and_give_them_back() {
        let mut pool = pool(3);
        let mut pages = Pages::default();
        for i in 0..1030_u64 {
            pages.push(&mut pool, Access::UserData, i * 2 * PAGE).unwrap();
        }
        assert_eq!((pages.tables(), pages.chain(&pool).count(), pool.available()), (3, 3, 0));
        let runs: Vec<_> = pages.runs(&pool, 0).collect();
        assert_eq!(runs.len(), 1030);
        assert_eq!(runs[1029], (1029 * 2 * PAGE, 1));
        assert_eq!(pages.runs(&pool, 1025).collect::<Vec<_>>(), runs[1025..]);
        pages.drop_front(&mut pool, 2000);
        assert_eq!((pages, pool.available()), (Pages::default(), 3));
    }

    #[test]
    fn pages_leave_in_their_order_and_tables_with_their_last_page() {
        let mut pool = pool(3);
        let mut pages = Pages::default();
        for i in 0..1030_u64 {
            pages.push(&mut pool, Access::UserData, i * 2 * PAGE).unwrap();
        }
        for (count, gone, available) in [(0, 0, 0), (511, 511, 0), (1, 512, 1), (1, 513, 1), (516, 1029, 2)] {
            pages.drop_front(&mut pool, count);
            assert_eq!((pages.len(), pool.available()), (1030 - gone as u32, available));
            assert_eq!(pages.runs(&pool, 0).next(), Some((gone * 2 * PAGE, 1)));
        }
        pages.drop_front(&mut pool, 1);
        assert_eq!((pages, pool.available()), (Pages::default(), 3));
        pages.push(&mut pool, Access::UserData, PAGE).unwrap();
        assert_eq!(pages.runs(&pool, 0).collect::<Vec<_>>(), [(PAGE, 1)]);
    }

    #[test]
    fn runs_end_where_they_are_told_to() {
        let mut pool = pool(2);
        let mut pages = Pages::default();
        for i in (0..600).chain([700, 701]) {
            pages.push(&mut pool, Access::UserData, i * PAGE).unwrap();
        }
        let mut runs = pages.runs(&pool, 500);
        assert_eq!(runs.first(50).collect::<Vec<_>>(), [(500 * PAGE, 50)]);
        assert_eq!(runs.first(0).next(), None);
        runs.skip_pages(99);
        assert_eq!(runs.clone().collect::<Vec<_>>(), [(599 * PAGE, 1), (700 * PAGE, 2)]);
        runs.skip_pages(u32::MAX);
        assert_eq!(runs.next(), None);
    }

    #[test]
    fn a_full_pool_leaves_the_sequence_as_it_was() {
        let mut pool = pool(1);
        let mut pages = Pages::default();
        for i in 0..512 {
            pages.push(&mut pool, Access::UserData, i * PAGE).unwrap();
        }
        let before = pages;
        assert_eq!(pages.push(&mut pool, Access::UserData, 0), Err(OutOfTables));
        assert_eq!(pages, before);
    }

    #[test]
    fn contiguous_pages_are_one_run_even_across_tables() {
        let mut pool = pool(2);
        let mut pages = Pages::default();
        for i in (0..600).chain([700, 800, 801]) {
            pages.push(&mut pool, Access::UserData, i * PAGE).unwrap();
        }
        let runs: Vec<_> = pages.runs(&pool, 0).collect();
        assert_eq!(runs, [(0, 600), (700 * PAGE, 1), (800 * PAGE, 2)]);
        assert_eq!(pages.runs(&pool, 599).next(), Some((599 * PAGE, 1)));
    }

    #[test]
    fn ranges_use_the_largest_blocks() {
        let mut pool = pool(8);
        let root = Table::new();
        let base = 0x3fff_f000;
        map_range(&mut pool, &root, base, base, 0x1000 + (1 << 30) + 0x20_0000 + 0x1000, Access::SpmcData)
            .unwrap();
        for (address, block) in
            [(base, false), (0x4000_0000, true), (0x8000_0000, true), (0x8020_0000, false)]
        {
            let (entry, physical) = walk(&pool, &root, address + 8).unwrap();
            assert_eq!(physical, address + 8);
            assert_eq!(entry & bits::TABLE_OR_PAGE == 0, block, "{address:#x}");
        }
        assert_eq!(walk(&pool, &root, base - 8), None);
        assert_eq!(walk(&pool, &root, 0x8020_1000), None);
        assert_eq!(8 - pool.available(), 4, "two level-2 tables, two level-3 tables");
    }

    #[test]
    fn nothing_is_both_writable_and_executable() {
        for access in [
            Access::SpmcCode,
            Access::SpmcStartCode,
            Access::SpmcConstants,
            Access::SpmcData,
            Access::SpmcNonSecureData,
            Access::SpmcDevice,
            Access::UserCode,
            Access::UserConstants,
            Access::UserData,
            Access::UserNonSecureData,
        ] {
            let entry = access.page(0);
            let execute = bits::PRIVILEGED_NO_EXECUTE | bits::USER_NO_EXECUTE;
            let writable = entry & bits::READ_ONLY == 0;
            assert!(!writable || entry & execute == execute, "{access:?}");
            let user = entry & bits::EL0 != 0;
            assert!(
                !user
                    || entry & (bits::PRIVILEGED_NO_EXECUTE | bits::NOT_GLOBAL)
                        == bits::PRIVILEGED_NO_EXECUTE | bits::NOT_GLOBAL
            );
        }
    }
}
