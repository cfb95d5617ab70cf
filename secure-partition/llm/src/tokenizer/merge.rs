//! Merges neighbouring symbols, the pair with the best rule first.
//!
//! Symbols are a linked list in an array; pairs that have a rule wait in a binary heap. Each merge adds at most two pairs,
//! so that the heap holds at most three times as many pairs as there are symbols, and the time is `n log n`.

use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Error;

/// "No symbol", "no token".
const NONE: u32 = u32::MAX;

/// A stretch of text that is one token so far, or none at all.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Symbol {
    start: u32,
    /// 0 once it was merged into its left neighbour.
    bytes: u32,
    previous: u32,
    next: u32,
    token: u32,
}

impl Symbol {
    /// Where it begins in the text.
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Where it ends in the text.
    pub fn end(&self) -> usize {
        (self.start + self.bytes) as usize
    }

    /// The token that it is.
    pub fn token(&self) -> Option<u32> {
        (self.token != NONE).then_some(self.token)
    }
}

/// A pair that has a rule.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Candidate {
    rank: u32,
    left: u32,
    right: u32,
    /// Of both together. If it differs later, one of them has changed since.
    bytes: u32,
    token: u32,
}

impl Candidate {
    /// The best rule first; of equal ones the leftmost pair.
    fn key(&self) -> (u32, u32) {
        (self.rank, self.left)
    }
}

/// What a pair of symbols may become.
pub struct Rule {
    /// The lowest merges first.
    pub rank: u32,
    /// The token that they become.
    pub token: u32,
}

/// Symbols and waiting pairs, in memory of the caller.
pub struct Merger<'s> {
    symbols: &'s mut [Symbol],
    count: usize,
    queue: &'s mut [Candidate],
    waiting: usize,
}

impl<'s> Merger<'s> {
    pub fn new(symbols: &'s mut [Symbol], queue: &'s mut [Candidate]) -> Self {
        Self { symbols, count: 0, queue, waiting: 0 }
    }

    /// Forgets all symbols.
    pub fn clear(&mut self) {
        self.count = 0;
        self.waiting = 0;
    }

    /// Adds a symbol behind the others.
    pub fn push(&mut self, range: Range<usize>, token: Option<u32>) -> Result<(), Error> {
        let index = self.count as u32;
        let symbol = self.symbols.get_mut(self.count).ok_or(Error::Scratch)?;
        *symbol = Symbol {
            start: range.start as u32,
            bytes: range.len() as u32,
            previous: if index == 0 { NONE } else { index - 1 },
            next: NONE,
            token: token.unwrap_or(NONE),
        };
        if let Some(before) = self.count.checked_sub(1) {
            self.symbols[before].next = index;
        }
        self.count += 1;
        Ok(())
    }

    /// Merges until no pair has a rule.
    pub fn merge(&mut self, rule: impl Fn(&Symbol, &Symbol) -> Option<Rule>) -> Result<(), Error> {
        for right in 1..self.count as u32 {
            self.consider(right - 1, right, &rule)?;
        }
        while let Some(best) = self.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != best.bytes {
                continue;
            }
            self.symbols[best.right as usize].bytes = 0;
            let merged = &mut self.symbols[best.left as usize];
            merged.bytes = best.bytes;
            merged.token = best.token;
            merged.next = right.next;
            if right.next != NONE {
                self.symbols[right.next as usize].previous = best.left;
            }
            self.consider(left.previous, best.left, &rule)?;
            self.consider(best.left, right.next, &rule)?;
        }
        Ok(())
    }

    /// The symbols that are left, with the tokens that they are.
    pub fn symbols(&self) -> impl Iterator<Item = (Range<usize>, Option<u32>)> {
        let symbols = self.symbols[..self.count].iter();
        symbols
            .filter(|symbol| symbol.bytes != 0)
            .map(|symbol| (symbol.start()..symbol.end(), symbol.token()))
    }

    /// Lets a pair wait if it has a rule.
    fn consider(
        &mut self,
        left: u32,
        right: u32,
        rule: impl Fn(&Symbol, &Symbol) -> Option<Rule>,
    ) -> Result<(), Error> {
        if left == NONE || right == NONE {
            return Ok(());
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        let Some(Rule { rank, token }) = rule(l, r) else { return Ok(()) };
        let candidate = Candidate { rank, left, right, bytes: l.bytes + r.bytes, token };
        *self.queue.get_mut(self.waiting).ok_or(Error::Scratch)? = candidate;
        self.waiting += 1;
        self.sift_up(self.waiting - 1);
        Ok(())
    }

    fn sift_up(&mut self, mut at: usize) {
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.queue[parent].key() <= self.queue[at].key() {
                return;
            }
            self.queue.swap(parent, at);
            at = parent;
        }
    }

    fn pop(&mut self) -> Option<Candidate> {
        self.waiting = self.waiting.checked_sub(1)?;
        let best = self.queue[0];
        self.queue[0] = self.queue[self.waiting];
        let waiting = &mut self.queue[..self.waiting];
        let mut at = 0;
        loop {
            let smaller = |a: usize, b: usize| {
                if b < waiting.len() && waiting[b].key() < waiting[a].key() { b } else { a }
            };
            let child = smaller(smaller(at, 2 * at + 1), 2 * at + 2);
            if child == at {
                return Some(best);
            }
            waiting.swap(at, child);
            at = child;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    /// Tokens are the texts' lengths; any two neighbours may merge, the shortest result first.
    fn merge(symbols: usize, most: u32, queue: usize) -> Result<Vec<usize>, Error> {
        let symbol = Symbol { start: 0, bytes: 0, previous: 0, next: 0, token: 0 };
        let candidate = Candidate { rank: 0, left: 0, right: 0, bytes: 0, token: 0 };
        let (mut memory, mut waiting) = (vec![symbol; symbols], vec![candidate; queue]);
        let mut merger = Merger::new(&mut memory, &mut waiting);
        for at in 0..symbols {
            merger.push(at..at + 1, Some(1))?;
        }
        merger.merge(|left, right| {
            let token = left.token()? + right.token()?;
            (token <= most).then_some(Rule { rank: token, token })
        })?;
        Ok(merger.symbols().map(|(range, _)| range.len()).collect())
    }

    #[test]
    fn merges_the_best_pair_first_and_the_leftmost_of_equals() {
        assert_eq!(merge(5, 2, 15), Ok(vec![2, 2, 1]));
        assert_eq!(merge(7, 4, 21), Ok(vec![4, 3]));
        assert_eq!(merge(1, 9, 0), Ok(vec![1]));
        assert_eq!(merge(0, 9, 0), Ok(vec![]));
    }

    #[test]
    fn three_pairs_for_each_symbol_are_enough() {
        for symbols in 1..200 {
            assert_eq!(merge(symbols, u32::MAX / 2, 3 * symbols), Ok(vec![symbols]));
        }
    }

    #[test]
    fn too_little_memory_is_an_error() {
        assert_eq!(merge(4, 9, 2), Err(Error::Scratch));
    }
}
