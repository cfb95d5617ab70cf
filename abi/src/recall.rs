//! The SPMC's recall service: `FFA_MSG_SEND_DIRECT_REQ2` to [`crate::ffa::SPMC`] with [`crate::ffa::RECALL_SERVICE`].
//!
//! For a lender whose borrower does not relinquish: x4 is [`REVOKE`], x5 the handle. The first request starts a term, and is
//! answered [`Status::Noticed`] as are all within [`NOTICE_NS`]; the next one takes the region out of the borrower's reach,
//! whatever that is doing, so that `FFA_MEM_RECLAIM` succeeds. The manager tells the borrower nothing when the term starts: the
//! lender asks it, by the borrower's own protocol, before it comes here. A borrower that touches the region afterwards is aborted:
//! thus it is told. In the response x4 is the status, x5 a result.

/// Takes the region with handle x5 back, in x4.
pub const REVOKE: u64 = 1;

/// Asks how long the manager was busy at a time, in x4: x5 of the response are the ticks of the system counter (CNTPCT_EL0)
/// that the longest section under its lock took, with interrupts masked, waiting for the lock included.
pub const LONGEST_SECTION: u64 = 2;

/// Nanoseconds between the first request and the first one that revokes.
pub const NOTICE_NS: u64 = 10_000_000;

/// Status, in x4 of the response as a signed 64-bit integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Status {
    /// Done. Of `REVOKE`: nobody has the region mapped any more, it can be reclaimed.
    Revoked = 0,
    /// No such operation.
    NotSupported = -1,
    /// The caller lent nothing under this handle, or it cannot be taken back: not whole, or donated.
    BadHandle = -2,
    /// The borrower still has time: x5 nanoseconds.
    Noticed = -3,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Revoked, Self::NotSupported, Self::BadHandle, Self::Noticed];

    /// The value that travels in x4.
    #[must_use]
    pub const fn code(self) -> u64 {
        (self as i64).cast_unsigned()
    }

    /// Reads x4 of a response.
    #[must_use]
    pub fn from_code(x4: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.code() == x4)
    }
}
