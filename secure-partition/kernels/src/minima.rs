//! What blocks' minima add to sums: their products with the sums of activations.

use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

use crate::activations::Activations;
use crate::batch::Sums;
use crate::format::{BLOCK, GROUP, SCALES};
use crate::matrix::Group;
use crate::neon::{RowSums, no_rows, store};

/// Blocks whose products with a half of a block's sum fit i32: 64 * 2^15 * 1020 < 2^31.
const SUMMED: usize = 64;

/// Adds the minima in `$m`, times a block's sum whose halves are at two places of v8, to the high and low parts of four rows
/// each.
macro_rules! minimum {
    ($m:literal, $low:literal, $high:literal; $a:ident $b:ident $c:ident $d:ident) => {
        concat!(
            "smlal {",
            stringify!($a),
            ":v}.4s, ",
            $m,
            ".4h, v8.h[",
            $high,
            "]\n",
            "smlal2 {",
            stringify!($b),
            ":v}.4s, ",
            $m,
            ".8h, v8.h[",
            $high,
            "]\n",
            "smlal {",
            stringify!($c),
            ":v}.4s, ",
            $m,
            ".4h, v8.h[",
            $low,
            "]\n",
            "smlal2 {",
            stringify!($d),
            ":v}.4s, ",
            $m,
            ".8h, v8.h[",
            $low,
            "]\n"
        )
    };
}

/// Adds the minima of one group or two, times all block sums, to their parts. In one piece, as the compiler would load registers
/// one by one.
macro_rules! minima {
    ($sums:ident; $($minima:ident $at:expr, $parts:expr, $m0:literal $m1:literal $m2:literal $m3:literal,
     $a:ident $b:ident $c:ident $d:ident);+) => {
        asm!(
            "cbz {fours}, 3f",
            "2:",
            "ldr q8, [{sums}], #16",
            $(
                concat!(
                    "ld1 {{", $m0, ".8h, ", $m1, ".8h, ", $m2, ".8h, ", $m3, ".8h}}, [{", stringify!($minima), "}], #64"
                ),
                minimum!($m0, 0, 1; $a $b $c $d), minimum!($m1, 2, 3; $a $b $c $d),
                minimum!($m2, 4, 5; $a $b $c $d), minimum!($m3, 6, 7; $a $b $c $d),
            )+
            "subs {fours}, {fours}, #1",
            "b.ne 2b",
            "3:",
            "cbz {rest}, 5f",
            "4:",
            "ldr s8, [{sums}], #4",
            $(
                concat!("ld1 {{", $m0, ".8h}}, [{", stringify!($minima), "}], #16"),
                minimum!($m0, 0, 1; $a $b $c $d),
            )+
            "subs {rest}, {rest}, #1",
            "b.ne 4b",
            "5:",
            sums = inout(reg) $sums.as_ptr() => _,
            fours = inout(reg) $sums.len() / 4 => _, rest = inout(reg) $sums.len() % 4 => _,
            $(
                $minima = inout(reg) $at => _,
                $a = inout(vreg) $parts[0], $b = inout(vreg) $parts[1],
                $c = inout(vreg) $parts[2], $d = inout(vreg) $parts[3],

            )+
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _,
            options(readonly, nostack)
        )
    };
}

/// Products of some groups' minima with a token's block sums, times 2^`HIGH` for rows 0..4 and 2^`LOW` for rows 4..8.
#[inline(always)]
pub(crate) fn of_token<const G: usize, const HIGH: i32, const LOW: i32>(
    minima: [&[u8]; G],
    sums: &[i32],
) -> [RowSums; G] {
    const { assert!(G == 1 || G == 2) };
    let mut out = [no_rows(); G];
    for (chunk, sums) in sums.chunks(SUMMED).enumerate() {
        let at = |group: usize| minima[group][chunk * SUMMED * SCALES..][..sums.len() * SCALES].as_ptr();
        // SAFETY: NEON is there; the loads are of as many sums and minima as there are.
        unsafe {
            // Products with the high and with the low half of sums, of 4 rows each.
            let mut parts = [[vdupq_n_s32(0); 4]; G];
            if G == 1 {
                minima!(sums; m0 at(0), parts[0], "v0" "v1" "v2" "v3", a0 a1 a2 a3);
            } else {
                minima!(
                    sums; m0 at(0), parts[0], "v0" "v1" "v2" "v3", a0 a1 a2 a3;
                    m1 at(G - 1), parts[G - 1], "v4" "v5" "v6" "v7", b0 b1 b2 b3
                );
            }
            for (out, [h0, h1, l0, l1]) in out.iter_mut().zip(parts) {
                add_shifted::<HIGH>(&mut out[..2], h0, l0);
                add_shifted::<LOW>(&mut out[2..], h1, l1);
            }
        }
    }
    out
}

/// Adds a block's minima times its sum, whose halves are at two places of `sums`.
#[inline(always)]
unsafe fn minimum<const L: i32, const H: i32>(parts: &mut [int32x4_t; 4], m: int16x8_t, sums: int16x8_t) {
    // SAFETY: NEON is there.
    unsafe {
        parts[0] = vmlal_laneq_s16::<H>(parts[0], vget_low_s16(m), sums);
        parts[1] = vmlal_high_laneq_s16::<H>(parts[1], m, sums);
        parts[2] = vmlal_laneq_s16::<L>(parts[2], vget_low_s16(m), sums);
        parts[3] = vmlal_high_laneq_s16::<L>(parts[3], m, sums);
    }
}

/// Adds (1024 * `high` + `low`) * 2^`SHIFT` to four rows.
#[inline(always)]
unsafe fn add_shifted<const SHIFT: i32>(out: &mut [int64x2_t], high: int32x4_t, low: int32x4_t) {
    // SAFETY: NEON is there.
    unsafe {
        let pairs =
            [(vmovl_s32(vget_low_s32(high)), vget_low_s32(low)), (vmovl_high_s32(high), vget_high_s32(low))];
        for (out, (high, low)) in out.iter_mut().zip(pairs) {
            let sum = vaddw_s32(vshlq_n_s64::<10>(high), low);
            *out = vaddq_s64(*out, vshlq_n_s64::<SHIFT>(sum));
        }
    }
}

/// Starts the sums: products of a group's minima with block sums, times 128.
pub(crate) fn of_tokens(group: &Group, x: &Activations, tokens: Range<usize>, out: &mut Sums) {
    out[..tokens.len()].fill([0; GROUP]);
    if group.minima.is_empty() {
        return;
    }
    for start in (0..x.cols() / BLOCK).step_by(SUMMED) {
        let minima = &group.minima[start * SCALES..];
        let sums = |token: usize| {
            let sums = &x.sums(token.min(tokens.end - 1))[start..];
            &sums[..sums.len().min(SUMMED)]
        };
        for (first, out) in tokens.clone().step_by(4).zip(out.chunks_mut(4)) {
            let four = [sums(first), sums(first + 1), sums(first + 2), sums(first + 3)];
            four_minima(minima, four, out);
        }
    }
}

/// Minima of one group for up to four tokens.
fn four_minima(minima: &[u8], sums: [&[i32]; 4], out: &mut [[i64; GROUP]]) {
    let blocks = sums[0].len();
    let minima = minima[..blocks * SCALES].as_ptr();
    let sums = sums.map(|sums| sums[..blocks].as_ptr());
    // SAFETY: NEON is there; there are minima and sums of that many blocks.
    unsafe {
        // Products with the high and with the low half of sums, of 4 rows each.
        let mut parts = [[vdupq_n_s32(0); 4]; 4];
        let at = |b: usize| vld1q_s16(minima.add(b * SCALES).cast());
        for b in (0..blocks / 4 * 4).step_by(4) {
            let m = [at(b), at(b + 1), at(b + 2), at(b + 3)];
            for (parts, sums) in parts.iter_mut().zip(sums) {
                let sums = vreinterpretq_s16_s32(vld1q_s32(sums.add(b)));
                minimum::<0, 1>(parts, m[0], sums);
                minimum::<2, 3>(parts, m[1], sums);
                minimum::<4, 5>(parts, m[2], sums);
                minimum::<6, 7>(parts, m[3], sums);
            }
        }
        for b in blocks / 4 * 4..blocks {
            let m = at(b);
            for (parts, sums) in parts.iter_mut().zip(sums) {
                minimum::<0, 1>(parts, m, vreinterpretq_s16_s32(vld1q_dup_s32(sums.add(b))));
            }
        }
        for (out, parts) in out.iter_mut().zip(parts) {
            let mut rows = no_rows();
            for (rows, pair) in
                rows.as_chunks_mut::<2>().0.iter_mut().zip(out.as_chunks::<2>().0.chunks_exact(2))
            {
                *rows = [vld1q_s64(pair[0].as_ptr()), vld1q_s64(pair[1].as_ptr())];
            }
            add_shifted::<7>(&mut rows[..2], parts[0], parts[2]);
            add_shifted::<7>(&mut rows[2..], parts[1], parts[3]);
            *out = store(&rows);
        }
    }
}
