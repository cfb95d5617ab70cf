//! Registers of requests and responses.

use flexserve_abi::service::Status;

/// x5 to x17 of a request.
pub type Args = [u64; 13];
/// x4 to x17 of a response.
pub type Reply = [u64; 14];

/// A response of success, with results from x5 on.
pub fn success(results: &[u64]) -> Reply {
    let mut reply = failure(Status::Success);
    reply[1..=results.len()].copy_from_slice(results);
    reply
}

/// A response of this status and no results.
pub fn failure(status: Status) -> Reply {
    let mut reply = [0; 14];
    reply[0] = status.code();
    reply
}
