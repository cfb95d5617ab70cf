//! A session: what the normal world has lent to it, and which requests it answers by itself.

use crate::{
    answer,
    desk::{Desk, Event},
    memory::{Borrow, SharedBytes},
    reply::{Args, Reply, failure, success},
    ring::Ring,
    weights::{Given, Region, status},
};
use flexserve_abi::{
    GRANULE_SIZE,
    service::{MAX_CONTEXT, Op, State, Status, VERSION, WORKSPACE},
};
use flexserve_container::Manifest;

/// All that one session holds for itself.
pub struct Session<B: Borrow> {
    /// The context that was asked for; 0 is the model's.
    context: u64,
    /// Once segment 0 has been proven.
    pub model: Option<Membership>,
    pub shared: B::Shared,
    pub ring: Ring,
    pub workspace: Option<Region<B>>,
}

/// Which model a session is of, and what it needs for it.
#[derive(Clone, Copy)]
pub struct Membership {
    /// Where the weights are.
    pub place: usize,
    /// Tokens.
    pub context: usize,
    workspace_bytes: usize,
}

impl<B: Borrow> Session<B> {
    /// `OPEN`.
    ///
    /// # Errors
    ///
    /// [`Status::InvalidParameters`], [`Status::BadMemory`], [`Status::BadRing`]; nothing stays borrowed then.
    pub fn open(number: u64, args: &Args, borrower: &mut B) -> Result<(Self, Reply), Status> {
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
        let session = Self { context, model: None, shared, ring, workspace: None };
        Ok((session, success(&[number, VERSION.into()])))
    }

    /// Answers requests up to `CLOSE`.
    pub async fn serve(mut self, desk: &Desk<'_, B>) {
        let mut event = desk.event().await;
        loop {
            // Who does not compute has nothing to let go.
            let Event::Request(op, args) = event else {
                event = desk.event().await;
                continue;
            };
            let reply = match op {
                Op::Load => self.load(&args, desk),
                Op::Recall => self.recall(&args, desk).await,
                Op::Status => self.status(desk),
                Op::Generate if self.complete(desk) => {
                    event = answer::serve(&mut self, desk, args).await;
                    continue;
                }
                Op::Close => break,
                Op::Open | Op::Generate | Op::Next => failure(Status::WrongState),
            };
            desk.answer(reply);
            event = desk.event().await;
        }
        desk.answer(self.close(desk));
    }

    /// Whether all segments and the workspace are there.
    fn complete(&self, desk: &Desk<'_, B>) -> bool {
        let weights = self.model.map(|model| desk.places[model.place].weights.borrow());
        weights.is_some_and(|weights| weights.complete()) && self.workspace.is_some()
    }

    /// `LOAD`.
    fn load(&mut self, args: &Args, desk: &Desk<'_, B>) -> Reply {
        let [handle, index] = [args[1], args[2]];
        let Some(bytes) = desk.borrowing(|borrower| borrower.lent(handle)) else {
            return failure(Status::BadMemory);
        };
        let region = Region::new(handle, bytes);
        let result = match index {
            0 => self.load_manifest(region, desk),
            WORKSPACE => self.load_workspace(region),
            _ => self.load_segment(index, region, desk),
        };
        match result {
            Ok(()) => self.progress(desk, false),
            Err((status, region)) => {
                desk.borrowing(|borrower| borrower.give_up(region.bytes));
                if status == Status::Success { self.progress(desk, true) } else { failure(status) }
            }
        }
    }

    /// Segment 0, which says what model this is. If another session has it, it goes back with [`Status::Success`].
    fn load_manifest(&mut self, region: Region<B>, desk: &Desk<'_, B>) -> Result<(), (Status, Region<B>)> {
        let held = |model: Option<Membership>| {
            model.is_some_and(|model| desk.places[model.place].weights.borrow().has(0))
        };
        if held(self.model) {
            return Err((Status::WrongState, region));
        }
        match self.join(&region.bytes, desk) {
            Ok(()) if held(self.model) => Err((Status::Success, region)),
            Ok(()) => self.load_segment(0, region, desk),
            Err(status) => Err((status, region)),
        }
    }

    /// Proves segment 0, and makes this a session of its model if it is of none.
    fn join(&mut self, bytes: &[u8], desk: &Desk<'_, B>) -> Result<(), Status> {
        let manifest = Manifest::parse(bytes).map_err(status)?;
        let (params, header) = (manifest.params(), manifest.header());
        let id = *header.sha256();
        if let Some(model) = self.model {
            return if desk.places[model.place].is_of(&id) { Ok(()) } else { Err(Status::BadHash) };
        }
        let most = params.context as usize;
        let context = if self.context == 0 { most } else { self.context as usize };
        if context > most {
            return Err(Status::InvalidParameters);
        }
        let mut places = desk.places.iter();
        let place = places.position(|place| place.is_of(&id));
        // There are as many places as sessions.
        let place =
            place.or_else(|| desk.places.iter().position(|place| place.is_free())).ok_or(Status::Busy)?;
        desk.places[place].join(id, header.segment_count());
        let workspace_bytes = flexserve_llm::generator::memory_bytes(&manifest, context);
        self.model = Some(Membership { place, context, workspace_bytes });
        Ok(())
    }

    fn load_workspace(&mut self, region: Region<B>) -> Result<(), (Status, Region<B>)> {
        match self.model {
            Some(_) if self.workspace.is_some() => Err((Status::WrongState, region)),
            Some(model) if region.bytes.len() < model.workspace_bytes => Err((Status::BadMemory, region)),
            Some(_) => {
                self.workspace = Some(region);
                Ok(())
            }
            None => Err((Status::WrongState, region)),
        }
    }

    fn load_segment(
        &self,
        index: u64,
        region: Region<B>,
        desk: &Desk<'_, B>,
    ) -> Result<(), (Status, Region<B>)> {
        let Some(model) = self.model else { return Err((Status::WrongState, region)) };
        let Ok(index) = usize::try_from(index) else { return Err((Status::InvalidParameters, region)) };
        let weights = &desk.places[model.place].weights;
        if let Err(status) = weights.borrow().prove(index, &region.bytes) {
            return Err((status, region));
        }
        // A segment is missing, so that nobody computes with the others.
        match weights.try_borrow_mut() {
            Ok(mut weights) => weights.put(index, region),
            Err(_) => return Err((Status::WrongState, region)),
        }
        Ok(())
    }

    /// What `LOAD` answers; `held` if the region went back because another session has loaded the same.
    fn progress(&self, desk: &Desk<'_, B>, held: bool) -> Reply {
        let Some(model) = self.model else { return success(&[]) };
        let weights = desk.places[model.place].weights.borrow();
        let granules = model.workspace_bytes.div_ceil(GRANULE_SIZE);
        success(&[weights.count() as u64, weights.loaded().count() as u64, granules as u64, held.into()])
    }

    /// `RECALL`: weights, then the workspace; the other way round if others need the weights as well.
    async fn recall(&mut self, args: &Args, desk: &Desk<'_, B>) -> Reply {
        let wanted = args[1];
        let mut given = Given::default();
        let place = self.model.map(|model| model.place);
        if place.is_some_and(|place| desk.places[place].is_shared()) {
            desk.borrowing(|borrower| given.take(&mut self.workspace, wanted, borrower));
        }
        if let Some(place) = place.filter(|_| given.granules < wanted) {
            desk.alone_with(place).await;
            if let Ok(mut weights) = desk.places[place].weights.try_borrow_mut() {
                desk.borrowing(|borrower| weights.recall(&mut given, wanted, borrower));
            }
        }
        desk.borrowing(|borrower| given.take(&mut self.workspace, wanted, borrower));
        let mut reply = success(&[given.granules, given.handles.len() as u64]);
        reply[3..3 + given.handles.len()].copy_from_slice(&given.handles);
        reply
    }

    /// `CLOSE`.
    fn close(self, desk: &Desk<'_, B>) -> Reply {
        desk.borrowing(|borrower| {
            if let Some(model) = self.model {
                desk.places[model.place].leave(borrower);
            }
            if let Some(region) = self.workspace {
                borrower.give_up(region.bytes);
            }
            borrower.give_up_shared(self.shared);
        });
        success(&[])
    }

    /// `STATUS` while nothing is being answered.
    fn status(&self, desk: &Desk<'_, B>) -> Reply {
        let state = if self.complete(desk) { State::Ready } else { State::Loading };
        let mut reply = success(&[state as u64]);
        reply[8] = self.granules(desk);
        reply[9] = desk.own.features.bits();
        reply
    }

    /// Granules that the session holds, and those of its weights.
    pub fn granules(&self, desk: &Desk<'_, B>) -> u64 {
        let weights = self.model.map_or(0, |model| desk.places[model.place].weights.borrow().granules());
        weights + self.workspace.as_ref().map_or(0, Region::granules)
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
