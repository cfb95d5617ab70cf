//! The buffer shared with the LLM partition (`flexserve_abi::ring`), and text out of the bytes that come through it.

use alloc::{string::String, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicU32, Ordering},
};

use flexserve_abi::ring::{CAPACITY, MAGIC, RingHeader};

/// Bytes of a word, the unit in which the buffer is accessed.
const WORD: usize = size_of::<u32>();
/// Words of the header, and the index of each field.
const HEADER_WORDS: usize = size_of::<RingHeader>() / WORD;
const MAGIC_WORD: usize = 0;
const CAPACITY_WORD: usize = 1;
const HEAD_WORD: usize = 2;
const TAIL_WORD: usize = 3;

/// What is wrong with the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The capacity is not a power of two in its range, or the buffer is too small for it.
    Size,
    /// The prompt does not fit behind the ring.
    PromptTooLarge,
    /// The partition's index is further ahead than the ring is long.
    Head,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "the shared buffer is too small for its ring",
            Self::PromptTooLarge => "the prompt does not fit the shared buffer",
            Self::Head => "the LLM partition's ring index is further ahead than the ring is long",
        })
    }
}

/// The reading end of the ring, and the place of the prompt behind it.
///
/// The other side may write at any time, so the buffer is only ever accessed as atomics, and nothing read from it is
/// trusted: capacity and tail are private copies.
pub struct Ring<'a> {
    words: &'a [AtomicU32],
    capacity: u32,
    tail: u32,
}

impl<'a> Ring<'a> {
    /// Lays a ring of `capacity` bytes out in the shared buffer.
    ///
    /// # Errors
    ///
    /// [`Error::Size`].
    pub fn new(words: &'a [AtomicU32], capacity: u32) -> Result<Self, Error> {
        let fits = words.len() >= HEADER_WORDS + capacity as usize / WORD;
        if !CAPACITY.contains(&capacity) || !capacity.is_power_of_two() || !fits {
            return Err(Error::Size);
        }
        for word in &words[..HEADER_WORDS] {
            word.store(0, Ordering::Relaxed);
        }
        words[CAPACITY_WORD].store(capacity, Ordering::Relaxed);
        words[MAGIC_WORD].store(MAGIC, Ordering::Release);
        Ok(Self { words, capacity, tail: 0 })
    }

    /// Writes the prompt behind the ring; answers its offset in the buffer.
    ///
    /// # Errors
    ///
    /// [`Error::PromptTooLarge`].
    pub fn write_prompt(&mut self, prompt: &[u8]) -> Result<u64, Error> {
        let start = HEADER_WORDS + self.capacity as usize / WORD;
        let place = &self.words[start..];
        if prompt.len() > place.len() * WORD {
            return Err(Error::PromptTooLarge);
        }
        for (word, bytes) in place.iter().zip(prompt.chunks(WORD)) {
            let mut value = [0; WORD];
            value[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_le_bytes(value), Ordering::Relaxed);
        }
        Ok((start * WORD) as u64)
    }

    /// Takes what the partition has written.
    ///
    /// # Errors
    ///
    /// [`Error::Head`]; nothing is taken then.
    pub fn read(&mut self) -> Result<Vec<u8>, Error> {
        let head = self.words[HEAD_WORD].load(Ordering::Acquire);
        let length = head.wrapping_sub(self.tail);
        if length > self.capacity {
            return Err(Error::Head);
        }
        let bytes = (0..length).map(|i| self.byte(self.tail.wrapping_add(i) % self.capacity)).collect();
        self.tail = head;
        self.words[TAIL_WORD].store(head, Ordering::Release);
        Ok(bytes)
    }

    fn byte(&self, index: u32) -> u8 {
        let index = index as usize;
        let word = self.words[HEADER_WORDS + index / WORD].load(Ordering::Relaxed);
        word.to_le_bytes()[index % WORD]
    }
}

/// Cuts a stream of bytes into text: what is incomplete waits for its end, what can never be UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub struct Text {
    pending: Vec<u8>,
}

impl Text {
    /// Takes bytes; answers the text that is complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.len() - incomplete_tail(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }

    /// Ends the stream; answers what was still incomplete.
    pub fn finish(&mut self) -> String {
        let rest = core::mem::take(&mut self.pending);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// Bytes at the end that begin a sequence which may yet be completed.
fn incomplete_tail(bytes: &[u8]) -> usize {
    let mut start = 0;
    loop {
        match core::str::from_utf8(&bytes[start..]) {
            Ok(_) => return 0,
            Err(error) => match error.error_len() {
                Some(length) => start += error.valid_up_to() + length,
                None => return bytes.len() - start - error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer(words: usize) -> Vec<AtomicU32> {
        (0..words).map(|_| AtomicU32::new(0xdead_beef)).collect()
    }

    /// The partition's side: appends at `head`.
    fn write(words: &[AtomicU32], capacity: u32, bytes: &[u8]) {
        let mut head = words[HEAD_WORD].load(Ordering::Relaxed);
        for &byte in bytes {
            let index = (head % capacity) as usize;
            let word = &words[HEADER_WORDS + index / WORD];
            let mut value = word.load(Ordering::Relaxed).to_le_bytes();
            value[index % WORD] = byte;
            word.store(u32::from_le_bytes(value), Ordering::Relaxed);
            head = head.wrapping_add(1);
        }
        words[HEAD_WORD].store(head, Ordering::Release);
    }

    #[test]
    fn bytes_come_out_as_they_went_in_across_many_wraps() {
        let words = buffer(HEADER_WORDS + 64 / WORD);
        let mut ring = Ring::new(&words, 64).unwrap();
        let mut next = 0_u8;
        for length in (0..=64).chain(0..=64) {
            let sent: Vec<u8> = (0..length).map(|i| next.wrapping_add(i)).collect();
            next = next.wrapping_add(length);
            write(&words, 64, &sent);
            assert_eq!(ring.read().unwrap(), sent);
            assert_eq!(words[TAIL_WORD].load(Ordering::Relaxed), words[HEAD_WORD].load(Ordering::Relaxed));
        }
    }

    #[test]
    fn rejects_a_head_beyond_the_ring() {
        let words = buffer(HEADER_WORDS + 64 / WORD);
        let mut ring = Ring::new(&words, 64).unwrap();
        words[HEAD_WORD].store(65, Ordering::Relaxed);
        assert_eq!(ring.read(), Err(Error::Head));
        words[HEAD_WORD].store(u32::MAX, Ordering::Relaxed);
        assert_eq!(ring.read(), Err(Error::Head));
        words[HEAD_WORD].store(64, Ordering::Relaxed);
        assert_eq!(ring.read().unwrap().len(), 64);
    }

    #[test]
    fn rejects_sizes_that_the_service_would_reject() {
        let words = buffer(HEADER_WORDS + 128 / WORD);
        for capacity in [0, 32, 63, 96, 256, 1 << 21] {
            assert!(matches!(Ring::new(&words, capacity), Err(Error::Size)), "{capacity}");
        }
        assert!(Ring::new(&words, 128).is_ok());
    }

    #[test]
    fn the_prompt_lies_behind_the_ring_and_must_fit() {
        let words = buffer(HEADER_WORDS + 64 / WORD + 2);
        let mut ring = Ring::new(&words, 64).unwrap();
        assert_eq!(ring.write_prompt(b"Hello"), Ok(128));
        assert_eq!(words[HEADER_WORDS + 16].load(Ordering::Relaxed), u32::from_le_bytes(*b"Hell"));
        assert_eq!(words[HEADER_WORDS + 17].load(Ordering::Relaxed), u32::from(b'o'));
        assert_eq!(ring.write_prompt(&[0; 9]), Err(Error::PromptTooLarge));
    }

    proptest! {
        #[test]
        fn text_cut_anywhere_is_put_together_again(text: String, cuts in prop::collection::vec(0_usize..64, 0..16)) {
            let (mut cutter, mut out, mut rest) = (Text::default(), String::new(), text.as_bytes());
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                out.push_str(&cutter.push(piece));
                rest = tail;
            }
            out.push_str(&cutter.push(rest));
            prop_assert_eq!(cutter.finish(), "");
            prop_assert_eq!(out, text);
        }
    }

    #[test]
    fn an_incomplete_sequence_waits_and_a_broken_one_does_not() {
        let mut text = Text::default();
        assert_eq!(text.push(&[b'a', 0xf0, 0x9f]), "a");
        assert_eq!(text.push(&[0x98, 0x80]), "\u{1f600}");
        assert_eq!(text.push(&[0xff, b'b', 0xe2]), "\u{fffd}b");
        assert_eq!(text.finish(), "\u{fffd}");
    }
}
