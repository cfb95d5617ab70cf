//! A session with the LLM partition: open, load the model from disk into lent pages, take everything back.

use alloc::{format, string::String, vec, vec::Vec};
use core::sync::atomic::AtomicU32;

use flexserve_abi::{
    GRANULE_SIZE,
    ffa::EndpointId,
    service::{Status, WORKSPACE},
};
use flexserve_client::{
    ffa::Transfer,
    job::Record,
    llm::{self, Llm, Loaded},
    ring::Ring,
};
use flexserve_container::{Header, Segment};

use crate::{
    disk::Disk,
    record,
    system::{Lent, Smc, System, leak_shared_pages, page_mut},
};

/// Bytes of the ring through which the answer comes.
const RING_CAPACITY: u32 = 1 << 16;
/// Tokens of context if the job does not say, or the model's if it has fewer.
const DEFAULT_CONTEXT: u64 = 2048;
/// As many tokens of context as the model can do.
const MODEL_CONTEXT: u64 = 0;

/// The model on the disk.
pub struct Container {
    /// The disk.
    disk: Disk,
    /// Its segments, in the order in which they are loaded.
    pub segments: Vec<Segment>,
}

impl Container {
    /// Opens the disk and reads the segment table.
    ///
    /// # Errors
    ///
    /// There is no disk, or no container on it.
    pub fn open() -> Result<Self, String> {
        let mut disk = Disk::open()?;
        let malformed = |e| format!("the model's disk holds no container that this payload can read: {e}");
        let mut head = vec![[0; GRANULE_SIZE]];
        disk.read(0, head.iter_mut())?;
        let needed = Header::bytes_needed(head.as_flattened()).map_err(malformed)?;
        head.resize(needed.div_ceil(GRANULE_SIZE), [0; GRANULE_SIZE]);
        disk.read(0, head.iter_mut())?;
        let header = Header::parse(head.as_flattened()).map_err(malformed)?;
        Ok(Self { segments: header.segments().collect(), disk })
    }

    /// Granules of all segments.
    pub fn granules(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.granules)).sum()
    }

    /// Reads a segment into pages of the pool.
    ///
    /// # Errors
    ///
    /// The disk failed, or ends before the segment does.
    pub fn read(&mut self, segment: &Segment, pages: &[u64]) -> Result<(), String> {
        // SAFETY: the caller has just allocated these pages, and lends them later.
        self.disk.read(segment.offset, pages.iter().map(|&page| unsafe { page_mut(page) }))
    }
}

/// An open session.
pub struct Session {
    /// The LLM partition.
    pub partition: EndpointId,
    /// The session's number.
    pub id: u64,
    /// What has been lent for this session: a segment each, then the workspace.
    pub lent: Vec<Lent>,
    /// Granules of all that was ever lent in it.
    pub granules_lent: u64,
    shared: u64,
    default_context: bool,
}

/// What came of taking everything back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// Granules reclaimed.
    pub granules: u64,
    /// Of those, granules with a byte that is not zero.
    pub nonzero: u64,
}

impl Session {
    /// Shares a buffer with room for `prompt_bytes` and opens a session with `context` tokens (0 = this payload's
    /// default); answers it and the reading end of the buffer's ring.
    ///
    /// # Errors
    ///
    /// FF-A or the partition refused.
    pub fn open(
        system: &mut System,
        prompt_bytes: usize,
        context: u64,
    ) -> Result<(Self, Ring<'static>), String> {
        let partition = system.llm_partition()?;
        let bytes = size_of::<flexserve_abi::ring::RingHeader>() + RING_CAPACITY as usize + prompt_bytes;
        let pages = bytes.div_ceil(GRANULE_SIZE);
        let words: &'static [AtomicU32] = leak_shared_pages(pages);
        let ring = Ring::new(words, RING_CAPACITY).map_err(|e| format!("{e}"))?;
        let base = words.as_ptr() as u64;
        let region = flexserve_client::ffa::Region { address: base, page_cnt: pages as u32 };
        let shared = system
            .ffa
            .transfer(Transfer::Share, partition, &[region])
            .map_err(|e| format!("sharing the prompt's buffer: {e}"))?;
        let default_context = context == 0;
        let context = if default_context { DEFAULT_CONTEXT } else { context };
        let id = Llm::new(&mut system.ffa, partition, &mut || {})
            .open(shared, context)
            .map_err(|e| format!("opening a session: {e}"))?;
        Ok((Self { partition, id, lent: Vec::new(), granules_lent: 0, shared, default_context }, ring))
    }

    /// Opens the session again with the model's own context: the default is more than it can do.
    fn reopen(&mut self, system: &mut System) -> Result<(), llm::Error> {
        let mut ignore = || {};
        let mut service = self.service(system, &mut ignore);
        service.close(self.id)?;
        self.id = service.open(self.shared, MODEL_CONTEXT)?;
        self.default_context = false;
        Ok(())
    }

    /// Reads the model into pages of the pool, lends them segment by segment, and the workspace behind them. Segments that another
    /// session of the same model has loaded are shared with it.
    ///
    /// # Errors
    ///
    /// There is too little memory, the disk failed, or FF-A or the partition refused.
    pub fn load(&mut self, system: &mut System, model: &mut Container) -> Result<(), String> {
        let total = model.granules();
        let mut done = 0;
        let mut workspace = 0;
        for (index, segment) in model.segments.clone().iter().enumerate() {
            // Segment 0 alone says whether the others must be lent.
            if index == 1 {
                check_memory(system, "the model", total - done)?;
            }
            let pages = system.pages.allocate(segment.granules as usize).map_err(|e| format!("{e}"))?;
            model.read(segment, &pages)?;
            let loaded = self
                .lend_and_load(system, pages, index as u64)
                .map_err(|e| format!("loading segment {index}: {e}"))?;
            workspace = loaded.workspace_granules;
            done += u64::from(segment.granules);
            record::emit(&Record::Progress { what: "loading the model (granules)".into(), done, total });
            if loaded.loaded == loaded.segments {
                break;
            }
        }
        check_memory(system, "the model's working memory", workspace)?;
        let pages = system.pages.allocate(workspace as usize).map_err(|e| format!("{e}"))?;
        self.lend_and_load(system, pages, WORKSPACE)
            .map_err(|e| format!("loading the working memory: {e}"))?;
        Ok(())
    }

    /// Lends pages that hold a segment, and has the partition load it.
    ///
    /// # Errors
    ///
    /// FF-A or the partition refused.
    pub fn lend_and_load(
        &mut self,
        system: &mut System,
        pages: Vec<u64>,
        segment: u64,
    ) -> Result<Loaded, llm::Error> {
        let lent = system.lend(self.partition, pages)?;
        let handle = lent.handle;
        self.granules_lent += lent.pages.len() as u64;
        self.lent.push(lent);
        let answer = match self.service(system, &mut || {}).load(self.id, handle, segment) {
            Err(llm::Error::Refused(Status::InvalidParameters, ..))
                if segment == 0 && self.default_context =>
            {
                self.reopen(system)?;
                self.service(system, &mut || {}).load(self.id, handle, segment)
            }
            answer => answer,
        };
        if let Ok(Loaded { shared: true, .. }) = answer
            && let Some(lent) = self.lent.pop()
        {
            system.reclaim(&lent)?;
        }
        answer
    }

    /// The partition's service.
    pub fn service<'a>(
        &self,
        system: &'a mut System,
        interrupted: &'a mut dyn FnMut(),
    ) -> Llm<'a, 'static, Smc> {
        Llm::new(&mut system.ffa, self.partition, interrupted)
    }

    /// Recalls every granule that was lent in this session, closes it and reclaims all memory. If weights that another session uses
    /// were lent in this one, they are recalled from both.
    ///
    /// # Errors
    ///
    /// FF-A or the partition refused, or the partition named a handle that was never lent to it.
    pub fn close(mut self, system: &mut System) -> Result<Returned, String> {
        let mut returned = Returned::default();
        loop {
            let lent = self.lent.iter().map(|lent| lent.pages.len() as u64).sum();
            let recalled = self
                .service(system, &mut || {})
                .recall(self.id, lent)
                .map_err(|e| format!("recalling memory: {e}"))?;
            if recalled.handles.is_empty() {
                break;
            }
            for handle in recalled.handles {
                let index = self.lent.iter().position(|lent| lent.handle == handle);
                let index = index
                    .ok_or_else(|| format!("RECALL gave up handle {handle:#x}, which was never lent"))?;
                let lent = self.lent.swap_remove(index);
                returned.add(system, &lent)?;
            }
        }
        self.service(system, &mut || {}).close(self.id).map_err(|e| format!("closing the session: {e}"))?;
        for lent in &self.lent {
            returned.add(system, lent)?;
        }
        system.ffa.reclaim(self.shared).map_err(|e| format!("reclaiming the shared buffer: {e}"))?;
        Ok(returned)
    }
}

impl Returned {
    fn add(&mut self, system: &mut System, lent: &Lent) -> Result<(), String> {
        let nonzero =
            system.reclaim(lent).map_err(|e| format!("reclaiming handle {:#x}: {e}", lent.handle))?;
        self.granules += lent.pages.len() as u64;
        self.nonzero += nonzero;
        Ok(())
    }
}

fn check_memory(system: &System, what: &str, granules: u64) -> Result<(), String> {
    let free = system.pages.free() as u64;
    if granules > free {
        let mebibytes = |granules: u64| (granules * GRANULE_SIZE as u64).div_ceil(1 << 20);
        return Err(format!(
            "{what} needs {} MiB, but only {} MiB can be lent: take a smaller model, or give the machine more memory",
            mebibytes(granules),
            mebibytes(free)
        ));
    }
    Ok(())
}
