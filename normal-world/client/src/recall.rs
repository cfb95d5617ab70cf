//! The SPMC's recall service (`flexserve_abi::recall`).

use flexserve_abi::{
    ffa::{RECALL_SERVICE, SPMC, UuidRegisters},
    recall::{LONGEST_SECTION, REVOKE, Status},
};

use crate::{
    Conduit,
    ffa::{Error, Ffa},
};

/// Asks to have a region taken from a borrower who does not relinquish it. Answers the status, and with
/// [`Status::Noticed`] the nanoseconds that the borrower still has.
///
/// # Errors
///
/// Any FF-A error; [`Error::Unexpected`] for a status that nobody knows.
pub fn revoke(ffa: &mut Ffa<'_, impl Conduit>, handle: u64) -> Result<(Status, u64), Error> {
    request(ffa, REVOKE, handle)
}

/// Ticks of the system counter that the SPMC was busy at most, with interrupts masked.
///
/// # Errors
///
/// As [`revoke`].
pub fn longest_section(ffa: &mut Ffa<'_, impl Conduit>) -> Result<u64, Error> {
    request(ffa, LONGEST_SECTION, 0).map(|(_, ticks)| ticks)
}

fn request(ffa: &mut Ffa<'_, impl Conduit>, operation: u64, argument: u64) -> Result<(Status, u64), Error> {
    let mut message = [0; 14];
    message[..2].copy_from_slice(&[operation, argument]);
    let [status, result, ..] = ffa.request(SPMC, UuidRegisters::new(RECALL_SERVICE), &message, &mut || {})?;
    Ok((Status::from_code(status).ok_or(Error::Unexpected(status))?, result))
}
