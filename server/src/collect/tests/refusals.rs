//! What a collection says, and what it does not do.

use uuid::Uuid;

use super::*;
use crate::ingest::tests::client::{CHUNK, after, full, full_chunk, new, packed};

/// Three generations; of the second nothing but its own ten chunks dies with it.
async fn three() -> (Place, Vec<v1::Generation>) {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 200 * CHUNK);
    let mut generations =
        vec![place.back_up(begin, (0..20).map(|chunk| new(chunk, chunk)).collect()).await.unwrap()];
    for round in 1..3 {
        let items = (10..20).map(|chunk| new(chunk, chunk + round * 100)).collect();
        let parent = generations.last().unwrap();
        generations.push(place.back_up(after(parent, 200 * CHUNK), items).await.unwrap());
    }
    (place, generations)
}

#[tokio::test]
async fn a_dry_run_says_what_a_collection_then_frees() {
    let (place, generations) = three().await;
    delete(&place, &generations[1]).await;
    let before = stored(&place);
    let (planned, summary) = collect(&place, Options { dry_run: true, ..ALL }).await.unwrap();
    assert_eq!((summary.removed_packs, summary.freed_bytes), (0, 0));
    assert_eq!(stored(&place), before, "a dry run changes nothing");
    assert_eq!((planned.expired_generations, planned.generations), (1, 2));
    assert!(planned.free_bytes > 10 * CHUNK / 2, "{planned:?}");
    let bytes = place.repository.store.stats().pack_bytes;
    let (plan, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!(summary.freed_bytes, i64::try_from(planned.free_bytes).unwrap());
    assert_eq!((plan.free_bytes, plan.repack_packs), (planned.free_bytes, planned.repack_packs));
    // What is copied is in a pack with a header and a footer, beside a tombstone.
    place.repository.store.settle().await.unwrap();
    let after = place.repository.store.stats().pack_bytes;
    assert!(bytes - after <= planned.free_bytes && bytes - after + 512 >= planned.free_bytes);
    let kept = [generations[0].clone(), generations[2].clone()];
    assert_eq!(stored(&place), needed(&place, &kept).await);
    let restored = place.restore(&generations[2]).await.unwrap();
    assert_eq!((restored[0].clone(), restored[15].clone()), (full_chunk(0), full_chunk(215)));
}

#[tokio::test]
async fn what_may_be_undeleted_is_kept() {
    let (place, generations) = three().await;
    delete(&place, &generations[1]).await;
    let before = stored(&place);
    let (plan, _) = collect(&place, Options { grace_ms: None, ..ALL }).await.unwrap();
    assert_eq!((plan.expired_generations, plan.generations), (0, 3));
    assert_eq!(stored(&place), before);
}

#[tokio::test]
async fn packs_that_are_mostly_in_use_stay_and_limits_are_kept() {
    let (place, generations) = three().await;
    delete(&place, &generations[1]).await;
    for options in [
        Options { threshold: 0.5, ..ALL },
        Options { max_extra_space: 10 * CHUNK, ..ALL },
        Options { max_repack: 10 * CHUNK, ..ALL },
    ] {
        let (plan, summary) = collect(&place, options).await.unwrap();
        assert_eq!((plan.free_bytes, summary.removed_packs), (0, 0), "{options:?}");
        assert!(plan.kept_dead_bytes > 10 * CHUNK / 2);
    }
    let (plan, _) = collect(&place, ALL).await.unwrap();
    assert_eq!((plan.repack_packs, plan.kept_dead_bytes), (1, 0));
}

#[tokio::test]
async fn a_catalogue_made_from_the_packs_would_not_raise_what_was_deleted() {
    let (place, generations) = three().await;
    let visible = [generations[0].clone(), generations[2].clone()];
    assert!(raises_the_dead(&place, &visible), "it is there and not deleted");
    delete(&place, &generations[1]).await;
    // At no threshold, and not when the manifest has gone before its tombstone.
    for threshold in [0.0, 0.5, 1.0, 1.0, 1.0] {
        collect(&place, Options { threshold, ..ALL }).await.unwrap();
        assert!(!raises_the_dead(&place, &visible));
    }
    let tombstones = place.repository.store.records(Kind::Tombstone).unwrap().count();
    let manifests = place.repository.store.records(Kind::Manifest).unwrap().count();
    assert_eq!((tombstones, manifests), (0, 2), "the manifest is gone, and so is its tombstone");
}

#[tokio::test]
async fn one_collection_runs_at_a_time() {
    let (place, _) = three().await;
    let _running = place.repository.collecting.lock().await;
    let (code, message) = message(collect(&place, ALL).await.unwrap_err());
    assert!(code == 11 && message.contains("running already"), "{message}");
}

#[tokio::test]
async fn a_threshold_that_is_no_share_is_refused() {
    for threshold in [-0.1, 1.1, f64::NAN] {
        let request = v1::CollectRequest { threshold: Some(threshold), ..v1::CollectRequest::default() };
        assert_eq!(Options::of(&request).unwrap_err().exit_code(), 2);
    }
    assert_eq!(Options::of(&v1::CollectRequest::default()).unwrap(), Options::default());
}

/// Spoils the record of `id` in its pack.
async fn spoil(place: &Place, id: &[u8; 32]) {
    let location = place.repository.store.locate(vec![*id]).await.unwrap()[0].unwrap();
    let path = place.dir.path().join(format!("packs/00000/{:08x}.pack", location.pack));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[location.offset as usize + 110] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn with_an_unreadable_map_node_nothing_is_freed_and_the_generation_is_named() {
    let (place, generations) = three().await;
    delete(&place, &generations[0]).await;
    let before = place.repository.store.stats();
    spoil(&place, generations[1].root.as_ref().try_into().unwrap()).await;
    let (code, said) = message(collect(&place, ALL).await.unwrap_err());
    assert_eq!(code, 4);
    assert!(said.contains("h/p/v:2") && !said.contains("h/p/v:3") && said.contains("verify"), "{said}");
    // The tombstone that ends the deleted generation for good is in a pack of its own.
    assert_eq!(place.repository.store.stats().packs, before.packs + 1);
    // Without that generation, collection goes on.
    delete(&place, &generations[1]).await;
    collect(&place, ALL).await.unwrap();
    let found: HashSet<_> = needed(&place, &generations[2..]).await;
    assert_eq!(stored(&place), found);
}

/// Two packs of equal length have changed places while the server was not running. Nothing of the one is in use, and so
/// its name may go; but what is in its file now is in use.
#[tokio::test]
async fn a_file_in_the_place_of_a_dead_pack_that_is_another_pack_stays() {
    let place = Place::new().await;
    let mut backup = place.begin(full(Uuid::new_v4(), "h/p/v", 200 * CHUNK)).await.unwrap();
    for first in [0, 10] {
        let items = (first..first + 10).map(|chunk| packed(chunk, &full_chunk(chunk).unwrap(), 0));
        backup.batch(items.collect()).await.unwrap();
        place.repository.store.settle().await.unwrap();
    }
    let first = backup.commit().await.unwrap();
    let items = (0..10).map(|chunk| new(chunk, 100 + chunk)).collect();
    let second = place.back_up(after(&first, 200 * CHUNK), items).await.unwrap();
    delete(&place, &first).await;
    place.repository.close().await;
    let exchange = |place: &Place| {
        let [one, other, aside] = ["00000000.pack", "00000001.pack", "aside"]
            .map(|name| place.dir.path().join("packs/00000").join(name));
        std::fs::rename(&one, &aside).unwrap();
        std::fs::rename(&other, &one).unwrap();
        std::fs::rename(&aside, &other).unwrap();
    };
    exchange(&place);
    let place = place.reopen().await;
    let mut kept = Vec::new();
    let mut report = |event: Event| {
        if let Event::Pack(pack) = event {
            kept.push((pack.pack, pack.kept));
        }
        async { Ok(()) }.boxed()
    };
    run(&place.repository, ALL, &mut report).await.unwrap();
    assert_eq!(kept[0], (0, "its file does not hold this pack".to_owned()), "{kept:?}");
    place.repository.close().await;
    exchange(&place);
    let place = place.reopen().await;
    let restored = place.restore(&second).await.unwrap();
    assert_eq!((restored[5].clone(), restored[15].clone()), (full_chunk(105), full_chunk(15)));
    collect(&place, ALL).await.unwrap();
    assert_eq!(place.restore(&second).await.unwrap(), restored);
}

#[tokio::test]
async fn a_damaged_chunk_in_use_keeps_its_pack_and_the_rest_is_freed() {
    let (place, generations) = three().await;
    delete(&place, &generations[1]).await;
    let lost = *crate::ingest::tests::client::id(3).as_bytes();
    spoil(&place, &lost).await;
    let (_, summary) = collect(&place, ALL).await.unwrap();
    assert_eq!((summary.removed_packs, summary.kept_packs), (0, 1));
    let restored = place.restore(&generations[0]).await.unwrap_err();
    assert_eq!(restored.exit_code(), 4);
    // What could be copied was, and everything else is where it was.
    let record = place.repository.store.get(lost).await;
    assert!(record.unwrap_err().is_damage());
    let all = needed(&place, &[generations[0].clone(), generations[2].clone()]).await;
    for id in all {
        assert_eq!(place.repository.store.get(id).await.is_ok(), id != lost);
    }
}
