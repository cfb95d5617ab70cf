//! FF-A v1.2 from the normal world (Arm DEN0077A, memory management DEN0140).

use core::fmt;

use alloc::{vec, vec::Vec};
use arm_ffa::{
    FfaError, FuncId, UuidHelper,
    memory_management::{
        Cacheability, ConstituentMemRegion, DataAccessPerm, InstuctionAccessPerm, MemAccessPerm,
        MemRegionAttributes, MemRegionSecurity, MemTransactionDesc, MemTransactionFlags, MemType,
        Shareability,
    },
};
use flexserve_abi::ffa::{EndpointId, NORMAL_WORLD, UuidRegisters};

use crate::{Conduit, Registers, registers};

pub use arm_ffa::{FfaError as Code, FuncId as Function, memory_management::ConstituentMemRegion as Region};

/// FF-A v1.2, as `FFA_VERSION` says it.
pub const VERSION: u32 = 0x0001_0002;
/// Bytes of one page of a descriptor.
pub const PAGE_SIZE: u64 = 4096;
/// Bytes of a descriptor that the SPMC takes in a call: what a longer fragment has more, it asks for again.
pub const FRAGMENT: usize = PAGE_SIZE as usize;

/// Why an FF-A call did not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// `FFA_ERROR` with this code.
    Code(FfaError),
    /// `FFA_ERROR` with a code that FF-A does not define.
    UnknownCode(i32),
    /// An answer that does not belong to the call: its x0.
    Unexpected(u64),
    /// No partition offers the service.
    NoPartition,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "FFA_ERROR({code:?})"),
            Self::UnknownCode(code) => write!(f, "FFA_ERROR({code})"),
            Self::Unexpected(x0) => write!(f, "an unexpected answer, x0 = {x0:#x}"),
            Self::NoPartition => write!(f, "no partition offers this service"),
        }
    }
}

/// How memory is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// `FFA_MEM_LEND`: this world loses access.
    Lend,
    /// `FFA_MEM_SHARE`: both have access.
    Share,
    /// `FFA_MEM_DONATE`: ownership goes with it.
    Donate,
}

impl Transfer {
    const fn function(self) -> FuncId {
        match self {
            Self::Lend => FuncId::MemLend32,
            Self::Share => FuncId::MemShare32,
            Self::Donate => FuncId::MemDonate32,
        }
    }
}

/// x4..x17 of a direct message.
pub type Message = [u64; 14];

/// The SPMC, seen from the normal world.
pub struct Ffa<'a, C> {
    conduit: C,
    tx: &'a mut [u8],
}

impl<'a, C: Conduit> Ffa<'a, C> {
    /// Speaks through `conduit`; descriptors are written to `tx`, which [`Self::map_buffers`] makes known.
    pub fn new(conduit: C, tx: &'a mut [u8]) -> Self {
        Self { conduit, tx }
    }

    /// The conduit, for calls that are not FF-A's.
    pub fn conduit(&mut self) -> &mut C {
        &mut self.conduit
    }

    /// Makes a call and answers its raw registers.
    pub fn raw(&mut self, function: FuncId, arguments: &[u64]) -> Registers {
        self.conduit.call(registers(function.into(), arguments))
    }

    /// Makes a call that answers `FFA_SUCCESS`.
    ///
    /// # Errors
    ///
    /// [`Error::Code`], [`Error::UnknownCode`], [`Error::Unexpected`].
    pub fn simple(&mut self, function: FuncId, arguments: &[u64]) -> Result<Registers, Error> {
        success(self.raw(function, arguments))
    }

    /// `FFA_VERSION`: offers version 1.2 and answers the SPMC's (major in `[31:16]`).
    ///
    /// # Errors
    ///
    /// [`Error::Code`] if it knows no compatible one.
    pub fn version(&mut self) -> Result<u32, Error> {
        let answer = self.raw(FuncId::Version, &[VERSION.into()])[0] as u32;
        if answer & 1 << 31 == 0 { Ok(answer) } else { Err(code(answer.cast_signed())) }
    }

    /// `FFA_FEATURES` of a function: its interface properties (w2).
    ///
    /// # Errors
    ///
    /// [`Error::Code`] if it is not implemented.
    pub fn features(&mut self, function: FuncId) -> Result<u64, Error> {
        Ok(self.simple(FuncId::Features, &[u32::from(function).into()])?[2])
    }

    /// `FFA_ID_GET`: this endpoint's ID.
    ///
    /// # Errors
    ///
    /// As [`Self::simple`].
    pub fn id(&mut self) -> Result<EndpointId, Error> {
        Ok(self.simple(FuncId::IdGet, &[])?[2] as EndpointId)
    }

    /// `FFA_SPM_ID_GET`: the SPMC's ID.
    ///
    /// # Errors
    ///
    /// As [`Self::simple`].
    pub fn spm_id(&mut self) -> Result<EndpointId, Error> {
        Ok(self.simple(FuncId::SpmIdGet, &[])?[2] as EndpointId)
    }

    /// `FFA_PARTITION_INFO_GET_REGS`: the partition that offers the service `uuid`.
    ///
    /// # Errors
    ///
    /// [`Error::NoPartition`]; otherwise as [`Self::simple`].
    pub fn find_partition(&mut self, uuid: u128) -> Result<EndpointId, Error> {
        let UuidRegisters(low, high) = UuidRegisters::new(uuid);
        match self.simple(FuncId::PartitionInfoGetRegs, &[low, high, 0]) {
            // x2[15:0] is the last index; the descriptors begin at x3, whose low half is the ID (table 13.40).
            Ok(answer) if answer[3] != 0 => Ok(answer[3] as EndpointId),
            Ok(_) | Err(Error::Code(FfaError::InvalidParameters | FfaError::NoData)) => {
                Err(Error::NoPartition)
            }
            Err(error) => Err(error),
        }
    }

    /// `FFA_PARTITION_INFO_GET` of every partition, count only.
    ///
    /// # Errors
    ///
    /// As [`Self::simple`].
    pub fn partition_count(&mut self) -> Result<u64, Error> {
        const COUNT_ONLY: u64 = 1;
        let nil = UuidHelper::to_u32_regs(arm_ffa::Uuid::nil()).map(u64::from);
        Ok(self.simple(FuncId::PartitionInfoGet, &[nil[0], nil[1], nil[2], nil[3], COUNT_ONLY])?[2])
    }

    /// `FFA_RXTX_MAP` of this object's TX buffer, at `tx`, and an RX buffer of the same size, at `rx`.
    ///
    /// # Errors
    ///
    /// As [`Self::simple`].
    pub fn map_buffers(&mut self, tx: u64, rx: u64) -> Result<(), Error> {
        let pages = self.tx.len() as u64 / PAGE_SIZE;
        self.simple(FuncId::RxTxMap64, &[tx, rx, pages]).map(drop)
    }

    /// `FFA_RXTX_UNMAP`.
    ///
    /// # Errors
    ///
    /// As [`Self::simple`].
    pub fn unmap_buffers(&mut self) -> Result<(), Error> {
        self.simple(FuncId::RxTxUnmap, &[0]).map(drop)
    }

    /// Lends, shares or donates `regions` to `receiver`, read-write and never executable; answers the handle.
    ///
    /// A descriptor longer than [`FRAGMENT`] or the TX buffer goes in fragments (`FFA_MEM_FRAG_TX`).
    ///
    /// # Errors
    ///
    /// As [`Self::simple`]. After an error nothing has changed hands.
    pub fn transfer(
        &mut self,
        transfer: Transfer,
        receiver: EndpointId,
        regions: &[ConstituentMemRegion],
    ) -> Result<u64, Error> {
        let descriptor = descriptor(transfer, receiver, regions);
        self.transfer_descriptor(transfer, &descriptor, self.tx.len().min(FRAGMENT))
    }

    /// Sends a packed descriptor in fragments of at most `fragment` bytes, a multiple of 16. Each answer says from where on the
    /// SPMC wants the next one: behind the last, or before its end if that had more than the SPMC does in a call; at the end
    /// of all, for an empty one, if it only needs another call.
    ///
    /// # Errors
    ///
    /// As [`Self::transfer`].
    ///
    /// # Panics
    ///
    /// Panics if a fragment is longer than the TX buffer.
    pub fn transfer_descriptor(
        &mut self,
        transfer: Transfer,
        descriptor: &[u8],
        fragment: usize,
    ) -> Result<u64, Error> {
        let length = self.put(&descriptor[..descriptor.len().min(fragment)]);
        let mut answer = self.raw(transfer.function(), &[descriptor.len() as u64, length]);
        while is(&answer, FuncId::MemFragRx) {
            let [x0, low, high, offset, ..] = answer;
            let rest = descriptor.get(offset as usize..).ok_or(Error::Unexpected(x0))?;
            let length = self.put(&rest[..rest.len().min(fragment)]);
            answer = self.raw(FuncId::MemFragTx, &[low, high, length, 0]);
        }
        let answer = success(answer)?;
        Ok(join(answer[2], answer[3]))
    }

    /// Puts a fragment into the TX buffer, and answers its length.
    fn put(&mut self, fragment: &[u8]) -> u64 {
        self.tx[..fragment.len()].copy_from_slice(fragment);
        fragment.len() as u64
    }

    /// `FFA_MEM_RECLAIM`: takes everything under `handle` back, once its receiver has relinquished it, in as many calls as the
    /// SPMC needs (`RETRY` until all is back).
    ///
    /// # Errors
    ///
    /// [`Error::Code`] `Denied` while the receiver holds it; otherwise as [`Self::simple`].
    pub fn reclaim(&mut self, handle: u64) -> Result<(), Error> {
        loop {
            match self.simple(FuncId::MemReclaim, &[handle & 0xffff_ffff, handle >> 32, 0]) {
                Err(Error::Code(FfaError::Retry)) => {}
                answer => return answer.map(drop),
            }
        }
    }

    /// `FFA_MSG_SEND_DIRECT_REQ2` to a service of `partition`; answers the response.
    ///
    /// While an interrupt of this world preempts the partition, `interrupted` is called (it takes the interrupt) and the
    /// partition goes on by `FFA_RUN`.
    ///
    /// # Errors
    ///
    /// [`Error::Code`]: `Busy` if another caller is being served, `Aborted` if the partition died of the request.
    pub fn request(
        &mut self,
        partition: EndpointId,
        service: UuidRegisters,
        message: &Message,
        interrupted: &mut dyn FnMut(),
    ) -> Result<Message, Error> {
        let mut call = registers(
            FuncId::MsgSendDirectReq64_2.into(),
            &[endpoints(NORMAL_WORLD, partition), service.0, service.1],
        );
        call[4..].copy_from_slice(message);
        let mut answer = self.conduit.call(call);
        loop {
            match function(&answer) {
                Ok(FuncId::Interrupt32) => interrupted(),
                Ok(FuncId::Yield32) => {}
                Ok(FuncId::MsgSendDirectResp64_2) if answer[1] == endpoints(partition, NORMAL_WORLD) => break,
                _ => return Err(failure(&answer)),
            }
            answer = self.raw(FuncId::Run32, &[answer[1]]);
        }
        let mut response = [0; 14];
        response.copy_from_slice(&answer[4..]);
        Ok(response)
    }
}

/// Packs the descriptor of a transfer from the normal world to one receiver.
#[must_use]
pub fn descriptor(transfer: Transfer, receiver: EndpointId, regions: &[ConstituentMemRegion]) -> Vec<u8> {
    /// Transaction, one endpoint's access and composite descriptor, in bytes.
    const HEADERS: usize = 48 + 16 + 16;
    let mem_type = match transfer {
        // The only receiver chooses (DEN0140, section 1.10.4); a sharer must say how it accesses the memory itself.
        Transfer::Lend | Transfer::Donate => MemType::NotSpecified,
        Transfer::Share => {
            MemType::Normal { cacheability: Cacheability::WriteBack, shareability: Shareability::Inner }
        }
    };
    let transaction = MemTransactionDesc {
        sender_id: NORMAL_WORLD,
        mem_region_attr: MemRegionAttributes { security: MemRegionSecurity::Secure, mem_type },
        flags: MemTransactionFlags(0),
        ..Default::default()
    };
    let access = MemAccessPerm {
        endpoint_id: receiver,
        data_access: if transfer == Transfer::Donate {
            DataAccessPerm::NotSpecified
        } else {
            DataAccessPerm::ReadWrite
        },
        instr_access: InstuctionAccessPerm::NotSpecified,
        flags: 0,
    };
    let mut bytes = vec![0; HEADERS + size_of::<u128>() * regions.len()];
    let length = transaction.pack(regions, &[access], &mut bytes);
    bytes.truncate(length);
    bytes
}

/// Turns page addresses into regions: neighbours that follow each other become one.
#[must_use]
pub fn regions(pages: &[u64]) -> Vec<ConstituentMemRegion> {
    let mut regions: Vec<ConstituentMemRegion> = Vec::with_capacity(pages.len());
    for &address in pages {
        match regions.last_mut() {
            Some(last) if last.address + u64::from(last.page_cnt) * PAGE_SIZE == address => {
                last.page_cnt += 1;
            }
            _ => regions.push(ConstituentMemRegion { address, page_cnt: 1 }),
        }
    }
    regions
}

fn endpoints(sender: EndpointId, receiver: EndpointId) -> u64 {
    u64::from(sender) << 16 | u64::from(receiver)
}

fn join(low: u64, high: u64) -> u64 {
    low & 0xffff_ffff | high << 32
}

/// Whether an answer is this function's: `FFA_SUCCESS`, `FFA_ERROR`, `FFA_INTERRUPT`, …
#[must_use]
pub fn is(answer: &Registers, expected: FuncId) -> bool {
    function(answer) == Ok(expected)
}

fn function(answer: &Registers) -> Result<FuncId, Error> {
    u32::try_from(answer[0]).ok().and_then(|x0| FuncId::try_from(x0).ok()).ok_or(Error::Unexpected(answer[0]))
}

fn code(value: i32) -> Error {
    FfaError::try_from(value).map_or(Error::UnknownCode(value), Error::Code)
}

fn failure(answer: &Registers) -> Error {
    match function(answer) {
        Ok(FuncId::Error32 | FuncId::Error64) => code((answer[2] as u32).cast_signed()),
        _ => Error::Unexpected(answer[0]),
    }
}

fn success(answer: Registers) -> Result<Registers, Error> {
    match function(&answer) {
        Ok(FuncId::Success32 | FuncId::Success64) => Ok(answer),
        _ => Err(failure(&answer)),
    }
}

#[cfg(test)]
#[path = "ffa_tests.rs"]
mod tests;
