//! storage
pub mod batch;
pub mod check;
pub mod crc;
pub mod index;
pub mod limits;
pub mod position;
#[cfg(test)]
mod testing;
