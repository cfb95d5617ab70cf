//! Which kernel of an Arm CPU multiplies what.

use core::ops::Range;

use crate::activations::{Activations, BATCH_MIN};
use crate::isa::Kernel;
use crate::matmul::Report;
use crate::matrix::Matrix;
use crate::{batch, dotprod, neon, sve};

/// Multiplies groups of rows with every token.
///
/// # Safety
/// The CPU has what `kernel` needs.
pub(crate) unsafe fn multiply(
    kernel: Kernel,
    weights: &Matrix,
    groups: Range<usize>,
    x: &Activations,
    report: &impl Report,
) {
    if x.tokens() >= BATCH_MIN {
        // SAFETY: the caller's promise.
        unsafe { batch::multiply(kernel, weights, groups, x, report) };
        return;
    }
    for token in 0..x.tokens() {
        let (words, sums) = (x.words(token), x.sums(token));
        let mut index = groups.start;
        if matches!(kernel, Kernel::Sve32 | Kernel::Sve64) {
            while index < groups.end {
                let (whole, four) = (kernel == Kernel::Sve64, groups.end - index >= sve::GROUPS);
                // SAFETY: the caller's promise.
                index += unsafe {
                    match (whole, four) {
                        (true, true) => {
                            scalable::<64, { sve::GROUPS }>(weights, index, token, (words, sums), report)
                        }
                        (true, false) => scalable::<64, 1>(weights, index, token, (words, sums), report),
                        (false, true) => {
                            scalable::<32, { sve::GROUPS }>(weights, index, token, (words, sums), report)
                        }
                        (false, false) => scalable::<32, 1>(weights, index, token, (words, sums), report),
                    }
                };
            }
            continue;
        }
        let mut rest = weights.groups_in(groups.clone());
        while let Some(group) = rest.next() {
            // SAFETY: the caller's promise.
            let y = unsafe {
                match kernel {
                    Kernel::Dotprod | Kernel::I8mm => {
                        if let Some(next) = rest.next() {
                            let [first, second] = dotprod::groups([&group, &next], words, sums);
                            report(index, group.head, token, &[first]);
                            report(index + 1, next.head, token, &[second]);
                            index += 2;
                            continue;
                        }
                        dotprod::groups([&group], words, sums)
                    }
                    _ => [neon::group(&group, words, sums)],
                }
            };
            report(index, group.head, token, &y);
            index += 1;
        }
    }
}

/// Multiplies `G` groups from `index` on with a token, with scalable vectors of `LENGTH` bytes; answers how many.
///
/// # Safety
/// The CPU has what [`sve::groups`] needs.
#[inline]
unsafe fn scalable<const LENGTH: usize, const G: usize>(
    weights: &Matrix,
    index: usize,
    token: usize,
    x: (&[i16], &[i32]),
    report: &impl Report,
) -> usize {
    let (bytes, each) = (weights.bytes(index..index + G), weights.group_bytes());
    // SAFETY: the caller's promise.
    let sums = unsafe { sve::groups::<LENGTH, G>(weights.format(), bytes, x.0, x.1) };
    for (i, (group, sums)) in bytes.chunks_exact(each).zip(sums).enumerate() {
        let head = group.first_chunk().expect("a group is longer than its head");
        report(index + i, head, token, &[sums]);
    }
    G
}
