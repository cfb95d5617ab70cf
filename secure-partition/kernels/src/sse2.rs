//! The kernels for x86-64: host tools only, which evaluate texts of thousands of tokens.

use core::arch::x86_64::*;

use crate::activations::Activations;
use crate::format::{BLOCK, Format, GROUP, NIBBLES, SCALES};
use crate::matrix::Group;
use crate::plain::{Sums, add, minima};

/// Widened weights of a block: for each 4 columns, 8 rows of 4, 2 rows a vector.
type Weights = [[__m128i; GROUP / 2]; BLOCK / 4];

/// Twin of [`crate::plain::group`].
pub(crate) fn group<const N: usize>(group: &Group, x: &Activations, first: usize) -> Sums<N> {
    let mut out = minima::<N>(group, x, first);
    for (entry, b) in x.entries(first) {
        let block = group.block(b);
        let weights = widen(group.format, block);
        for (token, out) in (first..).zip(&mut out) {
            let octets: &[i8; BLOCK] = x.octets(token, entry).first_chunk().expect("a block");
            add(block, block_dot(&weights, &octets.map(i16::from)), x.scale(token, entry), out);
        }
    }
    out
}

fn widen(format: Format, block: &[u8]) -> Weights {
    match format {
        Format::Q4 | Format::Q4Min => nibbles(&block[SCALES..], format.low_excess()),
        _ => octets(&block[SCALES..]),
    }
}

fn octets(bytes: &[u8]) -> Weights {
    core::array::from_fn(|columns| rows(load(bytes, 16 * columns), load(bytes, NIBBLES + 16 * columns)))
}

/// Nibbles, times 16; the low ones are stored too large by `excess`.
fn nibbles(bytes: &[u8], excess: i8) -> Weights {
    core::array::from_fn(|columns| {
        let pairs = load(bytes, 16 * columns);
        // SAFETY: every x86-64 has SSE2.
        unsafe {
            // The high ones stay at the top of their byte, as they have a sign.
            let high = rows(_mm_and_si128(pairs, _mm_set1_epi8(-16)), _mm_setzero_si128());
            let low = _mm_sub_epi8(_mm_and_si128(pairs, _mm_set1_epi8(15)), _mm_set1_epi8(excess));
            let low = rows(_mm_setzero_si128(), low);
            [high[0], high[1], _mm_slli_epi16::<4>(low[2]), _mm_slli_epi16::<4>(low[3])]
        }
    })
}

/// Widens 4 columns of 4 rows and of 4 more.
#[inline]
fn rows(first: __m128i, second: __m128i) -> [__m128i; GROUP / 2] {
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let low = |bytes| _mm_srai_epi16::<8>(_mm_unpacklo_epi8(bytes, bytes));
        let high = |bytes| _mm_srai_epi16::<8>(_mm_unpackhi_epi8(bytes, bytes));
        [low(first), high(first), low(second), high(second)]
    }
}

/// Dot products of 8 rows with a block of octets.
#[inline]
fn block_dot(weights: &Weights, x: &[i16; BLOCK]) -> [i32; GROUP] {
    let mut lanes = [[0_i32; 4]; GROUP / 2];
    // SAFETY: every x86-64 has SSE2; the reads are of 4 elements of `x`, the stores into 16 bytes.
    unsafe {
        let mut sums = [_mm_setzero_si128(); GROUP / 2];
        for (weights, x) in weights.iter().zip(x.as_chunks::<4>().0) {
            let x = _mm_set1_epi64x(x.as_ptr().cast::<i64>().read_unaligned());
            for (sum, &weights) in sums.iter_mut().zip(weights) {
                *sum = _mm_add_epi32(*sum, _mm_madd_epi16(weights, x));
            }
        }
        for (lanes, sum) in lanes.iter_mut().zip(sums) {
            _mm_storeu_si128(lanes.as_mut_ptr().cast(), sum);
        }
    }
    core::array::from_fn(|row| lanes[row / 2][row % 2 * 2] + lanes[row / 2][row % 2 * 2 + 1])
}

/// 16 bytes of `bytes` from `at`.
#[inline]
fn load(bytes: &[u8], at: usize) -> __m128i {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("inside the block");
    // SAFETY: 16 bytes are there, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
