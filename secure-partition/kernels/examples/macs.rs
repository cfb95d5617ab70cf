//! Products whose instructions `flexserve bench kernels` counts: one vector, and a batch, with a matrix of each format.
//!
//! A system call, `sched_yield`, marks the moments before and behind each, for a plugin in the emulator that counts
//! (`xtask/plugin/count.c`). Prints JSON, an object for each product: its name and multiply-accumulates.

use flexserve_kernels::activations::{Precision, Room};
use flexserve_kernels::format::Format;
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul};
use flexserve_kernels::matrix::Matrix;
use std::sync::atomic::AtomicI32;
use std::thread::yield_now as mark;

/// The matrix of the feed-forward network of SmolLM2-135M.
const ROWS: usize = 1536;
const COLS: usize = 576;
const KERNELS: [(&str, &str, Format); 3] =
    [("q4", "", Format::Q4Min), ("q8", "", Format::Q8), ("q4", "_q4_0", Format::Q4)];
const SHAPES: [(&str, usize); 2] = [("gemv", 1), ("gemm128", 128)];

fn main() {
    let isa = Isa::detect();
    for (bits, of, format) in KERNELS {
        let bytes = vec![0; format.packed_bytes(ROWS, COLS).unwrap_or_default()];
        let weights = Matrix::new(format, ROWS, COLS, &bytes).expect("zeros are weights");
        for (shape_name, tokens) in SHAPES {
            let mut room = Room::new(tokens, COLS);
            let mut buffers = room.buffers();
            let values: Vec<i32> = (0..COLS as i32).collect();
            let mut writer = buffers.writer(isa, tokens, COLS).expect("whole blocks");
            (0..tokens).for_each(|_| writer.put(&values, 0, Precision::Octets).expect("that many tokens"));
            let x = writer.finish().expect("all tokens");
            let out: Vec<AtomicI32> = (0..tokens * ROWS).map(|_| AtomicI32::new(0)).collect();
            mark();
            matmul(isa, &weights, 0..weights.groups(), &x, 0, Output::Store(&out)).expect("room for all");
            mark();
            let macs = tokens * ROWS * COLS;
            println!("{{\"name\":\"{bits}-{shape_name}{of}\",\"macs\":{macs}}}");
        }
    }
}
