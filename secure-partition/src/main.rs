//! flexserve-llm-partition
fn main() {}
