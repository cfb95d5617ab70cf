//! Attention follows floating point, has the same bits on every instruction set, and refuses what does not fit.

#[cfg(target_arch = "aarch64")]
mod guarded;

use flexserve_kernels::attention::{CONTEXT_MAX, Cache, HEAD_DIM_MAX, OUT_FRAC, STRETCH, Scratch, attend};
use flexserve_kernels::cache::{Layout, Rows, RowsMut, Width};
use flexserve_kernels::isa::Isa;
use flexserve_kernels::matrix::ShapeError;

const WIDTHS: [Width; 2] = [Width::Octet, Width::Word];

/// The instruction sets of this machine.
fn isas() -> Vec<Isa> {
    let mut isas = vec![Isa::PLAIN, Isa::BASELINE];
    for features in [Isa::DOTPROD, u64::MAX] {
        let isa = Isa::detect_within(features);
        if !isas.contains(&isa) {
            isas.push(isa);
        }
    }
    isas
}

/// Keys and values of a head. What was not written is the worst that memory can hold.
struct Head {
    layout: Layout,
    positions: usize,
    octets: [Vec<i8>; 2],
    scales: [Vec<i32>; 2],
}

impl Head {
    /// Of keys and values in Q15.16, (positions, `dim`).
    fn new(dim: usize, width: Width, keys: &[i32], values: &[i32]) -> Self {
        let (layout, positions) = (Layout::new(dim, width).unwrap(), keys.len() / dim);
        let mut octets = [(); 2].map(|()| vec![-128; layout.octets(positions)]);
        let mut scales = [(); 2].map(|()| vec![i32::MIN + 127; Layout::scales(positions)]);
        for (position, (key, value)) in keys.chunks(dim).zip(values.chunks(dim)).enumerate() {
            let [keys, values] = octets.each_mut();
            let [key_scales, value_scales] = scales.each_mut();
            layout.put_key(RowsMut { octets: keys, scales: key_scales }, position, key).unwrap();
            layout.put_value(RowsMut { octets: values, scales: value_scales }, position, value).unwrap();
        }
        Self { layout, positions, octets, scales }
    }

    fn attend(&self, isa: Isa, query: &[i32], positions: usize) -> Vec<i64> {
        let rows = |i: usize| Rows { octets: &self.octets[i], scales: &self.scales[i] };
        let cache = Cache { keys: rows(0), values: rows(1) };
        attend(isa, &self.layout, query, &cache, positions, &mut Scratch::new()).unwrap().to_vec()
    }

    /// The same of every instruction set.
    fn bits(&self, query: &[i32], positions: usize) -> Vec<i64> {
        let plain = self.attend(Isa::PLAIN, query, positions);
        for isa in isas() {
            let (dim, total) = (query.len(), self.positions);
            assert_eq!(self.attend(isa, query, positions), plain, "{isa:?}: {dim} x {positions} of {total}");
        }
        plain
    }
}

fn wave(count: usize, step: f64, scale: f64) -> Vec<f64> {
    (1..=count).map(|i| ((i * i) as f64 * step).sin() * scale).collect()
}

fn fixed(values: &[f64]) -> Vec<i32> {
    values.iter().map(|value| (value * 65536.0).round() as i32).collect()
}

fn real(out: &[i64]) -> impl Iterator<Item = f64> {
    out.iter().map(|&out| out as f64 * 2f64.powi(-OUT_FRAC))
}

/// Attention in floating point.
fn exact(query: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let dim = query.len();
    let score = |key: &[f64]| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt();
    let scores: Vec<f64> = keys.chunks(dim).map(score).collect();
    let top = scores.iter().fold(f64::MIN, |a, &s| a.max(s));
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..dim)
        .map(|i| values.chunks(dim).zip(&weights).map(|(value, w)| value[i] * w).sum::<f64>() / sum)
        .collect()
}

/// The largest difference from floating point, relative to the largest value.
fn error(
    (dim, positions): (usize, usize),
    width: Width,
    query_scale: f64,
    value_scale: impl Fn(usize) -> f64,
) -> f64 {
    let (query, keys) = (wave(dim, 0.3, query_scale), wave(dim * positions, 0.11, 5.0));
    let mut values = wave(dim * positions, 0.07, 1.0);
    values.iter_mut().enumerate().for_each(|(i, value)| *value *= value_scale(i / dim));
    let out = Head::new(dim, width, &fixed(&keys), &fixed(&values)).bits(&fixed(&query), positions);
    let largest = values.iter().fold(0f64, |a, v| a.max(v.abs()));
    let differences = real(&out).zip(exact(&query, &keys, &values)).map(|(out, exact)| (out - exact).abs());
    differences.fold(0f64, f64::max) / largest
}

#[test]
fn attention_follows_the_float() {
    for dim in [1, 16, 20, 32, 64, 80, 128, 256] {
        for positions in [1, 2, 3, 4, 5, 15, 16, 17, 33, 200, STRETCH, STRETCH + 1, 2048] {
            for (width, limit) in WIDTHS.into_iter().zip([3e-2, 4e-4]) {
                let error = error((dim, positions), width, 1.0, |_| 1.0);
                assert!(error < limit, "{dim} x {positions}, {width:?}: {error}");
            }
        }
    }
}

#[test]
fn values_of_very_different_size_keep_their_weight() {
    for (width, limit) in WIDTHS.into_iter().zip([3e-2, 3e-4]) {
        let error = [
            error((64, 40), width, 2.0, |position| 0.5f64.powi(position as i32 % 12)),
            error((64, 40), width, 2.0, |_| 300.0),
        ];
        assert!(error.iter().all(|&error| error < limit), "{width:?}: {error:?}");
    }
}

#[test]
fn every_instruction_set_has_the_same_bits() {
    let mut state = 0x0123_4567_89ab_cdef_u64;
    let mut random = |shift: u32| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((state >> 32) as u32).cast_signed() >> shift
    };
    for width in WIDTHS {
        for dim in [1, 8, 33, 64, 96, 128, 256] {
            for (query, key, value) in [(12, 12, 14), (0, 0, 0), (18, 2, 31), (31, 31, 20), (9, 14, 6)] {
                let mut numbers =
                    |count: usize, shift| -> Vec<i32> { (0..count).map(|_| random(shift)).collect() };
                let (query, positions) = (numbers(dim, query), 37);
                let head =
                    Head::new(dim, width, &numbers(dim * positions, key), &numbers(dim * positions, value));
                for positions in [1, 2, 7, 16, 36, 37] {
                    head.bits(&query, positions);
                }
            }
        }
    }
}

#[test]
fn later_positions_make_no_difference() {
    let (dim, numbers) = (64, fixed(&wave(64 * 9, 0.11, 5.0)));
    let query = &numbers[7..7 + dim];
    let whole = Head::new(dim, Width::Octet, &numbers, &numbers);
    for positions in 1..=9 {
        let part = &numbers[..positions * dim];
        let part = Head::new(dim, Width::Octet, part, part);
        assert_eq!(part.bits(query, positions), whole.bits(query, positions), "{positions}");
    }
}

#[test]
fn extremes_do_not_overflow() {
    let dim = HEAD_DIM_MAX;
    for width in WIDTHS {
        for (number, exact) in [(i32::MAX, 32768.0), (i32::MIN, -32768.0), (1, 2f64.powi(-16)), (0, 0.0)] {
            for query in [i32::MIN, i32::MAX, -1, 0] {
                let numbers = vec![number; dim * 41];
                let out = Head::new(dim, width, &numbers, &numbers).bits(&vec![query; dim], 41);
                // All alike: the mean is each of them.
                assert!(
                    real(&out).all(|out| (out - exact).abs() <= 1e-3 * exact.abs()),
                    "{number}: {}",
                    out[0]
                );
            }
        }
    }
}

#[test]
fn the_longest_context_does_not_overflow() {
    for (width, number) in [(Width::Octet, i32::MAX), (Width::Word, i32::MIN)] {
        let numbers = vec![number; CONTEXT_MAX];
        let head = Head::new(1, width, &numbers, &numbers);
        for isa in isas() {
            let mean = real(&head.attend(isa, &[1 << 16], CONTEXT_MAX)).next().unwrap() / f64::from(number);
            assert!((mean * 65536.0 - 1.0).abs() < 1e-2, "{isa:?}: {mean}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (dim, positions) = (20, 17);
    let layout = Layout::new(dim, Width::Octet).unwrap();
    let (octets, scales) = (vec![1; layout.octets(positions)], vec![1 << 30; Layout::scales(positions)]);
    let whole = Rows { octets: &octets, scales: &scales };
    let attend = |query: usize, keys: Rows, values: Rows, positions| {
        let mut scratch = Scratch::new();
        attend(Isa::BASELINE, &layout, &vec![1; query], &Cache { keys, values }, positions, &mut scratch)
            .map(<[i64]>::len)
    };
    assert_eq!(attend(dim, whole, whole, positions), Ok(dim));
    let short =
        [Rows { octets: &octets[1..], scales: &scales }, Rows { octets: &octets, scales: &scales[1..] }];
    for short in short {
        assert_eq!(attend(dim, short, whole, positions), Err(ShapeError));
        assert_eq!(attend(dim, whole, short, positions), Err(ShapeError));
    }
    for (query, positions) in
        [(dim - 1, positions), (dim + 1, positions), (dim, 0), (dim, CONTEXT_MAX + 1), (dim, usize::MAX)]
    {
        assert_eq!(attend(query, whole, whole, positions), Err(ShapeError));
    }
}

#[test]
fn stretches_weigh_what_they_weighed_together() {
    // What matters is in the first stretch, in the last, or in none: a mean of halves would be far off.
    let (dim, positions) = (16, 3 * STRETCH);
    let mut query = vec![0; dim];
    query[0] = 1 << 22;
    let values: Vec<i32> = (0..positions).flat_map(|j| vec![((1 + j / STRETCH) as i32) << 16; dim]).collect();
    for (marked, exact) in [(None, 2.0), (Some(7), 1.0), (Some(positions - 1), 3.0)] {
        let mut keys = vec![0; positions * dim];
        if let Some(marked) = marked {
            keys[marked * dim] = 1 << 18;
        }
        for mean in real(&Head::new(dim, Width::Word, &keys, &values).bits(&query, positions)) {
            assert!((mean / exact - 1.0).abs() < 1e-3, "{marked:?}: {mean}");
        }
    }
}
