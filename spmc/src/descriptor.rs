//! Descriptors of memory transactions (DEN0140 v1.2, tables 1.16 to 1.25 and 2.1 to 2.4), from whoever: parsed from a
//! private copy, each field checked before use.

use crate::tables::PAGE;
use arm_ffa::FfaError;
use flexserve_abi::ffa::EndpointId;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

/// Memory transaction descriptor (DEN0140 v1.2, table 1.20).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Transaction {
    sender: U16,
    attributes: U16,
    flags: U32,
    handle: U64,
    tag: U64,
    access_size: U32,
    access_count: U32,
    access_offset: U32,
    reserved: [u8; 12],
}
const _: () = assert!(size_of::<Transaction>() == 48);

/// Endpoint memory access descriptor (table 1.16), as far as versions 1.1 and 1.2 agree.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct EndpointAccess {
    endpoint: U16,
    permissions: u8,
    flags: u8,
    composite_offset: U32,
    reserved: U64,
}
const _: () = assert!(size_of::<EndpointAccess>() == 16);

/// Composite memory region descriptor (table 1.13).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Composite {
    pages: U32,
    ranges: U32,
    reserved: U64,
}
const _: () = assert!(size_of::<Composite>() == 16);

/// Constituent memory region descriptor (table 1.14).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Constituent {
    address: U64,
    pages: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<Constituent>() == RANGE_SIZE);

/// Descriptor to relinquish a memory region (table 2.25), up to its array of endpoints.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Relinquishment {
    handle: U64,
    flags: U32,
    count: U32,
    endpoint: U16,
}
const _: () = assert!(size_of::<Relinquishment>() == RELINQUISH_SIZE);

/// Bytes of one address range in a descriptor.
pub const RANGE_SIZE: usize = 16;
/// Bytes of a descriptor to relinquish, with one endpoint.
pub const RELINQUISH_SIZE: usize = 18;
/// Bytes of the answer to a retrieve request.
pub const RETRIEVE_RESPONSE_SIZE: usize = 96;
/// Sizes of an endpoint memory access descriptor: versions 1.1 and 1.2.
const ACCESS_SIZES: [u32; 2] = [16, 32];

/// Memory region attributes: not specified, or normal, write-back, inner shareable.
const ATTRIBUTES: [u16; 2] = [0, NORMAL_MEMORY];
const NORMAL_MEMORY: u16 = 0b10_11_11;
const NON_SECURE: u16 = 1 << 6;
/// Flags: zero the memory after it was sent.
const FLAG_ZERO: u32 = 1 << 0;
/// Flags of a retrieve request: type of the transaction.
const TYPE_SHIFT: u32 = 3;
const TYPE_MASK: u32 = 0b11;

/// What is wrong with a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The lengths in the registers, or in the descriptor, contradict each other.
    Length,
    /// An offset or the size of an element is not one that the specification allows.
    Layout,
    /// A field that must be zero is not.
    Reserved,
    /// Not exactly one borrower.
    Borrowers,
    /// The sender is not the caller.
    Sender,
    /// Flags that do not belong to this transaction.
    Flags,
    /// Not normal write-back memory.
    Attributes,
    /// Permissions that are never granted: executable, or none.
    Permissions,
    /// A range that is empty, misaligned or wraps.
    Range,
}

impl Error {
    /// Every error, for tests.
    pub const ALL: [Self; 9] = [
        Self::Length,
        Self::Layout,
        Self::Reserved,
        Self::Borrowers,
        Self::Sender,
        Self::Flags,
        Self::Attributes,
        Self::Permissions,
        Self::Range,
    ];
}

impl From<Error> for FfaError {
    fn from(error: Error) -> Self {
        match error {
            Error::Sender | Error::Attributes | Error::Permissions => Self::Denied,
            Error::Length
            | Error::Layout
            | Error::Reserved
            | Error::Borrowers
            | Error::Flags
            | Error::Range => Self::InvalidParameters,
        }
    }
}

/// Kind of a memory transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Both have access.
    Share,
    /// The borrower has access until it relinquishes.
    Lend,
    /// The receiver keeps the memory.
    Donate,
}

impl Kind {
    const fn bits(self) -> u32 {
        match self {
            Self::Share => 0b01,
            Self::Lend => 0b10,
            Self::Donate => 0b11,
        }
    }
}

/// What the head of a share, lend or donate descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The one borrower.
    pub borrower: EndpointId,
    /// The borrower may not write.
    pub read_only: bool,
    /// Chosen by the lender.
    pub tag: u64,
    /// The memory is to be zeroed before the borrower gets it.
    pub zero: bool,
    /// Pages of all ranges together.
    pub pages: u32,
    /// Ranges.
    pub ranges: u32,
    /// Where the first range lies in the descriptor.
    pub first_range: usize,
}

impl Sending {
    /// Bytes of the whole descriptor.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.first_range as u32 + self.ranges * RANGE_SIZE as u32
    }
}

/// What a retrieve request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retrieving {
    /// The lender, as the borrower believes.
    pub lender: EndpointId,
    /// Which region.
    pub handle: u64,
    /// The lender's tag.
    pub tag: u64,
    /// Which kind the borrower expects, if it says so.
    pub kind: Option<Kind>,
    /// The borrower.
    pub borrower: EndpointId,
    /// The borrower asks to read only. `None`: whatever it may.
    pub read_only: Option<bool>,
}

/// What is answered to a retrieve request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retrieved {
    /// The lender.
    pub lender: EndpointId,
    /// The borrower.
    pub borrower: EndpointId,
    /// Which region.
    pub handle: u64,
    /// The lender's tag.
    pub tag: u64,
    /// Kind of the transaction.
    pub kind: Kind,
    /// The borrower may not write.
    pub read_only: bool,
    /// Where the borrower finds it.
    pub address: u64,
    /// Its pages.
    pub pages: u32,
}

/// A piece of `bytes` as a wire structure.
fn at<T: FromBytes>(bytes: &[u8], offset: usize) -> Result<T, Error> {
    let tail = bytes.get(offset..).ok_or(Error::Length)?;
    T::read_from_prefix(tail).map(|(value, _)| value).map_err(|_| Error::Length)
}

/// The one access descriptor of a transaction.
fn access(bytes: &[u8], transaction: &Transaction) -> Result<(EndpointAccess, usize), Error> {
    let size = transaction.access_size.get();
    let offset = transaction.access_offset.get() as usize;
    if !ACCESS_SIZES.contains(&size) || offset < size_of::<Transaction>() || !offset.is_multiple_of(16) {
        return Err(Error::Layout);
    }
    if transaction.access_count.get() != 1 {
        return Err(Error::Borrowers);
    }
    let access: EndpointAccess = at(bytes, offset)?;
    let end = offset.checked_add(size as usize).ok_or(Error::Length)?;
    let rest = bytes.get(offset + size_of::<EndpointAccess>()..end).ok_or(Error::Length)?;
    // Version 1.2 puts 16 bytes of implementation defined information before the reserved field; none is defined here.
    let reserved = access.reserved.get() != 0 || rest.iter().any(|byte| *byte != 0);
    if reserved || transaction.reserved != [0; 12] {
        return Err(Error::Reserved);
    }
    Ok((access, end))
}

/// Data access from permissions: `Some(true)` is read only, `None` is not specified. Execution is never granted.
fn data_access(permissions: u8) -> Result<Option<bool>, Error> {
    if permissions >> 4 != 0 {
        return Err(Error::Reserved);
    }
    match (permissions >> 2 & 0b11, permissions & 0b11) {
        (0b00 | 0b01, 0b00) => Ok(None),
        (0b00 | 0b01, 0b01) => Ok(Some(true)),
        (0b00 | 0b01, 0b10) => Ok(Some(false)),
        _ => Err(Error::Permissions),
    }
}

/// Parses the head of a share, lend or donate descriptor of `total` bytes, of which `bytes` are the first.
///
/// # Errors
///
/// Any [`Error`]: [`Error::Length`] also if the head is not whole in `bytes`.
pub fn sending(bytes: &[u8], total: usize, kind: Kind, caller: EndpointId) -> Result<Sending, Error> {
    let transaction: Transaction = at(bytes, 0)?;
    if transaction.sender.get() != caller {
        return Err(Error::Sender);
    }
    if transaction.handle.get() != 0 {
        return Err(Error::Reserved);
    }
    let zero = transaction.flags.get() & FLAG_ZERO != 0;
    if transaction.flags.get() & !FLAG_ZERO != 0 || (zero && kind == Kind::Share) {
        return Err(Error::Flags);
    }
    if !ATTRIBUTES.contains(&transaction.attributes.get()) {
        return Err(Error::Attributes);
    }
    let (access, access_end) = access(bytes, &transaction)?;
    if access.flags != 0 {
        return Err(Error::Flags);
    }
    let read_only = data_access(access.permissions)?;
    let read_only = match kind {
        Kind::Donate => read_only.unwrap_or(false),
        Kind::Share | Kind::Lend => read_only.ok_or(Error::Permissions)?,
    };
    let offset = access.composite_offset.get() as usize;
    if offset < access_end || !offset.is_multiple_of(8) {
        return Err(Error::Layout);
    }
    let composite: Composite = at(bytes, offset)?;
    if composite.reserved.get() != 0 {
        return Err(Error::Reserved);
    }
    let (pages, ranges) = (composite.pages.get(), composite.ranges.get());
    if ranges == 0 || pages < ranges {
        return Err(Error::Range);
    }
    let first_range = offset + size_of::<Composite>();
    let end = (ranges as usize).checked_mul(RANGE_SIZE).and_then(|size| size.checked_add(first_range));
    if end != Some(total) {
        return Err(Error::Length);
    }
    let borrower = access.endpoint.get();
    Ok(Sending { borrower, read_only, tag: transaction.tag.get(), zero, pages, ranges, first_range })
}

/// Parses one address range: its base and pages.
///
/// # Errors
///
/// [`Error::Reserved`], [`Error::Range`].
pub fn range(bytes: &[u8; RANGE_SIZE]) -> Result<(u64, u32), Error> {
    let range: Constituent = at(bytes, 0)?;
    let (address, pages) = (range.address.get(), range.pages.get());
    if range.reserved.get() != 0 {
        return Err(Error::Reserved);
    }
    if pages == 0 || !address.is_multiple_of(PAGE) || address.checked_add(u64::from(pages) * PAGE).is_none() {
        return Err(Error::Range);
    }
    Ok((address, pages))
}

/// Parses a retrieve request.
///
/// # Errors
///
/// Any [`Error`] but [`Error::Range`].
pub fn retrieving(bytes: &[u8]) -> Result<Retrieving, Error> {
    let transaction: Transaction = at(bytes, 0)?;
    let flags = transaction.flags.get();
    let kind = match flags >> TYPE_SHIFT & TYPE_MASK {
        0b01 => Some(Kind::Share),
        0b10 => Some(Kind::Lend),
        0b11 => Some(Kind::Donate),
        _ => None,
    };
    // Zeroing before, time slicing, zeroing after, address hints: not for partitions here.
    if flags & !(TYPE_MASK << TYPE_SHIFT) != 0 {
        return Err(Error::Flags);
    }
    if !ATTRIBUTES.contains(&transaction.attributes.get()) {
        return Err(Error::Attributes);
    }
    let (access, _) = access(bytes, &transaction)?;
    if access.flags != 0 {
        return Err(Error::Flags);
    }
    if access.composite_offset.get() != 0 {
        return Err(Error::Layout);
    }
    Ok(Retrieving {
        lender: transaction.sender.get(),
        handle: transaction.handle.get(),
        tag: transaction.tag.get(),
        kind,
        borrower: access.endpoint.get(),
        read_only: data_access(access.permissions)?,
    })
}

impl Retrieved {
    /// The descriptor that the borrower finds in its RX buffer.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RETRIEVE_RESPONSE_SIZE] {
        const ACCESS_OFFSET: usize = size_of::<Transaction>();
        const COMPOSITE_OFFSET: usize = ACCESS_OFFSET + size_of::<EndpointAccess>();
        const RANGE_OFFSET: usize = COMPOSITE_OFFSET + size_of::<Composite>();
        let security = if self.kind == Kind::Share { NON_SECURE } else { 0 };
        let transaction = Transaction {
            sender: self.lender.into(),
            attributes: (NORMAL_MEMORY | security).into(),
            flags: (self.kind.bits() << TYPE_SHIFT).into(),
            handle: self.handle.into(),
            tag: self.tag.into(),
            access_size: (size_of::<EndpointAccess>() as u32).into(),
            access_count: 1.into(),
            access_offset: (ACCESS_OFFSET as u32).into(),
            reserved: [0; 12],
        };
        let access = EndpointAccess {
            endpoint: self.borrower.into(),
            // Not executable; read only or read and write.
            permissions: 0b01 << 2 | if self.read_only { 0b01 } else { 0b10 },
            flags: 0,
            composite_offset: (COMPOSITE_OFFSET as u32).into(),
            reserved: 0.into(),
        };
        let composite = Composite { pages: self.pages.into(), ranges: 1.into(), reserved: 0.into() };
        let range =
            Constituent { address: self.address.into(), pages: self.pages.into(), reserved: 0.into() };
        let mut bytes = [0; RETRIEVE_RESPONSE_SIZE];
        bytes[..ACCESS_OFFSET].copy_from_slice(transaction.as_bytes());
        bytes[ACCESS_OFFSET..COMPOSITE_OFFSET].copy_from_slice(access.as_bytes());
        bytes[COMPOSITE_OFFSET..RANGE_OFFSET].copy_from_slice(composite.as_bytes());
        bytes[RANGE_OFFSET..].copy_from_slice(range.as_bytes());
        bytes
    }
}

/// Parses a descriptor to relinquish: handle, whether to zero the memory first, and the endpoint.
///
/// # Errors
///
/// [`Error::Borrowers`] unless it names one endpoint, [`Error::Flags`].
pub fn relinquishing(bytes: &[u8; RELINQUISH_SIZE]) -> Result<(u64, bool, EndpointId), Error> {
    let descriptor: Relinquishment = at(bytes, 0)?;
    if descriptor.count.get() != 1 {
        return Err(Error::Borrowers);
    }
    let flags = descriptor.flags.get();
    if flags & !FLAG_ZERO != 0 {
        return Err(Error::Flags);
    }
    Ok((descriptor.handle.get(), flags & FLAG_ZERO != 0, descriptor.endpoint.get()))
}
