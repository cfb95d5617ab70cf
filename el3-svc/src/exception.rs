//! How an exception level takes an exception: the architecture's pseudocode `AArch64.TakeException` (Arm DDI 0487, J1.1.2),
//! done by EL3 in its place.
#![forbid(unsafe_code)]

/// Exception classes (D24.2.47, ESR_ELx.EC). Each has its twin for the level that takes the exception: see [`SAME_LEVEL`].
pub const INSTRUCTION_ABORT: u64 = 0x20;
/// See [`INSTRUCTION_ABORT`].
pub const DATA_ABORT: u64 = 0x24;
/// Added to a class: the exception is taken from the level that takes it.
pub const SAME_LEVEL: u64 = 1;
/// Where a class stands in a syndrome.
pub const CLASS_SHIFT: u32 = 26;
/// A 32-bit instruction (ESR_ELx.IL).
pub const LENGTH: u64 = 1 << 25;

/// HCR_EL2: EL0 belongs to EL2 (TGE).
pub const TGE: u64 = 1 << 27;
/// HCR_EL2: EL1 is AArch64 (RW).
pub const RW: u64 = 1 << 31;
/// HCR_EL2: EL2 is a host (E2H).
const E2H: u64 = 1 << 34;
/// HCR_EL2: nested virtualisation (NV, NV1, NV2).
const NV: u64 = 1 << 42;
const NV1: u64 = 1 << 43;
const NV2: u64 = 1 << 45;

/// Exception levels that can take an exception in EL3's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// EL1.
    El1 = 1,
    /// EL2.
    El2 = 2,
}

/// What was interrupted, as the exception left it in SPSR and ELR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted {
    /// SPSR.
    pub state: u64,
    /// ELR.
    pub return_address: u64,
}

/// The exception level that takes an exception, with the registers that say how. It is AArch64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taker {
    /// Which.
    pub level: Level,
    /// Its `VBAR_ELx`.
    pub vectors: u64,
    /// Its `SCTLR_ELx`.
    pub control: u64,
    /// `HCR_EL2`.
    pub hypervisor: u64,
    /// Its `GCSCR_ELx.EXLOCKEN`, where that exists (FEAT_GCS).
    pub locks: bool,
}

/// What the registers of the exception level hold when it has taken the exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// `ESR_ELx`.
    pub syndrome: u64,
    /// `FAR_ELx`.
    pub address: u64,
    /// `ELR_ELx`.
    pub return_address: u64,
    /// `SPSR_ELx`.
    pub saved_state: u64,
    /// Where it goes on.
    pub entry: u64,
    /// With which PSTATE, as SPSR_EL3 holds it.
    pub state: u64,
}

impl Taker {
    /// Takes a synchronous exception.
    #[must_use]
    pub fn take(&self, interrupted: Interrupted, syndrome: u64, address: u64) -> Exception {
        let origin = Origin::of(interrupted.state);
        Exception {
            syndrome,
            address,
            return_address: interrupted.return_address,
            saved_state: self.saved(interrupted.state, origin),
            entry: (self.vectors & !0x7ff).wrapping_add(self.offset(origin)),
            state: self.state(interrupted.state, origin),
        }
    }

    /// [`SAME_LEVEL`] if what is interrupted runs at this level.
    #[must_use]
    pub fn same_level(&self, interrupted: Interrupted) -> u64 {
        if self.is_level_of(Origin::of(interrupted.state)) { SAME_LEVEL } else { 0 }
    }

    fn is_level_of(&self, origin: Origin) -> bool {
        origin.level == self.level as u64
    }

    /// A host at EL2, whose application EL0 is.
    fn is_host(&self) -> bool {
        self.level == Level::El2 && self.hypervisor & (E2H | TGE) == E2H | TGE
    }

    /// Offset of the synchronous vector (D1.4, table of vector offsets).
    fn offset(&self, origin: Origin) -> u64 {
        if self.is_level_of(origin) {
            return if origin.own_stack { 0x200 } else { 0 };
        }
        // From below, the level beneath this one decides, and not what was interrupted: an AArch32 application of an AArch64
        // guest comes to EL2 as AArch64.
        let aarch32 = if self.level == Level::El1 || self.is_host() {
            origin.aarch32
        } else {
            self.hypervisor & RW == 0
        };
        if aarch32 { 0x600 } else { 0x400 }
    }

    /// A guest hypervisor at EL1 finds itself at EL2.
    fn saved(&self, state: u64, origin: Origin) -> u64 {
        const LEVEL: u64 = 0b11 << 2;
        let nested = self.hypervisor & NV != 0 && (self.hypervisor & NV1 == 0 || self.hypervisor & NV2 != 0);
        let in_el1 = origin.level == 1 && !origin.aarch32 && self.level == Level::El1;
        if nested && in_el1 { state & !LEVEL | 0b10 << 2 } else { state }
    }

    /// PSTATE of the handler: its own stack, everything masked. Bits of features that the CPU lacks are ignored.
    fn state(&self, state: u64, origin: Origin) -> u64 {
        const OWN_STACK: u64 = 1;
        const MASKED: u64 = 0b1111 << 6;
        const SSBS: u64 = 1 << 12;
        const ALLINT: u64 = 1 << 13;
        const PAN: u64 = 1 << 22;
        const DIT: u64 = 1 << 24;
        const TCO: u64 = 1 << 25;
        const FLAGS: u64 = 0b1111 << 28;
        const PM: u64 = 1 << 32;
        const EXLOCK: u64 = 1 << 34;
        // SCTLR_ELx: an exception leaves PAN as it is (SPAN; Armv8.0: reserved, one); what SSBS becomes (DSSBS), and the
        // opposite of ALLINT (SPINTMASK).
        const SPAN: u64 = 1 << 23;
        const DSSBS: u64 = 1 << 44;
        const SPINTMASK: u64 = 1 << 62;
        let pan = (self.level == Level::El1 || self.is_host()) && self.control & SPAN == 0;
        let set = |condition, bit| if condition { bit } else { 0 };
        state & (FLAGS | DIT | PAN)
            | set(pan, PAN)
            | set(self.control & DSSBS != 0, SSBS)
            | set(self.control & SPINTMASK == 0, ALLINT)
            | set(self.locks && self.is_level_of(origin), EXLOCK)
            | TCO
            | PM
            | MASKED
            | (self.level as u64) << 2
            | OWN_STACK
    }
}

/// Where an exception came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    level: u64,
    /// On its own stack, not SP_EL0.
    own_stack: bool,
    aarch32: bool,
}

impl Origin {
    /// SPSR.M: bit 4 says AArch32, then [3:0] are the mode; else [3:2] are the exception level, [0] is the stack.
    const fn of(state: u64) -> Self {
        const USER: u64 = 0x10;
        let mode = state & 0x1f;
        if mode & USER != 0 {
            Self { level: if mode == USER { 0 } else { 1 }, own_stack: true, aarch32: true }
        } else {
            Self { level: mode >> 2, own_stack: mode & 1 != 0, aarch32: false }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = E2H | TGE | RW;
    /// SPSR.M.
    const EL0: u64 = 0b0000;
    const EL1T: u64 = 0b0100;
    const EL1H: u64 = 0b0101;
    const EL2T: u64 = 0b1000;
    const EL2H: u64 = 0b1001;
    const USER32: u64 = 0x10;
    const SUPERVISOR32: u64 = 0x13;

    /// SCTLR_ELx: PAN stays, ALLINT is cleared.
    const QUIET: u64 = 1 << 23 | 1 << 62;

    fn taker(level: Level, hypervisor: u64) -> Taker {
        Taker { level, vectors: 0xffff_0000_4567_89ab, control: QUIET, hypervisor, locks: false }
    }

    fn interrupted(state: u64) -> Interrupted {
        Interrupted { state, return_address: 0x8000_1234 }
    }

    fn take(taker: Taker, state: u64) -> Exception {
        taker.take(interrupted(state), 0x1234_5678, 0xfeed)
    }

    #[test]
    fn what_was_interrupted_is_kept() {
        let exception = take(taker(Level::El2, HOST), EL2H | 0xf << 28 | 1 << 21);
        assert_eq!(exception.syndrome, 0x1234_5678);
        assert_eq!(exception.address, 0xfeed);
        assert_eq!(exception.return_address, 0x8000_1234);
        assert_eq!(exception.saved_state, EL2H | 0xf << 28 | 1 << 21);
    }

    #[test]
    fn every_origin_has_its_vector() {
        let base = 0xffff_0000_4567_8800;
        for (level, hypervisor, state, offset) in [
            (Level::El1, RW, EL1T, 0),
            (Level::El1, RW, EL1H, 0x200),
            (Level::El1, RW, EL0, 0x400),
            (Level::El1, RW, USER32, 0x600),
            (Level::El2, HOST, EL2T, 0),
            (Level::El2, HOST, EL2H, 0x200),
            (Level::El2, HOST, EL0, 0x400),
            (Level::El2, HOST, USER32, 0x600),
            // A guest: what EL1 is, decides.
            (Level::El2, RW, EL1H, 0x400),
            (Level::El2, RW, EL0, 0x400),
            (Level::El2, RW, USER32, 0x400),
            (Level::El2, E2H | RW, USER32, 0x400),
            (Level::El2, TGE | RW, USER32, 0x400),
            (Level::El2, 0, SUPERVISOR32, 0x600),
            (Level::El2, 0, USER32, 0x600),
        ] {
            let exception = take(taker(level, hypervisor), state);
            assert_eq!(exception.entry, base + offset, "{level:?}, {hypervisor:#x}, {state:#x}");
        }
    }

    #[test]
    fn the_handler_is_masked_and_keeps_flags_timing_and_pan() {
        let of = |level, state| take(taker(level, RW), state).state;
        let base = 1 << 32 | 1 << 25 | 0b1111 << 6;
        assert_eq!(of(Level::El1, EL0), base | EL1H);
        assert_eq!(of(Level::El2, EL1T), base | EL2H);
        assert_eq!(of(Level::El1, !0x1f | EL1H), base | EL1H | 0b1111 << 28 | 1 << 24 | 1 << 22);
    }

    #[test]
    fn pan_is_set_where_the_level_asks_for_it() {
        const PAN: u64 = 1 << 22;
        let of =
            |level, hypervisor, control| take(Taker { control, ..taker(level, hypervisor) }, EL0).state & PAN;
        for (level, hypervisor) in [(Level::El1, RW), (Level::El2, HOST)] {
            assert_eq!(of(level, hypervisor, 0), PAN, "{level:?}");
            assert_eq!(of(level, hypervisor, 1 << 23), 0, "{level:?}");
        }
        for hypervisor in [RW, E2H | RW, TGE | RW] {
            assert_eq!(of(Level::El2, hypervisor, 0), 0, "EL2, no host, has no SPAN: {hypervisor:#x}");
        }
    }

    #[test]
    fn ssbs_and_the_mask_of_all_interrupts_are_the_levels_choice() {
        let of = |control| take(Taker { control, ..taker(Level::El2, HOST) }, EL2H).state & 0b11 << 12;
        assert_eq!(of(1 << 62), 0);
        assert_eq!(of(1 << 62 | 1 << 44), 1 << 12);
        assert_eq!(of(0), 1 << 13);
    }

    #[test]
    fn exlock_is_set_for_the_levels_own_faults_only() {
        const EXLOCK: u64 = 1 << 34;
        let of = |locks, state| take(Taker { locks, ..taker(Level::El2, RW) }, state).state & EXLOCK;
        assert_eq!(of(true, EL2H), EXLOCK);
        assert_eq!(of(true, EL1H), 0);
        assert_eq!(of(false, EL2H | EXLOCK), 0);
    }

    #[test]
    fn a_guest_hypervisor_finds_itself_at_el2() {
        let of = |level, nested, state| take(taker(level, RW | nested), state).saved_state;
        assert_eq!(of(Level::El1, NV, EL1H), EL2H);
        assert_eq!(of(Level::El1, NV | NV2, EL1T), EL2T);
        assert_eq!(of(Level::El1, NV | NV1 | NV2, EL1H), EL2H);
        for nested in [0, NV1, NV2, NV | NV1] {
            assert_eq!(of(Level::El1, nested, EL1H), EL1H, "{nested:#x}");
        }
        assert_eq!(of(Level::El1, NV, EL0), EL0);
        assert_eq!(of(Level::El2, NV, EL1H), EL1H);
    }

    #[test]
    fn no_register_makes_it_a_higher_level() {
        for bits in [u64::MAX, 0, 0x9, 0xc, 0xd, 0x5555_5555_5555_5555] {
            for level in [Level::El1, Level::El2] {
                let taker =
                    Taker { level, vectors: bits, control: bits, hypervisor: bits, locks: bits & 1 != 0 };
                let state = taker.take(interrupted(bits), bits, bits).state;
                assert_eq!(state & 0x1f, if level == Level::El1 { EL1H } else { EL2H }, "{bits:#x}");
            }
        }
    }
}
