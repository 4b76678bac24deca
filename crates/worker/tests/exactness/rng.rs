//! Random choices that a seed repeats for ever.

/// SplitMix64: neighbouring seeds have nothing in common.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.word() % end
    }

    /// A number from a range, both ends included.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// Bytes of which no two blocks are equal, now and then with zeros among them.
    pub(crate) fn fill(&mut self, to: &mut [u8]) {
        for part in to.chunks_mut(512) {
            let word = match self.one_in(16) {
                true => [0; 8],
                false => (self.word() | 1).to_le_bytes(),
            };
            for (to, from) in part.iter_mut().zip(word.iter().cycle()) {
                *to = *from;
            }
        }
    }
}
