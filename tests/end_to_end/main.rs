//! The scenarios: a real Kafka, the release binary, every byte compared.
fn main() {}
