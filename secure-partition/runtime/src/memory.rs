//! Borrowed memory: RX/TX buffers with the SPMC, and the regions that the normal world lends or shares.

use crate::{
    conduit::{simple, svc},
    descriptor::Retrieve,
    message::{Error, call, check},
};
use arm_ffa::{
    FFA_PAGE_SIZE_4K, FuncId,
    memory_management::{Handle, MemRelinquishDesc},
};
use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use flexserve_abi::ffa::EndpointId;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; FFA_PAGE_SIZE_4K]>);

// SAFETY: the one `Borrower` is the only code that touches the two buffers.
unsafe impl Sync for Page {}

static RX: Page = Page(UnsafeCell::new([0; FFA_PAGE_SIZE_4K]));
static TX: Page = Page(UnsafeCell::new([0; FFA_PAGE_SIZE_4K]));
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The right to borrow: the partition's RX/TX buffers. There is one.
#[derive(Debug)]
pub struct Borrower {
    id: EndpointId,
}

impl Borrower {
    /// Maps the buffers (`FFA_RXTX_MAP`) for the partition of this ID.
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refuses.
    ///
    /// # Panics
    ///
    /// On a second call.
    pub fn new(id: EndpointId) -> Result<Self, Error> {
        assert!(!TAKEN.swap(true, Ordering::Relaxed), "the buffers are mapped already");
        simple(FuncId::RxTxMap64, &[TX.0.get() as u64, RX.0.get() as u64, 1])?;
        Ok(Self { id })
    }

    /// Maps what `lender` lent under `handle` with `FFA_MEM_LEND`: nobody else can reach it until it is relinquished.
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refuses, [`Error::BadDescriptor`] if its answer makes no sense.
    pub fn retrieve_lent(&mut self, lender: EndpointId, handle: u64) -> Result<Lent, Error> {
        self.retrieve(lender, handle, false).map(Lent)
    }

    /// Maps what `lender` shared under `handle` with `FFA_MEM_SHARE`: the lender reads and writes it at the same time.
    ///
    /// # Errors
    ///
    /// As [`Self::retrieve_lent`].
    pub fn retrieve_shared(&mut self, lender: EndpointId, handle: u64) -> Result<Shared, Error> {
        self.retrieve(lender, handle, true).map(Shared)
    }

    /// Gives a lent region back (`FFA_MEM_RELINQUISH`). Its contents go to the lender as zeroes.
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refuses.
    pub fn relinquish_lent(&mut self, region: Lent) -> Result<(), Error> {
        self.relinquish(region.0)
    }

    /// Gives a shared region back (`FFA_MEM_RELINQUISH`), as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refuses.
    pub fn relinquish_shared(&mut self, region: Shared) -> Result<(), Error> {
        self.relinquish(region.0)
    }

    fn retrieve(&mut self, lender: EndpointId, handle: u64, shared: bool) -> Result<Region, Error> {
        let request = Retrieve { handle, lender, borrower: self.id, shared };
        // SAFETY: this is the one `Borrower`, borrowed mutably, and the SPMC writes no TX buffer.
        let len = request.pack(unsafe { &mut *TX.0.get() }) as u64;
        let answer = svc(call(FuncId::MemRetrieveReq32, &[len, len]));
        check(&answer, &[FuncId::MemRetrieveResp])?;
        // SAFETY: as above; the SPMC writes the RX buffer only during a call, while this partition owns none of it.
        let rx = unsafe { &*RX.0.get() };
        let region =
            rx.get(..answer[1] as usize).ok_or(Error::BadDescriptor).and_then(|rx| request.unpack(rx));
        simple(FuncId::RxRelease, &[])?;
        let (base, len) = region?;
        let base = NonNull::new(base as *mut u8).ok_or(Error::BadDescriptor)?;
        Ok(Region { handle, base, len })
    }

    fn relinquish(&mut self, region: Region) -> Result<(), Error> {
        let descriptor = MemRelinquishDesc { handle: Handle(region.handle), flags: 0 };
        // SAFETY: as in `retrieve`.
        descriptor.pack(&[self.id], unsafe { &mut *TX.0.get() });
        simple(FuncId::MemRelinquish, &[])?;
        Ok(())
    }
}

/// Pages that the SPMC mapped for this partition at one range of addresses.
#[derive(Debug)]
struct Region {
    handle: u64,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a region is plain memory, and whoever holds the value is the only one in this partition that uses it.
unsafe impl Send for Region {}

/// A region that only this partition can reach. Derefs to its bytes.
#[derive(Debug)]
pub struct Lent(Region);

impl Lent {
    /// The handle to name in `RECALL`.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.0.handle
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the SPMC mapped these pages for this partition alone until `relinquish_lent` consumes the value.
        unsafe { core::slice::from_raw_parts(self.0.base.as_ptr(), self.0.len) }
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.0.base.as_ptr(), self.0.len) }
    }
}

/// A region that the lender reads and writes at the same time: copied in and out, never referenced.
#[derive(Debug)]
pub struct Shared(Region);

impl Shared {
    /// The handle it came under.
    #[must_use]
    pub fn handle(&self) -> u64 {
        self.0.handle
    }

    /// Bytes of the region.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.len
    }

    /// Copies bytes out at `offset`. `None`, and nothing is copied, if the range is not inside the region.
    #[must_use]
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
        let from = self.range(offset, to.len())?;
        for (i, byte) in to.iter_mut().enumerate() {
            // SAFETY: `range` proved that the byte lies in the mapped region.
            *byte = unsafe { from.add(i).read_volatile() };
        }
        Some(())
    }

    /// Copies bytes in at `offset`. `None`, and nothing is copied, if the range is not inside the region.
    #[must_use]
    pub fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
        let to = self.range(offset, from.len())?;
        for (i, byte) in from.iter().enumerate() {
            // SAFETY: `range` proved that the byte lies in the mapped region.
            unsafe { to.add(i).write_volatile(*byte) };
        }
        Some(())
    }

    /// The word at `offset`, a multiple of 4. `None` if it is not one inside the region.
    #[must_use]
    pub fn word(&self, offset: usize) -> Option<&AtomicU32> {
        let word = self.range(offset, 4)?.cast::<u32>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: in the region, aligned, and an atomic may be shared with whoever else writes it.
        Some(unsafe { AtomicU32::from_ptr(word.as_ptr()) })
    }

    fn range(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.0.len {
            return None;
        }
        // SAFETY: `offset` is at most the region's length.
        Some(unsafe { self.0.base.add(offset) })
    }
}
