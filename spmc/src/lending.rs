//! Memory that is lent, shared or donated: from the lender's first fragment to the reclaim.
//!
//! A handle goes `Arriving -> Held <-> Borrowed`, and dies in `reclaim`. In `Held` and `Borrowed` every page of a lent
//! region is in the Secure world. Whatever fails on the way to `Held` takes everything back: claims, tables, granules.

use crate::{
    claims::{self, Claims},
    descriptor::{self, Kind, RANGE_SIZE, Sending},
    hardware::{Hardware, Range},
    tables::{Access, OutOfTables, PAGE, Pages, Pool},
};
use arm_ffa::FfaError;
use flexserve_abi::{
    el3::{BATCH_LIMIT, Gpi, LIST_LIMIT, Status},
    ffa::EndpointId,
};
use heapless::Vec;

/// Most regions at one time.
pub const REGIONS: usize = 256;
/// Most granules that are zeroed before they are moved.
const SCRUB_BATCH: u32 = 512;
/// How often a call to EL3 is repeated while another core is busy with the same region.
const PATIENCE: u32 = 1000;

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

impl From<Error> for FfaError {
    fn from(error: Error) -> Self {
        match error {
            Error::Descriptor(error) => error.into(),
            Error::Claim(error) => error.into(),
            Error::NoMemory => Self::NoMemory,
            Error::PageCount | Error::Handle | Error::Mismatch => Self::InvalidParameters,
            Error::State | Error::Granule => Self::Denied,
            Error::Busy => Self::Busy,
        }
    }
}

/// How far a region has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Some ranges are still to come: how many, and at which offset of the descriptor the next fragment begins.
    Arriving { ranges_left: u32, offset: u32 },
    /// Nobody has it mapped.
    Held,
    /// The borrower has it mapped at this address.
    Borrowed { address: u64 },
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
    /// Its pages.
    pub pages: Pages,
    state: State,
    /// When its lender asked to have it revoked.
    notice: Option<u64>,
    /// Pages that a reclaim which could not be finished has given back.
    returned: u32,
}

impl Region {
    /// Where the borrower has it mapped.
    #[must_use]
    pub fn address(&self) -> Option<u64> {
        match self.state {
            State::Borrowed { address } => Some(address),
            State::Arriving { .. } | State::Held => None,
        }
    }

    /// Whether all its ranges have arrived.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        !matches!(self.state, State::Arriving { .. })
    }

    /// Offset of the descriptor at which the next fragment begins, while it is arriving.
    #[must_use]
    pub fn next_offset(&self) -> Option<u32> {
        match self.state {
            State::Arriving { offset, .. } => Some(offset),
            State::Held | State::Borrowed { .. } => None,
        }
    }

    fn access(&self) -> Access {
        if self.kind == Kind::Share { Access::UserNonSecureData } else { Access::UserLentData }
    }
}

/// The memory that is under way, and what it is made of.
pub struct Ledger<'a> {
    /// Translation tables.
    pub pool: Pool<'a>,
    /// Pages that are taken.
    pub claims: Claims<'a>,
    regions: &'a mut Vec<Region, REGIONS>,
    next_handle: u64,
}

impl<'a> Ledger<'a> {
    /// Nothing is lent.
    #[must_use]
    pub fn new(pool: Pool<'a>, claims: Claims<'a>, regions: &'a mut Vec<Region, REGIONS>) -> Self {
        regions.clear();
        Self { pool, claims, regions, next_handle: 1 }
    }

    /// Registers a region of which nothing has arrived but the head of its descriptor, and answers its handle. Ranges
    /// follow by [`Self::add`].
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub fn begin(&mut self, kind: Kind, lender: EndpointId, sending: Sending) -> Result<u64, Error> {
        let handle = self.next_handle;
        let state = State::Arriving { ranges_left: sending.ranges, offset: sending.first_range as u32 };
        let region = Region {
            handle,
            kind,
            lender,
            sending,
            pages: Pages::default(),
            state,
            notice: None,
            returned: 0,
        };
        self.regions.push(region).map_err(|_| Error::NoMemory)?;
        // Handles are never used again; bit 63 is zero: allocated by the SPMC.
        self.next_handle += 1;
        Ok(handle)
    }

    /// Takes the next ranges, whole ones, of an arriving region. On an error the region is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`], [`Error::State`], or what is wrong with a range.
    pub fn add(&mut self, handle: u64, lender: EndpointId, ranges: &[u8]) -> Result<(), Error> {
        let index = self.find(handle, lender)?;
        if self.regions[index].is_whole() {
            return Err(Error::State);
        }
        let added = self.add_ranges(index, ranges);
        if added.is_err() {
            self.drop_region(index);
        }
        added
    }

    fn add_ranges(&mut self, index: usize, bytes: &[u8]) -> Result<(), Error> {
        let (ranges, rest) = bytes.as_chunks::<RANGE_SIZE>();
        if !rest.is_empty() {
            return Err(descriptor::Error::Length.into());
        }
        for range in ranges {
            let (base, pages) = descriptor::range(range)?;
            let region = &mut self.regions[index];
            let State::Arriving { ranges_left, offset } = region.state else { return Err(Error::State) };
            if ranges_left == 0 {
                return Err(descriptor::Error::Length.into());
            }
            if region.pages.len().checked_add(pages).is_none_or(|sum| sum > region.sending.pages) {
                return Err(Error::PageCount);
            }
            self.claims.claim(base, pages)?;
            region.state =
                State::Arriving { ranges_left: ranges_left - 1, offset: offset + RANGE_SIZE as u32 };
            let access = region.access();
            for page in 0..u64::from(pages) {
                if let Err(error) = region.pages.push(&mut self.pool, access, base + page * PAGE) {
                    // The pages before are recorded and released with the region.
                    self.claims.release(base + page * PAGE, pages - page as u32);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Whether all ranges of an arriving region are there.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`].
    pub fn has_arrived(&self, handle: u64, lender: EndpointId) -> Result<bool, Error> {
        let region = &self.regions[self.find(handle, lender)?];
        Ok(!matches!(region.state, State::Arriving { ranges_left: 1.., .. }))
    }

    /// Gives an arriving region whose ranges are all there to the borrower: from here on no lent page can be reached by
    /// the normal world. On an error the region is gone, and every page is the lender's.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`], [`Error::State`], [`Error::PageCount`], [`Error::Granule`], [`Error::Busy`].
    pub fn complete(
        &mut self,
        hardware: &mut impl Hardware,
        handle: u64,
        lender: EndpointId,
    ) -> Result<&Region, Error> {
        let index = self.find(handle, lender)?;
        let region = self.regions[index];
        let State::Arriving { ranges_left: 0, .. } = region.state else { return Err(Error::State) };
        let taken = if region.pages.len() == region.sending.pages {
            self.take_granules(hardware, &region)
        } else {
            Err(Error::PageCount)
        };
        if let Err(error) = taken {
            self.drop_region(index);
            return Err(error);
        }
        let region = &mut self.regions[index];
        region.state = State::Held;
        Ok(region)
    }

    fn take_granules(&mut self, hardware: &mut impl Hardware, region: &Region) -> Result<(), Error> {
        if region.kind == Kind::Share {
            return self.check_shared(hardware, region);
        }
        let (done, result) =
            transfer(hardware, &self.pool, &region.pages, 0, region.pages.len(), Gpi::Secure);
        if let Err(error) = result {
            // EL3 has just moved these granules and takes each of them back. Should it not, the page stays out of
            // everybody's reach, which is safe.
            let _ = transfer(hardware, &self.pool, &region.pages, 0, done, Gpi::NonSecure);
            return Err(error);
        }
        if region.sending.zero {
            region.pages.runs(&self.pool, 0, u32::MAX).for_each(|(base, pages)| hardware.zero(base, pages));
        }
        Ok(())
    }

    /// A shared page stays in the normal world, so it has to be there.
    fn check_shared(&self, hardware: &mut impl Hardware, region: &Region) -> Result<(), Error> {
        let mut pages = region
            .pages
            .runs(&self.pool, 0, u32::MAX)
            .flat_map(|(base, pages)| (0..u64::from(pages)).map(move |page| base + page * PAGE));
        if pages.all(|page| hardware.granule(page) == Some(Gpi::NonSecure)) {
            Ok(())
        } else {
            Err(Error::Granule)
        }
    }

    /// Gives up an arriving region.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`], [`Error::State`].
    pub fn abandon(&mut self, handle: u64, lender: EndpointId) -> Result<(), Error> {
        let index = self.find(handle, lender)?;
        if self.regions[index].is_whole() {
            return Err(Error::State);
        }
        self.drop_region(index);
        Ok(())
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
            .ok_or(Error::Handle)
    }

    /// Some region that this borrower has mapped.
    #[must_use]
    pub fn any_mapped(&self, borrower: EndpointId) -> Option<Region> {
        let mapped = |region: &&Region| {
            region.sending.borrower == borrower && matches!(region.state, State::Borrowed { .. })
        };
        self.regions.iter().find(mapped).copied()
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

    /// Gives a region that nobody has mapped back to its lender, zeroed if it was lent, and answers its pages. The
    /// handle is dead then.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`]; [`Error::State`] if it is mapped; [`Error::Granule`] or [`Error::Busy`] if EL3 did not move
    /// all its granules: the others are back, and the next reclaim goes on from there.
    pub fn reclaim(
        &mut self,
        hardware: &mut impl Hardware,
        handle: u64,
        lender: EndpointId,
    ) -> Result<u32, Error> {
        let index = self.find(handle, lender)?;
        let region = self.regions[index];
        if region.state != State::Held {
            return Err(Error::State);
        }
        if region.kind != Kind::Share {
            self.return_granules(hardware, index)?;
        }
        self.drop_region(index);
        Ok(region.pages.len())
    }

    fn return_granules(&mut self, hardware: &mut impl Hardware, index: usize) -> Result<(), Error> {
        let region = &mut self.regions[index];
        while region.returned < region.pages.len() {
            let mut batch = 0;
            for (base, pages) in region.pages.runs(&self.pool, region.returned, SCRUB_BATCH) {
                hardware.zero(base, pages);
                batch += pages;
            }
            let (done, result) =
                transfer(hardware, &self.pool, &region.pages, region.returned, batch, Gpi::NonSecure);
            region.returned += done;
            result?;
        }
        Ok(())
    }

    fn find(&self, handle: u64, lender: EndpointId) -> Result<usize, Error> {
        self.regions
            .iter()
            .position(|region| region.handle == handle && region.lender == lender)
            .ok_or(Error::Handle)
    }

    fn drop_region(&mut self, index: usize) {
        let region = self.regions.swap_remove(index);
        for (base, pages) in region.pages.runs(&self.pool, 0, u32::MAX) {
            self.claims.release(base, pages);
        }
        region.pages.release(&mut self.pool);
    }
}

/// Moves the pages `[skip, skip + count)` to another world. Answers how many were moved, and what stopped it.
fn transfer(
    hardware: &mut impl Hardware,
    pool: &Pool,
    pages: &Pages,
    skip: u32,
    count: u32,
    to: Gpi,
) -> (u32, Result<(), Error>) {
    let (mut moved, mut patience) = (0, PATIENCE);
    while moved < count {
        let mut ranges: Vec<Range, LIST_LIMIT> = Vec::new();
        let mut asked = 0;
        // EL3 moves so many at a time.
        let limit = (count - moved).min(BATCH_LIMIT as u32);
        for (base, run) in pages.runs(pool, skip + moved, limit) {
            if ranges.push((base, run)).is_err() {
                break;
            }
            asked += run;
        }
        let (status, done) = hardware.set_granules(&ranges, to);
        let done = if status == Status::Success { asked } else { (done as u32).min(asked) };
        moved += done;
        let error = match status {
            Status::Success => continue,
            Status::Incomplete if done != 0 => continue,
            Status::Incomplete | Status::Busy => Error::Busy,
            _ => return (moved, Err(Error::Granule)),
        };
        patience -= 1;
        if patience == 0 {
            return (moved, Err(error));
        }
    }
    (moved, Ok(()))
}
