//! Memory that is lent, shared or donated: from the lender's first fragment to the reclaim.
//!
//! A handle goes `Arriving -> Held <-> Borrowed`, from `Held` to `Leaving`, and dies when its last page has left. A page is
//! claimed, and a lent one Secure, from the call that records it in its region to the call in which it leaves: nothing is
//! half done between two calls. A region that cannot become whole leaves by the same way; of that, pages that EL3 has refused
//! are claimed only.
//!
//! No call does more than a [`Slice`]: its caller asks again until all is done. In the meantime other calls are served, also
//! about the same region, which go on with what was begun.

mod slices;

use crate::{
    claims::{self, Claims},
    descriptor::{self, Kind, Sending},
    hardware::{Range, Unreachable},
    tables::{OutOfTables, Pages, Pool},
};
use arm_ffa::FfaError;
use flexserve_abi::{el3::BATCH_LIMIT, ffa::EndpointId};
use heapless::Vec;

/// Most regions at one time.
pub const REGIONS: usize = 256;

/// How much one call does at most, of what grows with a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Pages.
    pub pages: u32,
    /// Ranges of a descriptor, or runs of neighbouring pages: a page alone costs more than one of many.
    pub ranges: u32,
}

impl Slice {
    /// As many pages as EL3 moves in a call, and half as many ranges, which is a page of a descriptor.
    pub const DEFAULT: Self = Self { pages: BATCH_LIMIT as u32, ranges: 256 };

    fn is_used_up(self) -> bool {
        self.pages == 0 || self.ranges == 0
    }
}

/// What has become of a region that is arriving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is the borrower's.
    Whole,
    /// The call is to be repeated with what the descriptor has from this offset on, which may be nothing.
    From(u32),
}

/// Why a memory call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A descriptor is malformed.
    Descriptor(descriptor::Error),
    /// A page cannot be had.
    Claim(claims::Error),
    /// No table, or no handle, is left.
    NoMemory,
    /// The ranges have more or fewer pages together than the descriptor said.
    PageCount,
    /// No such handle for this caller.
    Handle,
    /// The region is not in a state that allows it: still arriving, borrowed, or not borrowed.
    State,
    /// What the borrower asks contradicts what the lender gave.
    Mismatch,
    /// EL3 refused to move a granule.
    Granule,
    /// EL3 was busy all the time.
    Busy,
    /// The normal world's memory could not be read or written.
    Unreachable,
    /// Something is left to be done: the call is to be repeated.
    Unfinished,
}

impl From<descriptor::Error> for Error {
    fn from(error: descriptor::Error) -> Self {
        Self::Descriptor(error)
    }
}

impl From<claims::Error> for Error {
    fn from(error: claims::Error) -> Self {
        Self::Claim(error)
    }
}

impl From<OutOfTables> for Error {
    fn from(_: OutOfTables) -> Self {
        Self::NoMemory
    }
}

impl From<Unreachable> for Error {
    fn from(_: Unreachable) -> Self {
        Self::Unreachable
    }
}

impl From<Error> for FfaError {
    fn from(error: Error) -> Self {
        match error {
            Error::Descriptor(error) => error.into(),
            Error::Claim(error) => error.into(),
            Error::NoMemory => Self::NoMemory,
            Error::PageCount | Error::Handle | Error::Mismatch => Self::InvalidParameters,
            Error::State | Error::Granule => Self::Denied,
            Error::Busy => Self::Busy,
            Error::Unreachable => Self::Aborted,
            Error::Unfinished => Self::Retry,
        }
    }
}

/// How far a region has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something is still to come: how many ranges, the first of which is at this offset of the descriptor; and what is left of
    /// the range before, perhaps no page.
    Arriving { ranges_left: u32, offset: u32, pending: Range },
    /// Nobody has it mapped.
    Held,
    /// The borrower has it mapped at this address.
    Borrowed { address: u64 },
    /// Nobody has it mapped; as its borrower has asked, it is being zeroed, and so many pages are.
    Zeroing { done: u32 },
    /// Its pages are on their way back. One that never became whole remembers why.
    Leaving { failed: Option<Error> },
}

/// One memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What the lender calls it.
    pub handle: u64,
    /// Kind of the transaction.
    pub kind: Kind,
    /// Who sent it.
    pub lender: EndpointId,
    /// Head of its descriptor.
    pub sending: Sending,
    /// Its pages. Those that have left are in it no more.
    pub pages: Pages,
    state: State,
    /// Of its pages, so many at the beginning are Secure: between two calls all of them, unless it has failed; none of a shared
    /// region.
    secure: u32,
    /// When its lender asked to have it revoked.
    notice: Option<u64>,
}

impl Region {
    /// Where the borrower has it mapped.
    #[must_use]
    pub fn address(&self) -> Option<u64> {
        match self.state {
            State::Borrowed { address } => Some(address),
            _ => None,
        }
    }

    /// Whether a borrower may have it, or have had it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !matches!(self.state, State::Arriving { .. } | State::Leaving { failed: Some(_) })
    }

    /// Whether its pages are on their way back.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        matches!(self.state, State::Leaving { .. })
    }

    /// Whether its borrower has given it up, to be zeroed, and that has not ended.
    #[must_use]
    pub fn is_being_zeroed(&self) -> bool {
        matches!(self.state, State::Zeroing { .. })
    }

    /// Whether a call that brings nothing of its descriptor has something to do: what is not whole yet, and what will not be.
    #[must_use]
    pub fn needs_time(&self) -> bool {
        match self.state {
            State::Arriving { pending, .. } => pending.1 != 0,
            State::Leaving { failed } => failed.is_some(),
            _ => false,
        }
    }
}

/// The memory that is under way, and what it is made of.
pub struct Ledger<'a> {
    /// Translation tables.
    pub pool: Pool<'a>,
    /// Pages that are taken.
    pub claims: Claims<'a>,
    /// How much one call does.
    pub slice: Slice,
    regions: &'a mut Vec<Region, REGIONS>,
    next_handle: u64,
}

impl<'a> Ledger<'a> {
    /// Nothing is lent.
    #[must_use]
    pub fn new(pool: Pool<'a>, claims: Claims<'a>, regions: &'a mut Vec<Region, REGIONS>) -> Self {
        regions.clear();
        Self { pool, claims, slice: Slice::DEFAULT, regions, next_handle: 1 }
    }

    /// Registers a region of which nothing has arrived but the head of its descriptor, and answers its handle. Ranges
    /// follow by [`Self::receive`].
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn begin(&mut self, kind: Kind, lender: EndpointId, sending: Sending) -> Result<u64, Error> {
        let handle = self.next_handle;
        let state = State::Arriving {
            ranges_left: sending.ranges,
            offset: sending.first_range as u32,
            pending: (0, 0),
        };
        let region =
            Region { handle, kind, lender, sending, pages: Pages::default(), state, secure: 0, notice: None };
        self.regions.push(region).map_err(|_| Error::NoMemory)?;
        // Handles are never used again; bit 63 is zero: allocated by the SPMC.
        self.next_handle += 1;
        Ok(handle)
    }

    /// A region of this lender.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`].
    pub fn lent(&self, handle: u64, lender: EndpointId) -> Result<&Region, Error> {
        self.find(handle, lender).map(|index| &self.regions[index])
    }

    /// A region for this borrower.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`], also if it is another borrower's.
    pub fn borrowed(&self, handle: u64, borrower: EndpointId) -> Result<&Region, Error> {
        self.regions
            .iter()
            .find(|region| {
                region.handle == handle && region.sending.borrower == borrower && region.is_whole()
            })
            .filter(|region| !region.is_leaving())
            .ok_or(Error::Handle)
    }

    /// Takes all that this borrower has mapped from it: `unmap` is told the address and the pages of each.
    pub fn unmap_all(&mut self, borrower: EndpointId, mut unmap: impl FnMut(&Pool, u64, &Pages)) {
        for region in self.regions.iter_mut().filter(|region| region.sending.borrower == borrower) {
            if let Some(address) = region.address() {
                unmap(&self.pool, address, &region.pages);
                (region.state, region.notice) = (State::Held, None);
            }
        }
    }

    /// Records that the borrower has mapped its region at `address`, or that it has unmapped it.
    pub fn set_address(&mut self, handle: u64, address: Option<u64>) {
        if let Some(region) = self.regions.iter_mut().find(|region| region.handle == handle) {
            region.state = address.map_or(State::Held, |address| State::Borrowed { address });
            region.notice = None;
        }
    }

    /// When its lender first asked to have a region revoked: `now`, unless it did so before.
    pub fn notice(&mut self, handle: u64, now: u64) -> u64 {
        let region = self.regions.iter_mut().find(|region| region.handle == handle);
        region.map_or(now, |region| *region.notice.get_or_insert(now))
    }

    fn find(&self, handle: u64, lender: EndpointId) -> Result<usize, Error> {
        self.regions
            .iter()
            .position(|region| region.handle == handle && region.lender == lender)
            .ok_or(Error::Handle)
    }
}
