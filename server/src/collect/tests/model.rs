//! Backups, deletions, collections, kills, power failures and lost indexes in any order, against what was backed up.

use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use uuid::Uuid;

use super::*;
use crate::{
    ingest::tests::client::{CHUNK, after, full, full_chunk, id, new, present},
    store::memory_medium::MemoryMedium,
};

const CHUNKS: u64 = 150;

struct Kept {
    generation: v1::Generation,
    /// Seed of each chunk's content.
    content: Vec<Option<u64>>,
}

/// One backup: what it is based on, and what it changes.
struct Change {
    volume: usize,
    edits: Vec<(u64, u64)>,
    cut: bool,
}

struct World {
    place: Place,
    medium: Arc<MemoryMedium>,
    volumes: Vec<(Uuid, Vec<Kept>)>,
}

impl World {
    fn change(&self, random: &mut StdRng) -> Change {
        let mut places: Vec<u64> =
            (0..random.random_range(1..25)).map(|_| random.random_range(0..CHUNKS)).collect();
        places.sort_unstable();
        places.dedup();
        // Few contents, so that those of deleted generations come back.
        let edits = places.into_iter().map(|place| (place, random.random_range(0..120))).collect();
        Change { volume: random.random_range(0..self.volumes.len()), edits, cut: random.random_bool(0.2) }
    }

    /// Backs up as a client does: asks, names what is present, sends the rest. `None`: the stream was cut.
    async fn back_up(&self, change: &Change) -> Option<Kept> {
        let (uuid, kept) = &self.volumes[change.volume];
        let name = format!("h/p/v{}", change.volume);
        let parent = kept.last();
        let begin = match parent {
            Some(parent) => after(&parent.generation, CHUNKS * CHUNK),
            None => full(*uuid, &name, CHUNKS * CHUNK),
        };
        let mut backup = self.place.begin(begin).await.unwrap();
        let mut content = parent.map_or(vec![None; CHUNKS as usize], |parent| parent.content.clone());
        for edits in change.edits.chunks(6) {
            let missing = backup.missing(edits.iter().map(|(_, seed)| id(*seed)).collect()).await.unwrap();
            let items = edits.iter().zip(missing).map(|((at, seed), missing)| {
                content[*at as usize] = Some(*seed);
                if missing { new(*at, *seed) } else { present(*at, *seed) }
            });
            backup.batch(items.collect()).await.unwrap();
        }
        if change.cut {
            return None;
        }
        Some(Kept { generation: backup.commit().await.unwrap(), content })
    }

    async fn delete(&mut self, random: &mut StdRng) {
        let volume = random.random_range(0..self.volumes.len());
        let kept = &mut self.volumes[volume].1;
        if kept.len() > 1 {
            let gone = kept.remove(random.random_range(0..kept.len() - 1));
            delete(&self.place, &gone.generation).await;
        }
    }

    async fn check(&self) {
        for kept in self.volumes.iter().flat_map(|(_, kept)| kept) {
            let restored = self.place.restore(&kept.generation).await.unwrap();
            let expected: Vec<_> = kept.content.iter().map(|seed| seed.and_then(full_chunk)).collect();
            assert!(restored == expected, "{}:{}", kept.generation.volume_name, kept.generation.number);
        }
    }

    fn generations(&self) -> Vec<v1::Generation> {
        self.volumes.iter().flat_map(|(_, kept)| kept).map(|kept| kept.generation.clone()).collect()
    }
}

#[tokio::test]
async fn a_repository_keeps_what_was_backed_up_over_deletions_collections_and_crashes() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let medium = Arc::new(MemoryMedium::default());
    let place = Place::with_packs(medium.clone()).await;
    let volumes = (0..3).map(|_| (Uuid::from_u128(random.random()), Vec::new())).collect();
    let mut world = World { place, medium, volumes };
    for step in 0..70 {
        match random.random_range(0..14) {
            0..5 => {
                let change = world.change(&mut random);
                let made = world.back_up(&change).await;
                world.volumes[change.volume].1.extend(made);
            }
            5..8 => world.delete(&mut random).await,
            8..10 => {
                let threshold = *[0.3, 0.8, 1.0].choose(&mut random).unwrap();
                collect(&world.place, Options { threshold, ..ALL }).await.unwrap();
            }
            10..12 => {
                let change = world.change(&mut random);
                let (made, collected) = tokio::join!(world.back_up(&change), collect(&world.place, ALL));
                collected.unwrap();
                world.volumes[change.volume].1.extend(made);
            }
            reopen => {
                if reopen == 13 {
                    world.medium = world.medium.crash(&mut random);
                }
                if random.random_bool(0.3) {
                    // Found condemned at the next open.
                    std::fs::write(world.place.dir.path().join("index.rebuild"), b"").unwrap();
                }
                world.place = world.place.reopen_with(world.medium.clone()).await;
            }
        }
        if step % 3 == 0 {
            world.check().await;
        }
        assert!(!raises_the_dead(&world.place, &world.generations()), "step {step}");
    }
    while !world.place.repository.pins.roots().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        collect(&world.place, ALL).await.unwrap();
    }
    world.check().await;
    assert_eq!(stored(&world.place), needed(&world.place, &world.generations()).await);
    let (plan, summary) = collect(&world.place, ALL).await.unwrap();
    assert_eq!((plan.free_bytes, plan.kept_dead_bytes, summary.removed_packs), (0, 0, 0));
}
