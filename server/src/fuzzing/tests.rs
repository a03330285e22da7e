//! The fuzzers' functions over random inputs, and what the fuzzers found once.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

#[test]
fn short_random_inputs_show_nothing() {
    let seed =
        std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..2000 {
        let mut data = vec![0; random.random_range(0..300)];
        random.fill(&mut data[..]);
        // Small numbers are what makes structure.
        data.iter_mut().for_each(|byte| *byte &= if random.random_bool(0.5) { 0x0f } else { 0xff });
        values(&data);
        packs(&data);
        maps(&data);
    }
}
