//! Which kernel of an Arm CPU multiplies what.

use core::ops::Range;

use crate::activations::{Activations, BATCH_MIN, Runs};
use crate::format::{BLOCK, GROUP};
use crate::isa::Kernel;
use crate::matmul::Report;
use crate::matrix::Matrix;
use crate::{batch, dotprod, neon, sve};

/// Groups whose sums are reported at once.
const AT_ONCE: usize = 16;

/// Multiplies groups of rows with every token. What is done with the sums of some groups and a token: `report_groups(first
/// group, token, sums)`.
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn multiply(
    kernel: Kernel,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    report: &impl Report,
    report_groups: &impl Fn(usize, usize, &[[i64; GROUP]]),
) {
    if x.tokens() >= BATCH_MIN {
        // SAFETY: the caller's promise.
        unsafe { batch::multiply(kernel, weights, groups, x, report) };
        return;
    }
    for token in 0..x.tokens() {
        let runs = &x.runs(token, 0..x.cols() / BLOCK);
        for first in groups.clone().step_by(AT_ONCE) {
            let mut room = [[0; GROUP]; AT_ONCE];
            let out = &mut room[..groups.end.min(first + AT_ONCE) - first];
            // SAFETY: the caller's promise.
            unsafe {
                match kernel {
                    Kernel::Dotprod | Kernel::I8mm => dotprod::groups(weights, first, x, token, runs, out),
                    Kernel::Sve64 => scalable::<64, false>(weights, first, x, token, runs, out),
                    Kernel::Sve2x32 => scalable::<32, true>(weights, first, x, token, runs, out),
                    Kernel::Sve2x64 => scalable::<64, true>(weights, first, x, token, runs, out),
                    _ => {
                        for (group, out) in weights.groups_in(first..first + out.len()).zip(out.iter_mut()) {
                            *out = neon::group(&group, x, token, runs);
                        }
                    }
                }
            }
            report_groups(first, token, out);
        }
    }
}

/// Multiplies groups from the `first` on with a token, with scalable vectors of `LENGTH` bytes, of the second version if `TWO`.
///
/// # Safety
/// The CPU has what [`sve::groups`] needs.
#[inline]
unsafe fn scalable<const LENGTH: usize, const TWO: bool>(
    weights: &Matrix,
    first: usize,
    x: &Activations,
    token: usize,
    runs: &Runs,
    out: &mut [[i64; GROUP]],
) {
    let format = weights.format();
    let (fours, rest) = out.as_chunks_mut::<{ sve::GROUPS }>();
    let whole = fours.len() * sve::GROUPS;
    // SAFETY: the caller's promise.
    unsafe {
        for (i, out) in fours.iter_mut().enumerate() {
            let at = first + i * sve::GROUPS;
            let groups = weights.bytes(at..at + sve::GROUPS);
            *out = sve::groups::<LENGTH, TWO, { sve::GROUPS }>(format, groups, x, token, runs);
        }
        for (i, out) in rest.iter_mut().enumerate() {
            let at = first + whole + i;
            [*out] = sve::groups::<LENGTH, TWO, 1>(format, weights.bytes(at..at + 1), x, token, runs);
        }
    }
}
