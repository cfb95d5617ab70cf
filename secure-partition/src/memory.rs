//! What the session needs of borrowed memory. The real thing is `flexserve_partition_runtime::Borrower`.

use core::{ops::DerefMut, sync::atomic::AtomicU32};

/// Memory that the normal world reads and writes at the same time.
pub trait SharedBytes {
    /// Bytes of it.
    fn size(&self) -> usize;
    /// Copies bytes out. `None` if the range is not inside.
    fn read(&self, offset: usize, to: &mut [u8]) -> Option<()>;
    /// Copies bytes in. `None` if the range is not inside.
    fn write(&self, offset: usize, from: &[u8]) -> Option<()>;
    /// The word at an offset that is a multiple of 4. `None` if it is not one inside.
    fn word(&self, offset: usize) -> Option<&AtomicU32>;
}

/// Retrieves and relinquishes what the normal world lends and shares. Failures carry no reason: the normal world, which
/// alone would learn it, has the reason from the SPMC.
pub trait Borrow {
    /// Lent memory. Its bytes stay where they are when the value moves.
    type Lent: DerefMut<Target = [u8]>;
    /// Shared memory.
    type Shared: SharedBytes;

    /// Maps what was lent under `handle`.
    fn lent(&mut self, handle: u64) -> Option<Self::Lent>;
    /// Maps what was shared under `handle`.
    fn shared(&mut self, handle: u64) -> Option<Self::Shared>;
    /// Gives lent memory back.
    fn give_up(&mut self, region: Self::Lent);
    /// Gives shared memory back.
    fn give_up_shared(&mut self, region: Self::Shared);
}

#[cfg(target_os = "none")]
mod real {
    use super::{Borrow, SharedBytes};
    use core::sync::atomic::AtomicU32;
    use flexserve_abi::ffa::NORMAL_WORLD;
    use flexserve_partition_runtime::{Borrower, Error, Lent, Shared};

    impl SharedBytes for Shared {
        fn size(&self) -> usize {
            self.size()
        }

        fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
            self.read(offset, to)
        }

        fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
            self.write(offset, from)
        }

        fn word(&self, offset: usize) -> Option<&AtomicU32> {
            self.word(offset)
        }
    }

    impl Borrow for Borrower {
        type Lent = Lent;
        type Shared = Shared;

        fn lent(&mut self, handle: u64) -> Option<Lent> {
            noted("retrieve", self.retrieve_lent(NORMAL_WORLD, handle))
        }

        fn shared(&mut self, handle: u64) -> Option<Shared> {
            noted("retrieve", self.retrieve_shared(NORMAL_WORLD, handle))
        }

        fn give_up(&mut self, region: Lent) {
            noted("relinquish", self.relinquish_lent(region));
        }

        fn give_up_shared(&mut self, region: Shared) {
            noted("relinquish", self.relinquish_shared(region));
        }
    }

    fn noted<T>(what: &str, result: Result<T, Error>) -> Option<T> {
        if let Err(error) = &result {
            let code = match error {
                Error::Ffa(code) => i32::from(*code),
                Error::Unexpected(_) | Error::BadDescriptor => 0,
            };
            defmt::warn!("{=str} refused: {=i32}", what, code);
        }
        result.ok()
    }
}

#[cfg(test)]
pub mod tests {
    use super::SharedBytes;
    use core::sync::atomic::{AtomicU32, Ordering};

    /// Shared memory on the host: words, so that they can be shared.
    #[derive(Debug)]
    pub struct Fake(Vec<AtomicU32>);

    impl Fake {
        /// `bytes`, a multiple of 4, all zero.
        pub fn new(bytes: usize) -> Self {
            Self((0..bytes / 4).map(|_| AtomicU32::new(0)).collect())
        }
    }

    impl SharedBytes for Fake {
        fn size(&self) -> usize {
            self.0.len() * 4
        }

        fn read(&self, offset: usize, to: &mut [u8]) -> Option<()> {
            offset.checked_add(to.len()).filter(|end| *end <= self.size())?;
            for (i, byte) in (offset..).zip(to) {
                *byte = self.0[i / 4].load(Ordering::Relaxed).to_le_bytes()[i % 4];
            }
            Some(())
        }

        fn write(&self, offset: usize, from: &[u8]) -> Option<()> {
            offset.checked_add(from.len()).filter(|end| *end <= self.size())?;
            for (i, byte) in (offset..).zip(from) {
                let mut word = self.0[i / 4].load(Ordering::Relaxed).to_le_bytes();
                word[i % 4] = *byte;
                self.0[i / 4].store(u32::from_le_bytes(word), Ordering::Relaxed);
            }
            Some(())
        }

        fn word(&self, offset: usize) -> Option<&AtomicU32> {
            if offset.is_multiple_of(4) { self.0.get(offset / 4) } else { None }
        }
    }
}
