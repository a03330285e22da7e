//! Agents, a server with its collector, its disk, the network between them and the clock, all decided by one seed: the real sinks,
//! sources, services and storage, over a disk that loses power and a network that loses answers.
//!
//! What follows from the seed: the volumes and how they change, who does what in which round, the fate of every
//! connection (refused, cut after so many messages either way, cut instead of the answer that a generation was
//! committed), in which order messages that wait are delivered, which operations of the disk fail, when power
//! fails and what it leaves of bytes that were not synced, whether the chunk index survives, and every step of the
//! clock. What does not: the order in which threads of the server (hashing, SQLite, the one that appends) finish
//! while several messages are under way. A seed whose round has one agent therefore repeats exactly but for how puts
//! are grouped; one with several repeats its faults, not always its interleaving.
//!
//! Run more: `THINBAK_SEEDS=5000 cargo test --release -p thinbak-tests --test simulation`. Repeat one:
//! `THINBAK_SEED=N`, which is printed when a seed fails.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a panic fails the seed, as it should")]

#[path = "simulation/agent.rs"]
mod agent;
#[path = "simulation/checker.rs"]
mod checker;
#[path = "simulation/network.rs"]
mod network;
#[path = "simulation/server.rs"]
mod server;
#[path = "simulation/volume.rs"]
mod volume;
#[path = "simulation/world.rs"]
mod world;

use std::{
    env,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use world::{Seen, World};

/// Seeds of a run without an order; some two minutes on two cores.
const SEEDS: u64 = 250;
/// Worlds that run side by side.
const WORKERS: usize = 2;
/// Nothing waits for a clock here: a seed that takes so long waits for something that never comes.
const HANGS: Duration = Duration::from_secs(300);

fn variable(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|value| value.parse().ok())
}

fn run(seed: u64) -> Result<Seen> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    let seen = runtime.block_on(async {
        tokio::time::timeout(HANGS, async { World::new(seed).await?.run().await })
            .await
            .context("it hangs")?
    });
    // A thread that is still busy with what was cut off is not waited for.
    runtime.shutdown_background();
    seen
}

#[test]
fn every_committed_generation_survives_whatever_the_seed_does() -> Result<()> {
    if let Some(seed) = variable("THINBAK_SEED") {
        let seen = run(seed).with_context(|| format!("THINBAK_SEED={seed}"))?;
        println!("THINBAK_SEED={seed}: {seen:?}");
        return Ok(());
    }
    let seeds = variable("THINBAK_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(1);
    let work = || -> Result<Seen> {
        let mut total = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > seeds {
                return Ok(total);
            }
            let seen = run(seed).with_context(|| format!("THINBAK_SEED={seed} repeats this"));
            // The others need not go on.
            total.add(&seen.inspect_err(|_| next.store(u64::MAX / 2, Ordering::Relaxed))?);
        }
    };
    let mut total = Seen::default();
    for worked in thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    }) {
        total.add(&worked.map_err(|_| anyhow::anyhow!("a seed's world panicked"))??);
    }
    println!("seeds 1 to {seeds}: {total:?}");
    // Otherwise nothing was tested that the name of this says.
    if seeds >= 100 {
        total.assert_eventful();
    }
    Ok(())
}
