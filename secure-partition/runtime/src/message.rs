//! Requests and errors, from and to registers (DEN0077A v1.2, sections 12 and 15).
#![forbid(unsafe_code)]

use arm_ffa::{FfaError, FuncId};
use flexserve_abi::ffa::{EndpointId, UuidRegisters};

/// The registers of a call, x0 to x17 (SMCCC v1.2 and later).
pub(crate) type Registers = [u64; 18];

/// A direct request (`FFA_MSG_SEND_DIRECT_REQ2`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asks.
    pub source: EndpointId,
    /// Whom it asks: this partition's ID.
    pub destination: EndpointId,
    /// The service asked for.
    pub uuid: UuidRegisters,
    /// x4 to x17.
    pub args: [u64; 14],
}

/// Why a call to the SPMC failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The SPMC answered `FFA_ERROR` with this code.
    Ffa(FfaError),
    /// The SPMC answered something that is no answer to the call: x0.
    Unexpected(u32),
    /// The answer's descriptor is malformed or contradicts what was asked.
    BadDescriptor,
}

/// Which function the low half of x0 names, if any of FF-A's.
pub(crate) fn function(registers: &Registers) -> Option<FuncId> {
    FuncId::try_from(registers[0] as u32).ok()
}

/// Registers of a call with up to seven arguments.
pub(crate) fn call(function: FuncId, args: &[u64]) -> Registers {
    let mut registers = [0; 18];
    registers[0] = u32::from(function).into();
    registers[1..=args.len()].copy_from_slice(args);
    registers
}

/// Sorts an answer into success (any of `expected`) and failure.
pub(crate) fn check(registers: &Registers, expected: &[FuncId]) -> Result<(), Error> {
    match function(registers) {
        Some(FuncId::Error32 | FuncId::Error64) => Err(match FfaError::try_from(registers[2] as i32) {
            Ok(code) => Error::Ffa(code),
            Err(_) => Error::Unexpected(registers[0] as u32),
        }),
        Some(id) if expected.contains(&id) => Ok(()),
        _ => Err(Error::Unexpected(registers[0] as u32)),
    }
}

impl Request {
    /// Reads what `FFA_MSG_WAIT` or a response came back with.
    ///
    /// # Errors
    ///
    /// [`Error::Ffa`] if the SPMC refused the call, [`Error::Unexpected`] if it delivered no direct request.
    pub(crate) fn from_registers(registers: &Registers) -> Result<Self, Error> {
        check(registers, &[FuncId::MsgSendDirectReq64_2])?;
        let mut args = [0; 14];
        args.copy_from_slice(&registers[4..]);
        Ok(Self {
            source: (registers[1] >> 16) as u16,
            destination: registers[1] as u16,
            uuid: UuidRegisters(registers[2], registers[3]),
            args,
        })
    }

    /// Registers of the response (`FFA_MSG_SEND_DIRECT_RESP2`).
    pub(crate) fn response(&self, reply: &[u64; 14]) -> Registers {
        let mut registers = call(
            FuncId::MsgSendDirectResp64_2,
            &[u64::from(self.destination) << 16 | u64::from(self.source), 0, 0],
        );
        registers[4..].copy_from_slice(reply);
        registers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Registers {
        let mut registers = call(FuncId::MsgSendDirectReq64_2, &[0x0000_8001, 0x11, 0x22]);
        for (i, x) in registers[4..].iter_mut().enumerate() {
            *x = i as u64;
        }
        registers
    }

    #[test]
    fn a_request_is_read_whole() {
        let request = Request::from_registers(&request()).unwrap();
        assert_eq!((request.source, request.destination), (0, 0x8001));
        assert_eq!(request.uuid, UuidRegisters(0x11, 0x22));
        assert_eq!(request.args[13], 13);
    }

    #[test]
    fn a_response_goes_back_to_the_source() {
        let request = Request { source: 3, ..Request::from_registers(&request()).unwrap() };
        let response = request.response(&[7; 14]);
        assert_eq!(response[..4], [0xC400_008E, 0x8001_0003, 0, 0]);
        assert_eq!(response[4..], [7; 14]);
    }

    #[test]
    fn every_error_code_is_told_apart() {
        for code in -9..0_i32 {
            let registers = call(FuncId::Error32, &[0, u64::from(code as u32)]);
            assert_eq!(
                Request::from_registers(&registers),
                Err(Error::Ffa(FfaError::try_from(code).unwrap()))
            );
        }
        let unknown = call(FuncId::Error32, &[0, 1]);
        assert_eq!(Request::from_registers(&unknown), Err(Error::Unexpected(0x8400_0060)));
    }

    #[test]
    fn another_function_is_no_request() {
        assert_eq!(
            Request::from_registers(&call(FuncId::Success32, &[])),
            Err(Error::Unexpected(0x8400_0061))
        );
        let mut nonsense = [0; 18];
        nonsense[0] = u64::MAX;
        assert_eq!(Request::from_registers(&nonsense), Err(Error::Unexpected(u32::MAX)));
    }
}
