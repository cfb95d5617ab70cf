//! Every kernel equals its plain twin, bit for bit: on random and on worst-case weights and activations, at shapes just
//! inside and outside the edges of tiles.

#[cfg(target_arch = "aarch64")]
mod guarded;

use flexserve_kernels::activations::{Activations, Buffers, MANTISSA_MAX, Precision, Room};
use flexserve_kernels::format::{BLOCK, Format, GROUP, SCALES};
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matmul::{Output, matmul, scale};
use flexserve_kernels::matrix::{MAX_COLS, Matrix, ShapeError};
use std::ops::Range;
use std::sync::atomic::{AtomicI32, AtomicI64};

const FORMATS: [Format; 4] = [Format::Q4, Format::Q4Min, Format::Q8, Format::W16];

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn word(&mut self) -> i32 {
        (self.next() >> 32) as i32
    }
}

/// The instruction sets of this machine.
fn isas() -> Vec<Isa> {
    let mut isas = vec![Isa::BASELINE];
    for features in [Isa::DOTPROD, Isa::DOTPROD | Isa::I8MM, !Isa::I8MM, u64::MAX] {
        let isa = Isa::detect_within(features);
        if !isas.contains(&isa) {
            isas.push(isa);
        }
    }
    isas
}

const PRECISIONS: [Precision; 4] =
    [Precision::Octets, Precision::Peaks, Precision::Outliers, Precision::Words];

/// Writes down tokens, in buffers of just the length that they need, and hands them over.
fn with_activations<T>(
    isa: Isa,
    tokens: &[Vec<i32>],
    precision: Precision,
    then: impl FnOnce(Activations) -> T,
) -> T {
    let mut room = Room::new(tokens.len(), tokens[0].len());
    let mut buffers = room.buffers();
    let mut writer = buffers.writer(isa, tokens.len(), tokens[0].len()).unwrap();
    tokens.iter().for_each(|token| writer.put(token, 0, precision).unwrap());
    then(writer.finish().unwrap())
}

fn run(isa: Isa, weights: &Matrix, values: &[i32], precision: Precision, frac: i32) -> Vec<i64> {
    run_with(isa, weights, values, weights.inputs() / weights.cols(), precision, frac)
}

/// With activations that are written down some times over.
fn run_with(
    isa: Isa,
    weights: &Matrix,
    values: &[i32],
    times: usize,
    precision: Precision,
    frac: i32,
) -> Vec<i64> {
    let tokens: Vec<Vec<i32>> = values.chunks(weights.cols()).map(|token| token.repeat(times)).collect();
    with_activations(isa, &tokens, precision, |x| multiply(isa, weights, &x, frac))
}

fn multiply(isa: Isa, weights: &Matrix, x: &Activations, frac: i32) -> Vec<i64> {
    let tokens = x.tokens();
    let add = |before: &[i64]| {
        let after: Vec<AtomicI64> = before.iter().map(|_| AtomicI64::new(i64::MIN)).collect();
        let output = Output::Add { before, after: &after };
        // In two parts, as two workers do.
        let middle = weights.groups() / 2;
        matmul(isa, weights, 0..middle, x, frac, output).unwrap();
        matmul(isa, weights, middle..weights.groups(), x, frac, output).unwrap();
        after.into_iter().map(AtomicI64::into_inner).collect::<Vec<_>>()
    };
    let y = add(&vec![0; tokens * weights.rows()]);
    let before: Vec<i64> = (0..).map(|i| i % 3 * (i64::MAX / 2)).take(y.len()).collect();
    let saturated: Vec<i64> = y.iter().zip(&before).map(|(y, before)| y.saturating_add(*before)).collect();
    assert_eq!(add(&before), saturated);
    let narrow: Vec<AtomicI32> = y.iter().map(|_| AtomicI32::new(7)).collect();
    matmul(isa, weights, 0..weights.groups(), x, frac, Output::Store(&narrow)).unwrap();
    for (y, narrow) in y.iter().zip(narrow) {
        assert_eq!(i64::from(narrow.into_inner()), *y.clamp(&i32::MIN.into(), &i32::MAX.into()));
    }
    y
}

/// The definition in the documentation of `format`, column by column, but for minima, which have a test of their own.
fn definition(weights: &Matrix, values: &[i32], precision: Precision, frac: i32) -> Vec<i64> {
    let tokens: Vec<Vec<i32>> = values.chunks(weights.cols()).map(<[i32]>::to_vec).collect();
    with_activations(Isa::PLAIN, &tokens, precision, |x| {
        let mut out = Vec::new();
        for token in 0..x.tokens() {
            let mut mantissas = vec![0; weights.cols()];
            let exponent = x.decode(token, |c, part| mantissas[c] += part).unwrap();
            for row in 0..weights.rows() {
                let mut sum = 0;
                let shift = weights.decode_row(row, |c, value| sum += value * mantissas[c]).unwrap();
                out.push(scale(sum, shift.saturating_add(exponent).saturating_sub(frac)));
            }
        }
        out
    })
}

fn check(format: Format, rows: usize, cols: usize, bytes: &[u8], values: &[i32]) {
    let weights = Matrix::new(format, rows, cols, bytes).unwrap();
    for precision in PRECISIONS {
        let plain = run(Isa::PLAIN, &weights, values, precision, 24);
        if format != Format::Q4Min {
            assert_eq!(plain, definition(&weights, values, precision, 24), "{format:?} {rows} x {cols}");
        }
        for isa in isas() {
            assert_eq!(
                run(isa, &weights, values, precision, 24),
                plain,
                "{isa:?} {precision:?} {format:?} {rows} x {cols}, {} tokens",
                values.len() / cols
            );
        }
    }
}

#[test]
fn who_is_in_a_batch_makes_no_difference() {
    let mut random = Random(0x0123_0123_0123_0123);
    let (rows, cols, tokens) = (24, 224, 11);
    for format in FORMATS {
        let bytes: Vec<u8> =
            (0..format.packed_bytes(rows, cols).unwrap()).map(|_| random.next() as u8).collect();
        let weights = Matrix::new(format, rows, cols, &bytes).unwrap();
        // Each token has its outlier somewhere else, and one has none.
        let mut values: Vec<i32> = (0..tokens * cols).map(|_| random.word() >> 8).collect();
        (1..tokens).for_each(|t| values[t * cols + t * 20] = i32::MAX);
        for isa in [Isa::PLAIN].into_iter().chain(isas()) {
            let together = run(isa, &weights, &values, Precision::Outliers, 24);
            for (token, together) in values.chunks(cols).zip(together.chunks(rows)) {
                assert_eq!(
                    run(isa, &weights, token, Precision::Outliers, 24),
                    together,
                    "{isa:?} {format:?}"
                );
            }
        }
    }
}

#[test]
fn minima_follow_their_definition() {
    let cols = 1056;
    let mut random = Random(0x7777_1234_7777_1234);
    let mut bytes: Vec<u8> =
        (0..Format::Q4Min.packed_bytes(GROUP, cols).unwrap()).map(|_| random.next() as u8).collect();
    bytes[..4 * GROUP].fill(0);
    // Nothing but minima.
    let minima = 4 * GROUP..4 * GROUP + cols / BLOCK * SCALES;
    bytes[minima.end..].fill(0);
    let minima: Vec<i64> =
        bytes[minima].as_chunks::<2>().0.iter().map(|&m| i16::from_le_bytes(m).into()).collect();
    let weights = Matrix::new(Format::Q4Min, GROUP, cols, &bytes).unwrap();
    let values: Vec<i32> = (0..cols).map(|c| (random.word() >> 10) << (c / 100)).collect();
    for precision in PRECISIONS {
        let got = run(Isa::PLAIN, &weights, &values, precision, 0);
        let sums: Vec<i64> =
            values.chunks(BLOCK).map(|block| block.iter().map(|&value| i64::from(value)).sum()).collect();
        let most = sums.iter().fold(0, |most, sum| sum.abs().max(most));
        for (row, got) in got.into_iter().enumerate() {
            let exact: i64 = sums.iter().enumerate().map(|(b, sum)| minima[b * GROUP + row] * sum).sum();
            // Each sum is off by half of 2^-10 of the largest, and by the rounding of its mantissas.
            let off = (got / 128 - exact).abs();
            assert!(off <= 33 * 32768 * (most / 1024 + 64), "{off} of {exact}");
        }
    }
}

#[test]
fn random_weights() {
    let mut random = Random(0x1234_5678_9abc_def1);
    for format in FORMATS {
        for rows in [1, 7, 8, 9, 31] {
            for cols in [32, 64, 96, 576] {
                for tokens in [1, 2, 3, 4, 5, 8, 9] {
                    let bytes: Vec<u8> =
                        (0..format.packed_bytes(rows, cols).unwrap()).map(|_| random.next() as u8).collect();
                    let values: Vec<i32> =
                        (0..tokens * cols).map(|_| random.word() >> (random.next() % 32)).collect();
                    check(format, rows, cols, &bytes, &values);
                }
            }
        }
    }
}

#[test]
fn activations_may_have_columns_to_spare() {
    let mut random = Random(0x0bad_cafe_0bad_cafe);
    for format in FORMATS {
        for tokens in [1, 2, 3, 4, 5, 8, 9] {
            let (rows, cols) = (17, 96);
            let bytes: Vec<u8> =
                (0..format.packed_bytes(rows, cols).unwrap()).map(|_| random.next() as u8).collect();
            let values: Vec<i32> = (0..tokens * cols).map(|_| random.word()).collect();
            let weights = Matrix::new(format, rows, cols, &bytes).unwrap();
            for isa in [Isa::PLAIN].into_iter().chain(isas()) {
                for precision in PRECISIONS {
                    assert_eq!(
                        run_with(isa, &weights, &values, 3, precision, 24),
                        run(Isa::PLAIN, &weights, &values, precision, 24),
                        "{isa:?} {precision:?} {format:?}"
                    );
                }
            }
        }
    }
}

/// `FLEXSERVE_SHAPES` says how many, if not 40.
#[test]
fn shapes_at_random() {
    let count =
        std::env::var("FLEXSERVE_SHAPES").map_or(40, |count| count.parse().expect("a number of shapes"));
    let mut random = Random(0x5eed_5eed_5eed_5eed);
    for _ in 0..count {
        let mut below = |limit: u64| (random.next() % limit) as usize;
        let format = FORMATS[below(4)];
        let (rows, cols, tokens) = (1 + below(40), BLOCK * (1 + below(40)), 1 + below(12));
        let length = format.packed_bytes(rows, cols).unwrap();
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        assert_eq!(Matrix::new(format, rows, cols, &bytes[..length - 1]).err(), Some(ShapeError));
        assert_eq!(Matrix::new(format, rows, cols + 1, &bytes).err(), Some(ShapeError));
        let values: Vec<i32> = (0..tokens * cols).map(|_| random.word() >> (random.next() % 32)).collect();
        check(format, rows, cols, &bytes, &values);
    }
}

#[test]
fn strips_and_batches_of_any_length() {
    let mut random = Random(0x0fed_cba9_8765_4321);
    for format in FORMATS {
        for (rows, cols, tokens) in [(17, 1056, 5), (8, 2080, 6), (24, 64, 67), (9, 96, 129), (299, 96, 3)] {
            let bytes: Vec<u8> =
                (0..format.packed_bytes(rows, cols).unwrap()).map(|_| random.next() as u8).collect();
            let values: Vec<i32> =
                (0..tokens * cols).map(|_| random.word() >> (random.next() % 32)).collect();
            check(format, rows, cols, &bytes, &values);
        }
    }
}

#[test]
fn extremes_of_every_field() {
    for format in FORMATS {
        for fill in [0x80, 0x7f, 0x88, 0x77, 0xff, 0x00] {
            for (sign, tokens) in [(1, 1), (-1, 1), (1, 5), (-1, 5)] {
                let cols = 1024;
                let mut bytes = vec![fill; format.packed_bytes(GROUP, cols).unwrap()];
                // Shifts that keep the sums in sight.
                bytes[..4 * GROUP].fill(0);
                check(format, GROUP, cols, &bytes, &vec![sign * i32::MAX; tokens * cols]);
            }
        }
    }
}

#[test]
fn the_largest_sum_of_the_widest_row_is_exact() {
    let cols = MAX_COLS;
    // Bytes of -128, or nibbles of -8 and of 8 less than 0: either is -128 in units of a scale.
    for format in [Format::Q8, Format::Q4] {
        let mut block = i16::MIN.to_le_bytes().repeat(GROUP);
        block.resize(format.block_bytes(), 0x80);
        let mut bytes = vec![0; 4 * GROUP];
        (0..cols / BLOCK).for_each(|_| bytes.extend_from_slice(&block));
        // The largest mantissa, with exponent -5.
        let values = vec![(MANTISSA_MAX as i32) << 5; cols];
        check(format, GROUP, cols, &bytes, &values);
        let weights = Matrix::new(format, GROUP, cols, &bytes).unwrap();
        for precision in PRECISIONS {
            let sums = run(Isa::PLAIN, &weights, &values, precision, -5);
            assert_eq!(sums, [cols as i64 * 32768 * 128 * MANTISSA_MAX; GROUP], "{format:?}");
        }
    }
}

#[test]
fn the_largest_sums_with_minima_and_of_two_octets_fit() {
    let random = &mut Random(0x3141_5926_5358_9793);
    for (format, cols) in [(Format::Q4Min, MAX_COLS), (Format::W16, MAX_COLS / 2)] {
        let mut bytes = vec![0; 4 * GROUP];
        // Minima and scales of -32768, which add up; high nibbles of -8 and low ones of 15, or octets of -128.
        let blocks = cols / BLOCK * format.passes();
        bytes.extend(i16::MIN.to_le_bytes().repeat(blocks * format.minima_bytes() / 2));
        for _ in 0..blocks {
            bytes.extend(i16::MIN.to_le_bytes().repeat(GROUP));
            bytes.resize(
                bytes.len() + format.block_bytes() - SCALES,
                if format.has_nibbles() { 0x8f } else { 0x80 },
            );
        }
        for sign in [1, -1] {
            check(format, GROUP, cols, &bytes, &vec![sign * ((MANTISSA_MAX as i32) << 5); cols]);
            // With second entries, as large as they can be.
            let values: Vec<i32> =
                (0..cols).map(|_| sign * (i32::MAX - (random.next() % 4096) as i32)).collect();
            check(format, GROUP, cols, &bytes, &values);
        }
    }
}

#[test]
fn shapes_are_checked() {
    let bytes = vec![0; 4096];
    assert!(Matrix::new(Format::Q8, 8, 32, &bytes[..304]).is_ok());
    assert!(Matrix::new(Format::Q8, 8, 32, &bytes[..303]).is_err());
    assert!(Matrix::new(Format::Vector, 1, 32, &bytes).is_err());
    assert!(Matrix::new(Format::Q4Min, 8, 33, &bytes).is_err());
    assert!(Matrix::new(Format::Q4Min, 8, MAX_COLS + 32, &vec![0; 1 << 20]).is_err());
    let bytes = vec![0; 1 << 21];
    assert!(Matrix::new(Format::W16, 1, MAX_COLS / 2, &bytes).is_ok());
    assert!(Matrix::new(Format::W16, 1, MAX_COLS / 2 + 32, &bytes).is_err());
    let weights = Matrix::new(Format::Q8, 7, 32, &bytes).unwrap();
    assert_eq!(weights.decode_row(6, |_, _| ()), Ok(0));
    assert_eq!(weights.decode_row(7, |_, _| ()), Err(ShapeError));
    with_activations(Isa::PLAIN, &[vec![1; 32]], Precision::Octets, |x| {
        assert!(x.decode(0, |_, _| ()).is_ok());
        assert_eq!(x.decode(1, |_, _| ()), Err(ShapeError));
    });
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let bytes = vec![0; Format::Q8.packed_bytes(16, 64).unwrap()];
    let weights = Matrix::new(Format::Q8, 16, 64, &bytes).unwrap();
    let isa = Isa::PLAIN;
    let short: Vec<AtomicI32> = (0..31).map(|_| AtomicI32::new(7)).collect();
    let multiply = |tokens: &[Vec<i32>], groups, out: &[AtomicI32]| {
        with_activations(isa, tokens, Precision::Octets, |x| {
            matmul(isa, &weights, groups, &x, 0, Output::Store(out))
        })
    };
    assert_eq!(multiply(&[vec![1; 64], vec![1; 64]], 0..2, &short), Err(ShapeError));
    assert_eq!(multiply(&[vec![1; 64]], 0..3, &short), Err(ShapeError));
    assert_eq!(multiply(&[vec![1; 64]], Range { start: 2, end: 1 }, &short), Err(ShapeError));
    assert_eq!(multiply(&[vec![1; 32]], 0..2, &short), Err(ShapeError));
    assert!(
        short.iter().all(|out| out.load(std::sync::atomic::Ordering::Relaxed) == 7),
        "nothing is written"
    );
    assert_eq!(multiply(&[vec![1; 96]], 0..2, &short), Ok(()));

    let mut buffers = Buffers::default();
    assert_eq!(buffers.writer(isa, 1, 32).err(), Some(ShapeError));
    let (mut octets, mut scales, mut sums) = ([0; 128], [0; 32], [0; 32]);
    let (mut tokens, mut seconds, mut scratch) = ([[0; 2]; 1], [0; 2], [0; 2]);
    let mut buffers = Buffers {
        octets: &mut octets,
        scales: &mut scales,
        sums: &mut sums,
        tokens: &mut tokens,
        seconds: &mut seconds,
        scratch: &mut scratch,
    };
    assert_eq!(buffers.writer(isa, 0, 32).err(), Some(ShapeError));
    assert_eq!(buffers.writer(isa, 2, 32).err(), Some(ShapeError));
    assert_eq!(buffers.writer(isa, usize::MAX, 32).err(), Some(ShapeError));
    assert_eq!(buffers.writer(isa, 1, usize::MAX - 31).err(), Some(ShapeError));
    assert_eq!(buffers.writer(isa, 1, 33).err(), Some(ShapeError));
    assert_eq!(buffers.writer(isa, 1, 64).err(), Some(ShapeError));
    let mut writer = buffers.writer(isa, 1, 32).unwrap();
    assert_eq!(writer.put(&[0; 64], 0, Precision::Octets), Err(ShapeError));
    assert_eq!(writer.put(&[0; 33], 0, Precision::Octets), Err(ShapeError));
    writer.put(&[0; 32], 0, Precision::Octets).unwrap();
    assert_eq!(writer.put(&[0; 32], 0, Precision::Octets), Err(ShapeError));
    assert_eq!(buffers.writer(isa, 1, 32).unwrap().finish().err(), Some(ShapeError));
}

#[test]
fn scaling_rounds_halves_up_and_saturates() {
    assert_eq!([scale(3, 1), scale(-3, 1), scale(5, 2), scale(-1, 63)], [2, -1, 1, 0]);
    assert_eq!([scale(1, -62), scale(1, -63), scale(-1, -63)], [1 << 62, i64::MAX, i64::MIN]);
    assert_eq!([scale(i64::MAX, 1), scale(0, i32::MIN), scale(7, i32::MAX)], [i64::MAX >> 1, 0, 0]);
    assert_eq!(scale(1, i32::MIN), i64::MAX);
}
