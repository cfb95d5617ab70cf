//! RX/TX buffers (DEN0077A v1.2, section 7.2).

use crate::tables::PAGE;
use arm_ffa::FfaError;

/// Most pages of a buffer.
pub const MAX_PAGES: u32 = 16;

/// A pair of buffers that its owner has mapped. RX belongs to the SPMC until it has written there, then to the owner until
/// it releases it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Physical address of the buffer that the owner writes.
    pub tx: u64,
    /// Physical address of the buffer that the owner reads.
    pub rx: u64,
    /// Pages of each.
    pub pages: u32,
    full: bool,
}

impl Mailbox {
    /// Checks the arguments of `FFA_RXTX_MAP`, as far as they say nothing of memory: alignment, size, overlap.
    ///
    /// # Errors
    ///
    /// [`FfaError::InvalidParameters`].
    pub fn new(tx: u64, rx: u64, count: u64) -> Result<Self, FfaError> {
        let pages = u32::try_from(count).ok().filter(|pages| (1..=MAX_PAGES).contains(pages));
        let pages = pages.ok_or(FfaError::InvalidParameters)?;
        let size = u64::from(pages) * PAGE;
        let ends = tx.checked_add(size).zip(rx.checked_add(size));
        let (tx_end, rx_end) = ends.ok_or(FfaError::InvalidParameters)?;
        if !tx.is_multiple_of(PAGE) || !rx.is_multiple_of(PAGE) || (tx < rx_end && rx < tx_end) {
            return Err(FfaError::InvalidParameters);
        }
        Ok(Self { tx, rx, pages, full: false })
    }

    /// Bytes of each buffer.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pages as usize * PAGE as usize
    }

    /// Whether RX is the SPMC's to write.
    ///
    /// # Errors
    ///
    /// [`FfaError::Busy`].
    pub fn check_empty(&self) -> Result<(), FfaError> {
        if self.full { Err(FfaError::Busy) } else { Ok(()) }
    }

    /// Hands RX to its owner.
    pub fn fill(&mut self) {
        self.full = true;
    }

    /// Takes RX back.
    ///
    /// # Errors
    ///
    /// [`FfaError::Denied`] if the owner does not have it.
    pub fn release(&mut self) -> Result<(), FfaError> {
        if !self.full {
            return Err(FfaError::Denied);
        }
        self.full = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_whole_pages_apart_from_each_other() {
        assert!(Mailbox::new(0x1000, 0x2000, 1).is_ok());
        assert!(Mailbox::new(0x11000, 0x1000, 16).is_ok());
        for (tx, rx, pages) in [
            (0x1000, 0x2000, 0),
            (0x1000, 0x2000, 2),
            (0x1000, 0x1000, 1),
            (0x1008, 0x3000, 1),
            (0x1000, 0x3008, 1),
            (0x1000, 0x100_0000, 17),
            (0x1000, 0x100_0000, 1 << 32 | 1),
            (!0xfff, 0x1000, 1),
            (0x1000, !0xfff, 2),
        ] {
            assert_eq!(
                Mailbox::new(tx, rx, pages),
                Err(FfaError::InvalidParameters),
                "{tx:#x} {rx:#x} {pages}"
            );
        }
    }

    #[test]
    fn rx_has_one_owner_at_a_time() {
        let mut mailbox = Mailbox::new(0x1000, 0x2000, 1).unwrap();
        assert_eq!(mailbox.release(), Err(FfaError::Denied));
        mailbox.check_empty().unwrap();
        mailbox.fill();
        assert_eq!(mailbox.check_empty(), Err(FfaError::Busy));
        mailbox.release().unwrap();
        mailbox.check_empty().unwrap();
    }
}
