//! The state behind all calls, and what both worlds may ask of it.

use crate::{
    hardware::Hardware,
    lending::Ledger,
    mailbox::{MAX_PAGES, Mailbox},
    manifest::{Manifest, Place},
    partition::{Partition, Pause, Phase, Step, properties},
    registers::{Registers, Reply},
    space::{AddressSpace, Error as SpaceError},
};
use arm_ffa::{FfaError, FuncId};
use flexserve_abi::ffa::{EndpointId, UuidRegisters};
use heapless::Vec;

/// Most partitions.
pub const PARTITIONS: usize = 4;
/// The version that this SPMC speaks: 1.2.
pub const VERSION: u32 = 1 << 16 | 2;
/// `NOT_SUPPORTED`, as `FFA_VERSION` answers it.
const VERSION_NOT_SUPPORTED: u32 = -1_i32 as u32;
/// Bytes of a partition information descriptor (DEN0077A v1.2, table 6.1), and of version 1.0's.
pub(crate) const INFO_SIZE: usize = 24;
pub(crate) const INFO_SIZE_V1_0: usize = 8;

/// The partition manager, without its machine.
pub struct Spmc<'a, H> {
    /// The machine.
    pub hardware: H,
    /// The memory under way.
    pub ledger: Ledger<'a>,
    pub(crate) partitions: Vec<Partition, PARTITIONS>,
    /// The normal world's buffers.
    pub(crate) mailbox: Option<Mailbox>,
    /// The version that the normal world speaks.
    pub(crate) normal_version: u32,
}

impl<'a, H: Hardware> Spmc<'a, H> {
    /// A manager of no partitions.
    pub fn new(hardware: H, ledger: Ledger<'a>) -> Self {
        Self { hardware, ledger, partitions: Vec::new(), mailbox: None, normal_version: VERSION }
    }

    /// Adds a partition and answers its index.
    ///
    /// # Errors
    ///
    /// [`SpaceError`]; [`SpaceError::OutOfAddresses`] also if there are too many.
    pub fn add_partition(&mut self, place: &Place, manifest: &Manifest) -> Result<usize, SpaceError> {
        let entry = place.base + u64::from(manifest.image_offset);
        let image_size = manifest.image_size.into();
        let space = AddressSpace::new(&mut self.ledger.pool, entry, manifest.memory_size.into(), image_size)?;
        let index = self.partitions.len();
        let partition = Partition {
            id: place.id,
            uuid: manifest.uuid,
            properties: manifest.messaging & properties::PROVIDED | properties::AARCH64,
            entry,
            image_size,
            restart: manifest.restart,
            space,
            asid: index as u16 + 1,
            mailbox: None,
            phase: Phase::Fresh,
            pause: None,
            call: None,
            failing: false,
        };
        self.partitions.push(partition).map_err(|_| SpaceError::OutOfAddresses)?;
        Ok(index)
    }

    /// A partition.
    #[must_use]
    pub fn partition(&self, index: usize) -> &Partition {
        &self.partitions[index]
    }

    /// Marks a new partition as started: whoever calls runs it from its entry point.
    pub fn start(&mut self, index: usize) {
        self.partitions[index].phase = Phase::Starting;
    }

    /// A partition was interrupted while it ran.
    pub fn interrupted(&mut self, index: usize) -> Step {
        Step::Reply(self.partitions[index].suspend(Pause::Interrupted))
    }

    /// A partition did what it must not: it ends, and loses what it borrowed.
    pub fn aborted(&mut self, index: usize) -> Step {
        self.hardware.stop_workers(index);
        let partition = &mut self.partitions[index];
        let reply = partition.abort();
        let space = partition.space;
        self.ledger.unmap_all(partition.id, |pool, address, pages| space.give_back(pool, address, pages));
        partition.space.reset(&self.ledger.pool, partition.image_size);
        self.hardware.flush(partition.asid);
        reply.map_or(Step::Ready, Step::Reply)
    }

    /// A partition's worker did what it must not: the partition ends, at once or when it comes back from where it runs.
    pub fn worker_failed(&mut self, index: usize) {
        let partition = &mut self.partitions[index];
        match (partition.phase, partition.pause) {
            (Phase::Starting | Phase::Serving, None) => partition.failing = true,
            (Phase::Fresh | Phase::Aborted, _) => {}
            // Whoever asked it learns of its end by `FFA_RUN`.
            _ => _ = self.aborted(index),
        }
    }

    /// `FFA_VERSION`: what is answered to a caller of this version.
    pub(crate) fn version(asked: u32) -> u32 {
        if asked >> 31 == 0 && asked >> 16 == VERSION >> 16 { VERSION } else { VERSION_NOT_SUPPORTED }
    }

    /// `FFA_FEATURES` (DEN0077A v1.2, section 13.3). Features by number (interrupts) are not provided.
    pub(crate) fn features(registers: &Registers, provided: &[FuncId]) -> Result<Reply, FfaError> {
        let id = FuncId::try_from(registers[1] as u32).ok().filter(|id| provided.contains(id));
        match id.ok_or(FfaError::NotSupported)? {
            // Buffers of 4 KiB pages, so many at most.
            FuncId::RxTxMap32 | FuncId::RxTxMap64 => Ok(Reply::success(&[u64::from(MAX_PAGES) << 16])),
            _ => Ok(Reply::success(&[])),
        }
    }

    pub(crate) fn find(&self, id: EndpointId) -> Option<usize> {
        self.partitions.iter().position(|partition| partition.id == id)
    }

    /// Partitions with this service, or all for the nil UUID.
    pub(crate) fn offering(&self, uuid: UuidRegisters) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().filter(move |p| uuid == UuidRegisters(0, 0) || p.uuid == uuid)
    }

    /// `FFA_PARTITION_INFO_GET_REGS` (DEN0077A v1.2, section 13.9): five descriptors in x3 to x17.
    pub(crate) fn partition_info_registers(&self, registers: &Registers) -> Result<Reply, FfaError> {
        const AT_ONCE: usize = 5;
        let uuid = UuidRegisters(registers[1], registers[2]);
        let (tag, start) = ((registers[3] >> 16) as u16, registers[3] as u16);
        let count = self.offering(uuid).count();
        if tag != 0 || registers[3] >> 32 != 0 {
            return Err(if registers[3] >> 32 == 0 { FfaError::Retry } else { FfaError::InvalidParameters });
        }
        if usize::from(start) >= count {
            return Err(FfaError::InvalidParameters);
        }
        let mut answer = [0; 18];
        answer[0] = u32::from(FuncId::Success64).into();
        let mut last = start;
        for (i, partition) in self.offering(uuid).skip(start.into()).take(AT_ONCE).enumerate() {
            let bytes = info(partition, uuid == UuidRegisters(0, 0));
            let (words, _) = bytes.as_chunks::<8>();
            for (register, word) in answer[3 + 3 * i..].iter_mut().zip(words) {
                *register = u64::from_le_bytes(*word);
            }
            last = start + i as u16;
        }
        answer[2] = (INFO_SIZE as u64) << 48 | u64::from(last) << 16 | (count as u64 - 1);
        Ok(Reply::Full(answer))
    }
}

/// A partition information descriptor (DEN0077A v1.2, table 6.1).
pub(crate) fn info(partition: &Partition, with_uuid: bool) -> [u8; INFO_SIZE] {
    let mut bytes = [0; INFO_SIZE];
    bytes[..2].copy_from_slice(&partition.id.to_le_bytes());
    // One execution context.
    bytes[2..4].copy_from_slice(&1_u16.to_le_bytes());
    bytes[4..8].copy_from_slice(&partition.properties.to_le_bytes());
    if with_uuid {
        bytes[8..16].copy_from_slice(&partition.uuid.0.to_le_bytes());
        bytes[16..].copy_from_slice(&partition.uuid.1.to_le_bytes());
    }
    bytes
}
