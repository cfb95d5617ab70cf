//! What follows when an access of the normal world does not pass stage 2.
//!
//! The access is tried again if its granule is the normal world's now. Otherwise EL1 takes a synchronous external abort, as
//! if nothing answered on the bus.
#![forbid(unsafe_code)]

use crate::exception::{
    CLASS_SHIFT, DATA_ABORT, Exception, INSTRUCTION_ABORT, Interrupted, LENGTH, Level, RW, Taker,
};

/// What the exception to EL2 left in its registers, and what EL1 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `ESR_EL2`.
    pub syndrome: u64,
    /// `FAR_EL2`: the virtual address.
    pub address: u64,
    /// `HPFAR_EL2`: the page's intermediate physical address, in `[39:4]`.
    pub page: u64,
    /// `ELR_EL2`.
    pub return_address: u64,
    /// `SPSR_EL2`.
    pub state: u64,
    /// `VBAR_EL1`.
    pub vectors: u64,
    /// `SCTLR_EL1`.
    pub control: u64,
}

/// Fault status codes, `[5:0]` of an abort's syndrome.
const STATUS: u64 = 0x3f;
const TRANSLATION_FAULT: u64 = 0b00_0100;
const EXTERNAL_ABORT: u64 = 0b01_0000;
/// On a walk, at a level in `[1:0]`. Stage 1's level is not told to EL2; the last one stands for it.
const EXTERNAL_ABORT_ON_WALK: u64 = 0b01_0111;
/// The abort is of stage 1's walk.
const ON_WALK: u64 = 1 << 7;
/// What stays of a data abort's syndrome: it was a write (WnR), or cache maintenance (CM).
const KEPT: u64 = 1 << 6 | 1 << 8;

impl Fault {
    fn class(&self) -> u64 {
        self.syndrome >> CLASS_SHIFT & 0x3f
    }

    fn is_abort(&self) -> bool {
        matches!(self.class(), INSTRUCTION_ABORT | DATA_ABORT)
    }

    /// The intermediate physical address of the page that stage 2 had no translation for. `None` if this was something else:
    /// HPFAR_EL2 means nothing then (D24.2.62).
    #[must_use]
    pub fn untranslated(&self) -> Option<u64> {
        /// `HPFAR_EL2.FIPA` without FEAT_LPA: bits `[47:12]` of the address in `[39:4]`.
        const PAGE: u64 = ((1 << 40) - 1) & !0xf;
        (self.is_abort() && self.syndrome & STATUS & !0b11 == TRANSLATION_FAULT)
            .then_some((self.page & PAGE) << 8)
    }

    /// The exception that EL1 takes: an external abort for an abort, an undefined instruction for anything else, which
    /// this EL2 has not asked to be told of.
    #[must_use]
    pub fn exception(&self) -> Exception {
        let interrupted = Interrupted { state: self.state, return_address: self.return_address };
        let el1 = Taker {
            level: Level::El1,
            vectors: self.vectors,
            control: self.control,
            hypervisor: RW,
            locks: false,
        };
        let (class, specific) = if self.is_abort() {
            let status = if self.syndrome & ON_WALK != 0 { EXTERNAL_ABORT_ON_WALK } else { EXTERNAL_ABORT };
            let kept = if self.class() == DATA_ABORT { self.syndrome & KEPT } else { 0 };
            (self.class() | el1.same_level(interrupted), kept | status)
        } else {
            (0, 0)
        };
        let syndrome = class << CLASS_SHIFT | self.syndrome & LENGTH | specific;
        el1.take(interrupted, syndrome, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL1H: u64 = 0b0101;

    /// A read by EL1h at level 3.
    fn fault() -> Fault {
        Fault {
            syndrome: 0x9200_0007 | 1 << 24,
            address: 0xffff_8000_1234_5678,
            page: 0x0042_3450,
            return_address: 0x6000_1000,
            state: 0x6000_0000 | EL1H,
            vectors: 0x6000_0800,
            control: 1 << 23,
        }
    }

    #[test]
    fn only_a_translation_fault_names_its_page() {
        assert_eq!(fault().untranslated(), Some(0x4234_5000));
        let of = |syndrome| Fault { syndrome, ..fault() }.untranslated();
        for level in 0..4 {
            assert!(of(0x9200_0004 | level).is_some(), "data, level {level}");
            assert!(of(0x8200_0004 | level).is_some(), "instruction, level {level}");
            assert!(of(0x9200_0084 | level).is_some(), "on a walk, level {level}");
        }
        for status in [0x00, 0x09, 0x0f, 0x10, 0x15, 0x21, 0x35] {
            assert_eq!(of(0x9200_0000 | status), None, "status {status:#x}");
        }
        assert_eq!(of(0x5e00_0007), None, "an SMC");
        assert_eq!(Fault { page: u64::MAX, ..fault() }.untranslated(), Some(0x0000_ffff_ffff_f000 & !0xfff));
    }

    #[test]
    fn el1_takes_an_external_abort() {
        let exception = fault().exception();
        assert_eq!(exception.syndrome, 0x9600_0010, "data abort, same level, external");
        assert_eq!(exception.address, fault().address);
        assert_eq!(exception.return_address, fault().return_address);
        assert_eq!(exception.saved_state, fault().state);
        assert_eq!(exception.entry, 0x6000_0a00);
        assert_eq!(exception.state & 0xffff_03ff, 0x6200_03c5);
    }

    #[test]
    fn the_kind_of_access_is_told_and_what_only_el2_may_know_is_not() {
        let syndrome = |syndrome| Fault { syndrome, ..fault() }.exception().syndrome;
        assert_eq!(syndrome(0x93ff_c047), 0x9600_0050, "a write, with a register's number");
        assert_eq!(syndrome(0x9200_0147), 0x9600_0150, "cache maintenance");
        assert_eq!(syndrome(0x9200_0087), 0x9600_0017, "on a walk of stage 1");
        assert_eq!(syndrome(0x8200_0007), 0x8600_0010, "a fetch");
        assert_eq!(syndrome(0x8200_0085), 0x8600_0017, "a fetch, on a walk of stage 1");
        assert_eq!(syndrome(0x9000_0007), 0x9400_0010, "a 16-bit instruction");
    }

    #[test]
    fn every_origin_has_its_vector_and_class() {
        let of = |state| Fault { state, ..fault() }.exception();
        let base = fault().vectors & !0x7ff;
        for (state, class, offset) in
            [(0x0, 0x24, 0x400), (0x4, 0x25, 0), (0x5, 0x25, 0x200), (0x10, 0x24, 0x600), (0x30, 0x24, 0x600)]
        {
            let exception = of(state);
            assert_eq!(exception.syndrome >> 26, class, "{state:#x}");
            assert_eq!(exception.entry, base + offset, "{state:#x}");
            assert_eq!(exception.state & 0x3df, 0x3c5, "{state:#x}");
        }
    }

    #[test]
    fn el1_never_starts_above_el1_whatever_the_registers_say() {
        for bits in [u64::MAX, 0, 0x9, 0xd, 0xc, 0x5555_5555_5555_5555] {
            let fault = Fault {
                syndrome: bits,
                address: bits,
                page: bits,
                return_address: bits,
                state: bits,
                vectors: bits,
                control: bits,
            };
            assert_eq!(fault.exception().state & 0x1f, EL1H);
        }
    }

    #[test]
    fn pan_is_set_where_el1_asks_for_it() {
        assert_eq!(Fault { control: 0, ..fault() }.exception().state & 1 << 22, 1 << 22);
        assert_eq!(fault().exception().state & 1 << 22, 0);
    }

    #[test]
    fn what_nobody_asked_for_is_an_undefined_instruction() {
        let exception = Fault { syndrome: 0x1e00_0000, ..fault() }.exception();
        assert_eq!(exception.syndrome, 1 << 25);
        assert_eq!(exception.entry, 0x6000_0a00);
    }
}
