//! What can be broken on purpose.

use crate::replay::Recorder;
use flexserve_abi::el3::Gpi;
use flexserve_el3_svc::{gpt_format::Contiguous, gpt_range::Tables, protection::Range};

/// What is left out, or done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Nothing.
    None,
    /// The lock is not taken.
    Lock,
    /// TLBs are not invalidated.
    Invalidate,
    /// They are for the first range of a list only.
    InvalidateFirst,
    /// Only the TLB of the core that moves is.
    Broadcast,
    /// They are again and again.
    InvalidateOften,
    /// Caches are not flushed.
    Flush,
    /// They are for the first range of a list only.
    FlushFirst,
    /// A granule is never in nobody's hands on its way back.
    NoAccess,
    /// A write that moves nothing but the last granule of an entry is lost.
    LostWrite,
    /// The service takes granules of the Realm world for the normal world's.
    RealmAsNormal,
    /// It takes them for a partition's.
    RealmAsSecure,
    /// The library takes another lock.
    LibraryLock,
    /// The library does not invalidate TLBs.
    LibraryInvalidate,
}

impl Defect {
    /// Those of the service.
    pub const ALL: [Self; 8] = [
        Self::Lock,
        Self::Invalidate,
        Self::InvalidateFirst,
        Self::Broadcast,
        Self::Flush,
        Self::FlushFirst,
        Self::NoAccess,
        Self::LostWrite,
    ];

    /// That of time.
    pub const LONG: [Self; 1] = [Self::InvalidateOften];

    /// Those that show beside TF-A's own library.
    pub const BESIDE_LIBRARY: [Self; 5] =
        [Self::Lock, Self::RealmAsNormal, Self::RealmAsSecure, Self::LibraryLock, Self::LibraryInvalidate];
}

/// Tables with a defect.
pub struct Defective<'r, 'a> {
    /// What is below.
    pub recorder: &'r Recorder<'a>,
    /// What is wrong.
    pub defect: Defect,
    /// It is the library that uses them.
    pub library: bool,
}

impl Defective<'_, '_> {
    fn is_unlocked(&self) -> bool {
        self.defect == if self.library { Defect::LibraryLock } else { Defect::Lock }
    }
}

impl Tables for Defective<'_, '_> {
    fn read(&self, address: u64) -> u64 {
        let entry = self.recorder.read(address);
        let taken_for = match self.defect {
            Defect::RealmAsNormal => Gpi::NonSecure,
            Defect::RealmAsSecure => Gpi::Secure,
            _ => return entry,
        };
        if self.library || Contiguous::of(entry).is_some() {
            return entry;
        }
        let gpis = (0..16).map(|i| (i * 4, entry >> (i * 4) & 0xf));
        gpis.map(|(at, gpi)| if gpi == Gpi::Realm as u64 { taken_for as u64 } else { gpi } << at).sum()
    }

    fn write(&self, address: u64, entry: u64) {
        let some_no_access = Contiguous::of(entry).is_none() && (0..16).any(|i| entry >> (i * 4) & 0xf == 0);
        let dropped = match self.defect {
            Defect::NoAccess => some_no_access,
            Defect::LostWrite => self.recorder.read(address) ^ entry == 0x1000_0000_0000_0000,
            _ => false,
        };
        if !dropped {
            self.recorder.write(address, entry);
        }
    }

    fn lock(&self, base: u64) {
        if !self.is_unlocked() {
            self.recorder.lock(base);
        }
    }

    fn unlock(&self, base: u64) {
        if !self.is_unlocked() {
            self.recorder.unlock(base);
        }
    }

    fn invalidate(&self, stale: impl Iterator<Item = Range>) {
        match self.defect {
            Defect::Invalidate => {}
            Defect::LibraryInvalidate if self.library => {}
            Defect::InvalidateFirst => self.recorder.invalidate(stale.take(1)),
            Defect::InvalidateOften => {
                let stale: Vec<Range> = stale.collect();
                (0..16).for_each(|_| self.recorder.invalidate(stale.iter().copied()));
            }
            Defect::Broadcast => self.recorder.invalidate_locally(stale),
            _ => self.recorder.invalidate(stale),
        }
    }

    fn flush(&self, ranges: impl Iterator<Item = Range>, space: Gpi) {
        match self.defect {
            Defect::Flush => {}
            Defect::FlushFirst => self.recorder.flush(ranges.take(1), space),
            _ => self.recorder.flush(ranges, space),
        }
    }
}
