//! Calls of the normal world, as the SPMD forwards them, and the SPMD's own messages.

use crate::{
    claims,
    descriptor::{self, Kind},
    hardware::{Hardware, Unreachable},
    lending::{Arrival, Error},
    mailbox::Mailbox,
    partition::{Call, Step, properties},
    registers::{Registers, Reply, endpoints, function, halves, pair},
    spmc::{INFO_SIZE, INFO_SIZE_V1_0, Spmc, info},
    tables::PAGE,
};
use arm_ffa::{FfaError, FuncId};
use flexserve_abi::{
    el3::Gpi,
    ffa::{EndpointId, NORMAL_WORLD, RECALL_SERVICE, SPMC, UuidRegisters},
};

/// The SPMD, as it names itself in its messages.
const SPMD: EndpointId = 0xffff;
/// Framework messages between SPMD and SPMC, in w2 (DEN0077A v1.2, section 18): bit 31 and a number.
mod framework {
    pub const MESSAGE: u64 = 1 << 31;
    pub const POWER_REQUEST: u64 = MESSAGE;
    pub const POWER_RESPONSE: u64 = MESSAGE | 2;
    pub const VERSION_REQUEST: u64 = MESSAGE | 8;
    pub const VERSION_RESPONSE: u64 = MESSAGE | 9;
}
/// `PSCI_CPU_OFF` (DEN0022, section 5.5).
const CPU_OFF: u64 = 0x8400_0002;
/// Bit 15 of an endpoint ID: in the Secure world.
const SECURE_ID: EndpointId = 1 << 15;
/// `FFA_PARTITION_INFO_GET`: only the count is asked for.
const INFO_COUNT: u64 = 1;
/// `FFA_MEM_RECLAIM`: zero the memory first.
const RECLAIM_ZERO: u64 = 1;

/// What the normal world may call.
const PROVIDED: [FuncId; 31] = [
    FuncId::Error32,
    FuncId::Success32,
    FuncId::Success64,
    FuncId::Interrupt32,
    FuncId::Version,
    FuncId::Features,
    FuncId::IdGet,
    FuncId::SpmIdGet,
    FuncId::PartitionInfoGet,
    FuncId::PartitionInfoGetRegs,
    FuncId::RxTxMap32,
    FuncId::RxTxMap64,
    FuncId::RxTxUnmap,
    FuncId::RxRelease,
    FuncId::Run32,
    FuncId::Yield32,
    FuncId::MsgSendDirectReq32,
    FuncId::MsgSendDirectReq64,
    FuncId::MsgSendDirectReq64_2,
    FuncId::MsgSendDirectResp32,
    FuncId::MsgSendDirectResp64,
    FuncId::MsgSendDirectResp64_2,
    FuncId::MemShare32,
    FuncId::MemShare64,
    FuncId::MemLend32,
    FuncId::MemLend64,
    FuncId::MemDonate32,
    FuncId::MemDonate64,
    FuncId::MemFragRx,
    FuncId::MemFragTx,
    FuncId::MemReclaim,
];

impl From<Unreachable> for FfaError {
    fn from(_: Unreachable) -> Self {
        Self::Aborted
    }
}

impl<H: Hardware> Spmc<'_, H> {
    /// Serves one call.
    pub fn normal_call(&mut self, registers: &Registers) -> Step {
        let Some(function) = function(registers) else {
            return Step::Reply(Reply::error(FfaError::NotSupported));
        };
        match function {
            FuncId::MsgSendDirectReq32 | FuncId::MsgSendDirectReq64 | FuncId::MsgSendDirectReq64_2 => {
                self.direct_request(function, registers)
            }
            FuncId::Run32 => self.run(registers),
            _ => Ok(Step::Reply(self.normal_service(function, registers).into())),
        }
        .unwrap_or_else(|error| Step::Reply(Reply::error(error)))
    }

    fn normal_service(&mut self, function: FuncId, registers: &Registers) -> Result<Reply, FfaError> {
        match function {
            FuncId::Features => Self::features(registers, &PROVIDED),
            FuncId::IdGet => Ok(Reply::success(&[NORMAL_WORLD.into()])),
            FuncId::SpmIdGet => Ok(Reply::success(&[SPMC.into()])),
            FuncId::PartitionInfoGet => self.partition_info(registers),
            FuncId::PartitionInfoGetRegs => self.partition_info_registers(registers),
            FuncId::RxTxMap32 => self.map_normal_buffers(
                u64::from(registers[1] as u32),
                u64::from(registers[2] as u32),
                registers[3],
            ),
            FuncId::RxTxMap64 => self.map_normal_buffers(registers[1], registers[2], registers[3]),
            FuncId::RxTxUnmap => self.unmap_normal_buffers(registers),
            FuncId::RxRelease => {
                self.mailbox.as_mut().ok_or(FfaError::Denied)?.release()?;
                Ok(Reply::success(&[]))
            }
            FuncId::MemShare32 | FuncId::MemShare64 => self.send_memory(Kind::Share, registers),
            FuncId::MemLend32 | FuncId::MemLend64 => self.send_memory(Kind::Lend, registers),
            FuncId::MemDonate32 | FuncId::MemDonate64 => self.send_memory(Kind::Donate, registers),
            FuncId::MemFragTx => self.next_fragment(registers),
            FuncId::MemReclaim => self.reclaim(registers),
            _ => Err(FfaError::NotSupported),
        }
    }

    /// A direct request: to a partition, or from the SPMD to this manager.
    fn direct_request(&mut self, function: FuncId, registers: &Registers) -> Result<Step, FfaError> {
        let (source, destination) = endpoints(registers[1]);
        if source == SPMD && destination == SPMC && function == FuncId::MsgSendDirectReq32 {
            return self.framework_message(registers).map(Step::Reply);
        }
        if source & SECURE_ID != 0 {
            return Err(FfaError::InvalidParameters);
        }
        let recall = UuidRegisters::new(RECALL_SERVICE);
        if destination == SPMC
            && function == FuncId::MsgSendDirectReq64_2
            && registers[2..4] == [recall.0, recall.1]
        {
            return Ok(Step::Reply(self.recall_service(source, registers)));
        }
        let index = self.find(destination).ok_or(FfaError::InvalidParameters)?;
        let partition = &mut self.partitions[index];
        let (property, answer) = match function {
            FuncId::MsgSendDirectReq64_2 => (properties::DIRECT_REQUEST_2, FuncId::MsgSendDirectResp64_2),
            FuncId::MsgSendDirectReq64 => (properties::DIRECT_REQUEST, FuncId::MsgSendDirectResp64),
            _ => (properties::DIRECT_REQUEST, FuncId::MsgSendDirectResp32),
        };
        if partition.properties & property == 0 {
            return Err(FfaError::Denied);
        }
        let mut message = *registers;
        message[0] = u32::from(function).into();
        message[1] = pair(source, destination);
        if function == FuncId::MsgSendDirectReq64_2 {
            let uuid = UuidRegisters(registers[2], registers[3]);
            if uuid != partition.uuid && uuid != UuidRegisters(0, 0) {
                return Err(FfaError::InvalidParameters);
            }
        } else {
            // w2 of a partition message is zero but for bit 31, which marks the framework's.
            if registers[2] as u32 != 0 {
                return Err(FfaError::InvalidParameters);
            }
            message[8..].fill(0);
            if function == FuncId::MsgSendDirectReq32 {
                message.iter_mut().for_each(|x| *x &= u64::from(u32::MAX));
            }
        }
        partition.accept(Call { caller: source, answer, message }).map(|entry| Step::Run(index, entry))
    }

    fn framework_message(&mut self, registers: &Registers) -> Result<Reply, FfaError> {
        let (kind, value) = match (u64::from(registers[2] as u32), u64::from(registers[3] as u32)) {
            (framework::VERSION_REQUEST, asked) => {
                let answer = Self::version(asked as u32);
                if answer == crate::spmc::VERSION {
                    self.normal_version = asked as u32;
                }
                (framework::VERSION_RESPONSE, u64::from(answer))
            }
            // Nothing of a core's state has to outlive it: a partition runs to its end or stays interrupted.
            (framework::POWER_REQUEST, CPU_OFF) => (framework::POWER_RESPONSE, 0),
            _ => return Err(FfaError::NotSupported),
        };
        Ok(Reply::short(FuncId::MsgSendDirectResp32, pair(SPMC, SPMD), &[kind, value]))
    }

    /// `FFA_RUN` (DEN0077A v1.2, section 14.3): w1 = partition and its execution context, of which there is one.
    fn run(&mut self, registers: &Registers) -> Result<Step, FfaError> {
        let (id, context) = endpoints(registers[1]);
        let index = self.find(id).filter(|_| context == 0).ok_or(FfaError::InvalidParameters)?;
        self.partitions[index].resume().map(|entry| Step::Run(index, entry))
    }

    /// `FFA_PARTITION_INFO_GET` (DEN0077A v1.2, section 13.8).
    fn partition_info(&mut self, registers: &Registers) -> Result<Reply, FfaError> {
        let uuid = UuidRegisters(halves(registers[1], registers[2]), halves(registers[3], registers[4]));
        let flags = u64::from(registers[5] as u32);
        if flags & !INFO_COUNT != 0 {
            return Err(FfaError::InvalidParameters);
        }
        let count = self.offering(uuid).count();
        if count == 0 {
            return Err(FfaError::InvalidParameters);
        }
        if flags & INFO_COUNT != 0 {
            return Ok(Reply::success(&[count as u64]));
        }
        let mailbox = self.mailbox.ok_or(FfaError::Busy)?;
        mailbox.check_empty()?;
        let size = if self.normal_version == 1 << 16 { INFO_SIZE_V1_0 } else { INFO_SIZE };
        let mut address = mailbox.rx;
        let partitions = self.partitions.iter().filter(|p| uuid == UuidRegisters(0, 0) || p.uuid == uuid);
        for partition in partitions {
            let bytes = info(partition, uuid == UuidRegisters(0, 0));
            self.hardware.write_normal(address, &bytes[..size])?;
            address += size as u64;
        }
        self.mailbox.as_mut().ok_or(FfaError::Busy)?.fill();
        let reported = if size == INFO_SIZE { size as u64 } else { 0 };
        Ok(Reply::success(&[count as u64, reported]))
    }

    /// `FFA_RXTX_MAP`. The pages must be the normal world's own, and cannot be lent while they are mapped here.
    fn map_normal_buffers(&mut self, tx: u64, rx: u64, pages: u64) -> Result<Reply, FfaError> {
        let mailbox = Mailbox::new(tx, rx, u64::from(pages as u32))?;
        if self.mailbox.is_some() {
            return Err(FfaError::Denied);
        }
        self.claim_buffer(mailbox.tx, mailbox.pages)?;
        if let Err(error) = self.claim_buffer(mailbox.rx, mailbox.pages) {
            self.ledger.claims.release(mailbox.tx, mailbox.pages);
            return Err(error);
        }
        self.mailbox = Some(mailbox);
        Ok(Reply::success(&[]))
    }

    fn claim_buffer(&mut self, base: u64, pages: u32) -> Result<(), FfaError> {
        self.ledger.claims.claim(base, pages)?;
        let own = |page| self.hardware.granule(base + page * PAGE) == Some(Gpi::NonSecure);
        if (0..u64::from(pages)).all(own) {
            return Ok(());
        }
        self.ledger.claims.release(base, pages);
        Err(claims::Error::NotLendable.into())
    }

    fn unmap_normal_buffers(&mut self, registers: &Registers) -> Result<Reply, FfaError> {
        if endpoints(registers[1]).0 != NORMAL_WORLD {
            return Err(FfaError::InvalidParameters);
        }
        let mailbox = self.mailbox.take().ok_or(FfaError::InvalidParameters)?;
        self.ledger.claims.release(mailbox.tx, mailbox.pages);
        self.ledger.claims.release(mailbox.rx, mailbox.pages);
        Ok(Reply::success(&[]))
    }

    /// `FFA_MEM_SHARE`, `FFA_MEM_LEND`, `FFA_MEM_DONATE`: the first fragment of the descriptor is in TX.
    fn send_memory(&mut self, kind: Kind, registers: &Registers) -> Result<Reply, FfaError> {
        let (total, length) = (registers[1] as u32, registers[2] as u32);
        // Buffers other than TX are not supported.
        if registers[3] != 0 || registers[4] as u32 != 0 || length > total {
            return Err(FfaError::InvalidParameters);
        }
        let mailbox = self.mailbox.ok_or(FfaError::InvalidParameters)?;
        let length = checked_length(length, &mailbox)?;
        let mut head = [0; PAGE as usize];
        let head = &mut head[..length.min(PAGE as usize)];
        self.hardware.read_normal(mailbox.tx, head)?;
        let sending = descriptor::sending(head, total as usize, kind, NORMAL_WORLD)?;
        if self.find(sending.borrower).is_none() {
            return Err(FfaError::InvalidParameters);
        }
        let handle = self.ledger.begin(kind, NORMAL_WORLD, sending)?;
        // The ranges behind the head are read anew: nothing that was checked is read twice.
        self.add_fragment(handle, mailbox.tx + sending.first_range as u64, length - sending.first_range)
    }

    /// `FFA_MEM_FRAG_TX`: the next fragment is in TX. It may be empty while there is something to do for what came before.
    fn next_fragment(&mut self, registers: &Registers) -> Result<Reply, FfaError> {
        let handle = halves(registers[1], registers[2]);
        let mailbox = self.mailbox.ok_or(FfaError::InvalidParameters)?;
        let region = self.ledger.lent(handle, NORMAL_WORLD)?;
        if region.is_whole() || endpoints(registers[4]).0 != NORMAL_WORLD {
            return Err(FfaError::InvalidParameters);
        }
        let length = match registers[3] as u32 {
            0 if region.needs_time() => 0,
            length => checked_length(length, &mailbox)?,
        };
        self.add_fragment(handle, mailbox.tx, length)
    }

    /// Takes what fits into a slice of the ranges in `length` bytes of the normal world's memory, and their granules.
    fn add_fragment(&mut self, handle: u64, from: u64, length: usize) -> Result<Reply, FfaError> {
        let arrival = match length {
            0 => self.ledger.receive(&mut self.hardware, handle, NORMAL_WORLD, 0, &[])?,
            _ => self.read_fragment(handle, from, length)?,
        };
        let halves = [u64::from(handle as u32), handle >> 32];
        Ok(match arrival {
            Arrival::Whole => Reply::success(&halves),
            Arrival::From(offset) => Reply::short(FuncId::MemFragRx, halves[0], &[halves[1], offset.into()]),
        })
    }

    fn read_fragment(&mut self, handle: u64, from: u64, length: usize) -> Result<Arrival, Error> {
        let mut bytes = [0; PAGE as usize];
        let bytes = &mut bytes[..length.min(PAGE as usize)];
        match self.hardware.read_normal(from, bytes) {
            Ok(()) => self.ledger.receive(&mut self.hardware, handle, NORMAL_WORLD, length, bytes),
            Err(error) => self.ledger.fail(&mut self.hardware, handle, NORMAL_WORLD, error.into()),
        }
    }

    /// `FFA_MEM_RECLAIM`. Also gives up a region whose fragments have not all arrived. What takes longer than a slice answers
    /// `RETRY` until the last page is back.
    fn reclaim(&mut self, registers: &Registers) -> Result<Reply, FfaError> {
        let handle = halves(registers[1], registers[2]);
        let flags = u64::from(registers[3] as u32);
        if flags & !RECLAIM_ZERO != 0 {
            return Err(FfaError::InvalidParameters);
        }
        self.ledger.reclaim(&mut self.hardware, handle, NORMAL_WORLD, flags & RECLAIM_ZERO != 0)?;
        Ok(Reply::success(&[]))
    }
}

fn checked_length(length: u32, mailbox: &Mailbox) -> Result<usize, FfaError> {
    let length = length as usize;
    if length == 0 || length > mailbox.size() { Err(FfaError::InvalidParameters) } else { Ok(length) }
}
