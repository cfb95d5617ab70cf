//! One job at a time, divided among a main context and the workers that happen to be there.
//!
//! The main context opens a job of some parts, takes part itself, and closes it when every part is done. A worker can vanish at
//! any instruction, because its core is recalled: the SPMC says so, and then nothing of it is left, so that the main context
//! does again what the worker had begun.
//!
//! A part's owner is one word: the job's number and who has the part. A worker looks at the job only after it has become the
//! owner of one of its parts, and the job stays open until that part is done or the worker is gone.

use core::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use flexserve_abi::{el3::MAX_CORES, workers::Answer};

/// Most parts of a job.
pub const PARTS: usize = 1024;

/// Who has a part. Workers are named by their incarnation.
const FREE: u32 = 0;
const MAIN: u32 = u32::MAX;
const DONE: u32 = u32::MAX - 1;

/// No count of events: whoever has seen this does not sleep.
const NOT_YET: u64 = u64::MAX;

/// How the SPMC lets contexts sleep and wake each other: [`flexserve_abi::workers`].
pub trait Events {
    /// Sleeps until the count of events differs from `seen`, or a little less.
    fn wait(&self, seen: u64) -> Answer;
    /// Counts an event.
    fn signal(&self) -> Answer;
    /// Looks at `done` for a while, as long as that is cheaper than to sleep. Whether it became true.
    fn spin(&self, done: impl Fn() -> bool) -> bool;
}

/// What all parts of a job have in common.
type Work = *const (dyn Fn(usize) + Sync);

/// The main context's and the workers' common state.
pub struct Team {
    /// The job's number in the upper half, then how many parts it has and how many were handed out, 16 bits each.
    job: AtomicU64,
    work: UnsafeCell<Option<Work>>,
    /// By part: the job's number in the upper half, who has it in the lower.
    owners: [AtomicU64; PARTS],
    /// By core: the incarnation of the worker that was last seen there, and of one that sleeps (or is about to). Or 0.
    present: [AtomicU64; MAX_CORES],
    sleeping: [AtomicU64; MAX_CORES],
    main_sleeps: AtomicBool,
}

// SAFETY: `work` is written by the main context while no part has an owner of the new job, and read by owners of parts. What
// it points to is `Sync` and outlives the job.
unsafe impl Sync for Team {}

const fn word(job: u32, low: u32) -> u64 {
    (job as u64) << 32 | low as u64
}

const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl Team {
    /// Nobody but the main context.
    pub const fn new() -> Self {
        Self {
            job: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            owners: [const { AtomicU64::new(0) }; PARTS],
            present: [const { AtomicU64::new(0) }; MAX_CORES],
            sleeping: [const { AtomicU64::new(0) }; MAX_CORES],
            main_sleeps: AtomicBool::new(false),
        }
    }

    /// Cores that take part as far as is known here, the main context's included.
    pub fn cores(&self) -> usize {
        1 + self.present.iter().filter(|present| present.load(SeqCst) != 0).count()
    }

    /// The main context has `work` done for each part of `0..parts`, at most [`PARTS`], and takes part itself. A part whose
    /// worker vanished is begun again.
    ///
    /// # Panics
    ///
    /// With too many parts.
    pub fn run(&self, events: &impl Events, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        assert!(parts <= PARTS, "a job of {parts} parts");
        let job = halves(self.job.load(SeqCst)).0.wrapping_add(1);
        // Whoever still looks at the last job finds no part of it free, and nothing of this one before `job` says so.
        // SAFETY: no part of any job has an owner who is there. The lifetime ends with this function, and before that all
        // parts are done, and so nobody is an owner any more.
        unsafe { *self.work.get() = Some(core::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work)) };
        for owner in &self.owners[..parts] {
            owner.store(word(job, FREE), SeqCst);
        }
        self.job.store(word(job, (parts as u32) << 16), SeqCst);
        if self.sleeping.iter().any(|sleeping| sleeping.load(SeqCst) != 0) {
            self.ask(|| events.signal());
        }
        while let Some((_, part)) = self.take(MAIN) {
            self.finish(job, part, work);
        }
        for part in 0..parts {
            self.see_done(events, job, part, work);
        }
    }

    /// Takes the next part of the open job, if one is left: the job's number, and the part.
    fn take(&self, who: u32) -> Option<(u32, usize)> {
        loop {
            let now = self.job.load(SeqCst);
            let (job, counts) = halves(now);
            let (parts, next) = (counts >> 16, counts & 0xffff);
            if next >= parts {
                return None;
            }
            if self.job.compare_exchange(now, now + 1, SeqCst, SeqCst).is_ok()
                && self.own(job, next as usize, FREE, who)
            {
                return Some((job, next as usize));
            }
        }
    }

    fn own(&self, job: u32, part: usize, from: u32, to: u32) -> bool {
        self.owners[part].compare_exchange(word(job, from), word(job, to), SeqCst, SeqCst).is_ok()
    }

    fn finish(&self, job: u32, part: usize, work: &(dyn Fn(usize) + Sync)) {
        work(part);
        self.owners[part].store(word(job, DONE), SeqCst);
    }

    /// Waits until a part is done, or does it: nobody may have taken it, or a worker that is gone.
    fn see_done(&self, events: &impl Events, job: u32, part: usize, work: &(dyn Fn(usize) + Sync)) {
        let owner = || halves(self.owners[part].load(SeqCst)).1;
        loop {
            if events.spin(|| owner() == DONE) {
                return;
            }
            if owner() == FREE && self.own(job, part, FREE, MAIN) {
                return self.finish(job, part, work);
            }
            self.main_sleeps.store(true, SeqCst);
            let who = owner();
            if who != FREE && who != DONE {
                // First the answer, then the owner again: whatever happens behind that look is an event behind that answer.
                let now = self.ask(|| events.wait(NOT_YET));
                let there = now.workers.iter().any(|&incarnation| incarnation as u32 == who);
                if !there && self.own(job, part, who, MAIN) {
                    self.finish(job, part, work);
                } else if there && owner() == who {
                    self.ask(|| events.wait(now.events));
                }
            }
            self.main_sleeps.store(false, SeqCst);
        }
    }

    /// The main context asks the SPMC, and forgets workers that are gone: those that were there before it asked, and are not in
    /// the answer.
    fn ask(&self, ask: impl FnOnce() -> Answer) -> Answer {
        let before: [u64; MAX_CORES] = core::array::from_fn(|core| self.present[core].load(SeqCst));
        let answer = ask();
        for (core, (before, now)) in before.into_iter().zip(answer.workers).enumerate() {
            if before != now {
                // Unless a new one has come meanwhile.
                let _ = self.sleeping[core].compare_exchange(before, 0, SeqCst, SeqCst);
                let _ = self.present[core].compare_exchange(before, 0, SeqCst, SeqCst);
            }
        }
        answer
    }

    /// What a worker does, for as long as it exists: parts of jobs.
    pub fn work(&self, events: &impl Events, core: usize, incarnation: u64) -> ! {
        self.present[core].store(incarnation, SeqCst);
        let mut seen = 0;
        loop {
            if let Some((job, part)) = self.take(incarnation as u32) {
                // SAFETY: this worker owns a part of the job, which stays open until that is done: the pointer is what `run`
                // has put there, and valid.
                let work = unsafe { (*self.work.get()).map(|work| &*work) };
                self.finish(job, part, work.expect("an open job has work"));
                if self.main_sleeps.load(SeqCst) {
                    seen = events.signal().events;
                }
            } else if !events.spin(|| self.has_parts()) {
                self.sleeping[core].store(incarnation, SeqCst);
                if !self.has_parts() {
                    seen = events.wait(seen).events;
                }
                self.sleeping[core].store(0, SeqCst);
            }
        }
    }

    fn has_parts(&self) -> bool {
        let counts = halves(self.job.load(SeqCst)).1;
        counts & 0xffff < counts >> 16
    }
}

/// Looks at `done` so many times.
pub fn spin(turns: usize, done: impl Fn() -> bool) -> bool {
    for _ in 0..turns {
        if done() {
            return true;
        }
        spin_loop();
    }
    done()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::{
        panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
        sync::{Arc, Condvar, Mutex},
        thread,
        vec::Vec,
    };

    /// A panic's payload: the core was recalled.
    struct Recalled;

    /// The SPMC. A context that calls it after the end of the test ends.
    #[derive(Clone, Default)]
    struct Fake(Arc<(Mutex<(Answer, bool)>, Condvar)>);

    impl Fake {
        fn change(&self, change: impl FnOnce(&mut Answer)) -> Answer {
            let (lock, wakes) = &*self.0;
            let mut state = lock.lock().unwrap();
            change(&mut state.0);
            state.0.events += 1;
            wakes.notify_all();
            if state.1 {
                drop(state);
                resume_unwind(std::boxed::Box::new(Recalled));
            }
            state.0
        }

        fn end(&self) {
            self.0.0.lock().unwrap().1 = true;
            self.0.1.notify_all();
        }
    }

    impl Events for Fake {
        fn wait(&self, seen: u64) -> Answer {
            let (lock, wakes) = &*self.0;
            let state = wakes.wait_while(lock.lock().unwrap(), |s| s.0.events == seen && !s.1).unwrap();
            if state.1 {
                drop(state);
                resume_unwind(std::boxed::Box::new(Recalled));
            }
            state.0
        }

        fn signal(&self) -> Answer {
            self.change(|_| {})
        }

        fn spin(&self, done: impl Fn() -> bool) -> bool {
            spin(20, done)
        }
    }

    /// Runs `jobs` jobs of `parts` parts with `workers` threads, whose every `vanish`th part ends them; a new worker comes in their
    /// place.
    fn play(workers: usize, jobs: usize, parts: usize, vanish: usize) {
        let team: &Team = std::boxed::Box::leak(std::boxed::Box::new(Team::new()));
        let fake = Fake::default();
        let doomed = Arc::new(AtomicU64::new(0));
        let main = thread::current().id();
        let threads: Vec<_> = (0..workers)
            .map(|core| {
                let fake = fake.clone();
                thread::spawn(move || {
                    for life in 1.. {
                        let incarnation = (life * MAX_CORES + core) as u64;
                        fake.0.0.lock().unwrap().0.workers[core] = incarnation;
                        let run = || -> () { team.work(&fake, core, incarnation) };
                        let end = catch_unwind(AssertUnwindSafe(run)).expect_err("work never ends by itself");
                        assert!(end.is::<Recalled>(), "a worker panicked");
                        if fake.0.0.lock().unwrap().1 {
                            return;
                        }
                        fake.change(|answer| answer.workers[core] = 0);
                    }
                })
            })
            .collect();
        for job in 0..jobs as u64 {
            let out: Vec<AtomicU64> = (0..parts).map(|_| AtomicU64::new(0)).collect();
            team.run(&fake, parts, &|part| {
                let is_main = thread::current().id() == main;
                out[part].store(u64::MAX, SeqCst);
                for _ in 0..if is_main { 20 } else { 0 } {
                    thread::yield_now();
                }
                if !is_main && vanish != 0 && doomed.fetch_add(1, SeqCst).is_multiple_of(vanish as u64) {
                    resume_unwind(std::boxed::Box::new(Recalled));
                }
                out[part].store(job ^ part as u64, SeqCst);
            });
            for (part, out) in out.iter().enumerate() {
                assert_eq!(out.load(SeqCst), job ^ part as u64, "part {part} of job {job}");
            }
        }
        assert!(vanish == 0 || doomed.load(SeqCst) > 0, "no worker took part");
        fake.end();
        for thread in threads {
            // One may have been told of the end while it reported its own.
            assert!(thread.join().map_or_else(|end| end.is::<Recalled>(), |()| true), "a worker panicked");
        }
    }

    #[test]
    fn a_main_context_alone_does_everything() {
        play(0, 3, 7, 0);
        play(0, 2, 0, 0);
        play(0, 2, PARTS, 0);
    }

    #[test]
    fn workers_take_part() {
        for parts in [1, 2, 16, 300] {
            play(3, 300, parts, 0);
        }
    }

    #[test]
    fn what_a_vanished_worker_had_begun_is_done_again() {
        for vanish in [1, 2, 7] {
            play(3, 300, 13, vanish);
        }
    }
}
