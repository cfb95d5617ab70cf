//! Matrix products, divided among the workers: those that have the same input as one piece of work, as the cores wait for each
//! other behind it.

use flexserve_kernels::activations::Activations;
use flexserve_kernels::format::GROUP;
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul};
use flexserve_kernels::matrix::Matrix;

use crate::Error;
use crate::engine::FRAC;
use crate::workers::{Workers, divide, shared_32};

/// Groups that are not divided: kernels take up to so many at a time.
const TOGETHER: usize = 4;

/// [`matmul`] of all rows of some matrices with as many columns, divided among the workers.
///
/// # Errors
/// Those of [`matmul`].
pub fn multiply(
    isa: Isa,
    workers: &dyn Workers,
    x: &Activations,
    frac: i32,
    products: &[(&Matrix, Output)],
) -> Result<(), Error> {
    let (mut pieces, mut cost) = (0, 0);
    for &(weights, out) in products {
        // If no rows of it fit, no others do, and the other way round.
        matmul(isa, weights, 0..0, x, frac, out)?;
        pieces += weights.groups().div_ceil(TOGETHER);
        cost = TOGETHER * GROUP * weights.cols() * x.tokens();
    }
    divide(workers, pieces, cost, |part| {
        let mut first = 0;
        for &(weights, out) in products {
            let groups = |piece: usize| weights.groups().min(TOGETHER * piece.saturating_sub(first));
            let groups = groups(part.start)..groups(part.end);
            if !groups.is_empty() {
                let done = matmul(isa, weights, groups, x, frac, out);
                debug_assert!(done.is_ok());
            }
            first += weights.groups().div_ceil(TOGETHER);
        }
    });
    Ok(())
}

/// out (tokens, rows) = W x of some matrices, in Q15.16, saturated.
///
/// # Errors
/// Those of [`matmul`].
pub fn project<const N: usize>(
    isa: Isa,
    workers: &dyn Workers,
    x: &Activations,
    products: [(&Matrix, &mut [i32]); N],
) -> Result<(), Error> {
    let products = products.map(|(weights, out)| (weights, Output::Store(shared_32(out))));
    multiply(isa, workers, x, FRAC, &products)
}
