//! Checksums, behind four functions, so that the choice of crate is made in one place.
//!
//! Kafka's magic 2 and our seals use CRC-32C (Castagnoli); the older message formats and our own
//! checkpoints use CRC-32 (IEEE); the metadata store uses CRC-64/NVME. [`combine`] joins the
//! checksums of two neighbouring ranges, so that a segment's checksum is made of its batches'
//! checksums without reading a byte twice.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC-32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    truncate(crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes))
}

/// The CRC-32 (IEEE) of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// The CRC-64/NVME of `pieces`, one behind another.
pub fn crc64(pieces: &[&[u8]]) -> u64 {
    let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
    pieces.iter().for_each(|piece| digest.update(piece));
    digest.finalize()
}

/// The CRC-32C of two neighbouring ranges, from the checksum of each and the length of the second.
pub fn combine(first: u32, second: u32, second_bytes: u64) -> u32 {
    multiply(power_of_x(second_bytes), first) ^ second
}

/// A CRC-32C taken over pieces: a batch may lie in several buffers. Only the state is kept; the
/// crate's own digest carries its tables' parameters with it, and every log has several of these.
#[derive(Clone)]
pub struct Crc32c(u64);

impl Crc32c {
    /// Nothing seen yet.
    pub fn new() -> Crc32c {
        Crc32c(Digest::new(CrcAlgorithm::Crc32Iscsi).get_state())
    }

    /// Takes in the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut digest = self.digest();
        digest.update(bytes);
        self.0 = digest.get_state();
    }

    /// The checksum of everything seen.
    pub fn finish(&self) -> u32 {
        truncate(self.digest().finalize())
    }

    fn digest(&self) -> Digest {
        Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, self.0)
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Crc32c::new()
    }
}

/// Whether the chosen implementation computes what Kafka expects on this processor: called at
/// start, because vectorised code is chosen at run time.
pub fn self_check() -> bool {
    crc32c(b"123456789") == 0xE306_9283
        && crc32(b"123456789") == 0xCBF4_3926
        && crc64(&[b"1234", b"56789"]) == 0xAE8B_1486_0A79_9888
}

fn truncate(checksum: u64) -> u32 {
    // The crate widens every checksum to 64 bits; a 32-bit one leaves the upper half zero.
    debug_assert!(checksum <= u64::from(u32::MAX));
    checksum as u32
}

// Arithmetic modulo the Castagnoli polynomial, bits reflected: x^0 is the highest bit.
const POLYNOMIAL: u32 = 0x82F6_3B78;
const ONE: u32 = 1 << 31;

/// `x^(8 * d * 256^k)` for every value d of every byte k of a byte count: a power is a product of
/// as many factors as the count has bytes that are not zero.
static BYTE_POWERS: [[u32; 256]; 8] = byte_powers();

const fn byte_powers() -> [[u32; 256]; 8] {
    let mut table = [[ONE; 256]; 8];
    // x^8: eight places below x^0.
    let mut step = ONE >> 8;
    let mut k = 0;
    while k < 8 {
        let mut digit = 1;
        while digit < 256 {
            table[k][digit] = multiply(table[k][digit - 1], step);
            digit += 1;
        }
        step = multiply(table[k][255], step);
        k += 1;
    }
    table
}

const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = ONE;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (if b & 1 != 0 { POLYNOMIAL } else { 0 });
        bit >>= 1;
    }
    product
}

fn power_of_x(bytes: u64) -> u32 {
    let mut power = ONE;
    for (digit, powers) in bytes.to_le_bytes().into_iter().zip(&BYTE_POWERS) {
        if digit != 0 {
            let factor = powers[usize::from(digit)];
            power = if power == ONE { factor } else { multiply(factor, power) };
        }
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn check_values() {
        assert!(self_check());
    }

    proptest! {
        #[test]
        fn pieces_equal_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            at in any::<prop::sample::Index>(),
        ) {
            let at = at.index(bytes.len() + 1);
            let whole = crc32c(&bytes);
            let mut running = Crc32c::new();
            running.update(&bytes[..at]);
            running.update(&bytes[at..]);
            prop_assert_eq!(running.finish(), whole);
            let (head, rest) = bytes.split_at(at);
            let joined = combine(crc32c(head), crc32c(rest), rest.len() as u64);
            prop_assert_eq!(joined, whole);
        }
    }

    #[test]
    fn powers_of_every_length_follow_from_one_another() {
        for bit in 0..56 {
            let bytes = 1u64 << bit;
            let (before, after) = (power_of_x(bytes - 1), power_of_x(bytes));
            assert_eq!(multiply(before, power_of_x(1)), after, "{bytes}");
            assert_eq!(multiply(after, after), power_of_x(2 * bytes), "{bytes}");
        }
    }

    #[test]
    fn combine_holds_for_long_ranges() {
        let zeros = vec![0u8; 3 << 20];
        let joined = combine(crc32c(b"head"), crc32c(&zeros), zeros.len() as u64);
        let mut whole = b"head".to_vec();
        whole.extend_from_slice(&zeros);
        assert_eq!(joined, crc32c(&whole));
    }
}
