//! TF-A's own library, which moves granules of the same tables for the Realm world: what `lib/gpt_rme` of TF-A 2.12.1
//! (`gpt_delegate_pas`, `gpt_undelegate_pas`, with `RME_GPT_MAX_BLOCK` = 2) does to them, in its order.
//!
//! This is not code that ships, but what the code that ships lives beside.

use crate::machine::{BANK, GRANULE, layout};
use flexserve_abi::el3::Gpi;
use flexserve_el3_svc::{
    gpt_format::{Contiguous, Level1},
    gpt_range::Tables,
    protection::Range,
};

/// `RMM_GTSI_DELEGATE` and `RMM_GTSI_UNDELEGATE`, by which the RMM asks for it.
pub mod fid {
    /// A granule of the normal world's becomes the Realm world's.
    pub const DELEGATE: u32 = 0xC400_01B0;
    /// And back.
    pub const UNDELEGATE: u32 = 0xC400_01B1;
}

const BLOCK: u64 = Contiguous::Block2M.bytes();

struct Granule<'a, T> {
    tables: &'a T,
    table: Level1,
    base: u64,
}

/// Serves a call about one granule. Whether it moved.
pub fn serve(tables: &impl Tables, call: u32, base: u64) -> bool {
    let Some(table) = layout().level1(base, |at| tables.read(at)) else { return false };
    let granule = Granule { tables, table, base };
    tables.lock(base);
    let moved = if call == fid::DELEGATE { granule.delegate() } else { granule.undelegate() };
    tables.unlock(base);
    moved
}

fn uniform(gpi: Gpi) -> u64 {
    gpi as u64 * 0x1111_1111_1111_1111
}

impl<T: Tables> Granule<'_, T> {
    fn delegate(&self) -> bool {
        let Some(entry) = self.entry(Gpi::NonSecure) else { return false };
        self.flush(Gpi::Realm);
        let entry = self.write(entry, Gpi::Realm);
        self.invalidate(self.base, GRANULE);
        self.flush(Gpi::NonSecure);
        self.fuse(entry, Gpi::Realm);
        true
    }

    fn undelegate(&self) -> bool {
        let Some(entry) = self.entry(Gpi::Realm) else { return false };
        let entry = self.write(entry, Gpi::NoAccess);
        self.invalidate(self.base, GRANULE);
        self.flush(Gpi::Realm);
        self.flush(Gpi::NonSecure);
        let entry = self.write(entry, Gpi::NonSecure);
        self.invalidate(self.base, GRANULE);
        self.fuse(entry, Gpi::NonSecure);
        true
    }

    /// The granule's entry, if the granule is `owner`'s. A block is shattered.
    fn entry(&self, owner: Gpi) -> Option<u64> {
        let entry = self.tables.read(self.table.entry(self.base));
        let is_block = Contiguous::of(entry).is_some();
        let shift = if is_block { 4 } else { self.shift() };
        if entry >> shift & 0xf != owner as u64 {
            return None;
        }
        if is_block {
            self.fill(uniform(owner));
            self.invalidate(self.base & !(BLOCK - 1), BLOCK);
        }
        Some(if is_block { uniform(owner) } else { entry })
    }

    fn shift(&self) -> u64 {
        self.base / GRANULE % 16 * 4
    }

    fn write(&self, entry: u64, gpi: Gpi) -> u64 {
        let entry = entry & !(0xf << self.shift()) | (gpi as u64) << self.shift();
        self.tables.write(self.table.entry(self.base), entry);
        entry
    }

    fn invalidate(&self, base: u64, bytes: u64) {
        self.tables.invalidate([Range { base, count: bytes / GRANULE }].into_iter());
    }

    fn flush(&self, space: Gpi) {
        self.tables.flush([Range { base: self.base, count: 1 }].into_iter(), space);
    }

    /// The addresses of the entries of the granule's block.
    fn block(&self) -> impl Iterator<Item = u64> {
        let first = (self.base - BANK.base) / BLOCK * BLOCK + BANK.base;
        (first..first + BLOCK).step_by(16 * GRANULE as usize).map(|at| self.table.entry(at))
    }

    fn fill(&self, entry: u64) {
        self.block().for_each(|address| self.tables.write(address, entry));
    }

    fn fuse(&self, entry: u64, gpi: Gpi) {
        if entry == uniform(gpi) && self.block().all(|address| self.tables.read(address) == entry) {
            self.fill(Contiguous::Block2M.descriptor(gpi as u8));
        }
    }
}
