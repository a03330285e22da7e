//! Small packs that are in use are put together.

use uuid::Uuid;

use super::*;
use crate::ingest::tests::client::{CHUNK, after, full, full_chunk, new};

/// So many backups, each with a pack of its own.
async fn nights(count: u64) -> (Place, Vec<v1::Generation>) {
    let place = Place::new().await;
    let uuid = Uuid::new_v4();
    let mut generations: Vec<v1::Generation> = Vec::new();
    for night in 0..count {
        let begin = match generations.last() {
            None => full(uuid, "h/p/v", 200 * CHUNK),
            Some(parent) => after(parent, 200 * CHUNK),
        };
        generations.push(place.back_up(begin, vec![new(night, night)]).await.unwrap());
        place.repository.store.settle().await.unwrap();
    }
    (place, generations)
}

async fn packs(place: &Place) -> usize {
    place.repository.store.settle().await.unwrap();
    place.repository.store.sealed_packs().await.unwrap().len()
}

#[tokio::test]
async fn many_small_packs_become_one() {
    let (place, generations) = nights(12).await;
    let (planned, _) = collect(&place, Options { dry_run: true, ..ALL }).await.unwrap();
    assert_eq!((planned.merge_packs, planned.repack_packs, planned.packs), (12, 0, 12));
    let bytes = place.repository.store.stats().pack_bytes;
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan, summary.moved_bytes, summary.kept_packs), (planned, plan.merge_live_bytes, 0));
    assert_eq!(packs(&place).await, 1);
    // A header and a footer a pack.
    assert_eq!(bytes - place.repository.store.stats().pack_bytes, plan.free_bytes - 160);
    assert_eq!(u64::try_from(summary.freed_bytes).unwrap(), plan.free_bytes);
    assert_eq!(stored(&place), needed(&place, &generations).await);
    let restored = place.restore(generations.last().unwrap()).await.unwrap();
    assert_eq!((restored[0].clone(), restored[11].clone()), (full_chunk(0), full_chunk(11)));
    // One small pack is not many.
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan.merge_packs, plan.free_bytes, summary.moved_bytes), (0, 0, 0));
}

#[tokio::test]
async fn few_small_packs_stay_and_so_do_many_of_which_more_would_be_copied_than_is_allowed() {
    let (place, _) = nights(7).await;
    let (plan, _) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan.merge_packs, packs(&place).await), (0, 7));
    let (place, _) = nights(8).await;
    for options in [Options { max_repack: CHUNK * 8, ..ALL }, Options { max_extra_space: CHUNK, ..ALL }] {
        let (plan, summary) = collect(&place, options).await.unwrap();
        assert_eq!((plan.merge_packs, summary.moved_bytes, packs(&place).await), (0, 0, 8));
    }
}

#[tokio::test]
async fn what_is_not_in_use_in_small_packs_goes_with_them_whatever_the_threshold() {
    let (place, generations) = nights(9).await;
    delete(&place, &generations[3]).await;
    let (plan, _) = collect(&place, Options { threshold: 0.01, ..ALL }).await.unwrap();
    assert_eq!((plan.merge_packs, plan.repack_packs, plan.kept_dead_bytes), (9, 0, 0));
    let kept: Vec<_> = generations.into_iter().filter(|generation| generation.number != 4).collect();
    assert_eq!(stored(&place), needed(&place, &kept).await);
}

#[tokio::test]
async fn small_packs_are_not_put_together_in_the_space_that_is_kept_free() {
    let medium = std::sync::Arc::new(crate::store::memory_medium::MemoryMedium::default());
    let place = Place::with_packs(medium.clone()).await;
    let mut parent =
        place.back_up(full(Uuid::new_v4(), "h/p/v", 200 * CHUNK), vec![new(0, 0)]).await.unwrap();
    for night in 1..10 {
        place.repository.store.settle().await.unwrap();
        parent = place.back_up(after(&parent, 200 * CHUNK), vec![new(night, night)]).await.unwrap();
    }
    medium.set_available(Some(0));
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan.merge_packs, summary.kept_packs, summary.moved_bytes), (10, 10, 0));
    medium.set_available(None);
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan.merge_packs, summary.removed_packs, packs(&place).await), (10, 10, 1));
}
