//! How a target takes its choices off the front of an input.

/// The bytes of an input that are not used up. Past the end every choice is 0.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input(bytes)
    }

    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (head, rest) = self.0.split_at(self.0.len().min(N));
        taken[..head.len()].copy_from_slice(head);
        self.0 = rest;
        taken
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// A number.
    pub fn long(&mut self) -> i64 {
        i64::from_be_bytes(self.take())
    }

    /// A run of bytes behind its length (two bytes); what there is if that is less.
    pub fn run(&mut self) -> &'a [u8] {
        let bytes = u16::from_be_bytes(self.take());
        let (run, rest) = self.0.split_at(self.0.len().min(bytes.into()));
        self.0 = rest;
        run
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Cuts bytes into pieces. The same seed cuts at the same points.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    rest: &'a [u8],
    random: Random,
    bytes_max: usize,
}

impl<'a> Pieces<'a> {
    /// Pieces of 1 to some 1, 8, 64 or 512 bytes, as the seed says.
    pub fn new(bytes: &'a [u8], seed: u16) -> Pieces<'a> {
        let bytes_max = 1 << (3 * (seed & 3));
        Pieces { rest: bytes, random: Random::new(seed.into()), bytes_max }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = (1 + self.random.below(self.bytes_max)).min(self.rest.len());
        self.rest.split_off(..bytes)
    }
}

/// Numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers that follow from `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next one.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next_u64() >> 33) as usize % end
    }
}
