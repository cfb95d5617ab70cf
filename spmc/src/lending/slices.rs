//! What a call does with a region's pages, a slice at a time.

use super::{Arrival, Error, Ledger, Region, Slice, State};
use crate::{
    claims::{self, Claims},
    descriptor::{self, Kind, RANGE_SIZE},
    hardware::{Hardware, Range},
    tables::{Access, PAGE, Runs},
};
use flexserve_abi::{
    el3::{BATCH_LIMIT, Gpi, LIST_LIMIT, Status},
    ffa::EndpointId,
};
use heapless::Vec;

/// How often a call to EL3 is repeated in a call while EL3 is busy.
const PATIENCE: u32 = 16;
/// How many pages that are moved cost as much as one in the normal world that is zeroed.
const SHARED_ZERO_COST: u32 = 8;

impl Ledger<'_> {
    /// Goes on with an arriving region: takes what fits into a slice of the ranges in `bytes`, which are the first of `length`
    /// bytes that follow in its descriptor. When it is whole, no page of it can be reached by the normal world, unless it is
    /// shared.
    ///
    /// # Errors
    ///
    /// [`Error::Handle`] if no such region is arriving; or what is wrong with it, once every page is the lender's again, and
    /// the region is gone. Until then, [`Arrival::From`] the end of its descriptor.
    pub fn receive(
        &mut self,
        hardware: &mut impl Hardware,
        handle: u64,
        lender: EndpointId,
        length: usize,
        bytes: &[u8],
    ) -> Result<Arrival, Error> {
        let index = self.find(handle, lender)?;
        let mut slice = self.slice;
        if matches!(self.regions[index].state, State::Arriving { .. }) {
            match self.arrive(hardware, index, length, bytes, &mut slice) {
                Ok(arrival) => return Ok(arrival),
                Err(error) => self.regions[index].state = State::Leaving { failed: Some(error) },
            }
        }
        self.undo(hardware, index, slice)
    }

    /// Gives an arriving region up, for a reason.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`], which goes on with it.
    pub fn fail(
        &mut self,
        hardware: &mut impl Hardware,
        handle: u64,
        lender: EndpointId,
        reason: Error,
    ) -> Result<Arrival, Error> {
        let index = self.find(handle, lender)?;
        if let state @ State::Arriving { .. } = &mut self.regions[index].state {
            *state = State::Leaving { failed: Some(reason) };
        }
        self.undo(hardware, index, self.slice)
    }

    fn undo(
        &mut self,
        hardware: &mut impl Hardware,
        index: usize,
        mut slice: Slice,
    ) -> Result<Arrival, Error> {
        let Region { state: State::Leaving { failed: Some(reason) }, sending, .. } = self.regions[index]
        else {
            return Err(Error::Handle);
        };
        if self.leave(hardware, index, &mut slice, false)? {
            return Err(reason);
        }
        Ok(Arrival::From(sending.length()))
    }

    fn arrive(
        &mut self,
        hardware: &mut impl Hardware,
        index: usize,
        length: usize,
        bytes: &[u8],
        slice: &mut Slice,
    ) -> Result<Arrival, Error> {
        let before = self.regions[index].pages.len();
        self.record(index, length, bytes, slice)?;
        self.take(hardware, index, before)?;
        let region = &mut self.regions[index];
        match region.state {
            State::Arriving { ranges_left: 0, pending: (_, 0), .. } => {
                region.state = State::Held;
                Ok(Arrival::Whole)
            }
            State::Arriving { offset, .. } => Ok(Arrival::From(offset)),
            _ => Err(Error::Handle),
        }
    }

    /// Claims and records pages of an arriving region.
    fn record(&mut self, index: usize, length: usize, bytes: &[u8], slice: &mut Slice) -> Result<(), Error> {
        let region = &mut self.regions[index];
        let State::Arriving { ranges_left, offset, pending } = &mut region.state else {
            return Err(Error::Handle);
        };
        let (ranges, rest) = bytes.as_chunks::<RANGE_SIZE>();
        if !rest.is_empty() || length > *ranges_left as usize * RANGE_SIZE {
            return Err(descriptor::Error::Length.into());
        }
        let shared = region.kind == Kind::Share;
        let access = if shared { Access::UserNonSecureData } else { Access::UserLentData };
        let mut ranges = ranges.iter();
        while !slice.is_used_up() {
            if pending.1 == 0 {
                let Some(range) = ranges.next() else { return Ok(()) };
                *pending = descriptor::range(range)?;
                if !Claims::is_lendable(pending.0, pending.1) {
                    return Err(claims::Error::NotLendable.into());
                }
                *ranges_left -= 1;
                *offset += RANGE_SIZE as u32;
                let sum = region.pages.len().checked_add(pending.1);
                // Every range that is still to come has a page at least.
                let fits = |sum: &u32| match *ranges_left {
                    0 => *sum == region.sending.pages,
                    left => sum.checked_add(left).is_some_and(|sum| sum <= region.sending.pages),
                };
                sum.filter(fits).ok_or(Error::PageCount)?;
                slice.ranges -= 1;
            }
            let count = pending.1.min(slice.pages);
            self.claims.claim(pending.0, count)?;
            for page in 0..count {
                let base = pending.0 + u64::from(page) * PAGE;
                if let Err(error) = region.pages.push(&mut self.pool, access, base) {
                    // The pages before are recorded, and leave with the region.
                    self.claims.release(base, count - page);
                    return Err(error.into());
                }
            }
            *pending = (pending.0 + u64::from(count) * PAGE, pending.1 - count);
            slice.pages -= count;
        }
        Ok(())
    }

    /// Moves the pages from number `first` on, which were just recorded, to the Secure world. Shared ones stay in the normal
    /// world, so they have to be there.
    fn take(&mut self, hardware: &mut impl Hardware, index: usize, first: u32) -> Result<(), Error> {
        let region = &mut self.regions[index];
        let runs = region.pages.runs(&self.pool, first);
        if region.kind == Kind::Share {
            let mut pages = runs.flat_map(each_page);
            let own = pages.all(|page| hardware.granule(page) == Some(Gpi::NonSecure));
            return if own { Ok(()) } else { Err(Error::Granule) };
        }
        let (moved, result) = transfer(hardware, runs.clone(), Gpi::Secure);
        region.secure += moved;
        result?;
        if region.sending.zero {
            runs.for_each(|(base, pages)| hardware.zero(base, pages));
        }
        Ok(())
    }

    /// Gives a region that nobody has mapped back to its lender, a slice of it: zeroed if it was lent, or if it is shared and
    /// `zero` says so. Also gives up one that is arriving, whose contents are what they were. The handle is dead when all
    /// pages have left.
    ///
    /// # Errors
    ///
    /// [`Error::Unfinished`] if some are left; [`Error::Handle`]; [`Error::State`] if it is mapped; [`Error::Granule`],
    /// [`Error::Busy`] or [`Error::Unreachable`] if a page did not leave: the next reclaim goes on there.
    pub fn reclaim(
        &mut self,
        hardware: &mut impl Hardware,
        handle: u64,
        lender: EndpointId,
        zero: bool,
    ) -> Result<(), Error> {
        let index = self.find(handle, lender)?;
        let state = &mut self.regions[index].state;
        match *state {
            State::Borrowed { .. } => return Err(Error::State),
            State::Held | State::Zeroing { .. } => *state = State::Leaving { failed: None },
            State::Arriving { .. } => *state = State::Leaving { failed: Some(Error::Handle) },
            State::Leaving { .. } => {}
        }
        let mut slice = self.slice;
        if self.leave(hardware, index, &mut slice, zero)? { Ok(()) } else { Err(Error::Unfinished) }
    }

    /// Gives pages of a leaving region back until the slice is used up. Answers whether the region is gone.
    fn leave(
        &mut self,
        hardware: &mut impl Hardware,
        index: usize,
        slice: &mut Slice,
        zero_shared: bool,
    ) -> Result<bool, Error> {
        let region = &mut self.regions[index];
        // What never became whole has been nobody's but the lender's.
        let zero_lent = region.is_whole();
        let zero_shared = zero_shared && region.kind == Kind::Share;
        let cost = if zero_shared { SHARED_ZERO_COST } else { 1 };
        while !region.pages.is_empty() && !slice.is_used_up() {
            let secure = region.secure != 0;
            let most = if secure { region.secure } else { region.pages.len() };
            let runs = region.pages.runs(&self.pool, 0).first(most.min(slice.pages.div_ceil(cost)));
            let mut count = 0;
            for (base, pages) in runs.clone().take(slice.ranges as usize) {
                slice.ranges -= 1;
                count += pages;
                if secure && zero_lent {
                    hardware.zero(base, pages);
                } else if zero_shared {
                    each_page((base, pages))
                        .try_for_each(|page| hardware.write_normal(page, &[0; PAGE as usize]))?;
                }
            }
            slice.pages = slice.pages.saturating_sub(count * cost);
            let (gone, result) =
                if secure { transfer(hardware, runs.first(count), Gpi::NonSecure) } else { (count, Ok(())) };
            runs.first(gone).for_each(|(base, pages)| self.claims.release(base, pages));
            region.pages.drop_front(&mut self.pool, gone);
            region.secure = region.secure.saturating_sub(gone);
            result?;
        }
        let gone = region.pages.is_empty();
        if gone {
            self.regions.swap_remove(index);
        }
        Ok(gone)
    }

    /// Begins to zero a region that its borrower has just unmapped, and may not find as it was.
    pub fn begin_zeroing(&mut self, handle: u64) {
        if let Some(region) = self.regions.iter_mut().find(|region| region.handle == handle) {
            region.state = State::Zeroing { done: 0 };
        }
    }

    /// Goes on with that.
    ///
    /// # Errors
    ///
    /// [`Error::Unfinished`].
    pub fn zero(&mut self, hardware: &mut impl Hardware, handle: u64) -> Result<(), Error> {
        let Some(region) = self.regions.iter_mut().find(|region| region.handle == handle) else {
            return Err(Error::Handle);
        };
        let State::Zeroing { done } = &mut region.state else { return Ok(()) };
        let runs = region.pages.runs(&self.pool, *done).first(self.slice.pages);
        for (base, pages) in runs.take(self.slice.ranges as usize) {
            hardware.zero(base, pages);
            *done += pages;
        }
        if *done != region.pages.len() {
            return Err(Error::Unfinished);
        }
        region.state = State::Held;
        Ok(())
    }
}

fn each_page((base, pages): Range) -> impl Iterator<Item = u64> {
    (0..u64::from(pages)).map(move |page| base + page * PAGE)
}

/// Moves pages to another world. Answers how many were moved, and what stopped it.
fn transfer(hardware: &mut impl Hardware, mut runs: Runs, to: Gpi) -> (u32, Result<(), Error>) {
    let (mut moved, mut patience) = (0, PATIENCE);
    loop {
        let mut ranges: Vec<Range, LIST_LIMIT> = Vec::new();
        let mut asked = 0;
        // EL3 moves so many at a time.
        for (base, run) in runs.first(BATCH_LIMIT as u32) {
            if ranges.push((base, run)).is_err() {
                break;
            }
            asked += run;
        }
        if asked == 0 {
            return (moved, Ok(()));
        }
        let (status, done) = hardware.set_granules(&ranges, to);
        let done = if status == Status::Success { asked } else { (done as u32).min(asked) };
        moved += done;
        runs.skip_pages(done);
        match status {
            Status::Success => continue,
            Status::Incomplete if done != 0 => continue,
            Status::Incomplete | Status::Busy => patience -= 1,
            _ => return (moved, Err(Error::Granule)),
        }
        if patience == 0 {
            return (moved, Err(Error::Busy));
        }
    }
}
