//! Calls of partitions, over SVC.

use crate::{
    descriptor::{self, Kind, RELINQUISH_SIZE, Retrieved, Retrieving},
    hardware::Hardware,
    lending::{Error, Region},
    mailbox::Mailbox,
    partition::{Entry, Pause, Phase, Step},
    registers::{Registers, Reply, endpoints, function},
    space::{Error as SpaceError, Permission},
    spmc::Spmc,
    tables::PAGE,
};
use arm_ffa::{FfaError, FuncId};
use flexserve_abi::ffa::SPMC;

/// x0 of a call that is not FF-A's (SMCCC v1.4, section 5.1).
const SMCCC_NOT_SUPPORTED: u64 = u64::MAX;
/// Bytes that `FFA_CONSOLE_LOG` carries: w2 to w7, x2 to x17.
const LOG_32: usize = 24;
const LOG_64: usize = 128;

/// What a partition may call.
const PROVIDED: [FuncId; 32] = [
    FuncId::Error32,
    FuncId::Success32,
    FuncId::Success64,
    FuncId::Version,
    FuncId::Features,
    FuncId::IdGet,
    FuncId::SpmIdGet,
    FuncId::PartitionInfoGetRegs,
    FuncId::RxTxMap64,
    FuncId::RxTxMap32,
    FuncId::RxTxUnmap,
    FuncId::RxRelease,
    FuncId::MsgWait32,
    FuncId::Yield32,
    FuncId::MsgSendDirectReq32,
    FuncId::MsgSendDirectReq64,
    FuncId::MsgSendDirectReq64_2,
    FuncId::MsgSendDirectResp32,
    FuncId::MsgSendDirectResp64,
    FuncId::MsgSendDirectResp64_2,
    FuncId::MemRetrieveReq32,
    FuncId::MemRetrieveReq64,
    FuncId::MemRetrieveResp,
    FuncId::MemRelinquish,
    FuncId::MemPermGet32,
    FuncId::MemPermGet64,
    FuncId::MemPermSet32,
    FuncId::MemPermSet64,
    FuncId::ConsoleLog32,
    FuncId::ConsoleLog64,
    FuncId::Interrupt32,
    FuncId::SecondaryEpRegister64,
];

/// Codes of `FFA_MEM_PERM_GET` and `_SET` (DEN0140 v1.2, table 2.37).
mod permission {
    use crate::space::Permission;

    const READ_WRITE: u64 = 0b01;
    const READ_ONLY: u64 = 0b11;
    const NO_EXECUTE: u64 = 1 << 2;

    pub fn from_code(code: u64) -> Option<Permission> {
        Some(match code {
            c if c == READ_ONLY => Permission::Code,
            c if c == READ_ONLY | NO_EXECUTE => Permission::Constants,
            c if c == READ_WRITE | NO_EXECUTE => Permission::Data,
            _ => return None,
        })
    }

    pub fn code(permission: Permission) -> u64 {
        match permission {
            Permission::Code => READ_ONLY,
            Permission::Constants => READ_ONLY | NO_EXECUTE,
            Permission::Data => READ_WRITE | NO_EXECUTE,
        }
    }
}

impl From<SpaceError> for FfaError {
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::OutOfTables | SpaceError::OutOfAddresses => Self::NoMemory,
            SpaceError::NotOwn => Self::InvalidParameters,
        }
    }
}

impl<H: Hardware> Spmc<'_, H> {
    /// Serves one call of the partition that is running.
    pub fn partition_call(&mut self, index: usize, registers: &Registers) -> Step {
        let Some(function) = function(registers) else {
            let mut answer = *registers;
            answer[0] = SMCCC_NOT_SUPPORTED;
            return Step::Run(index, Entry::Answer(answer));
        };
        let partition = &mut self.partitions[index];
        let step = match function {
            FuncId::MsgWait32 => partition.wait().map(|message| match message {
                Some(message) => Step::Run(index, Entry::Answer(message)),
                None => Step::Ready,
            }),
            FuncId::MsgSendDirectResp32 | FuncId::MsgSendDirectResp64 | FuncId::MsgSendDirectResp64_2 => {
                partition.answer(function, registers).map(Step::Reply)
            }
            FuncId::Yield32 => Ok(Step::Reply(partition.suspend(Pause::Yielded))),
            // The partition gives up.
            FuncId::Error32 => Ok(self.aborted(index)),
            _ => {
                let reply = Reply::from(self.partition_service(index, function, registers));
                Ok(Step::Run(index, Entry::Answer(reply.over(registers))))
            }
        };
        step.unwrap_or_else(|error| Step::Run(index, Entry::Answer(Reply::error(error).over(registers))))
    }

    fn partition_service(
        &mut self,
        index: usize,
        function: FuncId,
        registers: &Registers,
    ) -> Result<Reply, FfaError> {
        match function {
            FuncId::Version => {
                let version = Self::version(registers[1] as u32);
                Ok(Reply::Short([version.into(), 0, 0, 0, 0, 0, 0, 0]))
            }
            FuncId::Features => Self::features(registers, &PROVIDED),
            FuncId::IdGet => Ok(Reply::success(&[self.partitions[index].id.into()])),
            FuncId::SpmIdGet => Ok(Reply::success(&[SPMC.into()])),
            FuncId::PartitionInfoGetRegs => self.partition_info_registers(registers),
            FuncId::RxTxMap32 | FuncId::RxTxMap64 => self.map_partition_buffers(index, registers),
            FuncId::RxTxUnmap => self.unmap_partition_buffers(index, registers),
            FuncId::RxRelease => {
                self.partitions[index].mailbox.as_mut().ok_or(FfaError::Denied)?.release()?;
                Ok(Reply::success(&[]))
            }
            FuncId::MemRetrieveReq32 | FuncId::MemRetrieveReq64 => self.retrieve(index, registers),
            FuncId::MemRelinquish => self.relinquish(index),
            FuncId::MemPermGet32 | FuncId::MemPermGet64 => self.memory_permission(index, registers),
            FuncId::MemPermSet32 | FuncId::MemPermSet64 => self.set_memory_permission(index, registers),
            FuncId::SecondaryEpRegister64 => self.take_workers(index, registers[1]),
            FuncId::ConsoleLog32 => self.console_log(index, registers, LOG_32),
            FuncId::ConsoleLog64 => self.console_log(index, registers, LOG_64),
            _ => Err(FfaError::NotSupported),
        }
    }

    /// `FFA_SECONDARY_EP_REGISTER` (DEN0077A v1.2, section 18.2.1.3): where workers on lent cores start, in the partition's own
    /// code. Once, and before the first message.
    fn take_workers(&mut self, index: usize, entry: u64) -> Result<Reply, FfaError> {
        let partition = &self.partitions[index];
        if partition.phase != Phase::Starting {
            return Err(FfaError::Denied);
        }
        let page = entry & !(PAGE - 1);
        if !entry.is_multiple_of(4)
            || partition.space.permission(&self.ledger.pool, page) != Ok(Permission::Code)
        {
            return Err(FfaError::InvalidParameters);
        }
        if self.hardware.take_workers(index, entry) { Ok(Reply::success(&[])) } else { Err(FfaError::Denied) }
    }

    /// `FFA_RXTX_MAP`: the buffers are writable pages of the partition's own, whose addresses are physical ones.
    fn map_partition_buffers(&mut self, index: usize, registers: &Registers) -> Result<Reply, FfaError> {
        let mailbox = Mailbox::new(registers[1], registers[2], u64::from(registers[3] as u32))?;
        let partition = &mut self.partitions[index];
        if partition.mailbox.is_some() {
            return Err(FfaError::Denied);
        }
        let pages = u64::from(mailbox.pages);
        let writable = |base| partition.space.writable(&self.ledger.pool, base, pages);
        if !writable(mailbox.tx) || !writable(mailbox.rx) {
            return Err(FfaError::InvalidParameters);
        }
        partition.mailbox = Some(mailbox);
        Ok(Reply::success(&[]))
    }

    fn unmap_partition_buffers(&mut self, index: usize, registers: &Registers) -> Result<Reply, FfaError> {
        let partition = &mut self.partitions[index];
        if ![0, partition.id].contains(&endpoints(registers[1]).0) {
            return Err(FfaError::InvalidParameters);
        }
        partition.mailbox.take().ok_or(FfaError::InvalidParameters)?;
        Ok(Reply::success(&[]))
    }

    /// `FFA_MEM_RETRIEVE_REQ`: maps the region, and describes it in RX.
    fn retrieve(&mut self, index: usize, registers: &Registers) -> Result<Reply, FfaError> {
        let partition = self.partitions[index];
        let mailbox = partition.mailbox.ok_or(FfaError::InvalidParameters)?;
        let (total, length) = (registers[1] as u32, registers[2] as u32);
        let mut request = [0; PAGE as usize];
        let request = request.get_mut(..length as usize).ok_or(FfaError::InvalidParameters)?;
        if total != length || registers[3] != 0 || registers[4] as u32 != 0 {
            return Err(FfaError::InvalidParameters);
        }
        mailbox.check_empty()?;
        self.hardware.read_secure(mailbox.tx, request);
        let asked = descriptor::retrieving(request)?;
        self.ledger.borrowed(asked.handle, partition.id)?;
        self.ledger.zero(&mut self.hardware, asked.handle)?;
        let region = *self.ledger.borrowed(asked.handle, partition.id)?;
        let read_only = granted(&region, &asked, partition.id)?;
        let address = partition.space.borrow(&mut self.ledger.pool, &region.pages, read_only)?;
        self.ledger.set_address(region.handle, Some(address));
        // Only invalid entries became valid: nothing of them can be in a TLB, but the walkers must see them.
        self.hardware.flush(partition.asid);
        let answer = Retrieved {
            lender: region.lender,
            borrower: partition.id,
            handle: region.handle,
            tag: region.sending.tag,
            kind: region.kind,
            read_only,
            address,
            pages: region.pages.len(),
        };
        let answer = answer.to_bytes();
        self.hardware.write_secure(mailbox.rx, &answer);
        self.partitions[index].mailbox.as_mut().ok_or(FfaError::Denied)?.fill();
        let size = answer.len() as u64;
        Ok(Reply::short(FuncId::MemRetrieveResp, size, &[size]))
    }

    /// `FFA_MEM_RELINQUISH`: the descriptor is in TX. The region is unmapped at once; if it is to be zeroed and that takes longer
    /// than a slice, this answers `RETRY` until it is.
    fn relinquish(&mut self, index: usize) -> Result<Reply, FfaError> {
        let partition = &self.partitions[index];
        let mailbox = partition.mailbox.ok_or(FfaError::InvalidParameters)?;
        let mut bytes = [0; RELINQUISH_SIZE];
        self.hardware.read_secure(mailbox.tx, &mut bytes);
        let (handle, zero, endpoint) = descriptor::relinquishing(&bytes)?;
        if endpoint != partition.id {
            return Err(FfaError::InvalidParameters);
        }
        let region = *self.ledger.borrowed(handle, partition.id)?;
        // What was donated is the partition's; what is shared is the lender's too, and may not be zeroed behind it.
        if region.kind == Kind::Donate || (zero && region.kind == Kind::Share) {
            return Err(FfaError::Denied);
        }
        if let Some(address) = region.address() {
            partition.space.give_back(&self.ledger.pool, address, &region.pages);
            self.hardware.flush(partition.asid);
            self.ledger.set_address(handle, None);
            if zero {
                self.ledger.begin_zeroing(handle);
            }
        } else if !(zero && region.is_being_zeroed()) {
            return Err(FfaError::Denied);
        }
        self.ledger.zero(&mut self.hardware, handle)?;
        Ok(Reply::success(&[]))
    }

    /// `FFA_MEM_PERM_GET`, only while the partition starts.
    fn memory_permission(&self, index: usize, registers: &Registers) -> Result<Reply, FfaError> {
        let partition = self.starting(index)?;
        let permission = partition.space.permission(&self.ledger.pool, registers[1])?;
        Ok(Reply::success(&[permission::code(permission)]))
    }

    /// `FFA_MEM_PERM_SET`, only while the partition starts.
    fn set_memory_permission(&mut self, index: usize, registers: &Registers) -> Result<Reply, FfaError> {
        let partition = self.starting(index)?;
        let permission: Permission =
            permission::from_code(u64::from(registers[3] as u32)).ok_or(FfaError::InvalidParameters)?;
        let (space, asid) = (partition.space, partition.asid);
        let pages = u64::from(registers[2] as u32);
        space.set_permission(&self.ledger.pool, registers[1], pages, permission)?;
        self.hardware.flush(asid);
        Ok(Reply::success(&[]))
    }

    fn starting(&self, index: usize) -> Result<&crate::partition::Partition, FfaError> {
        let partition = &self.partitions[index];
        if partition.phase == Phase::Starting { Ok(partition) } else { Err(FfaError::Denied) }
    }

    /// `FFA_CONSOLE_LOG`: w1 characters in the registers from w2 on.
    fn console_log(&mut self, index: usize, registers: &Registers, limit: usize) -> Result<Reply, FfaError> {
        let count = registers[1] as u32 as usize;
        if count == 0 || count > limit {
            return Err(FfaError::InvalidParameters);
        }
        let mut bytes = [0; LOG_64];
        let width = if limit == LOG_32 { 4 } else { 8 };
        for (chunk, register) in bytes.chunks_exact_mut(width).zip(&registers[2..]) {
            chunk.copy_from_slice(&register.to_le_bytes()[..width]);
        }
        self.hardware.log(self.partitions[index].id, &bytes[..count]);
        Ok(Reply::success(&[]))
    }
}

/// Whether the borrower gets the region read only, if it gets it.
fn granted(region: &Region, asked: &Retrieving, borrower: u16) -> Result<bool, FfaError> {
    if region.address().is_some() {
        return Err(Error::State.into());
    }
    if asked.lender != region.lender
        || asked.borrower != borrower
        || asked.tag != region.sending.tag
        || asked.kind.is_some_and(|kind| kind != region.kind)
    {
        return Err(Error::Mismatch.into());
    }
    match asked.read_only {
        Some(false) if region.sending.read_only => Err(FfaError::Denied),
        Some(read_only) => Ok(read_only || region.sending.read_only),
        None => Ok(region.sending.read_only),
    }
}
