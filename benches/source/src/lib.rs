//! benches/source
