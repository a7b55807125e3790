//! Chance with a seed: printed, so that a failing run can be made again with `CAIRN_SEED`.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A source of chance. The seed is `CAIRN_SEED`, or else `default`; a failing test shows it.
pub fn seeded(default: u64) -> StdRng {
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
    println!("CAIRN_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// The numbers below `count` in any order.
pub fn shuffled(rng: &mut StdRng, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for at in (1..count).rev() {
        order.swap(at, rng.random_range(0..=at));
    }
    order
}
