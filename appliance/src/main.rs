//! The binary `understudy`.
fn main() {}
