//! Three cores, the tables, and what caches them.

use crate::replay::{Effect, Progress};
use flexserve_abi::{GRANULE_SIZE, el3::Gpi};
use flexserve_el3_svc::gpt_format::{Contiguous, Layout};
use flexserve_platform::Region;

/// Bytes of a granule.
pub const GRANULE: u64 = GRANULE_SIZE as u64;
/// The lendable bank: two blocks of 2 MB.
pub const BANK: Region = Region { base: 0x4000_0000, size: 4 << 20 };
/// The first of the granules that move: the last two of a block, and the first of the next.
pub const FIRST: u64 = BANK.base + 510 * GRANULE;
/// How many move.
pub const GRANULES: usize = 3;
/// Cores.
pub const CORES: usize = 3;
/// Entries of the bank in its level-1 table.
pub const ENTRIES: usize = 64;

const LEVEL0: u64 = 0x1_0000;
const LEVEL1: u64 = 0x10_0000;
const REGION: u64 = 1 << 30;

/// 1 TB of protected addresses, 1 GB for each level-0 entry.
#[must_use]
pub fn layout() -> Layout {
    Layout::new(LEVEL0 >> 12, 2)
}

/// Index of the level-1 entry at a table's address, if it is one of the bank's.
#[must_use]
pub fn entry_index(address: u64) -> Option<usize> {
    let index = usize::try_from(address.checked_sub(LEVEL1)? / 8).ok()?;
    (index < ENTRIES).then_some(index)
}

/// Whether the entry with this index describes a granule that moves.
#[must_use]
pub fn is_watched(index: usize) -> bool {
    let entry = |granule: u64| ((FIRST - BANK.base) / GRANULE + granule) as usize / 16;
    (entry(0)..=entry(GRANULES as u64 - 1)).contains(&index)
}

/// Reads the tables. Beside the bank's entries they hold one level-0 entry, and granules of the Root world.
#[must_use]
pub fn read(entries: &[u64; ENTRIES], address: u64) -> u64 {
    match entry_index(address) {
        Some(index) => entries[index],
        None if address == LEVEL0 + BANK.base / REGION * 8 => LEVEL1 | 0b0011,
        None if address < LEVEL1 => 0,
        None => Gpi::Root as u64 * 0x1111_1111_1111_1111,
    }
}

/// What a byte of the granule with contents holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Zero, or what the normal world wrote.
    Public,
    /// What a partition wrote.
    Secret,
}

/// A cached line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line {
    /// What it holds.
    pub value: Value,
    /// It is newer than memory.
    pub dirty: bool,
}

/// A cached translation: its block, and who may access that.
pub type Translation = (u64, u64, u8);

/// Whose a granule is, as those who asked for the moves know from their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The normal world.
    Normal,
    /// This partition.
    Partition(u8),
    /// It is zeroed and on its way back.
    Leaving,
    /// The Realm world, by TF-A's own library.
    Realm,
}

impl Owner {
    /// The partition, if it is one's.
    #[must_use]
    pub const fn partition(&self) -> Option<u8> {
        match self {
            Self::Partition(partition) => Some(*partition),
            Self::Normal | Self::Leaving | Self::Realm => None,
        }
    }
}

/// One core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Core {
    /// The call that it is in, and how far.
    pub call: Option<Progress>,
    /// It holds the tables' lock.
    pub locked: bool,
    /// What its TLB holds of the granule with contents, sorted.
    pub tlb: Vec<Translation>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The bank's level-1 entries.
    pub entries: [u64; ENTRIES],
    /// Sorted: cores are alike, so that states which differ by a permutation are one.
    pub cores: [Core; CORES],
    /// Who has been told that a granule is theirs.
    pub owners: [Owner; GRANULES],
    /// What memory holds in the granule with contents.
    pub memory: Value,
    /// Its line by Non-secure address.
    pub normal: Option<Line>,
    /// Its line by Secure address.
    pub secure: Option<Line>,
    /// Its partition has written there.
    pub written: bool,
    /// The rule that the last step broke.
    pub broken: Option<&'static str>,
}

impl Machine {
    /// Everything is the normal world's, in blocks of 2 MB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: [Contiguous::Block2M.descriptor(Gpi::NonSecure as u8); ENTRIES],
            cores: Default::default(),
            owners: [Owner::Normal; GRANULES],
            memory: Value::Public,
            normal: None,
            secure: None,
            written: false,
            broken: None,
        }
    }

    /// Who may access a granule, by the tables.
    #[must_use]
    pub fn owner(&self, address: u64) -> Option<Gpi> {
        layout().owner(address, |at| read(&self.entries, at))
    }

    /// Whether all granules but those that move are the normal world's.
    #[must_use]
    pub fn others_stay(&self) -> bool {
        const NORMAL: u64 = Gpi::NonSecure as u64 * 0x1111_1111_1111_1111;
        let moving = FIRST..FIRST + GRANULES as u64 * GRANULE;
        self.entries.iter().enumerate().all(|(i, entry)| match Contiguous::of(*entry) {
            Some(_) => *entry >> 4 & 0xf == Gpi::NonSecure as u64,
            None if !is_watched(i) => *entry == NORMAL,
            None => (0..16).all(|granule| {
                let address = BANK.base + (i as u64 * 16 + granule) * GRANULE;
                moving.contains(&address) || (entry ^ NORMAL) >> (granule * 4) & 0xf == 0
            }),
        })
    }

    /// Whether some core reaches the granule with contents by an address space.
    #[must_use]
    pub fn reaches(&self, space: Gpi) -> bool {
        self.cores.iter().any(|core| core.tlb.iter().any(|(_, _, gpi)| *gpi == space as u8))
    }

    /// What is read by Non-secure address, if it is cached there or comes from memory.
    #[must_use]
    pub fn seen_by_normal(&self) -> Value {
        self.normal.map_or(self.memory, |line| line.value)
    }

    /// What is read by Secure address.
    #[must_use]
    pub fn seen_by_secure(&self) -> Value {
        self.secure.map_or(self.memory, |line| line.value)
    }

    /// Makes states that differ in the numbers of cores or partitions only one: both are alike.
    pub fn normalise(&mut self) {
        self.cores.sort();
        if self.owners.iter().find_map(Owner::partition) == Some(1) {
            for owner in &mut self.owners {
                if let Owner::Partition(partition) = owner {
                    *partition ^= 1;
                }
            }
        }
    }

    /// Every core caches the translation of `granule` as it is now.
    pub fn touch(&mut self, granule: u64) {
        let Some(table) = layout().level1(granule, |at| read(&self.entries, at)) else { return };
        let entry = read(&self.entries, table.entry(granule));
        let bytes = Contiguous::of(entry).map_or(GRANULE, Contiguous::bytes);
        let Some(gpi) = self.owner(granule) else { return };
        let translation = (granule & !(bytes - 1), bytes, gpi as u8);
        for core in &mut self.cores {
            if let Err(at) = core.tlb.binary_search(&translation) {
                core.tlb.insert(at, translation);
            }
        }
    }

    /// Writes a line back, if it is newer than memory, and drops it.
    pub fn evict(&mut self, space: Gpi) {
        let line = match space {
            Gpi::NonSecure => &mut self.normal,
            Gpi::Secure => &mut self.secure,
            // The Realm world's contents are its own affair.
            _ => return,
        };
        if let Some(Line { value, dirty: true }) = line.take() {
            self.memory = value;
        }
    }

    /// What an effect of a core does. `false` if it cannot happen yet.
    pub fn apply(&mut self, core: usize, effect: Effect, granule: u64) -> bool {
        let overlaps = |base: u64, bytes: u64, at: u64, size: u64| base < at + size && at < base + bytes;
        match effect {
            Effect::Lock if self.cores.iter().any(|core| core.locked) => return false,
            Effect::Lock => self.cores[core].locked = true,
            Effect::Unlock => self.cores[core].locked = false,
            Effect::Write(index, entry) => self.entries[index] = entry,
            // A cached block goes only if all of it is named (Arm DDI 0487, D9.6.4, rule SSKBB).
            Effect::Invalidate { base, bytes, everywhere } => {
                for (i, other) in self.cores.iter_mut().enumerate() {
                    if everywhere || i == core {
                        other.tlb.retain(|(at, size, _)| *at < base || base + bytes < at + size);
                    }
                }
            }
            Effect::Flush { base, bytes, space } => {
                if overlaps(base, bytes, granule, GRANULE) {
                    self.evict(space);
                }
            }
        }
        true
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}
