//! One history of a repository (backups of two volumes, pruning, a deletion undone, damage found, quarantined and healed,
//! collections that rewrite packs, a rebuilt catalogue), and a crash at every write and flush of it: [`history`] is played
//! again and again, each time up to its Nth operation, and then [`model`] looks at what is left.
//!
//! What counts as an operation, in one sequence: making, appending to, syncing, cutting and removing a pack (two for the
//! file and its folder), the end of each transaction of the catalogue, and each step of putting a rebuilt catalogue in the
//! place of another. So every two of them that follow each other are told apart, on whichever file.
//!
//! What is not cut finer: inside a transaction SQLite itself writes and syncs; here the process dies before or after the
//! transaction's end, never between two of its own writes, so that a torn write-ahead log is SQLite's to handle. Making the
//! catalogue's draft counts as its transactions. The chunk index is never synced but before a pack is removed; after
//! a crash it is there as it was, or it is gone and made anew from the packs; that a power failure takes the end of
//! its journal is tested with the index.
//!
//! A power failure keeps what was synced, and of the rest any part, with holes ([`MemoryMedium::crash`]). What opens
//! the repository afterwards may lose power as well. `THINBAK_SEED` repeats a run, `THINBAK_OPERATION` one operation of it.

mod history;
mod model;

use std::{env, ops::Range, sync::Arc};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::store::memory_medium::MemoryMedium;
use history::{SCRIPT, World};

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|value| value.parse().ok())
}

fn seed() -> u64 {
    let seed = variable("THINBAK_SEED").unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    seed
}

/// The history without any trouble, and how many operations it takes.
async fn operations() -> u64 {
    let mut world = World::new().await;
    for step in SCRIPT {
        let failed = world.take(step).await.err();
        assert!(failed.is_none(), "{step:?} without any trouble: {failed:?}");
    }
    let operations = world.medium.operations();
    world.check().await;
    operations
}

/// Plays the history once for each operation, from 1 on.
async fn at_every_operation(mut play: impl AsyncFnMut(u64, StdRng)) {
    let (seed, operations) = (seed(), operations().await);
    // It would mean that a step of the script does nothing.
    assert!(operations > 100, "{operations}");
    for operation in 1..=operations {
        if variable("THINBAK_OPERATION").is_none_or(|only| only == operation) {
            println!("THINBAK_OPERATION={operation} of {operations}");
            play(operation, StdRng::seed_from_u64(seed ^ operation << 32)).await;
        }
    }
}

async fn play(world: &mut World, failing: Range<u64>, stops: bool) {
    world.medium.fail(failing.clone());
    for step in SCRIPT {
        if stops && world.medium.operations() >= failing.start {
            return;
        }
        if let Err(failed) = world.take(step).await {
            assert!(world.medium.operations() >= failing.start, "{step:?} before anything failed: {failed}");
        }
    }
}

#[tokio::test]
async fn power_may_fail_before_any_operation_of_a_history() {
    at_every_operation(async |operation, mut random| {
        let mut world = World::new().await;
        play(&mut world, operation..u64::MAX, true).await;
        world.lose_power(&mut random).await;
        if random.random_bool(0.3) {
            // What comes next dies soon too.
            let soon = world.medium.operations() + random.random_range(1..5);
            world.medium.fail(soon..u64::MAX);
            if world.open().await.is_ok() {
                let _ = world.take(&SCRIPT[SCRIPT.len() - 1]).await;
            }
            world.lose_power(&mut random).await;
        }
        world.open().await.unwrap();
        world.check().await;
    })
    .await;
}

#[tokio::test]
async fn any_operation_of_a_history_may_fail() {
    at_every_operation(async |operation, mut random| {
        let mut world = World::new().await;
        // One; some; or all from then on until somebody comes.
        let last = match random.random_range(0..3) {
            0 => operation + 1,
            1 => operation + random.random_range(2..8),
            _ => u64::MAX,
        };
        play(&mut world, operation..last, false).await;
        world.medium.fail(0..0);
        // A rebuild that failed leaves the repository closed.
        if world.is_closed() || random.random() {
            world.close().await;
            world.open().await.unwrap();
        }
        world.check().await;
    })
    .await;
}

/// A disk that power was taken from.
async fn crashed(medium: &MemoryMedium, random: &mut StdRng) -> Arc<MemoryMedium> {
    medium.fail(0..0);
    medium.crash(random)
}
