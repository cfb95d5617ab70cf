//! Blocks of GGML's quantised types.
//!
//! | type | what becomes of it |
//! |---|---|
//! | Q4_0, Q4_1, Q5_0, Q8_0, Q4_K | the same integers; a scale of Q4_K, a product of 11 and 6 bits, is rounded as all scales are |
//! | Q5_1, Q2_K, Q3_K, Q5_K, Q6_K | octets under a scale for 32: a 254th of a block's largest weight or less is rounded away |
//!
//! Blocks of K-quants are of 256 columns, with scales for 16 or for 32 of them. Their layout is ggml's (ggml-common.h).

use super::{Source, half_to_f32};
use crate::format::BLOCK;

/// Columns of a block of K-quants.
pub(super) const SUPER: usize = 256;

/// 32 columns of one row on their way: integers, and what they are to be multiplied by and shifted up by.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// 16 * nibble (those of Q4_1 0..=15), or octet: the `q` of the format, but for such as are stored with another sign.
    pub q: [i16; BLOCK],
    pub scale: f64,
    pub minimum: f64,
}

/// Columns 32 `part` and on of a block.
pub(super) fn read(source: Source, data: &[u8], part: usize) -> Block {
    match source {
        Source::Q4_0 => Block {
            q: core::array::from_fn(|i| 16 * nibble(&data[2..], i) - 128),
            scale: half_at(data, 0) / 16.0,
            minimum: 0.0,
        },
        Source::Q4_1 => nibbles(half_at(data, 0), half_at(data, 2), |i| nibble(&data[4..], i)),
        Source::Q4K => {
            let [scale, minimum] = scale_and_minimum(data, part);
            nibbles(scale, minimum, |i| half_nibble(&data[16..], part, i))
        }
        Source::Q5_0 => Block {
            q: core::array::from_fn(|i| nibble(&data[6..], i) + 16 * bit(&data[2..], i) - 16),
            scale: half_at(data, 0),
            minimum: 0.0,
        },
        Source::Q8_0 => Block {
            q: core::array::from_fn(|i| i16::from(data[2 + i].cast_signed())),
            scale: half_at(data, 0),
            minimum: 0.0,
        },
        _ => octets(core::array::from_fn(|i| weight(source, data, part, i))),
    }
}

/// Nibbles with a minimum. The kernels multiply it by 128.
fn nibbles(scale: f64, minimum: f64, nibble: impl Fn(usize) -> i16) -> Block {
    Block { q: core::array::from_fn(|i| 16 * nibble(i)), scale: scale / 16.0, minimum: minimum / 128.0 }
}

/// Weights, rounded to octets.
fn octets(weights: [f64; BLOCK]) -> Block {
    // What is not finite makes a scale that is not, which is found by whoever looks at the scales.
    let largest = weights.iter().fold(0f64, |largest, w| if w.abs() <= largest { largest } else { w.abs() });
    let scale = largest / 127.0;
    let q = weights.map(|weight| if scale > 0.0 { (weight / scale).round() as i16 } else { 0 });
    Block { q, scale, minimum: 0.0 }
}

/// A weight of a type whose integers are not kept.
fn weight(source: Source, data: &[u8], part: usize, i: usize) -> f64 {
    // K-quants: the first or the second 128 columns, and which 32 of them; scales for 16.
    let (half, quarter) = (part / 4, part % 4);
    let sixteen = 2 * part + i / 16;
    match source {
        Source::Q5_1 => {
            let q = nibble(&data[8..], i) + 16 * bit(&data[4..], i);
            half_at(data, 0) * f64::from(q) + half_at(data, 2)
        }
        Source::Q2K => {
            let q = data[16 + 32 * half + i] >> (2 * quarter) & 3;
            let (scale, minimum) = (data[sixteen] & 15, data[sixteen] >> 4);
            half_at(data, 80) * f64::from(scale) * f64::from(q) - half_at(data, 82) * f64::from(minimum)
        }
        Source::Q3K => {
            let low = data[32 + 32 * half + i] >> (2 * quarter) & 3;
            let high = data[i] >> part & 1;
            let scales = &data[96..];
            let scale = scales[sixteen % 8] >> (sixteen / 8 * 4) & 15;
            let scale = scale | (scales[8 + sixteen % 4] >> (sixteen / 4 * 2) & 3) << 4;
            half_at(data, 108) * (f64::from(scale) - 32.0) * (f64::from(low | high << 2) - 4.0)
        }
        Source::Q5K => {
            let [scale, minimum] = scale_and_minimum(data, part);
            let high = i16::from(data[16 + i] >> part & 1);
            scale * f64::from(half_nibble(&data[48..], part, i) + 16 * high) + minimum
        }
        _ => {
            let low = data[64 * half + 32 * (quarter % 2) + i] >> (quarter / 2 * 4) & 15;
            let high = data[128 + 32 * half + i] >> (2 * quarter) & 3;
            let scale = data[192 + sixteen].cast_signed();
            half_at(data, 208) * f64::from(scale) * (f64::from(low | high << 4) - 32.0)
        }
    }
}

/// What 32 columns of Q4_K or Q5_K are multiplied by, and what is added then: two halves, and 6 bits of each in 12 bytes.
fn scale_and_minimum(data: &[u8], part: usize) -> [f64; 2] {
    let bytes = &data[4..16];
    let [scale, minimum] = if part < 4 {
        [bytes[part] & 63, bytes[4 + part] & 63]
    } else {
        let low = bytes[4 + part];
        [low & 15 | bytes[part - 4] >> 6 << 4, low >> 4 | bytes[part] >> 6 << 4]
    };
    [half_at(data, 0) * f64::from(scale), -half_at(data, 2) * f64::from(minimum)]
}

fn half_at(data: &[u8], at: usize) -> f64 {
    f64::from(half_to_f32(u16::from_le_bytes([data[at], data[at + 1]])))
}

/// Nibble `i` of 32 in 16 bytes: first come all lower ones.
fn nibble(bytes: &[u8], i: usize) -> i16 {
    i16::from(bytes[i % 16] >> (i / 16 * 4) & 15)
}

/// Nibble `i` of 32 columns, which have a half of each of 32 bytes.
fn half_nibble(bytes: &[u8], part: usize, i: usize) -> i16 {
    i16::from(bytes[part / 2 * 32 + i] >> (part % 2 * 4) & 15)
}

fn bit(bytes: &[u8], i: usize) -> i16 {
    i16::from(bytes[i / 8] >> (i % 8) & 1)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::vec::Vec;

    /// Of three blocks of [`bytes`], what the Python package gguf 0.19.0 (`gguf.quants.dequantize`) makes of them: the sums of the
    /// weights, each times its number from 1 on, and of their magnitudes.
    const SUMS: [(Source, [f64; 2]); 10] = [
        (Source::Q4_0, [23.827_636_718_75, 22.011_047_363_281_25]),
        (Source::Q4_1, [2_636.325_134_277_344, 54.085_998_535_156_25]),
        (Source::Q5_0, [118.081_970_214_843_75, 44.796_203_613_281_25]),
        (Source::Q5_1, [5_127.441_040_039_062, 105.351_989_746_093_75]),
        (Source::Q8_0, [-1_941.023_315_429_687_5, 425.027_587_890_625]),
        (Source::Q2K, [82_501.464_294_433_6, 479.514_099_121_093_75]),
        (Source::Q3K, [1_886.813_964_843_75, 1_411.943_542_480_468_8]),
        (Source::Q4K, [3_441_435.401_672_363_3, 9_828.101_074_218_75]),
        (Source::Q5K, [7_142_839.756_042_48, 21_135.860_351_562_5]),
        (Source::Q6K, [295_506.200_134_277_34, 52_834.016_906_738_28]),
    ];

    /// Three blocks of anything, but for the halves that are scales, which are a little more than 1/16.
    pub(in super::super) fn bytes(source: Source) -> Vec<u8> {
        let halves: &[usize] = match source {
            Source::Q4_1 | Source::Q5_1 | Source::Q4K | Source::Q5K => &[0, 2],
            Source::Q2K => &[80, 82],
            Source::Q3K => &[108],
            Source::Q6K => &[208],
            _ => &[0],
        };
        let (mut out, mut state) = (Vec::new(), 12_345_u32);
        for block in 0..3 {
            let from = out.len();
            out.extend((0..source.block().1).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }));
            for (&at, value) in halves.iter().zip([0x2c00_u16, 0x2c80]) {
                out[from + at..][..2].copy_from_slice(&(value + 37 * block).to_le_bytes());
            }
        }
        out
    }

    /// All weights of some blocks, as exactly as there are numbers of them.
    pub(in super::super) fn weights(source: Source, data: &[u8]) -> Vec<f64> {
        let (columns, bytes) = source.block();
        let mut out = Vec::new();
        for (data, part) in
            data.chunks(bytes).flat_map(|data| (0..columns / BLOCK).map(move |part| (data, part)))
        {
            let Block { q, scale, minimum } = read(source, data, part);
            out.extend((0..BLOCK).map(|i| match source {
                Source::Q5_1 | Source::Q2K | Source::Q3K | Source::Q5K | Source::Q6K => {
                    let weight = weight(source, data, part, i);
                    assert!((weight - f64::from(q[i]) * scale).abs() <= scale * 0.5001, "{source:?}");
                    weight
                }
                _ => f64::from(q[i]) * scale + 128.0 * minimum,
            }));
            assert!(q.iter().all(|q| (-128..=240).contains(q)));
        }
        out
    }

    #[test]
    fn weights_are_those_of_another_implementation() {
        for (source, sums) in SUMS {
            let weights = weights(source, &bytes(source));
            let numbered: f64 = weights.iter().zip(1..).map(|(weight, i)| weight * f64::from(i)).sum();
            let magnitudes: f64 = weights.iter().map(|weight| weight.abs()).sum();
            for (own, other) in [numbered, magnitudes].into_iter().zip(sums) {
                // The other one computes in single precision.
                assert!((own - other).abs() <= other.abs() * 1e-6, "{source:?}: {own}, not {other}");
            }
        }
    }

    #[test]
    fn zeros_and_what_is_not_finite_are_told() {
        for (source, _) in SUMS {
            let zeros = read(source, &std::vec![0; source.block().1], 0);
            assert_eq!((zeros.scale, zeros.minimum), (0.0, 0.0));
            let mut data = std::vec![0xff; source.block().1];
            data[..2].copy_from_slice(&[0, 0x7c]);
            let block = read(source, &data, 0);
            assert!(!block.scale.is_finite() || !block.minimum.is_finite(), "{source:?}");
        }
    }
}
