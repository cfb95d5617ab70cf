//! The kernels for x86-64: host tools only, which evaluate texts of thousands of tokens.

use core::arch::x86_64::*;

use crate::format::{BLOCK, Format, GROUP, OCTETS, SCALES};
use crate::matrix::half_word;
use crate::plain::Sums;

/// Widened weights of a block: for each 4 columns, 8 rows of 4, 2 rows a vector.
type Weights = [[__m128i; GROUP / 2]; BLOCK / 4];

/// Twin of [`crate::plain::group`].
pub(crate) fn group<const N: usize>(
    format: Format,
    blocks: &[u8],
    x: [&[i16]; N],
    sums: [&[i32]; N],
) -> Sums<N> {
    let x = x.map(|x| x.as_chunks::<BLOCK>().0);
    let mut out = [[0_i64; GROUP]; N];
    for (b, block) in blocks.chunks_exact(format.block_bytes()).enumerate() {
        let weights = widen(format, block);
        for ((out, x), sums) in out.iter_mut().zip(x).zip(sums) {
            for (row, (out, s)) in out.iter_mut().zip(block_dot(&weights, &x[b])).enumerate() {
                *out += i64::from(half_word(block, row)) * i64::from(s);
                if format == Format::Q4Min {
                    *out += i64::from(half_word(&block[SCALES..], row)) * i64::from(sums[b]);
                }
            }
        }
    }
    out
}

fn widen(format: Format, block: &[u8]) -> Weights {
    match format {
        Format::Q4 => nibbles(&block[SCALES..]),
        Format::Q4Min => nibbles(&block[2 * SCALES..]),
        Format::Q8 => octets(&block[SCALES..]),
        _ => {
            let (mut weights, nibbles) = (octets(&block[SCALES..]), nibbles(&block[SCALES + OCTETS..]));
            for (octet, nibble) in weights.as_flattened_mut().iter_mut().zip(nibbles.as_flattened()) {
                // SAFETY: every x86-64 has SSE2.
                *octet = unsafe { _mm_add_epi16(_mm_slli_epi16::<4>(*octet), _mm_srai_epi16::<4>(*nibble)) };
            }
            weights
        }
    }
}

fn octets(bytes: &[u8]) -> Weights {
    core::array::from_fn(|columns| rows(load(bytes, 32 * columns), load(bytes, 32 * columns + 16)))
}

/// Nibbles, times 16.
fn nibbles(bytes: &[u8]) -> Weights {
    core::array::from_fn(|columns| {
        // SAFETY: every x86-64 has SSE2.
        let pick = |pair| unsafe {
            let nibble = if columns % 2 == 0 { _mm_slli_epi16::<4>(pair) } else { pair };
            _mm_and_si128(nibble, _mm_set1_epi8(-16))
        };
        let at = columns / 2 * 32;
        rows(pick(load(bytes, at)), pick(load(bytes, at + 16)))
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

/// Dot products of 8 rows with a block of mantissas.
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
