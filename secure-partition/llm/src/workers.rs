//! Several cores for one computation.
//!
//! Work is divided into parts that write different elements of the same array, so who does which part, and in which order,
//! makes no difference to a single bit. A worker can vanish in the middle of a part, and somebody else then does that part
//! again: a part only stores values that do not depend on what was there.

use core::{
    fmt::Debug,
    ops::Range,
    sync::atomic::{AtomicI32, AtomicI64},
};

use zerocopy::{FromBytes, IntoBytes};

/// Multiply-accumulates of one part: far more than it costs to hand a part out, few enough for the last part not to be
/// waited for long.
const PART: usize = 1 << 17;

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

/// Divides `0..items`, each of which costs `cost` multiply-accumulates, among the workers.
pub(crate) fn divide(workers: &dyn Workers, items: usize, cost: usize, work: impl Fn(Range<usize>) + Sync) {
    // Kernels for several tokens take two groups at a time.
    let at_once = if workers.cores() == 1 { items.max(1) } else { (PART / cost.max(1)).max(2) };
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
