//! Mutations of inputs, for `cargo test`: blind to coverage, but cheap, and the same every time.

use crate::input::Random;

/// Numbers at which parsers stumble.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x0fff_ffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// An input made of `seeds`, of at most `bytes_max`.
pub fn mutate(seeds: &[Vec<u8>], random: &mut Random, bytes_max: usize) -> Vec<u8> {
    let mut bytes = match seeds.len() {
        0 => Vec::new(),
        count => seeds[random.below(count)].clone(),
    };
    for _ in 0..=random.below(4) {
        change(&mut bytes, seeds, random);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let end = (at + 1 + random.below(16)).min(bytes.len());
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = random.next_u64() as u8,
        2 => {
            let number = EDGES[random.below(EDGES.len())].to_be_bytes();
            let wide = 1 << random.below(4);
            let end = (at + wide).min(bytes.len());
            bytes[at..end].copy_from_slice(&number[8 - (end - at)..]);
        }
        3 => drop(bytes.drain(at..end)),
        4 => bytes.extend_from_within(at..end),
        5 => bytes.truncate(at),
        _ if !seeds.is_empty() => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => bytes.push(random.next_u64() as u8),
    }
}
