//! The writing end of the shared ring ([`flexserve_abi::ring`]).

use crate::memory::SharedBytes;
use core::{mem::offset_of, sync::atomic::Ordering};
use flexserve_abi::{
    ring::{CAPACITY, MAGIC, RingHeader},
    service::Status,
};
use zerocopy::{FromBytes, IntoBytes};

const DATA: usize = size_of::<RingHeader>();

/// What the partition believes of the ring. The normal world can change the header at any time, so capacity and head are
/// kept here; only the tail is read from shared memory, and believed only if it fits.
#[derive(Debug)]
pub struct Ring {
    capacity: u32,
    head: u32,
}

impl Ring {
    /// Takes over the ring that the normal world has laid out at the start of `shared`.
    ///
    /// # Errors
    ///
    /// [`Status::BadRing`] if magic, capacity or the buffer's size do not fit.
    pub fn open(shared: &impl SharedBytes) -> Result<Self, Status> {
        let mut bytes = [0; DATA];
        shared.read(0, &mut bytes).ok_or(Status::BadRing)?;
        let header = RingHeader::read_from_bytes(&bytes).map_err(|_| Status::BadRing)?;
        let fits = header.magic == MAGIC
            && CAPACITY.contains(&header.capacity)
            && header.capacity.is_power_of_two()
            && DATA + header.capacity as usize <= shared.size();
        let ring = Self { capacity: header.capacity, head: 0 };
        if !fits || shared.write(offset_of!(RingHeader, head), 0_u32.as_bytes()).is_none() {
            return Err(Status::BadRing);
        }
        Ok(ring)
    }

    /// Writes as much of `bytes` as there is room for, and publishes it. Answers how much.
    ///
    /// # Errors
    ///
    /// [`Status::BadRing`] if the reader claims to have read what was never written.
    pub fn write(&mut self, shared: &impl SharedBytes, bytes: &[u8]) -> Result<usize, Status> {
        let tail = shared.word(offset_of!(RingHeader, tail)).ok_or(Status::BadRing)?;
        let unread = self.head.wrapping_sub(tail.load(Ordering::Acquire));
        let room = self.capacity.checked_sub(unread).ok_or(Status::BadRing)? as usize;
        let bytes = &bytes[..bytes.len().min(room)];
        let at = (self.head & (self.capacity - 1)) as usize;
        let (first, wrapped) = bytes.split_at(bytes.len().min(self.capacity as usize - at));
        shared.write(DATA + at, first).ok_or(Status::BadRing)?;
        shared.write(DATA, wrapped).ok_or(Status::BadRing)?;
        self.head = self.head.wrapping_add(bytes.len() as u32);
        let head = shared.word(offset_of!(RingHeader, head)).ok_or(Status::BadRing)?;
        head.store(self.head, Ordering::Release);
        Ok(bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::tests::Fake;
    use proptest::prelude::*;

    fn shared(capacity: u32, bytes: usize) -> Fake {
        let shared = Fake::new(bytes);
        let header = RingHeader { magic: MAGIC, capacity, head: 77, ..RingHeader::default() };
        shared.write(0, header.as_bytes()).unwrap();
        shared
    }

    fn set_tail(shared: &Fake, tail: u32) {
        shared.word(12).unwrap().store(tail, Ordering::Relaxed);
    }

    #[test]
    fn headers_that_do_not_fit_are_refused() {
        assert!(Ring::open(&shared(64, 128)).is_ok());
        assert!(Ring::open(&shared(1 << 20, 64 + (1 << 20))).is_ok());
        for (capacity, bytes) in [(64, 124), (32, 4096), (96, 4096), (1 << 21, 4 << 20), (0, 4096)] {
            assert_eq!(
                Ring::open(&shared(capacity, bytes)).err(),
                Some(Status::BadRing),
                "{capacity} {bytes}"
            );
        }
        assert_eq!(Ring::open(&Fake::new(60)).err(), Some(Status::BadRing));
        let other = shared(64, 128);
        other.write(0, b"NOPE").unwrap();
        assert_eq!(Ring::open(&other).err(), Some(Status::BadRing));
    }

    #[test]
    fn a_full_ring_takes_nothing_and_an_impossible_tail_is_an_error() {
        let shared = shared(64, 128);
        let mut ring = Ring::open(&shared).unwrap();
        assert_eq!(ring.write(&shared, &[1; 100]), Ok(64));
        assert_eq!(ring.write(&shared, &[2]), Ok(0));
        set_tail(&shared, 65);
        assert_eq!(ring.write(&shared, &[2]), Err(Status::BadRing));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_in_order(
            pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..100), any::<u8>()), 0..50),
        ) {
            let shared = shared(64, 200);
            let mut ring = Ring::open(&shared).unwrap();
            let (mut sent, mut received, mut tail) = (Vec::new(), Vec::new(), 0_u32);
            for (piece, taken) in pieces {
                let n = ring.write(&shared, &piece).unwrap();
                sent.extend_from_slice(&piece[..n]);
                let head = shared.word(8).unwrap().load(Ordering::Relaxed);
                for _ in 0..(head - tail).min(u32::from(taken)) {
                    let mut byte = [0];
                    shared.read(64 + (tail % 64) as usize, &mut byte).unwrap();
                    received.push(byte[0]);
                    tail += 1;
                }
                set_tail(&shared, tail);
            }
            prop_assert_eq!(&sent[..received.len()], &received[..]);
            prop_assert!(sent.len() - received.len() <= 64);
        }
    }
}
