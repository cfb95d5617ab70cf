//! What blocks' minima add to the sums of many tokens, with scalable vectors: 16-bit numbers are multiplied and those of four blocks
//! added up in 64 bits. Vectors of 32 and of 64 bytes; longer ones are used as if they had 64.
//!
//! Its twin is [`crate::plain::minima`].

use core::arch::aarch64::*;
use core::arch::asm;
use core::ops::Range;

use crate::activations::Activations;
use crate::batch::{GROUPS, Sums, TOKENS};
use crate::format::{BLOCK, GROUP, HALF, SCALES};
use crate::isa::Kernel;
use crate::matrix::Group;

/// Blocks whose minima lie together, by row; and tokens that are taken at once.
const FOUR: usize = 4;
/// Blocks that are taken at once.
const EIGHT: usize = 8;
/// Blocks that there is room for.
const CHUNK: usize = 32;

/// Minima of a chunk of blocks: (fours of blocks, groups, rows, 4 blocks). Behind the last block there are zeros, up to eight.
type ByRow = [[[[i16; FOUR]; GROUP]; GROUPS]; CHUNK / FOUR];

/// Starts the sums of one group, or with vectors of 64 bytes of two: products of minima with block sums, times `powers`.
///
/// # Safety
/// The CPU has what `kernel`, of scalable vectors, needs.
pub(crate) unsafe fn of_tokens<'a>(
    kernel: Kernel,
    groups: impl Iterator<Item = Group<'a>> + Clone,
    x: &Activations,
    tokens: Range<usize>,
    powers: &[i32; TOKENS],
    sums: &mut [Sums; GROUPS],
) {
    assert!(tokens.len() <= TOKENS && TOKENS.is_multiple_of(FOUR), "tokens that there are sums of");
    let blocks = x.cols() / BLOCK;
    let mut by_row: ByRow = [[[[0; FOUR]; GROUP]; GROUPS]; CHUNK / FOUR];
    let [first, second] = sums.each_mut().map(|sums| sums.as_mut_ptr().cast::<i64>());
    let whole = kernel == Kernel::Sve2x64;
    // SAFETY: the second half of a group's rows.
    let out = [first, if whole { second } else { unsafe { first.add(HALF) } }];
    for start in (0..blocks).step_by(CHUNK) {
        let count = CHUNK.min(blocks - start);
        for (slot, group) in groups.clone().enumerate() {
            by_rows(&group, start..start + count, slot, &mut by_row);
        }
        let (sums, stride) = x.sums_of_four(tokens.clone(), start);
        let operands = Operands {
            minima: by_row.as_ptr().cast(),
            apart: if whole { HALF * GROUP } else { HALF * FOUR },
            blocks: count.next_multiple_of(EIGHT),
            fours: tokens.len().div_ceil(FOUR),
            sums,
            stride,
            powers: powers.as_ptr(),
            out,
        };
        // SAFETY: there are block sums, shifts and sums of whole fours of tokens; the caller promises the instructions.
        unsafe { if start == 0 { multiply::<false>(&operands) } else { multiply::<true>(&operands) } }
    }
}

/// Brings the minima of some blocks of a group into order.
fn by_rows(group: &Group, blocks: Range<usize>, slot: usize, out: &mut ByRow) {
    let bytes = &group.minima_from(blocks.start)[..blocks.len() * SCALES];
    let mut fours = bytes.chunks(FOUR * SCALES);
    for out in out.iter_mut().take(blocks.len().div_ceil(EIGHT) * 2) {
        let mut four = [0; FOUR * SCALES];
        let minima = fours.next().unwrap_or_default();
        four[..minima.len()].copy_from_slice(minima);
        // SAFETY: every AArch64 target of this crate has NEON; the loads are of 64 bytes, and so is the store.
        unsafe {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| vld1q_s16(four.as_ptr().add(i * SCALES).cast()));
            vst4q_s16(out[slot].as_mut_ptr().cast(), int16x8x4_t(a, b, c, d));
        }
    }
}

/// What [`multiply`] takes.
struct Operands {
    /// Of the first vector, four blocks every `GROUPS * GROUP * FOUR` numbers.
    minima: *const i16,
    /// Numbers from them to those of the second vector.
    apart: usize,
    /// Blocks, a multiple of eight.
    blocks: usize,
    /// Fours of tokens.
    fours: usize,
    /// Block sums of the first token.
    sums: *const i16,
    /// Numbers from them to those of the next one.
    stride: usize,
    /// By what the products are to be multiplied, for each token.
    powers: *const i32,
    /// Sums of the rows of the first vector and of the second, a token every `GROUP` of them.
    out: [*mut i64; 2],
}

/// Tokens' sums of rows in two vectors: writes them or, to what is there, adds them.
///
/// # Safety
/// The CPU has SVE2, and vectors of at least `2 * apart` bytes, or of 64; the operands are whole.
unsafe fn multiply<const ADD: bool>(operands: &Operands) {
    macro_rules! run {
        ($add:expr) => {
            // SAFETY: the caller's promise: loads of block sums are of eight, those of minima and sums of one vector, predicated.
            unsafe {
                asm!(
                    ".arch_extension sve2",
                    "ptrue p0.b, vl32", "cmp {apart}, #16", "b.eq 4f", "ptrue p0.b, vl64", "4:",
                    "add {b}, {a}, {stride}", "add {c}, {b}, {stride}", "add {d}, {c}, {stride}",
                    "mov {m}, {minima}", "mov {i}, #0",
                    "mov z16.d, #0", "mov z17.d, #0", "mov z18.d, #0", "mov z19.d, #0",
                    "mov z20.d, #0", "mov z21.d, #0", "mov z22.d, #0", "mov z23.d, #0",
                    "2:",
                    "ld1h {{z0.h}}, p0/z, [{m}]", "ld1h {{z1.h}}, p0/z, [{m}, {apart}, lsl #1]",
                    "add {m}, {m}, #128",
                    "ld1h {{z2.h}}, p0/z, [{m}]", "ld1h {{z3.h}}, p0/z, [{m}, {apart}, lsl #1]",
                    "add {m}, {m}, #128",
                    "ld1rqh {{z4.h}}, p0/z, [{a}, {i}, lsl #1]", "ld1rqh {{z5.h}}, p0/z, [{b}, {i}, lsl #1]",
                    "ld1rqh {{z6.h}}, p0/z, [{c}, {i}, lsl #1]", "ld1rqh {{z7.h}}, p0/z, [{d}, {i}, lsl #1]",
                    "sdot z16.d, z0.h, z4.h[0]", "sdot z17.d, z1.h, z4.h[0]",
                    "sdot z18.d, z0.h, z5.h[0]", "sdot z19.d, z1.h, z5.h[0]",
                    "sdot z20.d, z0.h, z6.h[0]", "sdot z21.d, z1.h, z6.h[0]",
                    "sdot z22.d, z0.h, z7.h[0]", "sdot z23.d, z1.h, z7.h[0]",
                    "sdot z16.d, z2.h, z4.h[1]", "sdot z17.d, z3.h, z4.h[1]",
                    "sdot z18.d, z2.h, z5.h[1]", "sdot z19.d, z3.h, z5.h[1]",
                    "sdot z20.d, z2.h, z6.h[1]", "sdot z21.d, z3.h, z6.h[1]",
                    "sdot z22.d, z2.h, z7.h[1]", "sdot z23.d, z3.h, z7.h[1]",
                    "add {i}, {i}, #8",
                    "cmp {i}, {end}",
                    "b.ne 2b",
                    "ld1rw {{z4.d}}, p0/z, [{powers}]", "ld1rw {{z5.d}}, p0/z, [{powers}, #4]",
                    "ld1rw {{z6.d}}, p0/z, [{powers}, #8]", "ld1rw {{z7.d}}, p0/z, [{powers}, #12]",
                    "mul z16.d, z16.d, z4.d", "mul z17.d, z17.d, z4.d",
                    "mul z18.d, z18.d, z5.d", "mul z19.d, z19.d, z5.d",
                    "mul z20.d, z20.d, z6.d", "mul z21.d, z21.d, z6.d",
                    "mul z22.d, z22.d, z7.d", "mul z23.d, z23.d, z7.d",
                    $add,
                    "st1d {{z16.d}}, p0, [{first}]", "st1d {{z17.d}}, p0, [{second}]",
                    "st1d {{z18.d}}, p0, [{first}, x13, lsl #3]", "st1d {{z19.d}}, p0, [{second}, x13, lsl #3]",
                    "st1d {{z20.d}}, p0, [{first}, x14, lsl #3]", "st1d {{z21.d}}, p0, [{second}, x14, lsl #3]",
                    "st1d {{z22.d}}, p0, [{first}, x15, lsl #3]", "st1d {{z23.d}}, p0, [{second}, x15, lsl #3]",
                    "add {a}, {d}, {stride}", "add {powers}, {powers}, #16",
                    "add {first}, {first}, #256", "add {second}, {second}, #256",
                    "subs {fours}, {fours}, #1",
                    "b.ne 4b",
                    ".arch_extension nosve2", ".arch_extension nosve",
                    minima = in(reg) operands.minima, m = out(reg) _, apart = in(reg) operands.apart,
                    a = inout(reg) operands.sums => _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                    stride = in(reg) 2 * operands.stride, i = out(reg) _, end = in(reg) operands.blocks,
                    fours = inout(reg) operands.fours => _, powers = inout(reg) operands.powers => _,
                    first = inout(reg) operands.out[0] => _, second = inout(reg) operands.out[1] => _,
                    in("x13") GROUP, in("x14") 2 * GROUP, in("x15") 3 * GROUP,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v8") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                    out("v21") _, out("v22") _, out("v23") _, out("p0") _, options(nostack)
                );
            }
        };
    }
    if ADD {
        /// A token's two vectors of sums, `$at` behind the first.
        macro_rules! add {
            ($at:literal, $first:literal, $second:literal) => {
                concat!(
                    "ld1d {{z8.d}}, p0/z, [{first}",
                    $at,
                    "]\nadd ",
                    $first,
                    ".d, ",
                    $first,
                    ".d, z8.d\n",
                    "ld1d {{z8.d}}, p0/z, [{second}",
                    $at,
                    "]\nadd ",
                    $second,
                    ".d, ",
                    $second,
                    ".d, z8.d\n"
                )
            };
        }
        run!(concat!(
            add!("", "z16", "z17"),
            add!(", x13, lsl #3", "z18", "z19"),
            add!(", x14, lsl #3", "z20", "z21"),
            add!(", x15, lsl #3", "z22", "z23")
        ));
    } else {
        run!("");
    }
}
