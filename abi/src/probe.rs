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
/// call is. `(x1: [RealmOp], x2...: arguments) -> (x0: 0, x1, x2: results)`.
pub const REALM_PROBE: u32 = 0xC400_018F;

/// What the Realm world's attacker tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum RealmOp {
    /// Read 8 bytes at x2. Results: ESR_EL2 and FAR_EL2, both zero if nothing faulted.
    Read = 0,
    /// Write 8 bytes at x2. Results as for `Read`.
    Write = 1,
    /// Branch to x2. Results as for `Read`.
    Execute = 2,
    /// Make the SMC in x2 with the arguments in x3 to x5. Result: x0 of its answer.
    Call = 3,
}

/// The Secure world's caller of the conformance suite, which stands in the SPMC's place: `FFA_MSG_SEND_DIRECT_REQ` (SMC64)
/// to the SPMC's ID, x3 = [`SecureOp`] `| index << 8`. It works on 20 registers of its own on each core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum SecureOp {
    /// Is anybody there? Result: x4 = [`SECURE_CALLER`].
    Hello = 1,
    /// Sets four registers from `index` on to x4..x7.
    Put = 2,
    /// Makes an SMC with registers 0 to 17, and keeps what they are on return.
    Call = 3,
    /// Results: x4..x7 = four registers from `index` on.
    Get = 4,
    /// Reads 8 bytes at x4 in the Secure physical address space. Results: x4 = ESR_ELx, or 0; x5 = the value, or FAR_ELx.
    Read = 5,
    /// Writes x5 at x4. Results as for `Read`, without a value.
    Write = 6,
    /// How the core whose MPIDR has the affinity fields in x4 has done since it was lent last. Results: x4 = rounds of its work, x5 = rounds in which an
    /// interrupt of another world was signalled to it.
    Work = 7,
}

impl SecureOp {
    /// Reads the low byte of x3.
    #[must_use]
    pub const fn from_code(x3: u64) -> Option<Self> {
        Some(match x3 & 0xff {
            1 => Self::Hello,
            2 => Self::Put,
            3 => Self::Call,
            4 => Self::Get,
            5 => Self::Read,
            6 => Self::Write,
            7 => Self::Work,
            _ => return None,
        })
    }
}

/// What the Secure world's caller answers to [`SecureOp::Hello`]: "FLXSECUR".
pub const SECURE_CALLER: u64 = 0x5255_4345_5358_4c46;
/// Registers that it keeps for each core.
pub const SECURE_REGISTERS: usize = 20;
