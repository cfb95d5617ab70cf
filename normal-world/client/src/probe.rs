//! The hostile partition's service (`flexserve_abi::probe`).

use flexserve_abi::{
    ffa::{EndpointId, PROBE_SERVICE, UuidRegisters},
    probe::Op,
};

use crate::{
    Conduit,
    ffa::{Code, Error, Ffa},
};

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The partition faulted and was started anew (`FFA_ERROR(ABORTED)`).
    Aborted,
    /// It answered this number.
    Answered(u64),
}

/// Sends one probe.
///
/// # Errors
///
/// Any FF-A error but `ABORTED`; [`Error::Unexpected`] if the service refused the operation.
pub fn probe(
    ffa: &mut Ffa<'_, impl Conduit>,
    partition: EndpointId,
    op: Op,
    argument: u64,
    interrupted: &mut dyn FnMut(),
) -> Result<Outcome, Error> {
    let mut message = [0; 14];
    message[0] = op as u64;
    message[1] = argument;
    match ffa.request(partition, UuidRegisters::new(PROBE_SERVICE), &message, interrupted) {
        Ok([0, value, ..]) => Ok(Outcome::Answered(value)),
        Ok([status, ..]) => Err(Error::Unexpected(status)),
        Err(Error::Code(Code::Aborted)) => Ok(Outcome::Aborted),
        Err(error) => Err(error),
    }
}
