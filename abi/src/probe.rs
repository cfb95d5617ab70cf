//! The hostile partition's service: `FFA_MSG_SEND_DIRECT_REQ2` to [`crate::ffa::PROBE_SERVICE`].
//!
//! x4 is the [`Op`], x5 its argument; in the response x4 = 0 and x5 is what was read. A probe that faults never answers:
//! the SPMC ends the partition's run, answers `FFA_ERROR(ABORTED)` in its stead, logs
//! `partition 0x.... aborted: esr=0x................ far=0x................ elr=0x................`, and starts the
//! partition anew at its entry point for the next message.

/// What to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Op {
    /// Read 8 bytes at x5. Response: x5 = the value.
    Read = 1,
    /// Write 8 bytes at x5.
    Write = 2,
    /// Branch to x5.
    Execute = 3,
    /// `FFA_MEM_RETRIEVE_REQ` of handle x5, as if it had been lent to this partition. Response: x5 = the FF-A error code,
    /// or 0 if it was granted.
    Retrieve = 4,
    /// The EL3 service's `GRANULE_SET` of the granule at x5 to the normal world, from S-EL0. Response: x5 = x0 of the call.
    GranuleSet = 5,
    /// Spins for ever; only preemption ends it.
    Spin = 6,
    /// Retrieves handle x5, which was lent to this partition, and reads it for ever.
    Hold = 7,
}

impl Op {
    /// Reads x4.
    #[must_use]
    pub const fn from_code(x4: u64) -> Option<Self> {
        Some(match x4 {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Execute,
            4 => Self::Retrieve,
            5 => Self::GranuleSet,
            6 => Self::Spin,
            7 => Self::Hold,
            _ => return None,
        })
    }
}

/// The Realm world's attacker: a call of TF-A's test RMM, patched in (`fvp/qemu-rme/patches`). Forwarded by BL31 as any RMI
/// call is. `(x1: 0 = read, 1 = write, 2 = execute, x2: address) -> (x0: 0, x1: ESR_EL2, x2: FAR_EL2)`, both zero if
/// nothing faulted.
pub const REALM_PROBE: u32 = 0xC400_018F;
