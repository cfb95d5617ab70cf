//! The same task on all other cores at once, while this one changes what they meet.

use alloc::{boxed::Box, string::String, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::Mutex;

use super::ensure;
use crate::cores;

/// What the tasks on the other cores share with whoever began them.
pub struct Others<T> {
    cores: Vec<usize>,
    shared: Arc<Shared>,
    results: Arc<Mutex<Vec<(usize, T)>>>,
}

/// What a task sees of the one that began it.
#[derive(Default)]
pub struct Shared {
    /// The task is to end.
    pub stop: AtomicBool,
    /// How far whoever began it has come.
    pub step: AtomicU64,
    /// How often each core's task has done what it does.
    rounds: [AtomicU64; cores::MAX_CORES],
}

impl Shared {
    /// The task on this core has done what it does once more.
    pub fn count(&self) {
        self.rounds[cores::current()].fetch_add(1, Ordering::Relaxed);
    }
}

impl<T: Send + 'static> Others<T> {
    /// Begins a task on every core that runs, but this one.
    pub fn begin(task: impl Fn(&Shared) -> T + Send + Sync + 'static) -> Result<Self, String> {
        let cores: Vec<usize> = cores::online().filter(|&core| core != cores::current()).collect();
        ensure!(!cores.is_empty(), "this test needs two cores: --smp 2");
        let (shared, results) = (Arc::new(Shared::default()), Arc::new(Mutex::new(Vec::new())));
        let task = Arc::new(task);
        for &core in &cores {
            let (task, shared, results) = (task.clone(), shared.clone(), results.clone());
            cores::begin(
                core,
                Box::new(move || {
                    let result = task(&shared);
                    results.lock().push((core, result));
                }),
            )?;
        }
        Ok(Self { cores, shared, results })
    }

    /// What the tasks see.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until each core's task has done what it does so many times more, or one has ended.
    pub fn await_rounds(&self, count: u64) {
        let rounds = |core: usize| self.shared.rounds[core].load(Ordering::Relaxed);
        let enough: Vec<_> = self.cores.iter().map(|&core| (core, rounds(core) + count)).collect();
        while enough.iter().any(|&(core, enough)| rounds(core) < enough) && self.results.lock().is_empty() {
            core::hint::spin_loop();
        }
    }

    /// Has the tasks end, and answers what each did, by core.
    pub fn end(self) -> Vec<(usize, T)> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cores.iter().for_each(|&core| cores::wait(core));
        core::mem::take(&mut self.results.lock())
    }
}
