//! Which pages of the lendable banks are taken: lent, shared, or somebody's RX/TX buffer. One bit a page, so that a page
//! is never in two places, in one descriptor or in two.

use crate::tables::PAGE;
use arm_ffa::FfaError;
use flexserve_platform::{LENDABLE, Region};

/// Why a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It lies in no lendable bank.
    NotLendable,
    /// It is taken already.
    Taken,
}

impl From<Error> for FfaError {
    fn from(error: Error) -> Self {
        match error {
            Error::NotLendable => Self::InvalidParameters,
            Error::Taken => Self::Denied,
        }
    }
}

/// Words that [`Claims`] needs for the platform's banks.
pub const WORDS: usize = {
    let (mut pages, mut bank) = (0, 0);
    while bank < LENDABLE.len() {
        pages += LENDABLE[bank].size / PAGE;
        bank += 1;
    }
    pages.div_ceil(64) as usize
};

/// The bits.
pub struct Claims<'a> {
    words: &'a mut [u64; WORDS],
}

impl<'a> Claims<'a> {
    /// Nothing is claimed.
    pub fn new(words: &'a mut [u64; WORDS]) -> Self {
        words.fill(0);
        Self { words }
    }

    /// Claims `pages` pages at `base`.
    ///
    /// # Errors
    ///
    /// [`Error`], and no page is claimed.
    pub fn claim(&mut self, base: u64, pages: u32) -> Result<(), Error> {
        let first = Self::index(base, pages).ok_or(Error::NotLendable)?;
        if masks(first, pages).any(|(word, mask)| self.words[word] & mask != 0) {
            return Err(Error::Taken);
        }
        masks(first, pages).for_each(|(word, mask)| self.words[word] |= mask);
        Ok(())
    }

    /// Whether the whole range can be claimed by somebody: it lies in one bank.
    #[must_use]
    pub fn is_lendable(base: u64, pages: u32) -> bool {
        Self::index(base, pages).is_some()
    }

    /// Ends the claim of `pages` pages at `base`.
    pub fn release(&mut self, base: u64, pages: u32) {
        match Self::index(base, pages) {
            Some(first) => masks(first, pages).for_each(|(word, mask)| self.words[word] &= !mask),
            // They lie in banks that touch, or some of them in none.
            None if pages > 1 => (0..pages).for_each(|page| self.release(base + u64::from(page) * PAGE, 1)),
            None => {}
        }
    }

    /// Whether the page at `base` is claimed.
    #[must_use]
    pub fn is_claimed(&self, base: u64) -> bool {
        Self::index(base, 1).is_some_and(|page| self.words[page / 64] >> (page % 64) & 1 != 0)
    }

    /// Number of a page among all lendable ones. `None` unless the whole range lies in one bank.
    fn index(base: u64, pages: u32) -> Option<usize> {
        if !base.is_multiple_of(PAGE) {
            return None;
        }
        let mut before = 0;
        for bank in LENDABLE {
            let Region { base: start, size } = *bank;
            if bank.contains(base, u64::from(pages) * PAGE) {
                return Some(((before + base - start) / PAGE) as usize);
            }
            before += size;
        }
        None
    }
}

/// The words, and the bits in them, of `pages` pages, which are some, from the page with number `first` on.
fn masks(first: usize, pages: u32) -> impl Iterator<Item = (usize, u64)> {
    let end = first + pages as usize;
    (first / 64..end.div_ceil(64)).map(move |word| {
        let from = first.saturating_sub(word * 64);
        let bits = (end - word * 64).min(64) - from;
        (word, u64::MAX >> (64 - bits) << from)
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::boxed::Box;

    const BANK: Region = LENDABLE[0];

    #[test]
    fn a_page_is_claimed_once() {
        let mut words = Box::new([u64::MAX; WORDS]);
        let mut claims = Claims::new(&mut words);
        claims.claim(BANK.base + 63 * PAGE, 3).unwrap();
        assert_eq!(claims.claim(BANK.base + 60 * PAGE, 4), Err(Error::Taken));
        assert!(!claims.is_claimed(BANK.base + 60 * PAGE), "a refused claim claims nothing");
        assert_eq!(claims.claim(BANK.base + 65 * PAGE, 1), Err(Error::Taken));
        claims.claim(BANK.base + 66 * PAGE, 1).unwrap();
        claims.release(BANK.base + 63 * PAGE, 3);
        claims.claim(BANK.base + 60 * PAGE, 6).unwrap();
    }

    #[test]
    fn only_whole_pages_of_a_bank_can_be_claimed() {
        let mut words = Box::new([0; WORDS]);
        let mut claims = Claims::new(&mut words);
        claims.claim(BANK.end() - PAGE, 1).unwrap();
        claims.claim(BANK.base, 1).unwrap();
        for (base, pages) in [
            (BANK.base - PAGE, 1),
            (BANK.base - PAGE, 2),
            (BANK.end() - PAGE, 2),
            (BANK.end(), 1),
            (BANK.base + PAGE + 8, 1),
            (BANK.base + PAGE, 0),
            (BANK.base + PAGE, u32::MAX),
            (!0xfff, 1),
            (0, 1),
        ] {
            assert_eq!(claims.claim(base, pages), Err(Error::NotLendable), "{base:#x} {pages}");
        }
    }
}
