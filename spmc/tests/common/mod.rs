//! A machine of the tests' own, and a manager with two partitions on it.
#![allow(dead_code)] // Each test file uses some of it.

use arm_ffa::{FfaError, FuncId};
use flexserve_abi::{
    el3::{Gpi, LIST_LIMIT, Status},
    ffa::{
        EndpointId, HOSTILE_PARTITION, LLM_PARTITION, LLM_SERVICE, PROBE_SERVICE, RECALL_SERVICE, SPMC,
        UuidRegisters,
    },
    recall::{self, NOTICE_NS, REVOKE},
};
use flexserve_platform::{LENDABLE, Region as Bank};
use flexserve_spmc::{
    claims::{Claims, WORDS},
    hardware::{Hardware, RANGE_MAX, Range, Unreachable},
    lending::{Ledger, REGIONS, Region},
    manifest::{Manifest, Place},
    partition::{Entry, Step},
    registers::{Registers, Reply},
    spmc::Spmc,
    tables::{PAGE, Pool, Table, TableId},
};
use std::{collections::BTreeMap, ops};

pub const BANK: Bank = LENDABLE[0];
pub const TX: u64 = BANK.base;
pub const RX: u64 = BANK.base + 16 * PAGE;
/// First page that tests lend.
pub const FREE: u64 = BANK.base + 0x10_0000;
/// Index of the LLM partition, and of the hostile one.
pub const LLM: usize = 0;
pub const HOSTILE: usize = 1;
/// Granules that the fake EL3 moves in one call.
const BATCH: u64 = 4;

/// What can be wrong with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing is zeroed.
    Zero,
    /// Of a range, all but its last page is.
    LastZero,
    /// TLBs keep what they hold.
    Flush,
    /// EL3 says that it has moved a granule, and has not.
    Move,
    /// EL3 moves whatever it is asked to.
    Owner,
    /// Time stands still.
    StoppedClock,
    /// Each look at the clock takes as long as a notice.
    FastClock,
}

impl Flaw {
    pub const ALL: [Self; 7] = [
        Self::Zero,
        Self::LastZero,
        Self::Flush,
        Self::Move,
        Self::Owner,
        Self::StoppedClock,
        Self::FastClock,
    ];
}

/// Physical memory and its worlds.
#[derive(Default)]
pub struct Fake {
    /// Granules that are not the normal world's.
    pub worlds: BTreeMap<u64, Gpi>,
    /// Contents; a page that was never written is full of 0xa5.
    pub memory: BTreeMap<u64, [u8; PAGE as usize]>,
    /// EL3 refuses to move this granule.
    pub refused: Option<u64>,
    /// EL3 is busy so many times.
    pub busy: u32,
    /// Granules that were moved, and pages that were zeroed.
    pub moved: u32,
    pub zeroed: u32,
    /// What partitions logged.
    pub logged: Vec<(EndpointId, Vec<u8>)>,
    /// What the clock says.
    pub now_ns: u64,
    /// Address spaces of which the TLBs dropped what they held.
    pub flushed: Vec<u16>,
    /// What is wrong with this machine.
    pub flaw: Option<Flaw>,
    /// Where workers start, and of which partition.
    pub workers: Option<(usize, u64)>,
}

impl Fake {
    pub fn world(&self, page: u64) -> Gpi {
        self.worlds.get(&page).copied().unwrap_or(Gpi::NonSecure)
    }

    pub fn page(&mut self, page: u64) -> &mut [u8; PAGE as usize] {
        self.memory.entry(page).or_insert([0xa5; PAGE as usize])
    }

    /// Calls `each` with the memory of a range, page by page, and which part of the range that is.
    fn copy(&mut self, physical: u64, len: usize, mut each: impl FnMut(ops::Range<usize>, &mut [u8])) {
        let mut done = 0;
        while done < len {
            let address = physical + done as u64;
            let at = (address % PAGE) as usize;
            let count = (len - done).min(PAGE as usize - at);
            each(done..done + count, &mut self.page(address - at as u64)[at..at + count]);
            done += count;
        }
    }

    fn reachable(&self, physical: u64, len: usize) -> Result<(), Unreachable> {
        let end = physical + len as u64;
        let pages = (physical & !(PAGE - 1)..end).step_by(PAGE as usize);
        if pages.into_iter().all(|page| self.world(page) == Gpi::NonSecure) {
            Ok(())
        } else {
            Err(Unreachable)
        }
    }
}

impl Hardware for Fake {
    fn set_granules(&mut self, ranges: &[Range], to: Gpi) -> (Status, u64) {
        assert!((1..=LIST_LIMIT).contains(&ranges.len()), "{ranges:x?}");
        if self.busy != 0 {
            self.busy -= 1;
            return (Status::Busy, 0);
        }
        let mut done = 0;
        for (base, count) in ranges {
            assert!((1..=RANGE_MAX).contains(count) && base.is_multiple_of(PAGE), "{base:#x} {count}");
            assert!(BANK.contains(*base, u64::from(*count) * PAGE), "{base:#x} {count}");
            for page in (0..u64::from(*count)).map(|i| base + i * PAGE) {
                if done == BATCH {
                    return (Status::Incomplete, done);
                }
                let from = if to == Gpi::Secure { Gpi::NonSecure } else { Gpi::Secure };
                let owned = self.world(page) == from || self.flaw == Some(Flaw::Owner);
                if self.refused == Some(page) || !owned {
                    return (Status::Denied, done);
                }
                if self.flaw != Some(Flaw::Move) {
                    self.worlds.insert(page, to);
                }
                done += 1;
                self.moved += 1;
            }
        }
        (Status::Success, done)
    }

    fn take_workers(&mut self, partition: usize, entry: u64) -> bool {
        self.workers.is_none() && {
            self.workers = Some((partition, entry));
            true
        }
    }

    fn stop_workers(&mut self, partition: usize) {
        self.workers = self.workers.filter(|(index, _)| *index != partition);
    }

    fn now_ns(&mut self) -> u64 {
        match self.flaw {
            Some(Flaw::StoppedClock) => return 0,
            Some(Flaw::FastClock) => self.now_ns += NOTICE_NS,
            _ => {}
        }
        self.now_ns
    }

    fn longest_section(&mut self) -> u64 {
        77
    }

    fn granule(&mut self, base: u64) -> Option<Gpi> {
        Some(self.world(base))
    }

    fn read_normal(&mut self, physical: u64, to: &mut [u8]) -> Result<(), Unreachable> {
        self.reachable(physical, to.len())?;
        self.copy(physical, to.len(), |part, bytes| to[part].copy_from_slice(bytes));
        Ok(())
    }

    fn write_normal(&mut self, physical: u64, from: &[u8]) -> Result<(), Unreachable> {
        self.reachable(physical, from.len())?;
        self.copy(physical, from.len(), |part, bytes| bytes.copy_from_slice(&from[part]));
        Ok(())
    }

    fn read_secure(&mut self, physical: u64, to: &mut [u8]) {
        self.copy(physical, to.len(), |part, bytes| to[part].copy_from_slice(bytes));
    }

    fn write_secure(&mut self, physical: u64, from: &[u8]) {
        self.copy(physical, from.len(), |part, bytes| bytes.copy_from_slice(&from[part]));
    }

    fn zero(&mut self, physical: u64, pages: u32) {
        self.zeroed += pages;
        let pages = match self.flaw {
            Some(Flaw::Zero) => 0,
            Some(Flaw::LastZero) => pages - 1,
            Some(Flaw::Move) => return,
            _ => pages,
        };
        for page in 0..u64::from(pages) {
            let page = physical + page * PAGE;
            assert_eq!(self.world(page), Gpi::Secure, "zeroing {page:#x} would fault");
            *self.page(page) = [0; PAGE as usize];
        }
    }

    fn flush(&mut self, asid: u16) {
        if self.flaw != Some(Flaw::Flush) {
            self.flushed.push(asid);
        }
    }

    fn log(&mut self, partition: EndpointId, bytes: &[u8]) {
        self.logged.push((partition, bytes.to_vec()));
    }
}

/// Memory for a manager's state.
pub struct Storage {
    tables: Vec<Table>,
    links: Vec<TableId>,
    claims: Box<[u64; WORDS]>,
    regions: heapless::Vec<Region, REGIONS>,
}

impl Storage {
    /// For so many tables.
    pub fn new(tables: usize) -> Self {
        Self {
            tables: (0..tables).map(|_| Table::new()).collect(),
            links: vec![0; tables],
            claims: Box::new([0; WORDS]),
            regions: heapless::Vec::new(),
        }
    }
}

/// A manager with the LLM and the hostile partition, both waiting, and the normal world's buffers mapped.
pub struct Bench<'a> {
    pub spmc: Spmc<'a, Fake>,
}

impl Bench<'static> {
    pub fn new() -> Self {
        let mut bench = Self::with_tables(64);
        assert_eq!(bench.map(16), Ok(vec![0; 6]));
        bench
    }

    /// With so many tables, and no buffers.
    pub fn with_tables(tables: usize) -> Self {
        Self::within(Box::leak(Box::new(Storage::new(tables))))
    }
}

impl<'a> Bench<'a> {
    /// In this memory, without buffers.
    pub fn within(storage: &'a mut Storage) -> Self {
        let pool = Pool::new(&storage.tables, &mut storage.links, 0x0e20_0000);
        let claims = Claims::new(&mut storage.claims);
        let ledger = Ledger::new(pool, claims, &mut storage.regions);
        let mut bench = Self { spmc: Spmc::new(Fake::default(), ledger) };
        bench.add(LLM_PARTITION, 0x0e50_0000, LLM_SERVICE, 0x200, false);
        bench.add(HOSTILE_PARTITION, 0x0e90_0000, PROBE_SERVICE, 0x201, true);
        bench
    }

    fn add(&mut self, id: EndpointId, base: u64, service: u128, messaging: u32, restart: bool) {
        let place = Place { id, base, size: 0x10_0000 };
        let manifest = Manifest {
            uuid: UuidRegisters::new(service),
            messaging,
            image_offset: 0x4000,
            image_size: 0x2000,
            memory_size: 0xfc000,
            restart,
        };
        let index = self.spmc.add_partition(&place, &manifest).unwrap();
        self.spmc.start(index);
        assert_eq!(self.secure(index, FuncId::MsgWait32, &[]), Step::Ready);
    }

    /// A call of the normal world.
    pub fn normal(&mut self, function: FuncId, args: &[u64]) -> Step {
        self.spmc.normal_call(&registers(function, args))
    }

    /// A call of the normal world that is answered with `FFA_SUCCESS`: w2 to w7.
    pub fn ok(&mut self, function: FuncId, args: &[u64]) -> Result<Vec<u64>, FfaError> {
        result(self.normal(function, args))
    }

    /// A call of a partition.
    pub fn secure(&mut self, index: usize, function: FuncId, args: &[u64]) -> Step {
        self.spmc.partition_call(index, &registers(function, args))
    }

    /// A call of a partition that is answered with `FFA_SUCCESS`.
    pub fn secure_ok(&mut self, index: usize, function: FuncId, args: &[u64]) -> Result<Vec<u64>, FfaError> {
        result(self.secure(index, function, args))
    }

    /// Maps the normal world's buffers.
    pub fn map(&mut self, pages: u64) -> Result<Vec<u64>, FfaError> {
        self.ok(FuncId::RxTxMap64, &[TX, RX, pages])
    }

    /// Asks a partition something, so that it runs.
    pub fn request(&mut self, index: usize) {
        let id = self.spmc.partition(index).id;
        let step = self.normal(FuncId::MsgSendDirectReq64_2, &[id.into()]);
        assert!(matches!(step, Step::Run(_, Entry::Answer(_))), "{step:?}");
    }

    /// Maps a partition's buffers: the two pages behind its image.
    pub fn map_secure(&mut self, index: usize) {
        let tx = self.secure_tx(index);
        self.secure_ok(index, FuncId::RxTxMap64, &[tx, tx + PAGE, 1]).unwrap();
    }

    pub fn secure_tx(&self, index: usize) -> u64 {
        self.spmc.partition(index).entry + 0x2000
    }

    /// Sends a descriptor, in as many calls as it takes, and answers the handle.
    pub fn send(&mut self, function: FuncId, descriptor: &[u8]) -> Result<u64, FfaError> {
        let mut sent = self.send_first(function, descriptor);
        while let Ok((handle, Some(offset))) = sent {
            sent = self.send_next(handle, &descriptor[offset..]);
        }
        sent.map(|(handle, _)| handle)
    }

    /// Sends a descriptor, and answers the handle, and from which offset on the manager wants more.
    pub fn send_first(&mut self, function: FuncId, descriptor: &[u8]) -> Result<Sent, FfaError> {
        self.spmc.hardware.write_normal(TX, descriptor).unwrap();
        let len = descriptor.len() as u64;
        sent(&short(self.normal(function, &[len, len])))
    }

    /// Sends a fragment, perhaps of nothing.
    pub fn send_next(&mut self, handle: u64, fragment: &[u8]) -> Result<Sent, FfaError> {
        self.spmc.hardware.write_normal(TX, fragment).unwrap();
        let args = [handle & 0xffff_ffff, handle >> 32, fragment.len() as u64];
        sent(&short(self.normal(FuncId::MemFragTx, &args)))
    }

    /// Lends ranges to the LLM partition.
    pub fn lend(&mut self, ranges: &[(u64, u32)]) -> Result<u64, FfaError> {
        self.lend_to(LLM, ranges)
    }

    pub fn lend_to(&mut self, index: usize, ranges: &[(u64, u32)]) -> Result<u64, FfaError> {
        let borrower = self.spmc.partition(index).id;
        self.send(FuncId::MemLend64, &descriptor(borrower, ranges))
    }

    /// Asks the recall service: status, and x5.
    pub fn recall(&mut self, op: u64, handle: u64) -> (recall::Status, u64) {
        let UuidRegisters(low, high) = UuidRegisters::new(RECALL_SERVICE);
        let step = self.normal(FuncId::MsgSendDirectReq64_2, &[SPMC.into(), low, high, op, handle]);
        let Step::Reply(Reply::Full(answer)) = step else { panic!("{step:?}") };
        assert_eq!(answer[..4], [0xC400_008E, u64::from(SPMC) << 16, 0, 0]);
        (recall::Status::from_code(answer[4]).unwrap(), answer[5])
    }

    pub fn revoke(&mut self, handle: u64) -> (recall::Status, u64) {
        self.recall(REVOKE, handle)
    }

    /// Reclaims a region, in as many calls as it takes.
    pub fn reclaim(&mut self, handle: u64) -> Result<(), FfaError> {
        loop {
            match self.reclaim_slice(handle) {
                Err(FfaError::Retry) => {}
                answer => return answer,
            }
        }
    }

    /// One call of that.
    pub fn reclaim_slice(&mut self, handle: u64) -> Result<(), FfaError> {
        self.ok(FuncId::MemReclaim, &[handle & 0xffff_ffff, handle >> 32]).map(drop)
    }

    /// A partition retrieves a handle: address and pages.
    pub fn retrieve(&mut self, index: usize, request: &[u8]) -> Result<(u64, u32), FfaError> {
        let tx = self.secure_tx(index);
        self.spmc.hardware.write_secure(tx, request);
        let len = request.len() as u64;
        let answer = short(self.secure(index, FuncId::MemRetrieveReq32, &[len, len]));
        if answer[0] != u64::from(u32::from(FuncId::MemRetrieveResp)) {
            return Err(error(&answer));
        }
        let mut rx = [0; 96];
        assert_eq!(answer[1..3], [96, 96]);
        self.spmc.hardware.read_secure(tx + PAGE, &mut rx);
        self.secure_ok(index, FuncId::RxRelease, &[]).unwrap();
        let word = |at: usize| u64::from_le_bytes(rx[at..at + 8].try_into().unwrap());
        Ok((word(80), word(88) as u32))
    }

    pub fn relinquish(&mut self, index: usize, handle: u64, flags: u32) -> Result<(), FfaError> {
        let id = self.spmc.partition(index).id;
        let mut bytes = handle.to_le_bytes().to_vec();
        bytes.extend(flags.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        let tx = self.secure_tx(index);
        self.spmc.hardware.write_secure(tx, &bytes);
        self.secure_ok(index, FuncId::MemRelinquish, &[]).map(drop)
    }
}

/// Registers of a call.
pub fn registers(function: FuncId, args: &[u64]) -> Registers {
    let mut registers = [0; 18];
    registers[0] = u32::from(function).into();
    registers[1..=args.len()].copy_from_slice(args);
    registers
}

/// The registers that whoever called finds.
pub fn short(step: Step) -> Registers {
    match step {
        Step::Reply(reply) => reply.over(&[0; 18]),
        Step::Run(_, Entry::Answer(registers)) => registers,
        other => panic!("no answer: {other:?}"),
    }
}

pub fn error(registers: &Registers) -> FfaError {
    assert_eq!(registers[0], u64::from(u32::from(FuncId::Error32)), "{registers:x?}");
    FfaError::try_from(registers[2] as i32).unwrap()
}

/// A handle, and from which offset of its descriptor on the manager wants more, if it does.
pub type Sent = (u64, Option<usize>);

fn sent(registers: &Registers) -> Result<Sent, FfaError> {
    match registers[0] as u32 {
        function if function == u32::from(FuncId::Success32) => Ok((registers[3] << 32 | registers[2], None)),
        function if function == u32::from(FuncId::MemFragRx) => {
            Ok((registers[2] << 32 | registers[1], Some(registers[3] as usize)))
        }
        _ => Err(error(registers)),
    }
}

fn result(step: Step) -> Result<Vec<u64>, FfaError> {
    let registers = short(step);
    if registers[0] == u64::from(u32::from(FuncId::Success32)) {
        Ok(registers[2..8].to_vec())
    } else {
        Err(error(&registers))
    }
}

/// A descriptor that lends ranges, read and write.
pub fn descriptor(borrower: EndpointId, ranges: &[(u64, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    bytes[24..28].copy_from_slice(&16_u32.to_le_bytes());
    bytes[28..32].copy_from_slice(&1_u32.to_le_bytes());
    bytes[32..36].copy_from_slice(&48_u32.to_le_bytes());
    bytes.extend(borrower.to_le_bytes());
    bytes.extend([0b10, 0]);
    bytes.extend(64_u32.to_le_bytes());
    bytes.extend([0; 8]);
    let pages: u32 = ranges.iter().map(|range| range.1).fold(0, u32::wrapping_add);
    bytes.extend(pages.to_le_bytes());
    bytes.extend((ranges.len() as u32).to_le_bytes());
    bytes.extend([0; 8]);
    for (base, pages) in ranges {
        bytes.extend(base.to_le_bytes());
        bytes.extend(pages.to_le_bytes());
        bytes.extend([0; 4]);
    }
    bytes
}

/// A request to retrieve a lent handle, read and write.
pub fn request(borrower: EndpointId, handle: u64) -> Vec<u8> {
    let mut bytes = descriptor(borrower, &[]);
    bytes.truncate(64);
    bytes[4] = 0b10 << 3;
    bytes[8..16].copy_from_slice(&handle.to_le_bytes());
    bytes[52..56].fill(0);
    bytes
}

/// The answer `FFA_ERROR`.
pub fn refused(code: FfaError) -> Step {
    Step::Reply(Reply::error(code))
}
