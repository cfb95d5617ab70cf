//! Lent cores as workers of a partition: which core works, and who sleeps until something happens.
//!
//! Nothing here is locked, so that a core can be taken from a partition while another one is in the middle of a call. All
//! accesses are sequentially consistent: each side announces itself before it looks for the other.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use flexserve_abi::{el3::MAX_CORES, workers::Answer};

/// Cores, as a mask of their numbers.
pub type Mask = u32;

/// No partition takes workers.
const NOBODY: usize = usize::MAX;

/// How a core begins to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Index of the partition.
    pub partition: usize,
    /// Where.
    pub entry: u64,
    /// As what.
    pub incarnation: u64,
}

/// The workers of the one partition that takes some.
#[derive(Debug)]
pub struct Workers {
    partition: AtomicUsize,
    entry: AtomicU64,
    events: AtomicU64,
    /// Cores that sleep in `WAIT`, or are about to.
    sleeping: AtomicU32,
    /// Lent cores that have nothing to do.
    idle: AtomicU32,
    /// Incarnations so far.
    count: AtomicU64,
    /// By core, the incarnation that runs there, or 0.
    running: [AtomicU64; MAX_CORES],
}

impl Workers {
    /// Nobody works.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            partition: AtomicUsize::new(NOBODY),
            entry: AtomicU64::new(0),
            events: AtomicU64::new(0),
            sleeping: AtomicU32::new(0),
            idle: AtomicU32::new(0),
            count: AtomicU64::new(0),
            running: [const { AtomicU64::new(0) }; MAX_CORES],
        }
    }

    /// A partition takes workers from now on, who begin at `entry`. Answers the cores to interrupt, or `None` if another
    /// partition takes them, or this one has said so before.
    pub fn employ(&self, partition: usize, entry: u64) -> Option<Mask> {
        self.entry.compare_exchange(0, entry, SeqCst, SeqCst).ok()?;
        self.partition.store(partition, SeqCst);
        Some(self.idle.load(SeqCst))
    }

    /// A partition takes no workers any more. Answers the cores to interrupt, none if the workers are another partition's; they
    /// have stopped when [`Self::running`] holds none of them.
    pub fn dismiss(&self, partition: usize) -> Mask {
        if self.partition.compare_exchange(partition, NOBODY, SeqCst, SeqCst).is_err() {
            return 0;
        }
        self.entry.store(0, SeqCst);
        self.running()
    }

    /// Cores that run workers.
    pub fn running(&self) -> Mask {
        let bit =
            |(core, incarnation): (usize, &AtomicU64)| Mask::from(incarnation.load(SeqCst) != 0) << core;
        self.running.iter().enumerate().map(bit).sum()
    }

    /// A lent core asks for work. Without an answer it counts as idle, and is interrupted when there is some.
    pub fn begin(&self, core: usize) -> Option<Start> {
        self.idle.fetch_or(1 << core, SeqCst);
        let incarnation = self.count.fetch_add(1, SeqCst) + 1;
        self.running[core].store(incarnation, SeqCst);
        let (partition, entry) = (self.partition.load(SeqCst), self.entry.load(SeqCst));
        if partition == NOBODY || entry == 0 {
            self.running[core].store(0, SeqCst);
            return None;
        }
        self.idle.fetch_and(!(1 << core), SeqCst);
        Some(Start { partition, entry, incarnation })
    }

    /// Whether a core that works may go on.
    pub fn may_run(&self, start: &Start) -> bool {
        self.partition.load(SeqCst) == start.partition
    }

    /// A core works no more: its worker's registers are gone, and what it wrote is written. Answers the cores to interrupt.
    pub fn end(&self, core: usize) -> Mask {
        self.sleeping.fetch_and(!(1 << core), SeqCst);
        self.running[core].store(0, SeqCst);
        self.signal()
    }

    /// A core leaves for the normal world.
    pub fn leave(&self, core: usize) {
        self.idle.fetch_and(!(1 << core), SeqCst);
    }

    /// Counts an event. Answers the cores to interrupt.
    pub fn signal(&self) -> Mask {
        self.events.fetch_add(1, SeqCst);
        self.sleeping.load(SeqCst)
    }

    /// A core wants to sleep. `false` if the count of events is not `seen`; else it sleeps, and [`Self::wake`] follows.
    pub fn sleep(&self, core: usize, seen: u64) -> bool {
        self.sleeping.fetch_or(1 << core, SeqCst);
        let sleeps = self.events.load(SeqCst) == seen;
        if !sleeps {
            self.wake(core);
        }
        sleeps
    }

    /// A core sleeps no more.
    pub fn wake(&self, core: usize) {
        self.sleeping.fetch_and(!(1 << core), SeqCst);
    }

    /// What `WAIT` and `SIGNAL` answer.
    pub fn answer(&self) -> Answer {
        Answer {
            events: self.events.load(SeqCst),
            workers: core::array::from_fn(|core| self.running[core].load(SeqCst)),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    const ENTRY: u64 = 0x0e50_5000;

    #[test]
    fn a_core_without_work_is_idle_until_there_is_some() {
        let workers = Workers::new();
        assert_eq!(workers.begin(3), None);
        assert_eq!(workers.running(), 0);
        assert_eq!(workers.employ(0, ENTRY), Some(1 << 3));
        assert_eq!(workers.begin(3), Some(Start { partition: 0, entry: ENTRY, incarnation: 2 }));
        assert_eq!((workers.running(), workers.idle.load(SeqCst)), (1 << 3, 0));
    }

    #[test]
    fn one_partition_takes_workers() {
        let workers = Workers::new();
        assert_eq!(workers.employ(0, ENTRY), Some(0));
        assert_eq!(workers.employ(1, ENTRY), None);
        assert_eq!(workers.employ(0, ENTRY + 4), None);
        assert_eq!(workers.dismiss(1), 0);
        assert_eq!(workers.dismiss(0), 0);
        assert_eq!(workers.employ(1, ENTRY), Some(0));
    }

    #[test]
    fn dismissed_workers_stop() {
        let workers = Workers::new();
        workers.employ(0, ENTRY).unwrap();
        let (a, b) = (workers.begin(1).unwrap(), workers.begin(2).unwrap());
        assert!(workers.may_run(&a) && workers.may_run(&b) && a.incarnation != b.incarnation);
        assert_eq!(workers.dismiss(0), 1 << 1 | 1 << 2);
        assert!(!workers.may_run(&a) && !workers.may_run(&b));
        workers.end(1);
        assert_eq!(workers.running(), 1 << 2);
        workers.end(2);
        assert_eq!((workers.running(), workers.begin(2)), (0, None));
    }

    #[test]
    fn an_event_wakes_whoever_sleeps_and_is_never_missed() {
        let workers = Workers::new();
        workers.employ(0, ENTRY).unwrap();
        workers.begin(1).unwrap();
        let seen = workers.answer().events;
        assert!(workers.sleep(1, seen) && workers.sleep(0, seen));
        assert_eq!(workers.signal(), 0b11);
        workers.wake(0);
        workers.wake(1);
        assert!(!workers.sleep(0, seen));
        assert_eq!(workers.signal(), 0);
    }

    #[test]
    fn the_end_of_a_worker_is_an_event_and_its_incarnation_never_comes_back() {
        let workers = Workers::new();
        workers.employ(0, ENTRY).unwrap();
        let first = workers.begin(5).unwrap();
        assert_eq!(workers.answer().workers[5], first.incarnation);
        let seen = workers.answer().events;
        assert!(workers.sleep(0, seen) && workers.sleep(5, seen));
        assert_eq!(workers.end(5), 1 << 0);
        assert_eq!((workers.answer().workers[5], workers.answer().events), (0, seen + 1));
        assert_ne!(workers.begin(5).unwrap().incarnation, first.incarnation);
        workers.end(5);
        workers.begin(5).unwrap();
        workers.leave(5);
    }
}
