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
        let mut rest = weights.groups_in(groups.clone());
        let mut index = groups.start;
        while let Some(group) = rest.next() {
            // SAFETY: the caller's promise.
            let y = unsafe {
                match kernel {
                    Kernel::Dotprod | Kernel::I8mm => {
                        if let Some(next) = rest.next() {
                            let [first, second] = dotprod::groups([&group, &next], words, sums);
                            report(index, group.head, token, &first);
                            report(index + 1, next.head, token, &second);
                            index += 2;
                            continue;
                        }
                        dotprod::groups([&group], words, sums)[0]
                    }
                    Kernel::Sve32 => sve::group::<32>(&group, words, sums),
                    Kernel::Sve64 => sve::group::<64>(&group, words, sums),
                    _ => neon::group(&group, words, sums),
                }
            };
            report(index, group.head, token, &y);
            index += 1;
        }
    }
}
