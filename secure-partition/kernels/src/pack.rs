//! From GGUF's tensors to the formats of [`crate::format`]. Host only: the one place with floating point.

mod quants;

extern crate std;
use crate::format::{BLOCK, Format, GROUP, HALF, VECTOR_HEAD};
use quants::{Block, SUPER};
use std::vec::Vec;

/// Element type of a GGUF tensor, as far as it can be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Upper halves of 32-bit floats.
    Bf16,
    /// Blocks of 32: f16 scale, 32 nibbles less 8.
    Q4_0,
    /// Blocks of 32: f16 scale, f16 minimum, 32 nibbles.
    Q4_1,
    /// Blocks of 32: f16 scale, 32 numbers of 5 bits less 16.
    Q5_0,
    /// Blocks of 32: f16 scale, f16 minimum, 32 numbers of 5 bits.
    Q5_1,
    /// Blocks of 32: f16 scale, 32 x i8.
    Q8_0,
    /// Blocks of 256: f16 scale and minimum, 4 bits of each for 16; numbers of 2 bits.
    Q2K,
    /// Blocks of 256: f16 scale, 6 bits for 16; numbers of 3 bits less 4.
    Q3K,
    /// Blocks of 256: f16 scale and minimum, 6 bits of each for 32; nibbles.
    Q4K,
    /// Blocks of 256: f16 scale and minimum, 6 bits of each for 32; numbers of 5 bits.
    Q5K,
    /// Blocks of 256: f16 scale, 8 bits for 16; numbers of 6 bits less 32.
    Q6K,
}

/// The largest weight of a `W16` block: both octets are signed.
const W16_MAX: f64 = 127.0 * 256.0 + 127.0;

/// Why a tensor cannot be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackError {
    /// No rows, no columns, or (for a matrix) columns that are no multiple of a block's.
    Shape,
    /// The data are not as long as type and shape say.
    Length,
    /// A weight or a scale is infinite or not a number, or so large that no shift can hold it.
    NotFinite,
}

impl Source {
    /// GGUF's number of the type, or `None` for one that cannot be packed.
    #[must_use]
    pub const fn from_ggml(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// What matrices of this type are packed into.
    #[must_use]
    pub const fn matrix_format(self) -> Format {
        match self {
            Self::Q4_0 => Format::Q4,
            Self::Q4_1 | Self::Q4K => Format::Q4Min,
            Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q2K | Self::Q3K | Self::Q5K | Self::Q6K => {
                Format::Q8
            }
            Self::F32 | Self::F16 | Self::Bf16 => Format::W16,
        }
    }

    /// Elements and bytes of a block.
    #[must_use]
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
            Self::Q5_0 => (BLOCK, 22),
            Self::Q5_1 => (BLOCK, 24),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q2K => (SUPER, 84),
            Self::Q3K => (SUPER, 110),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
        }
    }
}

/// IEEE half to single precision.
#[must_use]
pub fn half_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    let value = match magnitude >> 10 {
        0 => magnitude as f32 * 2f32.powi(-24),
        31 => f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13),
        _ => f32::from_bits((magnitude << 13) + (112 << 23)),
    };
    f32::from_bits(value.to_bits() | sign)
}

/// The blocks of a row of numbers; of floats, those of the upper octets and then those of the lower ones.
fn read_row(source: Source, data: &[u8]) -> Vec<Block> {
    match source {
        Source::F32 => halves(data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
        Source::F16 => halves(data.as_chunks().0.iter().map(|&bytes| half_to_f32(u16::from_le_bytes(bytes)))),
        Source::Bf16 => halves(data.as_chunks().0.iter().map(|&[a, b]| f32::from_le_bytes([0, 0, a, b]))),
        _ => {
            let (columns, bytes) = source.block();
            let parts = |block| (0..columns / BLOCK).map(move |part| quants::read(source, block, part));
            data.chunks_exact(bytes).flat_map(parts).collect()
        }
    }
}

/// Numbers as integers of 16 bits, under scales of 7 bits: with 256 times that, those of the upper octets have 15.
fn halves(values: impl Iterator<Item = f32>) -> Vec<Block> {
    let values: Vec<f64> = values.map(f64::from).collect();
    let blocks = values.as_chunks::<BLOCK>().0;
    // What is not finite is found by whoever looks at the scales.
    let scale = |block: &[f64]| largest(block.iter().copied()).map_or(f64::INFINITY, |l| l / W16_MAX);
    let shift = shift_for(scale(&values), 7);
    let shift = if scale(&values) * 2f64.powi(shift) > 127.0 { shift - 1 } else { shift };
    let split = |upper: bool| {
        blocks.iter().map(move |block| {
            // Rounded up, so that 16 bits are enough.
            let mantissa = (scale(block) * 2f64.powi(shift)).ceil().max(1.0);
            let unit = mantissa * 2f64.powi(-shift);
            let q = block.map(|value| (value / unit).round() as i16);
            let high = q.map(|q| ((i32::from(q) + 128) >> 8) as i16);
            let low: [i16; BLOCK] = core::array::from_fn(|i| q[i] - 256 * high[i]);
            let (q, scale) = if upper { (high, 256.0 * unit) } else { (low, unit) };
            Block { q, scale, minimum: 0.0 }
        })
    };
    split(true).chain(split(false)).collect()
}

/// The largest magnitude.
fn largest(values: impl Iterator<Item = f64>) -> Result<f64, PackError> {
    let mut largest = 0f64;
    for value in values {
        if !value.is_finite() {
            return Err(PackError::NotFinite);
        }
        largest = largest.max(value.abs());
    }
    Ok(largest)
}

/// The shift that makes `largest * 2^shift` a number of `bits` bits. 0 for 0.
fn shift_for(largest: f64, bits: i32) -> i32 {
    if largest < 2f64.powi(-120) {
        return 0;
    }
    // floor(log2) by the exponent field; all values here are normal f64.
    let exponent = ((largest.to_bits() >> 52) & 0x7ff) as i32 - 1023;
    let shift = bits - 1 - exponent;
    if (largest * 2f64.powi(shift)).round() >= 2f64.powi(bits) { shift - 1 } else { shift }
}

/// Packs a matrix of `rows` x `cols` weights, row by row in `data` as GGUF has it, into
/// [`Source::matrix_format`]'s layout.
///
/// # Errors
/// [`PackError::Shape`], [`PackError::Length`], [`PackError::NotFinite`].
pub fn pack_matrix(source: Source, rows: usize, cols: usize, data: &[u8]) -> Result<Vec<u8>, PackError> {
    let format = source.matrix_format();
    let bytes = format.packed_bytes(rows, cols).ok_or(PackError::Shape)?;
    let (columns, block_bytes) = source.block();
    if !cols.is_multiple_of(columns) {
        return Err(PackError::Shape);
    }
    let row_bytes = cols / columns * block_bytes;
    if row_bytes.checked_mul(rows) != Some(data.len()) {
        return Err(PackError::Length);
    }
    let mut out = Vec::with_capacity(bytes);
    for group in data.chunks(row_bytes * GROUP) {
        pack_group(source, group, row_bytes, cols / BLOCK * format.passes(), &mut out)?;
    }
    debug_assert_eq!(out.len(), bytes);
    Ok(out)
}

fn pack_group(
    source: Source,
    data: &[u8],
    row_bytes: usize,
    blocks: usize,
    out: &mut Vec<u8>,
) -> Result<(), PackError> {
    let zero = Block { q: [0; BLOCK], scale: 0.0, minimum: 0.0 };
    let format = source.matrix_format();
    let mut rows: [Vec<Block>; GROUP] = core::array::from_fn(|_| Vec::new());
    let mut shifts = [0; GROUP];
    for (r, row) in rows.iter_mut().enumerate() {
        row.extend(data.chunks_exact(row_bytes).nth(r).into_iter().flat_map(|row| read_row(source, row)));
        match format {
            Format::Q4Min if r < HALF => row.iter_mut().for_each(sign_nibbles),
            Format::Q4 if r >= HALF => row.iter_mut().for_each(|block| block.q = block.q.map(|q| q + 128)),
            _ => {}
        }
        row.resize(blocks, zero);
        let largest = largest(row.iter().flat_map(|block| [block.scale, block.minimum]))?;
        shifts[r] = shift_for(largest, 15);
        out.extend_from_slice(&shifts[r].to_le_bytes());
    }
    let mantissas = |out: &mut Vec<u8>, column: usize, value: &dyn Fn(&Block) -> f64| {
        for (row, &shift) in rows.iter().zip(&shifts) {
            let mantissa = (value(&row[column]) * 2f64.powi(shift)).round() as i16;
            out.extend_from_slice(&mantissa.to_le_bytes());
        }
    };
    if format.minima_bytes() > 0 {
        (0..blocks).for_each(|column| mantissas(out, column, &|block| block.minimum));
    }
    for column in 0..blocks {
        mantissas(out, column, &|block| block.scale);
        pack_weights(format, &rows.each_ref().map(|row| row[column].q), out);
    }
    Ok(())
}

/// Makes the nibbles of a row of the first half signed, and its minimum that of weights that are.
fn sign_nibbles(block: &mut Block) {
    block.q = block.q.map(|q| q - 128);
    block.minimum += block.scale;
}

fn pack_weights(format: Format, rows: &[[i16; BLOCK]; GROUP], out: &mut Vec<u8>) {
    let (upper, lower) = rows.split_at(HALF);
    if format.has_nibbles() {
        for columns in 0..BLOCK / 4 {
            for (high, low) in upper.iter().zip(lower) {
                let (high, low) = (&high[4 * columns..][..4], &low[4 * columns..][..4]);
                // Both are 16 times a nibble.
                out.extend(high.iter().zip(low).map(|(&h, &l)| (h | l >> 4) as u8));
            }
        }
        return;
    }
    for rows in [upper, lower] {
        for columns in 0..BLOCK / 4 {
            for row in rows {
                out.extend(row[4 * columns..][..4].iter().map(|&q| q as u8));
            }
        }
    }
}

/// Packs `values` as [`Format::Vector`]: 31-bit mantissas under one shift.
///
/// # Errors
/// [`PackError::Shape`] if there are none, [`PackError::NotFinite`].
pub fn pack_vector(values: &[f32]) -> Result<Vec<u8>, PackError> {
    if values.is_empty() {
        return Err(PackError::Shape);
    }
    let largest = largest(values.iter().copied().map(f64::from))?;
    let shift = shift_for(largest, 30);
    let mut out = Vec::with_capacity(VECTOR_HEAD + 4 * values.len());
    out.extend_from_slice(&shift.to_le_bytes());
    out.resize(VECTOR_HEAD, 0);
    for &value in values {
        let mantissa = (f64::from(value) * 2f64.powi(shift)).round() as i32;
        out.extend_from_slice(&mantissa.to_le_bytes());
    }
    Ok(out)
}

/// Packs the rotary embedding's turns per position, `dimensions / 2` x u64 in Q0.64: pair i turns by
/// `base^(-2 i / dimensions) / (2 pi) / factors[i]` (GGUF's `rope_freqs.weight`, all 1 if there is none).
///
/// # Errors
/// [`PackError::Shape`] if `dimensions` is 0 or odd, [`PackError::Length`] if `factors` are not half as many,
/// [`PackError::NotFinite`] if a turn is not in 0..1.
pub fn pack_angles(dimensions: usize, base: f64, factors: Option<&[f32]>) -> Result<Vec<u8>, PackError> {
    if dimensions == 0 || !dimensions.is_multiple_of(2) {
        return Err(PackError::Shape);
    }
    if factors.is_some_and(|factors| factors.len() != dimensions / 2) {
        return Err(PackError::Length);
    }
    let mut out = Vec::with_capacity(4 * dimensions);
    for i in 0..dimensions / 2 {
        let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
        let turns = base.powf(-2.0 * i as f64 / dimensions as f64) / core::f64::consts::TAU / factor;
        if !(0.0..1.0).contains(&turns) {
            return Err(PackError::NotFinite);
        }
        out.extend_from_slice(&((turns * 2f64.powi(64)) as u64).to_le_bytes());
    }
    Ok(out)
}

/// RMSNorm's epsilon as the engine takes it: Q0.32.
///
/// # Errors
/// [`PackError::NotFinite`] if it is not in 0..1.
pub fn pack_epsilon(epsilon: f32) -> Result<u32, PackError> {
    if !(0.0..1.0).contains(&epsilon) {
        return Err(PackError::NotFinite);
    }
    Ok((f64::from(epsilon) * 2f64.powi(32)).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Matrix;
    use std::vec;

    #[test]
    fn halves_become_singles() {
        for (bits, value) in [(0, 0.0), (0x3c00, 1.0), (0xc000, -2.0), (1, 2f32.powi(-24)), (0x7bff, 65504.0)]
        {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7c00).is_infinite());
        assert!(half_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn lengths_shapes_and_values_are_checked() {
        assert_eq!(pack_matrix(Source::Q8_0, 8, 32, &[0; 34 * 8 - 1]), Err(PackError::Length));
        assert_eq!(pack_matrix(Source::Q8_0, 8, 33, &[0; 34 * 8]), Err(PackError::Shape));
        let mut data = vec![0; 34];
        data[1] = 0x7c;
        assert_eq!(pack_matrix(Source::Q8_0, 1, 32, &data), Err(PackError::NotFinite));
        let nan: Vec<u8> = f32::NAN.to_le_bytes().repeat(32);
        assert_eq!(pack_matrix(Source::F32, 1, 32, &nan), Err(PackError::NotFinite));
        assert_eq!(pack_vector(&[f32::INFINITY]), Err(PackError::NotFinite));
        assert_eq!(pack_angles(3, 1e4, None), Err(PackError::Shape));
        assert_eq!(pack_angles(4, 1e4, Some(&[1.0])), Err(PackError::Length));
    }

    /// Each packed weight is the source's, to within `tolerance` times the row's largest.
    fn check(source: Source, rows: usize, data: &[u8], exact: &[f32], tolerance: f64) {
        let cols = exact.len() / rows;
        let packed = pack_matrix(source, rows, cols, data).unwrap();
        let matrix = Matrix::new(source.matrix_format(), rows, cols, &packed).unwrap();
        for (r, exact) in exact.chunks(cols).enumerate() {
            let mut row = vec![0; cols];
            let shift = matrix.decode_row(r, |c, value| row[c] = value).unwrap();
            let largest = exact.iter().fold(0f64, |a, &v| a.max(f64::from(v.abs())));
            for (&value, &exact) in row.iter().zip(exact) {
                let difference = value as f64 * 2f64.powi(-shift) - f64::from(exact);
                assert!(difference.abs() <= tolerance * largest, "{source:?} row {r}: {value} for {exact}");
            }
        }
    }

    /// Numbers of very different size, both signs, the largest of a block positive or negative.
    fn weight(i: usize) -> f32 {
        (i as f32 * 1.7).sin() * (1.0 + (i / 32 % 5) as f32) * if i.is_multiple_of(97) { -3.0 } else { 1.0 }
    }

    #[test]
    fn floats_keep_their_values() {
        let exact: Vec<f32> =
            (0..9 * 96).map(|i| f32::from_bits(weight(i).to_bits() & 0xffff_0000)).collect();
        let singles: Vec<u8> = exact.iter().flat_map(|v| v.to_le_bytes()).collect();
        check(Source::F32, 9, &singles, &exact, 2e-5);
        let upper: Vec<u8> = exact.iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
        check(Source::Bf16, 9, &upper, &exact, 2e-5);
        let halves: Vec<u8> =
            (0..9 * 96_u16).flat_map(|i| (0x3800 + i * 5 + (i % 2) * 0x8000).to_le_bytes()).collect();
        let exact: Vec<f32> =
            halves.chunks(2).map(|b| half_to_f32(u16::from_le_bytes([b[0], b[1]]))).collect();
        check(Source::F16, 9, &halves, &exact, 2e-5);
    }

    #[test]
    fn quantised_weights_keep_their_values() {
        for (source, offset, minimum) in
            [(Source::Q4_0, 2, false), (Source::Q4_1, 4, true), (Source::Q8_0, 2, false)]
        {
            let (mut data, mut exact) = (Vec::new(), Vec::new());
            for block in 0..9 * 3_u16 {
                let (scale, least) = (0x2c00 + block * 37 + block % 2 * 0x8000, 0xb000 + block * 11);
                data.extend(scale.to_le_bytes());
                data.extend(minimum.then_some(least.to_le_bytes()).into_iter().flatten());
                let bytes: Vec<u8> =
                    (offset..source.block().1).map(|i| (i * 37 + usize::from(block) * 11) as u8).collect();
                data.extend(&bytes);
                let m = if minimum { half_to_f32(least) } else { 0.0 };
                for i in 0..32 {
                    let nibble = f32::from(if i < 16 { bytes[i] & 15 } else { bytes[i % 16] >> 4 });
                    let q = match source {
                        Source::Q4_0 => nibble - 8.0,
                        Source::Q4_1 => nibble,
                        _ => f32::from(bytes[i].cast_signed()),
                    };
                    exact.push(half_to_f32(scale) * q + m);
                }
            }
            // Scales of 11 bits, of which none is smaller than half of another, are kept as they are.
            check(source, 9, &data, &exact, if minimum { 1e-4 } else { 0.0 });
        }
    }

    #[test]
    fn blocks_of_any_type_keep_their_values() {
        for id in 2..15 {
            let Some(source) = Source::from_ggml(id) else { continue };
            let data = quants::tests::bytes(source);
            let exact: Vec<f32> = quants::tests::weights(source, &data).iter().map(|&w| w as f32).collect();
            let rounded =
                source.matrix_format() == Format::Q8 && !matches!(source, Source::Q5_0 | Source::Q8_0);
            check(source, 1, &data, &exact, if rounded { 1.001 / 254.0 } else { 1e-4 });
            check(source, 3, &data, &exact, if rounded { 1.001 / 254.0 } else { 1e-4 });
            assert_eq!(pack_matrix(source, 3, exact.len() / 6, &data), Err(PackError::Shape), "{source:?}");
        }
    }

    #[test]
    fn a_vector_keeps_thirty_bits() {
        let packed = pack_vector(&[1.5, -0.25]).unwrap();
        assert_eq!(packed[..4], 29_i32.to_le_bytes());
        assert_eq!(packed[16..20], (3_i32 << 28).to_le_bytes());
        assert_eq!(packed[20..24], (-(1_i32 << 27)).to_le_bytes());
    }

    #[test]
    fn angles_are_turns() {
        let packed = pack_angles(4, 10_000.0, Some(&[1.0, 2.0])).unwrap();
        let turns = |i: usize| {
            let bytes = packed[8 * i..][..8].try_into().unwrap();
            u64::from_le_bytes(bytes) as f64 / 2f64.powi(64) * core::f64::consts::TAU
        };
        assert!((turns(0) - 1.0).abs() < 1e-12);
        assert!((turns(1) - 0.005).abs() < 1e-12);
    }
}
