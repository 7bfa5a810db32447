//! storage
pub mod batch;
pub mod chain;
pub mod check;
pub mod checkpoint;
pub mod crc;
pub mod epochs;
pub mod index;
pub mod limits;
pub mod names;
pub mod position;
pub mod producers;
pub mod seal;
mod signal;
#[cfg(test)]
mod testing;
