//! One token on Armv8.0-A: products of octets, summed in 16 bits as far as they fit.
//! Loops are in one piece of assembly, as the compiler would load registers one or two at a time instead of four. What the other kernels for Arm have in common is here, too.

use core::arch::aarch64::*;
use core::arch::asm;
use core::sync::atomic::{AtomicI32, AtomicI64};

use crate::activations::{Activations, Run, Runs, Token, jump};
use crate::format::{BLOCK, Format, GROUP, GROUP_HEAD, HALF, NIBBLES, OCTETS, SCALES};
use crate::isa::Kernel;
use crate::matmul::Output;
use crate::matrix::Group;
use crate::minima;
use crate::words_sve;

/// Groups of four columns of a block.
pub(crate) const FOURS: usize = BLOCK / 4;
/// Sums of the 8 rows of a group, 2 rows a vector.
pub(crate) type RowSums = [int64x2_t; GROUP / 2];
/// Weights of four rows of a block, 4 columns a vector.
pub(crate) type Weights = [int8x16_t; FOURS];

/// Four columns of nibbles of eight rows, and the octets that they are multiplied with, one of the eight fours in v16 and v17. Sums
/// of 8 products, 8 * 15 * 127, and of two such sums fit i16: those of high nibbles go to v8 and v9, of low ones to v10 and v11.
macro_rules! nibbles {
    ($op:literal, $w:literal, $x:literal) => {
        concat!(
            "dup v6.4s, ",
            $x,
            "\nsshr v7.16b, ",
            $w,
            ".16b, #4\nand v12.16b, ",
            $w,
            ".16b, v14.16b\n",
            $op,
            " v8.8h, v7.8b, v6.8b\n",
            $op,
            "2 v9.8h, v7.16b, v6.16b\n",
            $op,
            " v10.8h, v12.8b, v6.8b\n",
            $op,
            "2 v11.8h, v12.16b, v6.16b\n"
        )
    };
}

/// Eight columns of octets of eight rows. Sums of two products, 2 * 128 * 127, fit i16; they are added up in v18 to v21 ($add),
/// two rows each.
macro_rules! octets {
    ($add:literal, $a:literal, $b:literal, $c:literal, $d:literal, $x:literal, $y:literal) => {
        concat!(
            "dup v6.4s, ", $x, "\ndup v7.4s, ", $y, "\n",
            octets!(@ "v8", "v9", $a, $b), octets!(@ "v10", "v11", $c, $d),
            $add, " v18.4s, v8.8h\n", $add, " v19.4s, v9.8h\n", $add, " v20.4s, v10.8h\n", $add, " v21.4s, v11.8h\n"
        )
    };
    (@ $low:literal, $high:literal, $a:literal, $b:literal) => {
        concat!(
            "smull ", $low, ".8h, ", $a, ".8b, v6.8b\nsmull2 ", $high, ".8h, ", $a, ".16b, v6.16b\n",
            "smlal ", $low, ".8h, ", $b, ".8b, v7.8b\nsmlal2 ", $high, ".8h, ", $b, ".16b, v7.16b\n"
        )
    };
}

/// Multiplies the sums of four rows and of the other four by the rows' scales and the entry's, in v1, and adds them up. The product
/// of two scales is below 2^28.
macro_rules! scale {
    ($second:literal) => {
        concat!(
            "smull v13.4s, v15.4h, v1.h[0]\nsmull2 v15.4s, v15.8h, v1.h[0]\n",
            "smlal {a:v}.2d, v13.2s, v8.2s\nsmlal2 {b:v}.2d, v13.4s, v8.4s\n",
            "smlal {c:v}.2d, v15.2s, ",
            $second,
            ".2s\nsmlal2 {d:v}.2d, v15.4s, ",
            $second,
            ".4s\n"
        )
    };
}

/// Twin of [`crate::plain::group`] for one token, `runs` being its entries.
pub(crate) fn group(group: &Group, x: &Activations, token: usize, runs: &Runs) -> [i64; GROUP] {
    let nibbles = group.format.has_nibbles();
    // The sums of nibbles are a sixteenth of what they should be.
    let [mut out] = minima::of_token([group], x, token, if nibbles { [3, 3] } else { [7, 7] });
    for &run in runs.iter().flatten() {
        match group.format {
            Format::Q4 => multiply::<true, true>(group, x, token, run, &mut out),
            Format::Q4Min => multiply::<true, false>(group, x, token, run, &mut out),
            _ => multiply::<false, false>(group, x, token, run, &mut out),
        }
    }
    let sums = store(&out);
    if nibbles { sums.map(|sum| sum << 4) } else { sums }
}

/// Adds the products of a run of entries: those of nibbles, of which the low ones may be `BIASED`, or of octets.
#[inline(always)]
fn multiply<const NIBBLE: bool, const BIASED: bool>(
    group: &Group,
    x: &Activations,
    token: usize,
    run: Run,
    out: &mut RowSums,
) {
    let bytes = SCALES + if NIBBLE { NIBBLES } else { OCTETS };
    let block = group.blocks[run.block * bytes..][..run.span() * bytes].as_ptr();
    let (entries, stride) = (run.entries(), x.scales_stride());
    let (x, scales) = (x.octets_of(token, &run), x.scales(token, run.entry, entries));
    assert!(run.count > 0 && x.len() >= entries * BLOCK && scales.len() > (entries - 1) * stride + 1);
    let stride = 4 * stride;
    let [a, b, c, d] = out;
    macro_rules! of_nibbles {
        // How sums of the low nibbles' products go from v10 to v12.
        ($low:literal) => {
            asm!(
                "movi v14.16b, #15",
                "2:",
                "ld1 {{v16.16b, v17.16b}}, [{x}], #32",
                "ld1 {{v15.8h}}, [{block}], #16",
                "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{block}], #64",
                nibbles!("smull", "v0", "v16.s[0]"), nibbles!("smlal", "v1", "v16.s[1]"),
                nibbles!("smlal", "v2", "v16.s[2]"), nibbles!("smlal", "v3", "v16.s[3]"),
                "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{block}], #64",
                nibbles!("smlal", "v0", "v17.s[0]"), nibbles!("smlal", "v1", "v17.s[1]"),
                nibbles!("smlal", "v2", "v17.s[2]"), nibbles!("smlal", "v3", "v17.s[3]"),
                "ld1 {{v1.2s}}, [{scales}], {stride}",
                "addp v8.8h, v8.8h, v9.8h", "addp v10.8h, v10.8h, v11.8h",
                "saddlp v8.4s, v8.8h", $low,
                scale!("v12"),
                "subs {count}, {count}, #1",
                "b.ne 2b",
                jump!(block),
                block = inout(reg) block => _, x = inout(reg) x.as_ptr() => _, scales = inout(reg) scales.as_ptr() => _,
                stride = in(reg) stride, count = inout(reg) run.count => _, left = inout(reg) run.jumps.len() => _,
                jumps = inout(reg) run.jumps.as_ptr() => _, here = inout(reg) run.block + run.count => _,
                next = out(reg) _, jump = out(reg) _, bytes = in(reg) bytes,
                a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v6") _, out("v7") _, out("v8") _,
                out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _, out("v15") _,
                out("v16") _, out("v17") _,
                options(readonly, nostack)
            )
        };
    }
    // SAFETY: NEON is there, and so are all blocks, octets and scales of the run.
    unsafe {
        if NIBBLE && BIASED {
            of_nibbles!("dup v12.4s, v1.s[1]\nsadalp v12.4s, v10.8h");
        } else if NIBBLE {
            of_nibbles!("saddlp v12.4s, v10.8h");
        } else {
            asm!(
                "2:",
                "ld1 {{v16.16b, v17.16b}}, [{x}], #32",
                "ld1 {{v15.8h}}, [{block}], #16",
                "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{block}], #64",
                "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{second}], #64",
                octets!("saddlp", "v0", "v1", "v24", "v25", "v16.s[0]", "v16.s[1]"),
                octets!("sadalp", "v2", "v3", "v26", "v27", "v16.s[2]", "v16.s[3]"),
                "ld1 {{v0.16b, v1.16b, v2.16b, v3.16b}}, [{block}], {step}",
                "ld1 {{v24.16b, v25.16b, v26.16b, v27.16b}}, [{second}], {last}",
                octets!("sadalp", "v0", "v1", "v24", "v25", "v17.s[0]", "v17.s[1]"),
                octets!("sadalp", "v2", "v3", "v26", "v27", "v17.s[2]", "v17.s[3]"),
                "ld1 {{v1.s}}[0], [{scales}], {stride}",
                "addp v8.4s, v18.4s, v19.4s", "addp v10.4s, v20.4s, v21.4s",
                scale!("v10"),
                "subs {count}, {count}, #1",
                "b.ne 2b",
                jump!(block, second),
                block = inout(reg) block => _, second = inout(reg) block.add(SCALES + NIBBLES) => _,
                x = inout(reg) x.as_ptr() => _, scales = inout(reg) scales.as_ptr() => _, stride = in(reg) stride,
                // From the second 64 bytes of rows 0..4 to the next block, and of rows 4..8 to those of the next.
                step = in(reg) 64 + NIBBLES, last = in(reg) 64 + SCALES + NIBBLES, count = inout(reg) run.count => _, left = inout(reg) run.jumps.len() => _,
                jumps = inout(reg) run.jumps.as_ptr() => _, here = inout(reg) run.block + run.count => _,
                next = out(reg) _, jump = out(reg) _, bytes = in(reg) bytes,
                a = inout(vreg) *a, b = inout(vreg) *b, c = inout(vreg) *c, d = inout(vreg) *d,
                out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v6") _, out("v7") _, out("v8") _,
                out("v9") _, out("v10") _, out("v11") _, out("v13") _, out("v15") _, out("v16") _, out("v17") _,
                out("v18") _, out("v19") _, out("v20") _, out("v21") _, out("v24") _, out("v25") _,
                out("v26") _, out("v27") _,
                options(readonly, nostack)
            );
        }
    }
}

/// Zeros.
#[inline(always)]
pub(crate) fn no_rows() -> RowSums {
    // SAFETY: NEON is there.
    unsafe { [vdupq_n_s64(0); GROUP / 2] }
}

/// The first 8 i16 of `bytes`, widened.
#[inline(always)]
pub(crate) fn words(bytes: &[u8]) -> [int32x4_t; 2] {
    // SAFETY: NEON is there; `load` checks its bounds.
    unsafe {
        let words = vreinterpretq_s16_s8(load(bytes, 0));
        [vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)]
    }
}

/// 16 bytes of `bytes` from `at`.
#[inline(always)]
pub(crate) fn load(bytes: &[u8], at: usize) -> int8x16_t {
    let bytes: &[u8; 16] = bytes[at..].first_chunk().expect("inside the block");
    // SAFETY: 16 bytes are there, and the load needs no alignment.
    unsafe { vld1q_s8(bytes.as_ptr().cast()) }
}

/// The weights of four rows of a block.
#[inline(always)]
pub(crate) fn four_rows(bytes: &[u8]) -> Weights {
    let bytes: &[u8; NIBBLES] = bytes.first_chunk().expect("inside the block");
    core::array::from_fn(|i| load(bytes, 16 * i))
}

/// The sums as an array.
#[inline(always)]
pub(crate) fn store(rows: &RowSums) -> [i64; GROUP] {
    let mut out = [0; GROUP];
    for (pair, out) in rows.iter().zip(out.as_chunks_mut::<2>().0) {
        // SAFETY: 16 bytes are there, and the store needs no alignment.
        unsafe { vst1q_s64(out.as_mut_ptr(), *pair) };
    }
    out
}

/// Scales the sums of a whole group and some tokens and puts them to `out`, from `at` on and every `stride` elements; answers
/// whether it could. |sums| < 2^61.
#[inline]
pub(crate) fn finish(
    kernel: Kernel,
    sums: &[[i64; GROUP]],
    head: &[u8; GROUP_HEAD],
    heads: &[Token],
    frac: i32,
    out: Output,
    at: usize,
    stride: usize,
) -> bool {
    let (mut least, mut most) = (i32::MAX, i32::MIN);
    for &[exponent, _] in heads {
        (least, most) = (least.min(exponent), most.max(exponent));
    }
    let (least, most) = (least.saturating_sub(frac), most.saturating_sub(frac));
    let saturated = least == i32::MIN || most == i32::MAX;
    // SAFETY: NEON is there; `load` checks its bounds.
    let shifts = unsafe {
        let shifts: [_; 2] = [0, 16].map(|i| vreinterpretq_s32_s8(load(head, i)));
        // The common case, that every shift is to the right and by less than the sums' length: (shift - 1) < 62.
        let one = vdupq_n_s32(1);
        let below =
            |shift, exponent| vreinterpretq_u32_s32(vsubq_s32(vqaddq_s32(shift, vdupq_n_s32(exponent)), one));
        let mut largest = vmaxq_u32(below(shifts[0], least), below(shifts[1], least));
        if sums.len() > 1 {
            largest = vmaxq_u32(largest, vmaxq_u32(below(shifts[0], most), below(shifts[1], most)));
        }
        if saturated || vmaxvq_u32(largest) >= 62 {
            return false;
        }
        [
            vmovl_s32(vget_low_s32(shifts[0])),
            vmovl_high_s32(shifts[0]),
            vmovl_s32(vget_low_s32(shifts[1])),
            vmovl_high_s32(shifts[1]),
        ]
    };
    if kernel == Kernel::Sve2x64 {
        // SAFETY: such a kernel is only there where the CPU has vectors of 64 bytes.
        unsafe { words_sve::finish(sums, head, heads, frac, out, at, stride) };
        return true;
    }
    // SAFETY: NEON is there.
    let left = shifts.map(|shift| unsafe { vsubq_s64(vdupq_n_s64(frac.into()), shift) });
    let scaled = |sums: &[i64; GROUP], exponent: i32| {
        let mut rows = no_rows();
        // SAFETY: NEON is there; the loads are of 8 sums.
        unsafe {
            let exponent = vdupq_n_s64(exponent.into());
            for ((row, left), sums) in rows.iter_mut().zip(left).zip(sums.as_chunks::<2>().0) {
                *row = vrshlq_s64(vld1q_s64(sums.as_ptr()), vsubq_s64(left, exponent));
            }
        }
        rows
    };
    let (tokens, end) = (sums.iter().zip(heads), at + (sums.len() - 1) * stride + GROUP);
    match out {
        Output::Store(out) => {
            let mut to = out[..end][at..].as_ptr();
            for (sums, &[exponent, _]) in tokens {
                let rows = scaled(sums, exponent);
                // SAFETY: NEON is there; the stores are of 8 elements, the last ones before `end`.
                unsafe { store_narrow(to, &rows) };
                to = to.wrapping_add(stride);
            }
        }
        Output::Add { before, after } => {
            let (mut from, mut to) = (before[..end][at..].as_ptr(), after[..end][at..].as_ptr());
            for (sums, &[exponent, _]) in tokens {
                let rows = scaled(sums, exponent);
                // SAFETY: NEON is there; the loads and stores are of 8 elements, the last ones before `end`.
                unsafe { store_sum(from, to, &rows) };
                (from, to) = (from.wrapping_add(stride), to.wrapping_add(stride));
            }
        }
    }
    true
}

/// Scales the sums of some whole groups of a token and puts them to `out` from `at` on; answers whether it could, otherwise what
/// it put is of no use. `groups` are their bytes, `each` a group. |sums| < 2^61.
#[inline]
pub(crate) fn finish_groups(
    kernel: Kernel,
    sums: &[[i64; GROUP]],
    groups: &[u8],
    each: usize,
    exponent: i32,
    out: Output,
    at: usize,
) -> bool {
    if kernel == Kernel::Sve2x64 {
        // SAFETY: such a kernel is only there where the CPU has vectors of 64 bytes.
        return unsafe { words_sve::finish_groups(sums, groups, each, exponent, out, at) };
    }
    // SAFETY: every AArch64 target of this crate has NEON.
    let (exponent, one, mut largest) = unsafe { (vdupq_n_s32(exponent), vdupq_n_s32(1), vdupq_n_u32(0)) };
    let mut scaled = |sums: &[i64; GROUP], group: &[u8]| {
        let mut rows = no_rows();
        // SAFETY: NEON is there; the loads are of 8 sums, and `load` checks its bounds.
        unsafe {
            for (half, (rows, sums)) in
                rows.as_chunks_mut::<2>().0.iter_mut().zip(sums.as_chunks::<HALF>().0).enumerate()
            {
                let shifts = vqaddq_s32(vreinterpretq_s32_s8(load(group, 16 * half)), exponent);
                largest = vmaxq_u32(largest, vreinterpretq_u32_s32(vsubq_s32(shifts, one)));
                let left = vnegq_s32(shifts);
                rows[0] = vrshlq_s64(vld1q_s64(sums.as_ptr()), vmovl_s32(vget_low_s32(left)));
                rows[1] = vrshlq_s64(vld1q_s64(sums[2..].as_ptr()), vmovl_high_s32(left));
            }
        }
        rows
    };
    let (groups, end) = (sums.iter().zip(groups.chunks_exact(each)), at + sums.len() * GROUP);
    match out {
        Output::Store(out) => {
            for ((sums, group), out) in groups.zip(out[at..end].chunks_exact(GROUP)) {
                let rows = scaled(sums, group);
                // SAFETY: NEON is there; the stores are of 8 elements.
                unsafe { store_narrow(out.as_ptr(), &rows) };
            }
        }
        Output::Add { before, after } => {
            let places = before[at..end].chunks_exact(GROUP).zip(after[at..end].chunks_exact(GROUP));
            for ((sums, group), (before, after)) in groups.zip(places) {
                let rows = scaled(sums, group);
                // SAFETY: NEON is there; the loads and stores are of 8 elements.
                unsafe { store_sum(before.as_ptr(), after.as_ptr(), &rows) };
            }
        }
    }
    // The common case: every shift is to the right and by less than the sums' length, (shift - 1) < 62.
    // SAFETY: NEON is there.
    unsafe { vmaxvq_u32(largest) < 62 }
}

/// Stores 8 sums, saturated.
///
/// # Safety
/// `to` is valid for shared writes of 8 elements.
#[inline(always)]
unsafe fn store_narrow(to: *const AtomicI32, rows: &RowSums) {
    // SAFETY: NEON is there; the caller's promise.
    unsafe {
        let low = vqmovn_high_s64(vqmovn_s64(rows[0]), rows[1]);
        let high = vqmovn_high_s64(vqmovn_s64(rows[2]), rows[3]);
        store_shared(to.cast(), vreinterpretq_s64_s32(low), vreinterpretq_s64_s32(high));
    }
}

/// Stores 8 sums, added to those at `from` and saturated.
///
/// # Safety
/// `from` is valid for reads and `to` for shared writes of 8 elements.
#[inline(always)]
unsafe fn store_sum(from: *const i64, to: *const AtomicI64, rows: &RowSums) {
    // SAFETY: NEON is there; the caller's promise.
    unsafe {
        let sum = |i: usize| vqaddq_s64(vld1q_s64(from.add(2 * i)), rows[i]);
        store_shared(to.cast(), sum(0), sum(1));
        store_shared(to.add(4).cast(), sum(2), sum(3));
    }
}

/// Stores 32 bytes that other cores may store to at the same time: an instruction instead of the language's store.
///
/// # Safety
/// `to` is valid for shared writes of 32 bytes.
#[inline(always)]
unsafe fn store_shared(to: *const i64, low: int64x2_t, high: int64x2_t) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "stp {low:q}, {high:q}, [{to}]",
            to = in(reg) to, low = in(vreg) low, high = in(vreg) high, options(nostack, preserves_flags)
        );
    }
}
