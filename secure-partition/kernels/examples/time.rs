//! How long products take on this machine, by each instruction set that it has: one vector, and a batch of 128, with a matrix of
//! each format. The best of many runs, on one core.

use flexserve_kernels::activations::{Precision, Room};
use flexserve_kernels::format::Format;
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul};
use flexserve_kernels::matrix::Matrix;
use std::sync::atomic::AtomicI32;
use std::time::{Duration, Instant};

const ROWS: usize = 1536;
const COLS: usize = 576;
const FORMATS: [(&str, Format); 3] = [("q4_0", Format::Q4), ("q4_1", Format::Q4Min), ("q8_0", Format::Q8)];
const TOKENS: [usize; 2] = [1, 128];
/// How long each product is tried.
const PATIENCE: Duration = Duration::from_millis(300);

fn main() {
    let mut sets = vec![Isa::PLAIN];
    for features in [0, Isa::DOTPROD, Isa::DOTPROD | Isa::I8MM, u64::MAX] {
        let set = Isa::detect_within(features);
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    for isa in sets {
        for (name, format) in FORMATS {
            let bytes = vec![0; format.packed_bytes(ROWS, COLS).unwrap_or_default()];
            let weights = Matrix::new(format, ROWS, COLS, &bytes).expect("zeros are weights");
            for tokens in TOKENS {
                let best = best(isa, &weights, tokens);
                let rate = (tokens * ROWS * COLS) as f64 / best.as_nanos() as f64;
                println!(
                    "{isa:?} {name} {ROWS}x{COLS} with {tokens:3} tokens: {best:10.1?}, {rate:6.2} GMAC/s"
                );
            }
        }
    }
}

/// The shortest time that the product took.
fn best(isa: Isa, weights: &Matrix, tokens: usize) -> Duration {
    let mut room = Room::new(tokens, COLS);
    let mut buffers = room.buffers();
    let values: Vec<i32> = (0..COLS as i32).collect();
    let mut writer = buffers.writer(isa, tokens, COLS).expect("whole blocks");
    (0..tokens).for_each(|_| writer.put(&values, 0, Precision::Octets).expect("that many tokens"));
    let x = writer.finish().expect("all tokens");
    let out: Vec<AtomicI32> = (0..tokens * ROWS).map(|_| AtomicI32::new(0)).collect();
    let (begun, mut best) = (Instant::now(), Duration::MAX);
    while begun.elapsed() < PATIENCE {
        let before = Instant::now();
        matmul(isa, weights, 0..weights.groups(), &x, 0, Output::Store(&out)).expect("room for all");
        best = best.min(before.elapsed());
    }
    best
}
