//! Calls and answers in registers (DEN0077A v1.2, section 12).

use arm_ffa::{FfaError, FuncId};

/// x0 to x17.
pub type Registers = [u64; 18];

/// Bit 16 of a function ID: the caller has no live SVE state (SMCCC v1.3). The SPMD hands it through.
const SVE_HINT: u32 = 1 << 16;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// x0 to x7; x8 to x17 stay the caller's.
    Short([u64; 8]),
    /// x0 to x17.
    Full(Registers),
}

impl Reply {
    /// `FFA_SUCCESS` (SMC32) with w2 and further registers.
    #[must_use]
    pub fn success(values: &[u64]) -> Self {
        Self::short(FuncId::Success32, 0, values)
    }

    /// `FFA_ERROR`.
    #[must_use]
    pub fn error(code: FfaError) -> Self {
        Self::short(FuncId::Error32, 0, &[u64::from(i32::from(code).cast_unsigned())])
    }

    /// A function, w1, and further registers from w2 on.
    ///
    /// # Panics
    ///
    /// With more than six values: a bug of the caller.
    #[must_use]
    pub fn short(function: FuncId, x1: u64, values: &[u64]) -> Self {
        let mut registers = [0; 8];
        registers[0] = u32::from(function).into();
        registers[1] = x1;
        registers[2..2 + values.len()].copy_from_slice(values);
        Self::Short(registers)
    }

    /// What the caller finds in its registers, given what it had there.
    #[must_use]
    pub fn over(&self, caller: &Registers) -> Registers {
        match self {
            Self::Short(short) => {
                let mut registers = *caller;
                registers[..8].copy_from_slice(short);
                registers
            }
            Self::Full(registers) => *registers,
        }
    }
}

impl From<Result<Reply, FfaError>> for Reply {
    fn from(result: Result<Reply, FfaError>) -> Self {
        result.unwrap_or_else(Reply::error)
    }
}

/// The function that x0 names, if it is one of FF-A's.
#[must_use]
pub fn function(registers: &Registers) -> Option<FuncId> {
    FuncId::try_from(registers[0] as u32 & !SVE_HINT).ok()
}

/// Two endpoints in w1: bits `[31:16]`, `[15:0]`.
#[must_use]
pub fn endpoints(x1: u64) -> (u16, u16) {
    ((x1 >> 16) as u16, x1 as u16)
}

/// w1 with two endpoints.
#[must_use]
pub fn pair(high: u16, low: u16) -> u64 {
    u64::from(high) << 16 | u64::from(low)
}

/// A 64-bit number in two w registers, low half first.
#[must_use]
pub fn halves(low: u64, high: u64) -> u64 {
    u64::from(high as u32) << 32 | u64::from(low as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_answer_leaves_the_other_registers_to_the_caller() {
        let caller: Registers = core::array::from_fn(|i| i as u64 + 100);
        let answer = Reply::success(&[1, 2]).over(&caller);
        assert_eq!(answer[..8], [0x8400_0061, 0, 1, 2, 0, 0, 0, 0]);
        assert_eq!(answer[8..], caller[8..]);
        assert_eq!(Reply::Full([7; 18]).over(&caller), [7; 18]);
    }

    #[test]
    fn errors_are_32_bit_numbers() {
        let Reply::Short(registers) = Reply::error(FfaError::NotSupported) else { panic!() };
        assert_eq!(registers[..4], [0x8400_0060, 0, 0xffff_ffff, 0]);
    }

    #[test]
    fn the_sve_hint_and_the_upper_half_of_x0_do_not_matter() {
        let mut registers = [0; 18];
        registers[0] = 0xdead_beef_8401_006b;
        assert_eq!(function(&registers), Some(FuncId::MsgWait32));
        registers[0] = 0x8400_0000;
        assert_eq!(function(&registers), None);
    }

    #[test]
    fn halves_ignore_the_upper_halves() {
        assert_eq!(halves(0xffff_ffff_1234_5678, 0xffff_ffff_9abc_def0), 0x9abc_def0_1234_5678);
        assert_eq!(endpoints(pair(1, 0x8001)), (1, 0x8001));
    }
}
