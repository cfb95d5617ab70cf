//! The weights of a model: segments that the normal world has lent, proven. Sessions of the same model share them.

use crate::memory::Borrow;
use core::cell::{Cell, RefCell};
use flexserve_abi::{
    GRANULE_SIZE,
    service::{RECALL_HANDLES, Status},
};
use flexserve_container::{Header, limits};
use heapless::Vec;

/// Most segments of a container.
pub const SEGMENTS_MAX: usize = *limits::SEGMENTS.end() as usize;

/// A region, and the handle under which it came.
pub struct Region<B: Borrow> {
    handle: u64,
    pub bytes: B::Lent,
}

impl<B: Borrow> Region<B> {
    pub fn new(handle: u64, bytes: B::Lent) -> Self {
        Self { handle, bytes }
    }

    pub fn granules(&self) -> u64 {
        (self.bytes.len() / GRANULE_SIZE) as u64
    }
}

/// What a recall gives up.
#[derive(Default)]
pub struct Given {
    pub granules: u64,
    pub handles: Vec<u64, RECALL_HANDLES>,
}

impl Given {
    /// Gives a region up, if there is one and the recall has not enough yet.
    pub fn take<B: Borrow>(&mut self, slot: &mut Option<Region<B>>, wanted: u64, borrower: &mut B) {
        if self.granules >= wanted || self.handles.is_full() {
            return;
        }
        if let Some(region) = slot.take() {
            self.granules += region.granules();
            let _ = self.handles.push(region.handle);
            borrower.give_up(region.bytes);
        }
    }
}

/// A place for a model.
pub struct Place<B: Borrow> {
    /// Sessions of the model; the place is free if there are none.
    users: Cell<usize>,
    /// Borrowed for as long as a session answers, which it can only with all segments: nothing changes then.
    pub weights: RefCell<Weights<B>>,
}

/// Segments of one model, by index.
pub struct Weights<B: Borrow> {
    /// The hash of the container's head, in which the hashes of all segments are: what tells models apart.
    model: [u8; 32],
    segments: Vec<Option<Region<B>>, SEGMENTS_MAX>,
}

impl<B: Borrow> Place<B> {
    pub const fn new() -> Self {
        let weights = Weights { model: [0; 32], segments: Vec::new() };
        Self { users: Cell::new(0), weights: RefCell::new(weights) }
    }

    /// Whether nobody uses it.
    pub fn is_free(&self) -> bool {
        self.users.get() == 0
    }

    /// Whether several sessions use it.
    pub fn is_shared(&self) -> bool {
        self.users.get() > 1
    }

    /// Whether it is this model's.
    pub fn is_of(&self, model: &[u8; 32]) -> bool {
        !self.is_free() && self.weights.borrow().model == *model
    }

    /// One more session uses it; the first one says for which model, of how many segments.
    pub fn join(&self, model: [u8; 32], segments: usize) {
        if self.is_free() {
            let mut weights = self.weights.borrow_mut();
            weights.model = model;
            weights.segments.clear();
            // A proven head has no more segments than there is room for.
            (0..segments).for_each(|_| _ = weights.segments.push(None));
        }
        self.users.set(self.users.get() + 1);
    }

    /// One session fewer; the last one gives all segments up.
    pub fn leave(&self, borrower: &mut B) {
        self.users.set(self.users.get().saturating_sub(1));
        if self.is_free() {
            let segments = core::mem::take(&mut self.weights.borrow_mut().segments);
            segments.into_iter().flatten().for_each(|region| borrower.give_up(region.bytes));
        }
    }
}

impl<B: Borrow> Weights<B> {
    /// Segments of the model.
    pub fn count(&self) -> usize {
        self.segments.len()
    }

    /// Those that are there, in order.
    pub fn loaded(&self) -> impl Iterator<Item = &[u8]> {
        self.segments.iter().flatten().map(|region| &*region.bytes)
    }

    /// Whether all are there.
    pub fn complete(&self) -> bool {
        self.segments.iter().all(Option::is_some)
    }

    /// Whether a segment is there.
    pub fn has(&self, index: usize) -> bool {
        self.segments.get(index).is_some_and(Option::is_some)
    }

    /// Granules of all that is there.
    pub fn granules(&self) -> u64 {
        self.segments.iter().flatten().map(Region::granules).sum()
    }

    /// Proves that `bytes` are a segment that is missing. Segment 0 was proven by whoever read its manifest.
    ///
    /// # Errors
    ///
    /// [`Status::InvalidParameters`] if there is no such segment, [`Status::WrongState`] if it is there already or segment 0 is
    /// not, or why it is not the segment.
    pub fn prove(&self, index: usize, bytes: &[u8]) -> Result<(), Status> {
        if self.segments.get(index).ok_or(Status::InvalidParameters)?.is_some() {
            return Err(Status::WrongState);
        }
        if index == 0 {
            return Ok(());
        }
        let head = self.segments[0].as_ref().ok_or(Status::WrongState)?;
        Header::parse(&head.bytes).and_then(|header| header.verify_segment(index, bytes)).map_err(status)
    }

    /// Puts a proven segment to its place.
    pub fn put(&mut self, index: usize, region: Region<B>) {
        if let Some(slot) = self.segments.get_mut(index) {
            *slot = Some(region);
        }
    }

    /// Gives segments up, later layers first, so that what is left is what the next answer needs first.
    pub fn recall(&mut self, given: &mut Given, wanted: u64, borrower: &mut B) {
        self.segments.iter_mut().rev().for_each(|slot| given.take(slot, wanted, borrower));
    }
}

/// What the normal world is told of a container that is not as it should be.
pub fn status(error: flexserve_container::Error) -> Status {
    use flexserve_container::Error;
    match error {
        Error::BadHash(_) => Status::BadHash,
        Error::Truncated(_) => Status::BadMemory,
        _ => Status::BadModel,
    }
}
