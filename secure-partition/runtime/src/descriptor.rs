//! What `FFA_MEM_RETRIEVE_REQ` sends, and what its answer says (DEN0140 v1.2, sections 1.10 and 2.5).
#![forbid(unsafe_code)]

use crate::message::Error;
use arm_ffa::{
    FFA_PAGE_SIZE_4K,
    memory_management::{
        DataAccessPerm, Handle, InstuctionAccessPerm, MemAccessPerm, MemTransactionDesc, MemTransactionFlags,
    },
};
use flexserve_abi::ffa::EndpointId;

/// A retrieve request, before it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retrieve {
    /// What the lender's call answered.
    pub handle: u64,
    /// Who lent.
    pub lender: EndpointId,
    /// This partition.
    pub borrower: EndpointId,
    /// Whether the lender keeps access (`FFA_MEM_SHARE`) or gave it up (`FFA_MEM_LEND`).
    pub shared: bool,
}

impl Retrieve {
    fn transaction(&self) -> MemTransactionDesc {
        MemTransactionDesc {
            sender_id: self.lender,
            flags: MemTransactionFlags(if self.shared {
                MemTransactionFlags::TYPE_SHARE
            } else {
                MemTransactionFlags::TYPE_LEND
            }),
            handle: Handle(self.handle),
            ..Default::default()
        }
    }

    /// Writes the descriptor and answers its length in bytes.
    pub fn pack(&self, tx: &mut [u8; FFA_PAGE_SIZE_4K]) -> usize {
        let borrower = MemAccessPerm {
            endpoint_id: self.borrower,
            data_access: DataAccessPerm::ReadWrite,
            instr_access: InstuctionAccessPerm::NotSpecified,
            flags: 0,
        };
        let end = self.transaction().pack(&[], &[borrower], tx);
        // No composite descriptor: the handle names the region.
        let access = end - 16 - 16;
        tx[access + 4..access + 8].fill(0);
        tx[access + 16..end].fill(0);
        access + 16
    }

    /// Reads the answer: the region's address in this partition and its bytes.
    ///
    /// # Errors
    ///
    /// [`Error::BadDescriptor`] if it is malformed, describes another handle, or is not one region of whole pages.
    pub fn unpack(&self, rx: &[u8]) -> Result<(usize, usize), Error> {
        let (transaction, _, regions) = MemTransactionDesc::unpack(rx).map_err(|_| Error::BadDescriptor)?;
        let mut regions = regions.ok_or(Error::BadDescriptor)?;
        let Some(Ok(region)) = regions.next() else { return Err(Error::BadDescriptor) };
        if transaction.handle.0 != self.handle || regions.next().is_some() || region.page_cnt == 0 {
            return Err(Error::BadDescriptor);
        }
        let len = region.page_cnt as usize * FFA_PAGE_SIZE_4K;
        let base = usize::try_from(region.address).map_err(|_| Error::BadDescriptor)?;
        if !base.is_multiple_of(FFA_PAGE_SIZE_4K) || base == 0 || base.checked_add(len).is_none() {
            return Err(Error::BadDescriptor);
        }
        Ok((base, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arm_ffa::memory_management::ConstituentMemRegion;

    const RETRIEVE: Retrieve = Retrieve { handle: 0x1234, lender: 0, borrower: 0x8001, shared: false };

    fn answer(handle: u64, regions: &[ConstituentMemRegion]) -> [u8; 4096] {
        let mut rx = [0; 4096];
        let transaction = MemTransactionDesc { handle: Handle(handle), ..RETRIEVE.transaction() };
        transaction.pack(regions, &[MemAccessPerm::default()], &mut rx);
        rx
    }

    fn region(address: u64, page_cnt: u32) -> ConstituentMemRegion {
        ConstituentMemRegion { address, page_cnt }
    }

    #[test]
    fn the_request_names_handle_and_borrower_and_no_region() {
        let mut tx = [0xff; 4096];
        let len = RETRIEVE.pack(&mut tx);
        assert_eq!(len, 48 + 16);
        let (transaction, mut access, regions) = MemTransactionDesc::unpack(&tx[..len]).unwrap();
        assert_eq!(transaction.handle, Handle(0x1234));
        assert_eq!(transaction.flags.0, MemTransactionFlags::TYPE_LEND);
        assert_eq!(access.next().unwrap().unwrap().endpoint_id, 0x8001);
        assert!(regions.is_none());
    }

    #[test]
    fn the_answer_is_one_region() {
        let rx = answer(0x1234, &[region(0x10_0000_0000, 3)]);
        assert_eq!(RETRIEVE.unpack(&rx), Ok((0x10_0000_0000, 0x3000)));
    }

    #[test]
    fn rejects_answers_that_do_not_fit() {
        for rx in [
            answer(0x1235, &[region(0x1000, 1)]),
            answer(0x1234, &[]),
            answer(0x1234, &[region(0x1000, 0)]),
            answer(0x1234, &[region(0x1001, 1)]),
            answer(0x1234, &[region(0, 1)]),
            answer(0x1234, &[region(!0xfff, 2)]),
            answer(0x1234, &[region(0x1000, 1), region(0x4000, 1)]),
            [0; 4096],
        ] {
            assert_eq!(RETRIEVE.unpack(&rx), Err(Error::BadDescriptor));
        }
    }
}
