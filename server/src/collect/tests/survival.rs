//! Collections that fail or die at every operation.

use std::sync::Arc;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

use super::*;
use crate::{
    ingest::tests::client::{CHUNK, after, full, full_chunk, id, new, present},
    store::memory_medium::MemoryMedium,
};

const CHUNKS: u64 = 200;

/// Three volumes with two generations each, of which the first is deleted, in as many packs.
async fn scene(medium: &Arc<MemoryMedium>) -> (Place, Vec<(v1::Generation, u64)>) {
    let place = Place::with_packs(medium.clone()).await;
    let mut kept = Vec::new();
    for volume in 0..3 {
        let name = format!("h/p/v{volume}");
        let items = (0..12).map(|chunk| new(chunk, volume * 1000 + chunk)).collect();
        let first = place.back_up(full(Uuid::new_v4(), &name, CHUNKS * CHUNK), items).await.unwrap();
        // Of the second volume nothing of this pack stays in use.
        let replaced = if volume == 1 { 12 } else { 7 };
        place.repository.store.settle().await.unwrap();
        let items = (0..replaced).map(|chunk| new(chunk, volume * 1000 + 100 + chunk)).collect();
        let second = place.back_up(after(&first, CHUNKS * CHUNK), items).await.unwrap();
        delete(&place, &first).await;
        place.repository.store.settle().await.unwrap();
        kept.push((second, replaced));
    }
    (place, kept)
}

async fn check(place: &Place, kept: &[(v1::Generation, u64)]) {
    for ((generation, replaced), volume) in kept.iter().zip(0..) {
        let expected: Vec<_> = (0..CHUNKS)
            .map(|chunk| match chunk {
                chunk if chunk < *replaced => full_chunk(volume * 1000 + 100 + chunk),
                0..12 => full_chunk(volume * 1000 + chunk),
                _ => None,
            })
            .collect();
        assert!(place.restore(generation).await.unwrap() == expected, "volume {volume}");
    }
}

fn random() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Every operation of a collection fails once, alone or with all that follow (by chance), while a backup relies on a dying chunk; then
/// the power fails, or not. All that is in use restores, and the next collection leaves nothing else.
#[tokio::test]
async fn whichever_operation_of_a_collection_fails_everything_restores_and_nothing_leaks() {
    let mut random = random();
    let operations = {
        let medium = Arc::new(MemoryMedium::default());
        let (place, kept) = scene(&medium).await;
        let before = medium.operations();
        collect(&place, ALL).await.unwrap();
        check(&place, &kept).await;
        medium.operations() - before
    };
    assert!(operations > 12, "{operations}");
    for failing in 1..=operations {
        let lasting = random.random();
        let mut medium = Arc::new(MemoryMedium::default());
        let (mut place, mut kept) = scene(&medium).await;
        let mut backup = place.begin(full(Uuid::new_v4(), "h/p/w", CHUNKS * CHUNK)).await.unwrap();
        assert_eq!(backup.missing(vec![id(1005)]).await.unwrap(), [false]);
        let first = medium.operations() + failing;
        medium.fail(first..if lasting { u64::MAX } else { first + 1 });
        // Failing is allowed; some failures are only noted.
        let _ = collect(&place, ALL).await;
        medium.fail(0..0);
        check(&place, &kept).await;
        let mut generations: Vec<_> = kept.iter().map(|(generation, _)| generation.clone()).collect();
        if random.random() {
            backup.batch(vec![present(0, 1005)]).await.unwrap();
            let generation = backup.commit().await.unwrap();
            assert_eq!(place.restore(&generation).await.unwrap()[0], full_chunk(1005));
            generations.push(generation);
        } else {
            drop(backup);
            medium = medium.crash(&mut random);
            place = place.reopen_with(medium.clone()).await;
        }
        check(&place, &kept).await;
        for _ in 0..3 {
            collect(&place, ALL).await.unwrap();
            check(&place, &kept).await;
        }
        assert_eq!(stored(&place), needed(&place, &generations).await, "operation {failing}");
        assert!(!raises_the_dead(&place, &generations));
        // Once more from what a power failure leaves.
        place = place.reopen_with(medium.crash(&mut random)).await;
        check(&place, &kept).await;
        kept.clear();
    }
}

#[tokio::test]
async fn on_a_full_disk_collection_makes_the_room_that_a_backup_then_takes() {
    let medium = Arc::new(MemoryMedium::default());
    let (place, kept) = scene(&medium).await;
    medium.set_available(Some(0));
    let full_disk = place.back_up(full(Uuid::new_v4(), "h/p/w", CHUNK), vec![new(0, 9000)]).await;
    assert_eq!(full_disk.unwrap_err().exit_code(), 1);
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert!(plan.dead_packs >= 1 && plan.repack_packs >= 2, "{plan:?}");
    assert_eq!(summary.removed_packs, plan.dead_packs + plan.repack_packs);
    check(&place, &kept).await;
    medium.set_available(Some(summary.freed_bytes.try_into().unwrap()));
    place.back_up(full(Uuid::new_v4(), "h/p/w", CHUNK), vec![new(0, 9000)]).await.unwrap();
}
