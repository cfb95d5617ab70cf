//! The EL3 service: SMC64 fast calls in the OEM range (SMCCC v1.4, Arm DEN0028, section 6).

/// Function identifiers.
pub mod fid {
    /// `() -> major << 16 | minor`. From any world.
    pub const VERSION: u32 = 0xC300_0000;
    /// `(x1: feature index) -> value`, see [`super::Feature`]. From any world.
    pub const FEATURES: u32 = 0xC300_0001;
    /// `(x1: base, x2: count, x3: attributes) -> (x0: status, x1: granules done)`. From the Secure world.
    ///
    /// The register layout and the statuses are those of `GPI_SET` in Arm FIRME 1.0 (DEN0149): `x3[3:0]` is the
    /// target GPI, the other bits are zero.
    pub const GRANULE_SET: u32 = 0xC300_0002;
    /// `(x1: attributes, x2..x17: ranges) -> (x0: status, x1: granules done)`. From the Secure world.
    ///
    /// `GRANULE_SET` for up to 16 ranges, in order. A range is its base (4 KB aligned, bits `[63:12]`) and its count of
    /// granules (bits `[11:0]`, 1 to 4095); a register of zero ends the list. All ranges are checked before any moves.
    pub const GRANULE_SET_LIST: u32 = 0xC300_0003;
    /// State of one granule: `(x1: base) -> (x0: status, x1: GPI)`. From the Secure world for any granule of a
    /// lendable bank; the normal world learns its own granules' state and is denied the others'.
    pub const GRANULE_GET: u32 = 0xC300_0004;
    /// Lends a core that is off: `(x1: mpidr, x2: resume entry, x3: context) -> x0: status`. From the normal world.
    ///
    /// When it is recalled it starts at the entry, in the state that PSCI's `CPU_ON` leaves, with x0 = context.
    pub const CORE_LEND: u32 = 0xC300_0010;
    /// Asks for a lent core back: `(x1: mpidr) -> x0: status`, at once. From the normal world.
    pub const CORE_RECALL: u32 = 0xC300_0011;
    /// `(x1: mpidr) -> (x0: status, x1: state)`, see [`super::CoreState`]. From the normal and the Secure world.
    pub const CORE_STATE: u32 = 0xC300_0012;
    /// Hands the calling core back, which was recalled: `() -> x0: status`, on success no sooner than the Secure world is
    /// called again. From the Secure world.
    pub const CORE_RETURN: u32 = 0xC300_0013;
    /// `(x1: counter index) -> (x0: status, x1: value)`, see [`super::Counter`]. From any world.
    pub const STATS: u32 = 0xC300_0020;
    /// Not a call: how EL3's own code at EL2 tells it that an access did not pass stage 2. From anywhere else, and with the
    /// other backend, it is not supported.
    pub const STAGE2_ABORT: u32 = 0xC300_0030;
}

/// Calls that exist only in a BL31 whose service was built with the feature `bench`: what the service is measured against.
pub mod peer {
    /// Returns at once.
    pub const NULL: u32 = 0xC300_00F0;
    /// `(x1: base) -> (x0: 0 or a negative errno)`: `gpt_delegate_pas` of BL31 for one granule.
    pub const DELEGATE: u32 = 0xC300_00F1;
    /// Likewise `gpt_undelegate_pas`.
    pub const UNDELEGATE: u32 = 0xC300_00F2;
}

/// What `VERSION` answers: major in `[31:16]`, minor in `[15:0]`.
pub const VERSION: u32 = 1 << 16;

/// Most granules that one `GRANULE_SET` or `GRANULE_SET_LIST` moves before it answers [`Status::Incomplete`].
pub const BATCH_LIMIT: u64 = 512;

/// Most ranges of one `GRANULE_SET_LIST`.
pub const LIST_LIMIT: usize = 16;

/// Affinity fields of MPIDR_EL1 (Arm DDI 0487, D24.2), by which the calls name a core: no other bit is set.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// Cores that can be lent have numbers below this.
pub const MAX_CORES: usize = 8;

/// Status of an EL3 call, in x0 as a signed 64-bit integer (FIRME 1.0, return codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i64)]
pub enum Status {
    /// All that was asked for is done.
    Success = 0,
    /// No such call or feature, or not from this world (SMCCC: `NOT_SUPPORTED` is -1).
    NotSupported = -1,
    /// An argument is malformed: not aligned, zero, out of every lendable bank, reserved bits set, no such core.
    InvalidParameters = -2,
    /// Part is done: x1 says how many granules; call again for the rest.
    Incomplete = -4,
    /// A granule belongs to a world that the caller may not take it from. Those before it are done, x1 says how many.
    /// Or: the core is on, is lent already, is not lent.
    Denied = -5,
    /// Another core is changing the same region, or the same core.
    Busy = -6,
}

impl Status {
    /// The value that travels in x0.
    #[must_use]
    pub const fn code(self) -> u64 {
        (self as i64).cast_unsigned()
    }

    /// Reads x0. `None` for a number that this version does not define.
    #[must_use]
    pub const fn from_code(x0: u64) -> Option<Self> {
        Some(match x0.cast_signed() {
            0 => Self::Success,
            -1 => Self::NotSupported,
            -2 => Self::InvalidParameters,
            -4 => Self::Incomplete,
            -5 => Self::Denied,
            -6 => Self::Busy,
            _ => return None,
        })
    }
}

/// Granule protection information: who may access a granule (Arm DDI 0615, table of GPI encodings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gpi {
    /// Nobody.
    NoAccess = 0b0000,
    /// The Secure physical address space.
    Secure = 0b1000,
    /// The Non-secure physical address space.
    NonSecure = 0b1001,
    /// The Root physical address space.
    Root = 0b1010,
    /// The Realm physical address space.
    Realm = 0b1011,
    /// Every world.
    Any = 0b1111,
}

impl Gpi {
    /// Reads the four bits. `None` where the encoding is reserved.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0b0000 => Self::NoAccess,
            0b1000 => Self::Secure,
            0b1001 => Self::NonSecure,
            0b1010 => Self::Root,
            0b1011 => Self::Realm,
            0b1111 => Self::Any,
            _ => return None,
        })
    }
}

/// Index of a value that `FEATURES` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Feature {
    /// Bytes in a granule.
    GranuleSize = 0,
    /// Bits in a physical address.
    PhysicalAddressBits = 1,
    /// Which mechanism protects a granule: 1 = granule protection table, 2 = stage-2 tables owned by EL3.
    Backend = 2,
    /// [`BATCH_LIMIT`].
    BatchLimit = 3,
    /// [`MAX_CORES`], or 0 where cores cannot be lent.
    Cores = 4,
}

/// Where a core is, as `CORE_STATE` answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum CoreState {
    /// It is the normal world's; PSCI knows whether it is on.
    Owned = 0,
    /// It is lent, and coming up.
    Lending = 1,
    /// It works for the Secure world.
    Lent = 2,
    /// It was recalled, and has not yet left for the normal world.
    Recalled = 3,
}

impl CoreState {
    /// Reads x1. `None` for a number that this version does not define.
    #[must_use]
    pub const fn from_code(x1: u64) -> Option<Self> {
        Some(match x1 {
            0 => Self::Owned,
            1 => Self::Lending,
            2 => Self::Lent,
            3 => Self::Recalled,
            _ => return None,
        })
    }
}

/// Index of a counter that `STATS` answers. Counters start at zero at boot and never wrap in practice (64 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Counter {
    /// Granules moved from the normal to the Secure world.
    Lent = 0,
    /// Granules moved from the Secure to the normal world.
    Returned = 1,
    /// `GRANULE_SET` calls that moved at least one granule.
    Batches = 2,
    /// Calls refused, whatever the status.
    Refused = 3,
    /// TLB invalidations, each with its barrier.
    TlbInvalidations = 4,
    /// Accesses of the normal and the Realm world that the mechanism has stopped. Zero where they fault past EL3, at the attacker.
    Faults = 5,
    /// Cores lent.
    CoresLent = 6,
    /// Cores recalled.
    CoresRecalled = 7,
    /// Ticks of the system counter (CNTPCT_EL0) that the longest call took which moved more than one granule.
    LongestMove = 8,
}

impl Counter {
    /// Every counter, in order of its index, with the name it has in reports.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Lent, "granules_lent"),
        (Self::Returned, "granules_returned"),
        (Self::Batches, "batches"),
        (Self::Refused, "refused"),
        (Self::TlbInvalidations, "tlb_invalidations"),
        (Self::Faults, "faults"),
        (Self::CoresLent, "cores_lent"),
        (Self::CoresRecalled, "cores_recalled"),
        (Self::LongestMove, "longest_move_ticks"),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_round_trip_through_x0() {
        for status in [
            Status::Success,
            Status::NotSupported,
            Status::InvalidParameters,
            Status::Incomplete,
            Status::Denied,
            Status::Busy,
        ] {
            assert_eq!(Status::from_code(status.code()), Some(status));
        }
        assert_eq!(Status::from_code(1), None);
        assert_eq!(Status::from_code(0xffff_fffe), None);
    }

    #[test]
    fn core_states_round_trip_through_x1() {
        for state in [CoreState::Owned, CoreState::Lending, CoreState::Lent, CoreState::Recalled] {
            assert_eq!(CoreState::from_code(state as u64), Some(state));
        }
        assert_eq!(CoreState::from_code(4), None);
    }

    #[test]
    fn counters_are_listed_in_order() {
        for (i, (counter, _)) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, i);
        }
    }
}
