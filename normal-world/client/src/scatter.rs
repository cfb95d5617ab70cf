//! Which pages to lend: never a contiguous block, so that nothing in the system comes to rely on one.

use alloc::vec::Vec;
use core::fmt;

use crate::ffa::PAGE_SIZE;

/// There are fewer free pages than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfPages {
    /// Pages asked for.
    pub wanted: usize,
    /// Pages there are.
    pub free: usize,
}

impl fmt::Display for OutOfPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages of 4 KiB are needed and {} are free", self.wanted, self.free)
    }
}

/// Hands out the pages of some banks in a fixed, scattered order.
///
/// A page's place in the order is its index times a constant near the golden section of the number of pages, so that
/// any run of allocations spreads over all banks. All even pages come before the odd ones: no two allocated pages are
/// neighbours until half of the memory is in use.
#[derive(Debug)]
pub struct Scatter {
    /// First page and number of pages of each bank.
    banks: Vec<(u64, u64)>,
    total: u64,
    stride: u64,
    /// Pages handed out for the first time.
    used: u64,
    /// Pages that came back, last in first out.
    returned: Vec<u64>,
}

impl Scatter {
    /// Takes over banks of `(base, bytes)`; partial pages at either end are left out.
    pub fn new(banks: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let banks: Vec<(u64, u64)> = banks
            .into_iter()
            .map(|(base, bytes)| {
                let first = base.next_multiple_of(PAGE_SIZE);
                (first, (base + bytes).saturating_sub(first) / PAGE_SIZE)
            })
            .collect();
        // An odd last page is left out, so that there are as many odd pages as even ones.
        let total = banks.iter().map(|(_, pages)| pages).sum::<u64>() & !1;
        Self { banks, total, stride: coprime_near_golden_section(total / 2), used: 0, returned: Vec::new() }
    }

    /// Pages that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        (self.total - self.used) as usize + self.returned.len()
    }

    /// Hands out `count` pages, by address.
    ///
    /// # Errors
    ///
    /// [`OutOfPages`]; nothing is handed out then.
    pub fn allocate(&mut self, count: usize) -> Result<Vec<u64>, OutOfPages> {
        if count > self.free() {
            return Err(OutOfPages { wanted: count, free: self.free() });
        }
        Ok((0..count).map(|_| self.returned.pop().unwrap_or_else(|| self.fresh())).collect())
    }

    /// Takes pages back.
    pub fn release(&mut self, pages: &[u64]) {
        self.returned.extend_from_slice(pages);
    }

    fn fresh(&mut self) -> u64 {
        let half = self.total / 2;
        let (index, parity) = (self.used % half, self.used / half);
        self.used += 1;
        let place = (u128::from(index) * u128::from(self.stride) % u128::from(half)) as u64;
        self.address(2 * place + parity)
    }

    fn address(&self, mut page: u64) -> u64 {
        for &(base, pages) in &self.banks {
            if page < pages {
                return base + page * PAGE_SIZE;
            }
            page -= pages;
        }
        unreachable!("a page index below the total lies in a bank")
    }
}

/// A number near 0.618 n without a common divisor with n.
fn coprime_near_golden_section(n: u64) -> u64 {
    let start = (u128::from(n) * 618_034 / 1_000_000) as u64;
    (start.max(1)..).find(|&stride| gcd(stride, n) <= 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const BANK: (u64, u64) = (0x4200_0000, 0x1000 * 1000);

    #[test]
    fn every_page_comes_once_and_lies_in_a_bank() {
        let mut scatter = Scatter::new([(0x1800, 0x9000), (0x10_0000, 0x5000)]);
        let pages = scatter.allocate(scatter.free()).unwrap();
        // The first bank has 8 whole pages, the second 5; one is left out to make the number even.
        assert_eq!(pages.len(), 12);
        assert_eq!(pages.iter().collect::<HashSet<_>>().len(), 12);
        for page in pages {
            let first = (0x2000..=0x9000).contains(&page);
            let second = (0x10_0000..=0x10_4000).contains(&page);
            assert!(page.is_multiple_of(PAGE_SIZE) && (first || second), "{page:#x}");
        }
        assert_eq!(scatter.allocate(1), Err(OutOfPages { wanted: 1, free: 0 }));
    }

    #[test]
    fn no_two_pages_are_neighbours_until_half_is_used() {
        for odd in [0, 1, 2, 3] {
            let mut scatter = Scatter::new([(BANK.0, BANK.1 + odd * PAGE_SIZE)]);
            let half = scatter.free() / 2;
            let pages: HashSet<u64> = scatter.allocate(half).unwrap().into_iter().collect();
            assert!(pages.iter().all(|page| !pages.contains(&(page + PAGE_SIZE))));
        }
    }

    #[test]
    fn few_pages_spread_over_the_whole_bank() {
        let pages = Scatter::new([BANK]).allocate(10).unwrap();
        let tenth = BANK.1 / 10;
        let parts: HashSet<u64> = pages.iter().map(|page| (page - BANK.0) / tenth).collect();
        assert!(parts.len() >= 8, "{pages:x?}");
    }

    #[test]
    fn what_comes_back_is_handed_out_again() {
        let mut scatter = Scatter::new([BANK]);
        let pages = scatter.allocate(1000).unwrap();
        assert_eq!(scatter.free(), 0);
        scatter.release(&pages[..3]);
        assert_eq!(scatter.free(), 3);
        assert_eq!(scatter.allocate(3).unwrap(), [pages[2], pages[1], pages[0]]);
    }

    #[test]
    fn an_empty_bank_has_no_pages() {
        assert_eq!(Scatter::new([]).allocate(1), Err(OutOfPages { wanted: 1, free: 0 }));
        assert_eq!(Scatter::new([(0x1001, 0x1000)]).free(), 0);
    }
}
