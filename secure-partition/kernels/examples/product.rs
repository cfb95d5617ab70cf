//! Packs a matrix of floats, multiplies it with a vector on whatever instructions this machine has, and compares with the product
//! in floating point.

use std::sync::atomic::AtomicI32;

use flexserve_kernels::activations::{Precision, Room};
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul};
use flexserve_kernels::matrix::Matrix;
use flexserve_kernels::pack::{Source, pack_matrix};

const ROWS: usize = 20;
const COLS: usize = 64;
/// Fraction bits of the input and of the result.
const FRAC: i32 = 16;

pub(crate) fn main() {
    let weights: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.7).sin()).collect();
    let input: Vec<f32> = (0..COLS).map(|i| (i as f32 * 1.3).cos()).collect();

    let bytes: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
    let packed = pack_matrix(Source::F32, ROWS, COLS, &bytes).expect("finite weights of this shape");
    let matrix = Matrix::new(Source::F32.matrix_format(), ROWS, COLS, &packed).expect("just packed");

    let isa = Isa::detect();
    let fixed: Vec<i32> = input.iter().map(|value| (value * 65536.0).round() as i32).collect();
    // Weights of 16 bits are two matrices of 8 side by side, which take the input twice.
    let fixed = fixed.repeat(matrix.inputs() / COLS);
    let mut room = Room::new(1, fixed.len());
    let mut buffers = room.buffers();
    let mut writer = buffers.writer(isa, 1, fixed.len()).expect("whole blocks");
    writer.put(&fixed, FRAC, Precision::Words).expect("one token");
    let x = writer.finish().expect("all tokens");

    let out: Vec<AtomicI32> = (0..ROWS).map(|_| AtomicI32::new(0)).collect();
    matmul(isa, &matrix, 0..matrix.groups(), &x, FRAC, Output::Store(&out)).expect("room for all rows");

    println!("{isa:?}");
    for (row, out) in weights.chunks(COLS).zip(out) {
        let exact: f32 = row.iter().zip(&input).map(|(w, x)| w * x).sum();
        let product = out.into_inner() as f32 / 65536.0;
        println!("{product:9.4} {exact:9.4}");
        assert!((product - exact).abs() < 0.01, "{product} for {exact}");
    }
}
