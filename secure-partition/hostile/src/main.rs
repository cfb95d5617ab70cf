//! flexserve-hostile-partition
fn main() {}
