//! The kernels in plain Rust: the twin that all others must equal, bit for bit.

use crate::activations::join_sum;
use crate::format::{BLOCK, Format, GROUP};
use crate::matrix::{Group, half_word, weight};

/// Sums of one group of rows for some tokens: `[token][row]`, to be multiplied by 2^-(row's shift + token's exponent).
pub type Sums<const N: usize> = [[i64; GROUP]; N];

/// Multiplies one group of rows with `N` tokens.
///
/// `x` are each token's mantissas in [`crate::activations::Layout::Words`], `sums` its block sums. See [`crate::matmul`] for
/// why nothing overflows.
pub(crate) fn group<const N: usize>(group: &Group, x: [&[i16]; N], sums: [&[i32]; N]) -> Sums<N> {
    let mut out = [[0_i64; GROUP]; N];
    for (b, block) in group.blocks.chunks_exact(group.format.block_bytes()).enumerate() {
        let weights = expand(group.format, block);
        for ((out, x), sums) in out.iter_mut().zip(x).zip(sums) {
            let x: &[i16; BLOCK] = x[b * BLOCK..].first_chunk().expect("as many blocks as weights");
            add(group, b, block, block_dot(&weights, x), sums[b], out);
        }
    }
    out
}

/// Adds what a block contributes to each row, `s` being the rows' dot products.
#[inline]
pub(crate) fn add(group: &Group, b: usize, block: &[u8], s: [i32; GROUP], sum: i32, out: &mut [i64; GROUP]) {
    for (row, (out, s)) in out.iter_mut().zip(s).enumerate() {
        *out += i64::from(half_word(block, row)) * i64::from(s);
        *out += i64::from(group.minimum(b, row)) * 128 * i64::from(join_sum(sum));
    }
}

/// The weights of a block, 8 rows of 32 columns.
fn expand(format: Format, block: &[u8]) -> [[i16; BLOCK]; GROUP] {
    core::array::from_fn(|row| core::array::from_fn(|c| weight(format, block, row, c)))
}

/// Dot products of 8 rows with 32 mantissas.
fn block_dot(weights: &[[i16; BLOCK]; GROUP], x: &[i16; BLOCK]) -> [i32; GROUP] {
    weights.each_ref().map(|row| row.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum())
}
