//! What blocks' minima add to sums: their products with the sums of activations, 16-bit numbers of at most 2047.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::activations::Activations;
use crate::batch::Sums;
use crate::format::{GROUP, SCALES};
use crate::matrix::Group;
use crate::neon::{RowSums, no_rows};

/// Blocks whose products fit i32: 32 * 2^15 * 2047 < 2^31.
const SUMMED: usize = 32;
/// Blocks that are taken at once.
const EIGHT: usize = 8;

/// Adds the minima in `$m`, times the sum at a place of `$x`, to four rows each.
macro_rules! minimum {
    ($m:literal, $x:literal, $at:literal, $low:literal, $high:literal) => {
        concat!(
            "smlal ", $low, ".4s, ", $m, ".4h, ", $x, ".h[", $at, "]\n", "smlal2 ", $high, ".4s, ", $m,
            ".8h, ", $x, ".h[", $at, "]\n"
        )
    };
}

/// Adds the products of four blocks' minima in v0 to v3 with four places of some tokens' sums.
macro_rules! four {
    (0; $($x:literal $low:literal $high:literal),+) => {
        concat!($(
            minimum!("v0", $x, 0, $low, $high), minimum!("v1", $x, 1, $low, $high),
            minimum!("v2", $x, 2, $low, $high), minimum!("v3", $x, 3, $low, $high)
        ),+)
    };
    (4; $($x:literal $low:literal $high:literal),+) => {
        concat!($(
            minimum!("v0", $x, 4, $low, $high), minimum!("v1", $x, 5, $low, $high),
            minimum!("v2", $x, 6, $low, $high), minimum!("v3", $x, 7, $low, $high)
        ),+)
    };
}

/// Products of at most [`SUMMED`] blocks' minima with the sums of one token or four: of each, of rows 0..4 and 4..8. Where sums are
/// zeros that fill up, what they are multiplied with are the first of the group's other bytes.
///
/// # Safety
/// Each of `sums` is valid for reads of as many sums as there are blocks.
#[inline(always)]
unsafe fn products<const T: usize>(
    minima: &[u8],
    sums: [*const i16; T],
    blocks: usize,
) -> [[int32x4_t; 2]; T] {
    const { assert!(T == 1 || T == 4) };
    assert!(minima.len() >= blocks * SCALES && blocks <= SUMMED, "minima, or what lies behind them");
    let mut minima = minima.as_ptr();
    // SAFETY: NEON is there; there are minima and, the caller promises, sums of that many blocks.
    unsafe {
        let mut out = [[vdupq_n_s32(0); 2]; T];
        let mut done = 0;
        if T == 1 {
            let [mut low, mut high] = out[0];
            for _ in 0..blocks / EIGHT {
                asm!(
                    "ldr q8, [{sums}]",
                    "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                    four!(0; "v8" "{low:v}" "{high:v}"),
                    "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                    four!(4; "v8" "{low:v}" "{high:v}"),
                    minima = inout(reg) minima, sums = in(reg) sums[0].add(done),
                    low = inout(vreg) low, high = inout(vreg) high,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v8") _,
                    options(readonly, nostack)
                );
                done += EIGHT;
            }
            out[0] = [low, high];
        } else {
            let [[mut a, mut b], [mut c, mut d], [mut e, mut f], [mut g, mut h]] =
                [out[0], out[1 % T], out[2 % T], out[3 % T]];
            for _ in 0..blocks / EIGHT {
                asm!(
                    "ldr q8, [{s0}]", "ldr q9, [{s1}]", "ldr q10, [{s2}]", "ldr q11, [{s3}]",
                    "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                    four!(0; "v8" "{a:v}" "{b:v}", "v9" "{c:v}" "{d:v}", "v10" "{e:v}" "{f:v}", "v11" "{g:v}" "{h:v}"),
                    "ld1 {{v0.8h, v1.8h, v2.8h, v3.8h}}, [{minima}], #64",
                    four!(4; "v8" "{a:v}" "{b:v}", "v9" "{c:v}" "{d:v}", "v10" "{e:v}" "{f:v}", "v11" "{g:v}" "{h:v}"),
                    minima = inout(reg) minima, s0 = in(reg) sums[0].add(done), s1 = in(reg) sums[1 % T].add(done),
                    s2 = in(reg) sums[2 % T].add(done), s3 = in(reg) sums[3 % T].add(done),
                    a = inout(vreg) a, b = inout(vreg) b, c = inout(vreg) c, d = inout(vreg) d,
                    e = inout(vreg) e, f = inout(vreg) f, g = inout(vreg) g, h = inout(vreg) h,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _,
                    options(readonly, nostack)
                );
                done += EIGHT;
            }
            for (out, sums) in out.iter_mut().zip([[a, b], [c, d], [e, f], [g, h]]) {
                *out = sums;
            }
        }
        for block in done..blocks {
            let m = vld1q_s16(minima.cast());
            minima = minima.add(SCALES);
            for (out, sums) in out.iter_mut().zip(sums) {
                let sum = *sums.add(block);
                out[0] = vmlal_n_s16(out[0], vget_low_s16(m), sum);
                out[1] = vmlal_high_n_s16(out[1], m, sum);
            }
        }
        out
    }
}

/// Adds two rows' products each, times `2^shift`.
#[inline(always)]
unsafe fn add_shifted(out: &mut [int64x2_t], products: int32x4_t, shift: i32) {
    // SAFETY: NEON is there.
    unsafe {
        let shift = vdupq_n_s64(i64::from(shift));
        out[0] = vaddq_s64(out[0], vshlq_s64(vmovl_s32(vget_low_s32(products)), shift));
        out[1] = vaddq_s64(out[1], vshlq_s64(vmovl_high_s32(products), shift));
    }
}

/// Products of some groups' minima with a token's block sums, times 2^`shifts` for rows 0..4 and rows 4..8.
#[inline(always)]
pub(crate) fn of_token<const G: usize>(
    groups: [&Group; G],
    x: &Activations,
    token: usize,
    shifts: [i32; 2],
) -> [RowSums; G] {
    let mut out = [no_rows(); G];
    if !groups[0].has_minima() {
        return out;
    }
    let shifts = shifts.map(|shift| shift + x.sum_shift(token));
    for (chunk, sums) in x.padded_sums(token).chunks(SUMMED).enumerate() {
        for (out, group) in out.iter_mut().zip(groups) {
            // SAFETY: NEON is there, and that many sums.
            unsafe {
                let [[low, high]] = products(group.minima_from(chunk * SUMMED), [sums.as_ptr()], sums.len());
                add_shifted(&mut out[..2], low, shifts[0]);
                add_shifted(&mut out[2..], high, shifts[1]);
            }
        }
    }
    out
}

/// Block sums of four tokens, taken out once for all groups.
pub(crate) struct Four<'a> {
    /// Of each; where there are fewer tokens, of the last one.
    sums: [&'a [i16]; 4],
    /// By what powers of 2 their products are multiplied.
    shifts: [i32; 4],
}

impl<'a> Four<'a> {
    /// Of the tokens from the `first` on, of which there may be fewer than four before the `end`.
    pub fn new(x: &Activations<'a>, first: usize, end: usize) -> Self {
        let token = |i: usize| (first + i).min(end - 1);
        Self {
            sums: core::array::from_fn(|i| x.padded_sums(token(i))),
            shifts: core::array::from_fn(|i| 7 + x.sum_shift(token(i))),
        }
    }
}

/// Starts the sums: products of a group's minima with block sums, times 128.
pub(crate) fn of_tokens(group: &Group, fours: &[Four], out: &mut Sums) {
    if !group.has_minima() {
        out.fill([0; GROUP]);
        return;
    }
    for (four, out) in fours.iter().zip(out.as_chunks_mut::<4>().0) {
        let blocks = four.sums[0].len();
        let sums = four.sums.each_ref().map(
            #[inline(always)]
            |sums| sums[..blocks].as_ptr(),
        );
        let mut rows = [no_rows(); 4];
        for start in (0..blocks).step_by(SUMMED) {
            let minima = group.minima_from(start);
            // SAFETY: NEON is there, and that many sums of each.
            unsafe {
                let part = [sums[0].add(start), sums[1].add(start), sums[2].add(start), sums[3].add(start)];
                let products = products(minima, part, (blocks - start).min(SUMMED));
                for i in 0..4 {
                    add_shifted(&mut rows[i][..2], products[i][0], four.shifts[i]);
                    add_shifted(&mut rows[i][2..], products[i][1], four.shifts[i]);
                }
            }
        }
        for (out, rows) in out.iter_mut().zip(&rows) {
            *out = crate::neon::store(rows);
        }
    }
}
