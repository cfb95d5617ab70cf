//! A session: what the normal world has lent to it, and which requests it answers by itself.

use crate::{
    memory::{Borrow, SharedBytes},
    reply::{Args, Reply, failure, success},
    ring::Ring,
};
use flexserve_abi::{
    GRANULE_SIZE,
    service::{MAX_CONTEXT, RECALL_HANDLES, State, Status, VERSION, WORKSPACE},
};
use flexserve_container::{Header, Manifest, limits};
use heapless::Vec;

/// Most segments of a container.
pub const SEGMENTS_MAX: usize = *limits::SEGMENTS.end() as usize;

/// A region, and the handle under which it came.
pub struct Region<B: Borrow> {
    handle: u64,
    pub bytes: B::Lent,
}

/// What segment 0 says, once it has been proven.
#[derive(Clone, Copy)]
struct Needs {
    segments: usize,
    workspace_bytes: usize,
    context: usize,
}

/// All that one session holds.
pub struct Session<B: Borrow> {
    id: u64,
    context: u64,
    needs: Option<Needs>,
    shared: B::Shared,
    ring: Ring,
    /// By index of the segment.
    segments: Vec<Option<Region<B>>, SEGMENTS_MAX>,
    workspace: Option<Region<B>>,
}

impl<B: Borrow> Session<B> {
    /// `OPEN`.
    ///
    /// # Errors
    ///
    /// [`Status::InvalidParameters`], [`Status::BadMemory`], [`Status::BadRing`]; nothing stays borrowed then.
    pub fn open(id: u64, args: &Args, borrower: &mut B) -> Result<(Self, Reply), Status> {
        let [handle, context] = [args[0], args[1]];
        if context > MAX_CONTEXT {
            return Err(Status::InvalidParameters);
        }
        let shared = borrower.shared(handle).ok_or(Status::BadMemory)?;
        let ring = match Ring::open(&shared) {
            Ok(ring) => ring,
            Err(status) => {
                borrower.give_up_shared(shared);
                return Err(status);
            }
        };
        let session = Self { id, context, needs: None, shared, ring, segments: Vec::new(), workspace: None };
        Ok((session, success(&[id, VERSION.into()])))
    }

    /// The number that requests name this session by.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Tokens of context, and the memory to answer with. `None` unless the session is complete.
    pub fn parts(&mut self) -> Option<(usize, Parts<'_, B>)> {
        let context = self.needs.filter(|_| self.complete())?.context;
        let workspace = &mut *self.workspace.as_mut()?.bytes;
        Some((
            context,
            Parts { shared: &self.shared, ring: &mut self.ring, segments: &self.segments, workspace },
        ))
    }

    /// Whether all segments and the workspace are there.
    pub fn complete(&self) -> bool {
        self.needs.is_some_and(|needs| self.loaded() == needs.segments) && self.workspace.is_some()
    }

    fn loaded(&self) -> usize {
        self.segments.iter().flatten().count()
    }

    /// `LOAD`.
    pub fn load(&mut self, args: &Args, borrower: &mut B) -> Reply {
        let [handle, index] = [args[1], args[2]];
        let Some(bytes) = borrower.lent(handle) else { return failure(Status::BadMemory) };
        match self.check(index, &bytes) {
            Ok(slot) => {
                *slot = Some(Region { handle, bytes });
                self.progress()
            }
            Err(status) => {
                borrower.give_up(bytes);
                failure(status)
            }
        }
    }

    /// Proves that `bytes` are what `index` says, and answers where they belong.
    fn check(&mut self, index: u64, bytes: &[u8]) -> Result<&mut Option<Region<B>>, Status> {
        if index == 0 && self.needs.is_none() {
            let needs = self.prove_manifest(bytes)?;
            self.needs = Some(needs);
            self.segments.clear();
            for _ in 0..needs.segments {
                // The manifest is proven: its segments are within the limit, which is the vector's capacity.
                let _ = self.segments.push(None);
            }
            return Ok(&mut self.segments[0]);
        }
        let needs = self.needs.ok_or(Status::WrongState)?;
        if index == WORKSPACE {
            let enough = bytes.len() >= needs.workspace_bytes;
            return if self.workspace.is_some() {
                Err(Status::WrongState)
            } else if enough {
                Ok(&mut self.workspace)
            } else {
                Err(Status::BadMemory)
            };
        }
        let index = usize::try_from(index).map_err(|_| Status::InvalidParameters)?;
        let slot = self.segments.get(index).ok_or(Status::InvalidParameters)?;
        if slot.is_some() {
            return Err(Status::WrongState);
        }
        let head = self.segments[0].as_ref().map_or(bytes, |region| &region.bytes);
        verify(head, index, bytes)?;
        Ok(&mut self.segments[index])
    }

    fn prove_manifest(&self, bytes: &[u8]) -> Result<Needs, Status> {
        let manifest = Manifest::parse(bytes).map_err(status)?;
        let params = manifest.params();
        let most = params.context as usize;
        let context = if self.context == 0 { most } else { self.context as usize };
        if context > most {
            return Err(Status::InvalidParameters);
        }
        Ok(Needs {
            segments: manifest.header().segment_count(),
            workspace_bytes: flexserve_llm::generator::memory_bytes(params, context),
            context,
        })
    }

    fn progress(&self) -> Reply {
        let needs = self.needs.map_or((0, 0), |needs| (needs.segments, needs.workspace_bytes));
        success(&[needs.0 as u64, self.loaded() as u64, needs.1.div_ceil(GRANULE_SIZE) as u64])
    }

    /// `RECALL`: later layers first, so that what is left is what the next answer needs first; then the workspace.
    pub fn recall(&mut self, args: &Args, borrower: &mut B) -> Reply {
        let wanted = args[1];
        let mut handles: Vec<u64, RECALL_HANDLES> = Vec::new();
        let mut granules = 0;
        let slots = self.segments.iter_mut().rev().chain([&mut self.workspace]);
        for slot in slots.filter(|slot| slot.is_some()) {
            if granules >= wanted || handles.is_full() {
                break;
            }
            if let Some(region) = slot.take() {
                granules += granules_of(&region);
                let _ = handles.push(region.handle);
                borrower.give_up(region.bytes);
            }
        }
        if self.segments.first().is_some_and(Option::is_none) {
            self.needs = None;
        }
        let mut reply = success(&[granules, handles.len() as u64]);
        reply[3..3 + handles.len()].copy_from_slice(&handles);
        reply
    }

    /// `CLOSE`.
    pub fn close(mut self, borrower: &mut B) -> Reply {
        for slot in self.segments.iter_mut().chain([&mut self.workspace]) {
            if let Some(region) = slot.take() {
                borrower.give_up(region.bytes);
            }
        }
        borrower.give_up_shared(self.shared);
        success(&[])
    }

    /// `STATUS` while nothing is being answered.
    pub fn status(&self) -> Reply {
        let state = if self.complete() { State::Ready } else { State::Loading };
        let mut reply = success(&[state as u64]);
        reply[8] = self.granules();
        reply
    }

    /// Granules that the session holds.
    pub fn granules(&self) -> u64 {
        self.segments.iter().chain([&self.workspace]).flatten().map(granules_of).sum()
    }
}

fn granules_of<B: Borrow>(region: &Region<B>) -> u64 {
    (region.bytes.len() / GRANULE_SIZE) as u64
}

/// Checks a segment against the table in the head of segment 0.
fn verify(head: &[u8], index: usize, bytes: &[u8]) -> Result<(), Status> {
    Header::parse(head).and_then(|header| header.verify_segment(index, bytes)).map_err(status)
}

fn status(error: flexserve_container::Error) -> Status {
    use flexserve_container::Error;
    match error {
        Error::BadHash(_) => Status::BadHash,
        Error::Truncated(_) => Status::BadMemory,
        _ => Status::BadModel,
    }
}

/// Prompts in shared memory.
pub trait Prompts {
    /// Copies a prompt into `to`. `None` if it does not lie in the buffer, does not fit, or is not UTF-8.
    fn prompt<'t>(&self, offset: u64, bytes: u64, to: &'t mut [u8]) -> Option<&'t str>;
}

impl<S: SharedBytes> Prompts for S {
    fn prompt<'t>(&self, offset: u64, bytes: u64, to: &'t mut [u8]) -> Option<&'t str> {
        let to = to.get_mut(..usize::try_from(bytes).ok()?)?;
        self.read(usize::try_from(offset).ok()?, to)?;
        core::str::from_utf8(to).ok()
    }
}

/// What a complete session has, borrowed apart.
pub struct Parts<'s, B: Borrow> {
    pub shared: &'s B::Shared,
    pub ring: &'s mut Ring,
    pub segments: &'s [Option<Region<B>>],
    pub workspace: &'s mut [u8],
}
