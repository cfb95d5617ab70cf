//! The kernels in plain Rust: the twin that all others must equal, bit for bit.

use crate::activations::Activations;
use crate::format::{BLOCK, Format, GROUP};
use crate::matrix::{Group, half_word, weight};

/// Sums of one group of rows for some tokens: `[token][row]`, to be multiplied by 2^-(row's shift + token's exponent).
pub type Sums<const N: usize> = [[i64; GROUP]; N];

/// Multiplies one group of rows with `N` tokens from the `first` on. See [`crate::matmul`] for why nothing overflows.
pub(crate) fn group<const N: usize>(group: &Group, x: &Activations, first: usize) -> Sums<N> {
    let mut out = minima::<N>(group, x, first);
    for (entry, b) in x.entries(first) {
        let block = group.block(b);
        let weights = expand(group.format, block);
        for (token, out) in (first..).zip(&mut out) {
            let octets = x.octets(token, entry).first_chunk().expect("a block");
            add(block, block_dot(&weights, octets), x.scale(token, entry), out);
        }
    }
    out
}

/// Products of a group's minima with block sums.
pub(crate) fn minima<const N: usize>(group: &Group, x: &Activations, first: usize) -> Sums<N> {
    core::array::from_fn(|i| {
        let shift = 7 + x.sum_shift(first + i);
        let sums = x.sums(first + i).iter().enumerate();
        core::array::from_fn(|row| {
            let products = sums.clone().map(|(b, &sum)| i64::from(group.minimum(b, row)) * i64::from(sum));
            products.sum::<i64>() << shift
        })
    })
}

/// Adds what an entry contributes to each row, `s` being the rows' dot products and `a` the entry's scale.
#[inline]
pub(crate) fn add(block: &[u8], s: [i32; GROUP], a: i32, out: &mut [i64; GROUP]) {
    for (row, (out, s)) in out.iter_mut().zip(s).enumerate() {
        *out += i64::from(half_word(block, row)) * i64::from(s) * i64::from(a);
    }
}

/// The weights of a block, 8 rows of 32 columns.
fn expand(format: Format, block: &[u8]) -> [[i16; BLOCK]; GROUP] {
    core::array::from_fn(|row| core::array::from_fn(|c| weight(format, block, row, c)))
}

/// Dot products of 8 rows with 32 octets.
fn block_dot(weights: &[[i16; BLOCK]; GROUP], x: &[i8; BLOCK]) -> [i32; GROUP] {
    weights.each_ref().map(|row| row.iter().zip(x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum())
}
