//! The read-only side of the engine: views, changes, dumps, deltas and the checker.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a failing test panics, and prints its seed"
)]

#[path = "readers/changes.rs"]
mod changes;
#[path = "readers/check.rs"]
mod check;
#[path = "readers/check_damage.rs"]
mod check_damage;
#[path = "readers/fixture.rs"]
mod fixture;
#[path = "readers/image.rs"]
mod image;
#[path = "readers/kernel_images.rs"]
mod kernel_images;
#[path = "readers/trees.rs"]
mod trees;

use rand::{SeedableRng, rngs::StdRng};

/// Random numbers whose seed is printed, and taken from `THINBAK_SEED` where that is set.
fn random() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().map_or_else(rand::random, |seed| seed.parse().unwrap());
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
