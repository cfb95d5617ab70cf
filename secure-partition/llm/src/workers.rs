//! Several cores for one computation.
//!
//! Work is divided into parts that write different elements of the same array, so who does which part, and in which order,
//! makes no difference to a single bit. A worker can vanish in the middle of a part, and somebody else then does that part
//! again, maybe at the same time: a part only stores values that do not depend on what was there, and has its scratch on the
//! stack.

use core::{
    fmt::Debug,
    ops::Range,
    sync::atomic::{AtomicI32, AtomicI64},
};

use zerocopy::{FromBytes, IntoBytes};

/// Multiply-accumulates of a part, at least: far more than it costs to begin a part. And at most, if that can be.
const LEAST: usize = 1 << 15;
const MOST: usize = 1 << 17;
/// Parts for each core: few, and the last one is not waited for long.
const PER_CORE: usize = 4;

/// Whoever computes together with the calling core.
pub trait Workers: Debug + Sync {
    /// Most cores that take part, the calling one included.
    fn cores(&self) -> usize;

    /// Calls `work` with every part of `0..parts` at least once, on any cores and at the same time, and returns when all
    /// is done.
    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync));
}

/// The calling core does everything.
#[derive(Debug)]
pub struct Alone;

impl Workers for Alone {
    fn cores(&self) -> usize {
        1
    }

    fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..parts).for_each(work);
    }
}

/// Divides `0..items`, each of which costs as much as `cost` multiply-accumulates of a matrix product, among the workers.
pub(crate) fn divide(workers: &dyn Workers, items: usize, cost: usize, work: impl Fn(Range<usize>) + Sync) {
    let at_once = match workers.cores() {
        0 | 1 => items.max(1),
        cores => {
            let bound = |part: usize| (part / cost.max(1)).max(1);
            items.div_ceil(PER_CORE * cores).clamp(bound(LEAST), bound(MOST))
        }
    };
    workers.run(items.div_ceil(at_once), &|part| {
        let first = part * at_once;
        work(first..items.min(first + at_once));
    });
}

/// An array that several cores write different elements of.
pub(crate) fn shared_32(values: &mut [i32]) -> &[AtomicI32] {
    <[AtomicI32]>::mut_from_bytes(values.as_mut_bytes()).expect("an atomic has the layout of its integer")
}

/// An array that several cores write different elements of.
pub(crate) fn shared_64(values: &mut [i64]) -> &[AtomicI64] {
    <[AtomicI64]>::mut_from_bytes(values.as_mut_bytes()).expect("an atomic has the layout of its integer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::Mutex, vec, vec::Vec};

    /// So many cores, one after the other.
    #[derive(Debug)]
    struct Cores(usize);

    impl Workers for Cores {
        fn cores(&self) -> usize {
            self.0
        }

        fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
            (0..parts).rev().for_each(work);
        }
    }

    fn parts(cores: usize, items: usize, cost: usize) -> Vec<Range<usize>> {
        let parts = Mutex::new(vec![]);
        divide(&Cores(cores), items, cost, |part| parts.lock().unwrap().push(part));
        let mut parts = parts.into_inner().unwrap();
        parts.sort_by_key(|part| part.start);
        parts
    }

    #[test]
    fn every_item_is_in_one_part() {
        for cores in [0, 1, 2, 8] {
            for items in [0, 1, 2, 9, 97, 3072] {
                for cost in [0, 1, 18432, LEAST, MOST, usize::MAX] {
                    let all: Vec<usize> = parts(cores, items, cost).into_iter().flatten().collect();
                    assert_eq!(all, (0..items).collect::<Vec<_>>(), "{items} of {cost} on {cores} cores");
                }
            }
        }
    }

    #[test]
    fn parts_are_neither_too_small_nor_too_large() {
        // One core does all at once.
        assert_eq!(parts(1, 3072, 18432).len(), 1);
        // Four for each core, as long as that is worth it.
        assert_eq!(parts(2, 32, 18432).len(), 8);
        assert_eq!(parts(8, 32, 18432).len(), 32);
        assert_eq!(parts(2, 9, 10).len(), 1);
        assert_eq!(parts(2, 700, 18432).len(), 100);
    }
}
