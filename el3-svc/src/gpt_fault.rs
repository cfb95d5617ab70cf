//! What follows when an access of the normal or the Realm world does not pass the granule protection check.
//!
//! SCR_EL3.GPF brings the fault to EL3, which counts it and hands it on to the exception level that would have got it
//! without the detour, as the abort that it would have been (Arm DDI 0487, D1.4.5.3, R_FXMGJ and I_XWVCY).
#![forbid(unsafe_code)]

use crate::exception::{
    CLASS_SHIFT, DATA_ABORT, Exception, INSTRUCTION_ABORT, Interrupted, LENGTH, Level, RW, SAME_LEVEL, TGE,
    Taker,
};

/// What the exception to EL3 left in its registers, and `HCR_EL2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `ESR_EL3`: of a Granule Protection Check exception whose cause is a granule protection fault.
    pub syndrome: u64,
    /// `FAR_EL3`: the virtual address.
    pub address: u64,
    /// `ELR_EL3` and `SPSR_EL3`. It is not EL3 that was interrupted: its own faults are data and instruction aborts.
    pub interrupted: Interrupted,
    /// `HCR_EL2`.
    pub hypervisor: u64,
}

/// Syndrome of a Granule Protection Check exception (D24.2.47): on a walk of stage 2 (S2PTW), a fetch (InD), by way of
/// VNCR_EL2 (VNCR), of stage 2 for a walk of stage 1 (S1PTW).
const ON_STAGE2_WALK: u64 = 1 << 21;
const FETCH: u64 = 1 << 20;
const NESTED: u64 = 1 << 13;
const STAGE2_FOR_WALK: u64 = 1 << 7;

/// What an abort's syndrome has at the same place: S1PTW and the status. A data abort also VNCR, cache maintenance (CM), a
/// write (WnR), and that it is of a guarded control stack (ISS2.GCS). HPFAR_EL2, where it is due, the hardware has set.
const KEPT: u64 = STAGE2_FOR_WALK | 0x3f;
const KEPT_DATA: u64 = KEPT | NESTED | 1 << 8 | 1 << 6 | 1 << 40;

impl Fault {
    /// The exception level that takes the fault.
    #[must_use]
    pub fn level(&self) -> Level {
        /// HCR_EL2: granule protection faults of EL1 and EL0 are EL2's.
        const GPF: u64 = 1 << 48;
        /// SPSR.M: AArch64's EL2, on either stack.
        const EL2: u64 = 0b0_1000;
        let from_el2 = self.interrupted.state & 0x1e == EL2;
        // An EL1 in AArch32 cannot be where there are granule protection checks. If it were, EL2 would be told.
        let by_control = self.hypervisor & (TGE | GPF) != 0 || self.hypervisor & RW == 0;
        let by_stage2 = self.syndrome & (ON_STAGE2_WALK | STAGE2_FOR_WALK | NESTED) != 0;
        if from_el2 || by_control || by_stage2 { Level::El2 } else { Level::El1 }
    }

    /// The exception that it takes: an instruction or data abort.
    #[must_use]
    pub fn exception(&self, taker: &Taker) -> Exception {
        let (class, kept) = if self.syndrome & FETCH != 0 {
            (INSTRUCTION_ABORT | taker.same_level(self.interrupted), KEPT)
        } else if self.syndrome & NESTED != 0 {
            // An access by way of VNCR_EL2 is EL2's own.
            (DATA_ABORT | SAME_LEVEL, KEPT_DATA)
        } else {
            (DATA_ABORT | taker.same_level(self.interrupted), KEPT_DATA)
        };
        taker.take(self.interrupted, class << CLASS_SHIFT | LENGTH | self.syndrome & kept, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EC, and a granule protection fault of a level-1 entry; a data access, not on a walk.
    const READ: u64 = 0x1e << 26 | 1 << 25 | 0b00_1101 << 14 | 0b10_1000;
    const WRITE: u64 = 1 << 6;
    const MAINTENANCE: u64 = 1 << 8;
    const E2H: u64 = 1 << 34;
    const HOST: u64 = E2H | TGE | RW;
    const GPF: u64 = 1 << 48;
    /// SPSR.M.
    const EL0: u64 = 0b0000;
    const EL1H: u64 = 0b0101;
    const EL2T: u64 = 0b1000;
    const EL2H: u64 = 0b1001;

    fn fault(syndrome: u64, state: u64, hypervisor: u64) -> Fault {
        let interrupted = Interrupted { state, return_address: 0x6000_1000 };
        Fault { syndrome, address: 0xffff_8000_1234_5678, interrupted, hypervisor }
    }

    fn exception(fault: Fault) -> Exception {
        fault.exception(&Taker {
            level: fault.level(),
            vectors: 0x6000_0800,
            control: 1 << 23 | 1 << 62,
            hypervisor: fault.hypervisor,
            locks: false,
        })
    }

    #[test]
    fn a_fault_of_el2_is_a_data_abort_of_its_own() {
        let taken = exception(fault(READ, EL2H | 1 << 31, HOST));
        assert_eq!(taken.syndrome, 0x9600_0028, "as without the detour");
        assert_eq!(taken.address, 0xffff_8000_1234_5678);
        assert_eq!(taken.return_address, 0x6000_1000);
        assert_eq!(taken.saved_state, EL2H | 1 << 31);
        assert_eq!(taken.entry, 0x6000_0a00);
        assert_eq!(taken.state & 0xffff_ffff, 1 << 31 | 1 << 25 | 0x3c9);
    }

    #[test]
    fn the_kind_of_access_is_told() {
        let syndrome = |more| exception(fault(READ | more, EL2H, HOST)).syndrome;
        assert_eq!(syndrome(WRITE), 0x9600_0068);
        assert_eq!(syndrome(WRITE | MAINTENANCE), 0x9600_0168);
        assert_eq!(syndrome(FETCH), 0x8600_0028);
        assert_eq!(syndrome(1 << 40), 0x9600_0028 | 1 << 40, "of a guarded control stack");
        for status in [0b10_0011, 0b10_0100, 0b10_0101, 0b10_0110, 0b10_0111] {
            let walk = READ & !0x3f | status;
            assert_eq!(exception(fault(walk, EL2H, HOST)).syndrome, 0x9600_0000 | status, "on a walk");
            assert_eq!(exception(fault(walk | FETCH, EL2H, HOST)).syndrome, 0x8600_0000 | status);
        }
    }

    #[test]
    fn what_only_el3_may_know_is_not_told() {
        for level in [Level::El1, Level::El2] {
            let (state, hypervisor) = if level == Level::El1 { (EL1H, RW) } else { (EL2H, HOST) };
            let all = fault(!(ON_STAGE2_WALK | STAGE2_FOR_WALK | NESTED | FETCH), state, hypervisor);
            assert_eq!(all.level(), level);
            assert_eq!(exception(all).syndrome & !(1 << 40), 0x25 << 26 | LENGTH | 0x17f, "{level:?}");
            let fetch = Fault { syndrome: all.syndrome | FETCH, ..all };
            assert_eq!(exception(fetch).syndrome, 0x21 << 26 | LENGTH | 0x3f, "{level:?}");
        }
    }

    #[test]
    fn each_level_takes_its_own_faults() {
        for (state, hypervisor, level, class, offset) in [
            (EL2H, HOST, Level::El2, 0x25, 0x200),
            (EL2T, RW, Level::El2, 0x25, 0),
            (EL2H, E2H | RW, Level::El2, 0x25, 0x200),
            (EL0, HOST, Level::El2, 0x24, 0x400),
            (0x10, HOST, Level::El2, 0x24, 0x600),
            (EL0, TGE | RW, Level::El2, 0x24, 0x400),
            (EL1H, RW, Level::El1, 0x25, 0x200),
            (EL1H, E2H | RW, Level::El1, 0x25, 0x200),
            (EL0, RW, Level::El1, 0x24, 0x400),
            (0x10, RW, Level::El1, 0x24, 0x600),
            (EL1H, RW | GPF, Level::El2, 0x24, 0x400),
            (EL0, RW | GPF, Level::El2, 0x24, 0x400),
            (0x10, RW | GPF, Level::El2, 0x24, 0x400),
            // EL1 in AArch32 cannot take an exception of AArch64.
            (0x13, 0, Level::El2, 0x24, 0x600),
        ] {
            let fault = fault(READ, state, hypervisor);
            assert_eq!(fault.level(), level, "{state:#x}, {hypervisor:#x}");
            let taken = exception(fault);
            assert_eq!(taken.syndrome >> 26, class, "{state:#x}, {hypervisor:#x}");
            assert_eq!(taken.entry, 0x6000_0800 + offset, "{state:#x}, {hypervisor:#x}");
        }
    }

    #[test]
    fn el2_takes_the_faults_of_its_stage_2() {
        for more in [ON_STAGE2_WALK, ON_STAGE2_WALK | STAGE2_FOR_WALK, STAGE2_FOR_WALK] {
            for (syndrome, class) in [(READ, 0x24), (READ | FETCH, 0x20)] {
                let fault = fault(syndrome | more, EL1H, RW);
                assert_eq!(fault.level(), Level::El2, "{more:#x}");
                let told = class << 26 | LENGTH | more & STAGE2_FOR_WALK | 0b10_1000;
                assert_eq!(exception(fault).syndrome, told, "{more:#x}");
            }
        }
    }

    #[test]
    fn el2_takes_accesses_by_way_of_its_vncr_as_its_own() {
        let fault = fault(READ | NESTED | WRITE, EL1H, RW | 1 << 42 | 1 << 45);
        assert_eq!(fault.level(), Level::El2);
        assert_eq!(exception(fault).syndrome, 0x25 << 26 | LENGTH | NESTED | WRITE | 0b10_1000);
        assert_eq!(exception(fault).entry, 0x6000_0c00);
    }
}
