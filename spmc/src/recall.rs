//! The recall service (`flexserve_abi::recall`): memory comes back whether its borrower agrees or not.

use crate::{
    descriptor::Kind,
    hardware::Hardware,
    registers::{Registers, Reply, pair},
    spmc::Spmc,
};
use arm_ffa::FuncId;
use flexserve_abi::{
    ffa::{EndpointId, SPMC},
    recall::{LONGEST_SECTION, NOTICE_NS, REVOKE, Status},
};

impl<H: Hardware> Spmc<'_, H> {
    /// Answers a direct request to the service.
    pub(crate) fn recall_service(&mut self, lender: EndpointId, registers: &Registers) -> Reply {
        let (status, result) = match registers[4] {
            REVOKE => self.revoke(lender, registers[5]),
            LONGEST_SECTION => (Status::Revoked, self.hardware.longest_section()),
            _ => (Status::NotSupported, 0),
        };
        let mut answer = [0; 18];
        answer[0] = u32::from(FuncId::MsgSendDirectResp64_2).into();
        answer[1] = pair(SPMC, lender);
        answer[4] = status.code();
        answer[5] = result;
        Reply::Full(answer)
    }

    fn revoke(&mut self, lender: EndpointId, handle: u64) -> (Status, u64) {
        let Ok(region) = self.ledger.lent(handle, lender).copied() else { return (Status::BadHandle, 0) };
        if !region.is_whole() || region.kind == Kind::Donate {
            return (Status::BadHandle, 0);
        }
        // Nobody has it, also while it is being reclaimed.
        let Some(address) = region.address() else { return (Status::Revoked, 0) };
        let now = self.hardware.now_ns();
        let left = self.ledger.notice(handle, now).saturating_add(NOTICE_NS).saturating_sub(now);
        if left != 0 {
            return (Status::Noticed, left);
        }
        if let Some(index) = self.find(region.sending.borrower) {
            let partition = &self.partitions[index];
            partition.space.give_back(&self.ledger.pool, address, &region.pages);
            self.hardware.flush(partition.asid);
        }
        self.ledger.set_address(handle, None);
        (Status::Revoked, 0)
    }
}
