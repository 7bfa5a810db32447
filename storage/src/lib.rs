//! storage
pub mod batch;
pub mod check;
pub mod crc;
pub mod index;
pub mod limits;
pub mod position;
#[cfg(test)]
mod testing;
pub mod names; pub mod epochs; pub mod producers; pub mod checkpoint; pub mod seal;
