//! What Arm's vector instructions do with a word, in plain Rust.

/// SQRDMULH: `a * b * 2^-31`, rounded to nearest, halves up, saturated.
#[inline]
pub(crate) const fn high(a: i32, b: i32) -> i32 {
    // Only the product of two i32::MIN is beyond.
    let product = (a as i64 * b as i64 + (1 << 30)) >> 31;
    if product > i32::MAX as i64 { i32::MAX } else { product as i32 }
}

/// SRSHL: `value * 2^-shift`, rounded to nearest, halves up; bits beyond a word are lost. |shift| <= 127.
#[inline]
pub(crate) const fn rounded(value: i32, shift: i32) -> i32 {
    match shift {
        1..=32 => ((value as i64 + (1 << (shift - 1))) >> shift) as i32,
        -31..=0 => value << -shift,
        _ => 0,
    }
}

/// SQRSHL: `value * 2^shift`, rounded to nearest, halves up, saturated.
#[inline(always)]
pub(crate) const fn shifted(value: i32, shift: i32) -> i32 {
    let value = value as i64;
    if shift < 0 {
        let down = if shift < -40 { 40 } else { -shift };
        return ((value + (1 << (down - 1))) >> down) as i32;
    }
    let value = value << if shift > 32 { 32 } else { shift };
    if value > i32::MAX as i64 {
        i32::MAX
    } else if value < i32::MIN as i64 {
        i32::MIN
    } else {
        value as i32
    }
}

/// SQSHL by a constant: `value * 2^shift`, saturated.
#[inline]
pub(crate) const fn up(value: i32, shift: u32) -> i32 {
    value.saturating_mul(1 << shift)
}

/// URECPE: half the reciprocal of a fraction of 32 bits in 1/2..1, as another one, to 9 bits.
#[inline]
pub(crate) const fn reciprocal(fraction: u32) -> u32 {
    let estimate = (1 << 19) / (2 * (fraction >> 23) + 1);
    estimate.div_ceil(2) << 23
}

/// The left shift that leaves a largest magnitude one bit for the sign.
#[inline]
pub(crate) const fn room(largest: i32) -> i32 {
    largest.leading_zeros().cast_signed() - 1
}

/// The largest magnitude, saturated.
#[inline]
pub(crate) fn largest(words: &[i32]) -> i32 {
    #[cfg(target_arch = "aarch64")]
    let (largest, words) = neon_largest(words);
    #[cfg(not(target_arch = "aarch64"))]
    let largest = 0;
    plain_largest(words).max(largest)
}

/// The same.
#[inline]
fn plain_largest(words: &[i32]) -> i32 {
    words.iter().fold(0, |largest, word| word.saturating_abs().max(largest))
}

/// The same, of whole eights; answers the rest.
#[inline]
#[cfg(target_arch = "aarch64")]
fn neon_largest(words: &[i32]) -> (i32, &[i32]) {
    use core::arch::aarch64::*;
    let (eights, rest) = words.as_chunks::<8>();
    // SAFETY: every AArch64 target of this crate has NEON; the loads are of eight words.
    let largest = unsafe {
        let mut largest = [vdupq_n_s32(0); 2];
        for eight in eights {
            let eight = vld1q_s32_x2(eight.as_ptr());
            largest[0] = vmaxq_s32(largest[0], vqabsq_s32(eight.0));
            largest[1] = vmaxq_s32(largest[1], vqabsq_s32(eight.1));
        }
        vmaxvq_s32(vmaxq_s32(largest[0], largest[1]))
    };
    (largest, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_like_vectors() {
        assert_eq!([high(1 << 30, 1), high(-1 << 30, 1), high(3 << 29, -1)], [1, 0, -1]);
        assert_eq!([high(i32::MIN, i32::MIN), high(i32::MIN, i32::MAX)], [i32::MAX, -i32::MAX]);
        assert_eq!([rounded(3, 1), rounded(-3, 1), rounded(i32::MAX, 1)], [2, -1, 1 << 30]);
        assert_eq!([rounded(i32::MAX, 31), rounded(i32::MIN, 31), rounded(i32::MIN, 32)], [1, -1, 0]);
        assert_eq!([rounded(5, -30), rounded(1, -32), rounded(-1, 33), rounded(-1, 127)], [1 << 30, 0, 0, 0]);
        assert_eq!([up(1, 10), up(i32::MAX, 1), up(i32::MIN, 1)], [1 << 10, i32::MAX, i32::MIN]);
        assert_eq!([reciprocal(1 << 31), reciprocal(u32::MAX)], [511 << 23, 256 << 23]);
    }

    #[test]
    fn the_largest_magnitude_is_that_of_the_plain_twin() {
        for at in 0..23 {
            for value in [0, 1, -1, i32::MAX, i32::MIN, -77] {
                let mut words = [0; 23];
                words[at] = value;
                let magnitude = value.saturating_abs();
                assert_eq!([largest(&words), plain_largest(&words)], [magnitude; 2]);
            }
        }
        assert_eq!([room(0), room(1), room(i32::MAX)], [31, 30, 0]);
        assert_eq!(largest(&[]), 0);
    }
}
