//! flexserve-payload
fn main() {}
