//! Chance with a seed: printed, so that a failing run can be made again with `CAIRN_SEED`.

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers from the same seed, for ever.
#[derive(Debug)]
pub struct Chance(u64);

impl Chance {
    /// The seed is `CAIRN_SEED`, or else `default`; a failing test shows it.
    pub fn seeded(default: u64) -> Self {
        let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        println!("CAIRN_SEED={seed}");
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `count`, `count` left out.
    pub fn below(&mut self, count: usize) -> usize {
        (self.bits() % count as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// `value`, or once in `times` nothing.
    pub fn maybe<T>(&mut self, times: usize, value: T) -> Option<T> {
        (!self.one_in(times)).then_some(value)
    }

    /// The numbers below `count` in any order.
    pub fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        for at in (1..count).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }
}
