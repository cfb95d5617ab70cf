//! Any shapes, lengths and contents for the kernels: what fits is computed as the plain twin does, what does not is an error.
//! Built with AddressSanitizer: the kernels have `unsafe` code.
#![no_main]

use flexserve_kernels::activations::{Precision, Room};
use flexserve_kernels::attention::{Cache, Scratch, attend};
use flexserve_kernels::cache::{Layout, Rows, RowsMut, Width};
use flexserve_kernels::format::Format;
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul};
use flexserve_kernels::matrix::{Matrix, ShapeError};
use flexserve_kernels::{narrow::narrow, norm::rms_norm, rope::rotate, silu, vector::Vector};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::AtomicI32;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    call: Call,
    /// What memory is filled with, over and over.
    bytes: &'a [u8],
}

/// Lengths are what fits, but where `off` is far from 0.
#[derive(Arbitrary, Debug)]
enum Call {
    Product(Product),
    Attend { head_dim: u16, words: bool, positions: u16, off: [i8; 3] },
    Normalise { cols: u16, frac: i32, epsilon: u32, off: [i8; 2] },
    Gate { cols: u16, off: [i8; 2] },
    Narrow { cols: u16, off: i8 },
    Rotate { cols: u16, head_dim: u16, pairs: u16 },
}

#[derive(Arbitrary, Debug)]
struct Product {
    format: u8,
    rows: u8,
    blocks: u8,
    tokens: u8,
    precision: u8,
    frac: i32,
    groups: Option<[u8; 2]>,
    /// Of columns, bytes of weights, a token's values, octets, scales, and outputs.
    off: [i8; 6],
}

/// Multiply-accumulates that are still fast.
const WORK: usize = 1 << 18;

/// Nineteen in twenty fit.
fn length(fits: usize, off: i8) -> usize {
    let off = if off > 0 { (off - 120).max(0) } else { (off + 120).min(0) };
    fits.saturating_add_signed(off.into())
}

fn fill<T>(bytes: &[u8], count: usize, value: impl Fn([u8; 8]) -> T) -> Vec<T> {
    let mut bytes = bytes.iter().copied().cycle();
    (0..count).map(|_| value(std::array::from_fn(|_| bytes.next().unwrap_or(0)))).collect()
}

fn octets(bytes: &[u8], count: usize) -> Vec<u8> {
    bytes.iter().copied().cycle().chain(std::iter::repeat(0)).take(count).collect()
}

fn words(bytes: &[u8], count: usize) -> Vec<i32> {
    fill(bytes, count, |b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

impl Product {
    fn run(&self, isa: Isa, bytes: &[u8]) -> Result<Vec<i32>, ShapeError> {
        let format = Format::ALL[usize::from(self.format) % Format::ALL.len()];
        let [cols, weights, values, its_octets, its_scales, outputs] = self.off;
        let (rows, tokens) = (usize::from(self.rows), usize::from(self.tokens));
        let cols = length(usize::from(self.blocks) * 32, cols);
        if rows * cols * tokens > WORK {
            return Err(ShapeError);
        }
        let weights = octets(bytes, length(format.packed_bytes(rows, cols).unwrap_or(0), weights));
        let weights = Matrix::new(format, rows, cols, &weights)?;
        let inputs = weights.inputs();
        let mut room = Room::new(tokens, inputs);
        let mut buffers = room.buffers();
        let shorter = |all: usize, off: i8| length(all, off.min(0));
        let (octets, scales) = (&mut buffers.octets, &mut buffers.scales);
        *octets = &mut std::mem::take(octets)[..shorter(octets.len(), its_octets)];
        *scales = &mut std::mem::take(scales)[..shorter(scales.len(), its_scales)];
        let mut writer = buffers.writer(isa, tokens, inputs)?;
        let precision = [Precision::Octets, Precision::Peaks, Precision::Outliers, Precision::Words]
            [usize::from(self.precision) % 4];
        let values = words(bytes, length(inputs, values) + tokens);
        for token in 0..tokens {
            writer.put(&values[token..values.len() - tokens + token], 0, precision)?;
        }
        let x = writer.finish()?;
        let groups = self.groups.map_or(0..weights.groups(), |[from, to]| from.into()..to.into());
        let out: Vec<AtomicI32> = (0..length(rows * tokens, outputs)).map(|_| AtomicI32::new(0)).collect();
        matmul(isa, &weights, groups, &x, self.frac, Output::Store(&out))?;
        Ok(out.into_iter().map(AtomicI32::into_inner).collect())
    }
}

/// Writes keys and values down, and attends to them.
fn attend_to(
    bytes: &[u8],
    head_dim: usize,
    words_wide: bool,
    positions: usize,
    off: [i8; 3],
) -> Result<Vec<i64>, ShapeError> {
    let layout = Layout::new(head_dim, if words_wide { Width::Word } else { Width::Octet })?;
    let [its_octets, its_scales, query] = off;
    let lengths =
        [length(layout.octets(positions), its_octets), length(Layout::scales(positions), its_scales)];
    let empty = || (vec![0_i8; lengths[0]], vec![0_i32; lengths[1]]);
    let (mut keys, mut values) = (empty(), empty());
    let numbers = words(bytes, head_dim + positions);
    for position in 0..positions {
        let vector = &numbers[position..position + head_dim];
        let [keys, values] = [&mut keys, &mut values].map(|(octets, scales)| RowsMut { octets, scales });
        layout.put_key(keys, position, vector)?;
        layout.put_value(values, position, vector)?;
    }
    let [keys, values] = [&keys, &values].map(|(octets, scales)| Rows { octets, scales });
    let query = words(bytes, length(head_dim, query));
    let mut scratch = Scratch::new();
    attend(Isa::detect(), &layout, &query, &Cache { keys, values }, positions, &mut scratch)
        .map(<[i64]>::to_vec)
}

fuzz_target!(|input: Input| {
    let bytes = input.bytes;
    // The same of every twin.
    let both = |call: &dyn Fn(Isa) -> Result<(i32, Vec<i32>), ShapeError>| {
        assert_eq!(call(Isa::detect()), call(Isa::PLAIN));
    };
    match input.call {
        Call::Product(product) => both(&|isa| product.run(isa, bytes).map(|out| (0, out))),
        Call::Attend { head_dim, words, positions, off } => {
            let (head_dim, positions) = (usize::from(head_dim), usize::from(positions) % 1200);
            if head_dim * positions <= WORK {
                let _ = attend_to(bytes, head_dim, words, positions, off);
            }
        }
        Call::Normalise { cols, frac, epsilon, off } => {
            let packed = octets(bytes, length(16 + 4 * usize::from(cols), off[0]));
            let Ok(weight) = Vector::new(cols.into(), &packed) else { return };
            let x = fill(bytes, length(cols.into(), off[1]), i64::from_le_bytes);
            both(&|isa| {
                let mut out = vec![0; cols.into()];
                Ok((rms_norm(isa, &x, frac, &weight, epsilon, &mut out)?, out))
            });
        }
        Call::Gate { cols, off } => {
            let (gate, up) = (words(bytes, cols.into()), words(bytes, length(cols.into(), off[0])));
            for gated in [silu::silu, silu::gelu] {
                both(&|isa| {
                    let mut out = vec![0; length(cols.into(), off[1])];
                    Ok((gated(isa, &gate, &up, &mut out)?, out))
                });
            }
        }
        Call::Narrow { cols, off } => {
            let values = fill(bytes, cols.into(), i64::from_le_bytes);
            both(&|isa| {
                let mut out = vec![0; length(cols.into(), off)];
                Ok((narrow(isa, &values, &mut out)?, out))
            });
        }
        Call::Rotate { cols, head_dim, pairs } => {
            let mut heads = words(bytes, cols.into());
            let table: Vec<[i32; 2]> = words(bytes, 2 * usize::from(pairs)).as_chunks::<2>().0.to_vec();
            let _ = rotate(&mut heads, head_dim.into(), &table);
        }
    }
});
