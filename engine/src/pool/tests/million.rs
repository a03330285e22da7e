//! A million random operations against a naive model, in several pools at once.
//!
//! Trees grow to tens of thousands of mappings and shrink to nothing, counts go up and down through the tree of large counts,
//! snapshots are made of snapshots of snapshots. At intervals and at the end all mappings are compared with the model, and
//! the checker counts the references of every block again.
//!
//! `THINBAK_MODEL_OPERATIONS=N` does N operations in all.

mod life;
mod model;
mod tags;

use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::life::{Life, Profile, Way};
use super::seeded;

/// Many mappings, few snapshots: splits and merges.
const WIDE: Profile = Profile {
    block_size: 65_536,
    blocks: 60_000,
    data_blocks: 150_000,
    metadata_blocks: 8_192,
    devices: 5,
    run: 16,
    way: Way::Tides,
};
/// Few mappings in many snapshots: counts up and down.
const SHARED: Profile = Profile {
    block_size: 65_536,
    blocks: 40,
    data_blocks: 1_000,
    metadata_blocks: 1_024,
    devices: 14,
    run: 4,
    way: Way::Snapshots,
};
/// Each snapshot is one of the newest.
const CHAIN: Profile = Profile {
    block_size: 196_608,
    blocks: 400,
    data_blocks: 10_000,
    metadata_blocks: 4_096,
    devices: 60,
    run: 8,
    way: Way::Chain,
};

fn operations() -> u64 {
    let given = std::env::var("THINBAK_MODEL_OPERATIONS").ok().and_then(|number| number.parse().ok());
    given.unwrap_or(1_000_000)
}

#[test]
fn a_million_random_operations_leave_what_the_model_says() {
    let mut rng = seeded();
    let begun = Instant::now();
    let profiles = [
        CHAIN,
        WIDE,
        Profile { block_size: 196_608, ..WIDE },
        Profile { block_size: 1 << 20, ..WIDE },
        SHARED,
        Profile { block_size: 1 << 20, ..SHARED },
    ];
    let each = operations().div_ceil(profiles.len() as u64);
    let work: Vec<_> = profiles.into_iter().map(|profile| (profile, rng.random::<u64>())).collect();
    let work = Mutex::new(work.into_iter());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                // Taken in a statement of its own, so that the others need not wait.
                while let Some((profile, seed)) = { work.lock().next() } {
                    let begun = Instant::now();
                    let mut life = Life::new(profile, StdRng::seed_from_u64(seed));
                    life.live(each);
                    println!("{:?}, {:?}: {}", profile.way, begun.elapsed(), life.end());
                }
            });
        }
    });
    println!("{} operations in {:?}", each * 6, begun.elapsed());
}
