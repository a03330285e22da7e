//! Streams that are cut, processes that die, disks that rot.

use std::fs;

use thinbak_proto::{MapEntry, v1};
use uuid::Uuid;

use super::client::{CHUNK, Place, after, full, full_chunk, id, latest, named, new, present, zero};

/// Changes a byte wherever a pack holds `needle`; whether it was found.
fn spoil(place: &Place, needle: &[u8]) -> bool {
    let mut spoilt = false;
    let mut folders = vec![place.dir.path().join("packs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(needle.len()).position(|window| window == needle) {
                bytes[at] ^= 0xff;
                fs::write(&path, bytes).unwrap();
                spoilt = true;
            }
        }
    }
    spoilt
}

#[tokio::test]
async fn what_was_acknowledged_before_the_stream_was_cut_is_not_sent_again() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", 10 * CHUNK);
    let mut cut = place.begin(begin.clone()).await.unwrap();
    let ack = cut.batch(vec![new(0, 1), new(1, 2)]).await.unwrap();
    assert_eq!(ack.batches, 1);
    drop(cut);
    let volumes = place.volumes().await;
    assert_eq!(volumes, [], "nothing is visible");

    let mut again = place.begin(begin).await.unwrap();
    assert_eq!(again.missing(vec![id(1), id(2), id(3)]).await.unwrap(), [false, false, true]);
    let ack = again.batch(vec![present(0, 1), present(1, 2), new(2, 3)]).await.unwrap();
    assert_eq!(ack.batches, 1);
    let generation = again.commit().await.unwrap();
    assert_eq!((generation.number, generation.new_bytes, generation.mapped_bytes), (1, CHUNK, 3 * CHUNK));
}

#[tokio::test]
async fn acknowledgements_come_in_order_and_count_what_was_sent() {
    use super::client::Backup;
    use v1::{backup_request::Message as Asked, backup_response::Message as Answer};
    let place = Place::new().await;
    let mut backup: Backup = place.begin(full(Uuid::new_v4(), "h/p/v", 64 * CHUNK)).await.unwrap();
    for batch in 0..8 {
        let items = (0..8).map(|at| new(batch * 8 + at, batch * 8 + at)).collect();
        backup.ask(Asked::Batch(v1::BackupBatch { items })).await;
    }
    let mut sent = 0;
    for expected in 1..=8 {
        let Some(Answer::Ack(ack)) = backup.answer().await.unwrap() else { panic!("no acknowledgement") };
        assert_eq!(ack.batches, expected);
        assert!(ack.stored_bytes > sent);
        sent = ack.stored_bytes;
    }
    assert_eq!(backup.commit().await.unwrap().new_bytes, 64 * CHUNK);
}

#[tokio::test]
async fn a_killed_server_has_the_committed_generations_and_what_was_acknowledged() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    let first = place.back_up(full(volume, "h/p/v", 200 * CHUNK), vec![new(0, 1), zero(5, 9)]).await.unwrap();
    let mut open = place.begin(after(&first, 200 * CHUNK)).await.unwrap();
    open.batch(vec![new(0, 2)]).await.unwrap();
    let place = place.reopen().await;
    drop(open);
    let request = v1::GetGenerationRequest { volume: named("p/v"), selector: latest() };
    let found = place.generations().get_generation(request).await.unwrap().into_inner();
    assert_eq!(found, first);
    assert_eq!(place.restore(&first).await.unwrap()[0], full_chunk(1));
    let mut again = place.begin(after(&first, 200 * CHUNK)).await.unwrap();
    assert_eq!(again.missing(vec![id(2)]).await.unwrap(), [false]);
    again.batch(vec![present(0, 2)]).await.unwrap();
    let second = again.commit().await.unwrap();
    assert_eq!((second.number, second.new_bytes), (2, 0));
    assert_eq!(place.verify(0.0).await.1.damaged, 0);
}

#[tokio::test]
async fn a_rotten_chunk_is_reported_where_it_lies_and_the_rest_is_read() {
    let place = Place::new().await;
    let items = vec![new(0, 1), new(4, 2), new(8, 3)];
    let first = place.back_up(full(Uuid::new_v4(), "h/p/v", 10 * CHUNK), items).await.unwrap();
    place.back_up(after(&first, 10 * CHUNK), vec![new(9, 4)]).await.unwrap();
    assert!(spoil(&place, &super::client::content(2, CHUNK as usize)[..64]));
    let (damage, summary) = place.verify(0.0).await;
    let found: Vec<_> = damage
        .iter()
        .map(|one| (one.volume_name.as_str(), one.generation, one.offset_bytes, one.length_bytes))
        .collect();
    assert_eq!(found, [("h/p/v", 1, 4 * CHUNK, CHUNK), ("h/p/v", 2, 4 * CHUNK, CHUNK)], "both need it");
    assert_eq!((summary.damaged_records, summary.chunks_checked, summary.generations), (1, 4, 2));
    assert_eq!(place.restore(&first).await.unwrap_err().exit_code(), 4);
}

#[tokio::test]
async fn a_rotten_map_node_is_reported_with_its_range() {
    let place = Place::new().await;
    let items = vec![new(0, 1), new(130, 2), new(299, 3)];
    let first = place.back_up(full(Uuid::new_v4(), "h/p/v", 300 * CHUNK), items).await.unwrap();
    // The second leaf: the one that names chunk 130.
    let root = crate::map_tree::NodeSource::load(
        &place.repository.store,
        thinbak_proto::NodeId::try_from(first.root.as_ref()).unwrap(),
    );
    let leaf = match root.await.unwrap().slots()[1] {
        MapEntry::Id(id) => id,
        other => panic!("{other:?}"),
    };
    let stored = place.repository.store.get(leaf).await.unwrap().unwrap().stored;
    assert!(spoil(&place, &stored));
    let (damage, summary) = place.verify(0.0).await;
    let found: Vec<_> = damage.iter().map(|one| (one.offset_bytes, one.length_bytes)).collect();
    assert_eq!(found, [(128 * CHUNK, 128 * CHUNK)]);
    assert_eq!((summary.chunks_checked, summary.map_nodes_checked), (3, 4));
}

#[tokio::test]
async fn a_sample_reads_a_share_and_says_what_it_left_out() {
    let place = Place::new().await;
    let items = (0..200).map(|at| new(at, at)).collect();
    place.back_up(full(Uuid::new_v4(), "h/p/v", 200 * CHUNK), items).await.unwrap();
    let (_, summary) = place.verify(0.5).await;
    assert_eq!(summary.chunks_checked + summary.chunks_skipped, 200);
    // Outside of this range once in 10^15 runs.
    assert!((43..=157).contains(&summary.chunks_checked), "{}", summary.chunks_checked);
}

#[tokio::test]
async fn a_session_ends_when_the_server_stops() {
    let place = Place::new().await;
    let begin = full(Uuid::new_v4(), "h/p/v", CHUNK);
    let mut running = place.begin(begin).await.unwrap();
    place.repository.close().await;
    assert_eq!(running.answer().await.unwrap_err().exit_code(), 11);
}

#[tokio::test]
async fn a_session_pins_the_tree_that_it_builds_upon_until_it_ends() {
    let place = Place::new().await;
    let pins = &place.repository.pins;
    let first = place.back_up(full(Uuid::new_v4(), "h/p/v", 200 * CHUNK), vec![new(7, 1)]).await.unwrap();
    assert_eq!(pins.roots(), []);
    let parent = super::super::tree_of(&first).unwrap();
    let cut = place.begin(after(&first, 200 * CHUNK)).await.unwrap();
    assert_eq!(pins.roots(), [parent]);
    drop(cut);
    assert_eq!(pins.roots(), []);
    let mut whole = place.begin(after(&first, 200 * CHUNK)).await.unwrap();
    whole.batch(vec![new(7, 2)]).await.unwrap();
    assert_eq!(pins.roots(), [parent]);
    whole.commit().await.unwrap();
    assert_eq!(pins.roots(), []);
}

#[tokio::test]
async fn a_chunk_found_damaged_since_it_was_asked_for_makes_the_commit_incomplete_and_then_heals() {
    use crate::store::DamagedRecord;
    use v1::{backup_request::Message as Asked, backup_response::Message as Answer};
    let place = Place::new().await;
    let first = place.back_up(full(Uuid::new_v4(), "h/p/v", 10 * CHUNK), vec![new(0, 1)]).await.unwrap();
    let begin = full(Uuid::new_v4(), "h/p/w", 10 * CHUNK);
    let mut late = place.begin(begin.clone()).await.unwrap();
    assert_eq!(late.missing(vec![id(1)]).await.unwrap(), [false]);
    let location = place.repository.store.locate(vec![*id(1).as_bytes()]).await.unwrap()[0].unwrap();
    let (record, kind, reason) = (*id(1).as_bytes(), location.kind, "a test".to_owned());
    place.repository.store.quarantine(DamagedRecord { place: location.place(), id: record, kind, reason });
    late.batch(vec![present(3, 1), new(4, 9)]).await.unwrap();
    late.ask(Asked::Commit(v1::BackupCommit {})).await;
    match late.answer().await.unwrap() {
        Some(Answer::Incomplete(incomplete)) => assert_eq!(incomplete.missing, [id(1).to_bytes()]),
        other => panic!("{other:?}"),
    }
    assert_eq!(late.answer().await.unwrap(), None);

    let mut again = place.begin(begin).await.unwrap();
    assert_eq!(again.missing(vec![id(1), id(9)]).await.unwrap(), [true, false]);
    again.batch(vec![new(3, 1), present(4, 9)]).await.unwrap();
    again.commit().await.unwrap();
    assert!(!place.repository.store.any_damage());
    assert_eq!(place.restore(&first).await.unwrap()[0], full_chunk(1));
}

async fn damaged_ranges(place: &Place, number: u64) -> usize {
    let request = v1::GetDamageRequest { volume: named("h/p/v"), selector: super::client::number(number) };
    let mut ranges = place.generations().get_damage(request).await.unwrap().into_inner();
    let mut count = 0;
    while ranges.message().await.unwrap().is_some() {
        count += 1;
    }
    count
}

#[tokio::test]
async fn after_a_pack_was_lost_and_its_content_sent_again_no_tree_is_walked_twice() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    let items = vec![new(0, 1), new(4, 2)];
    let first = place.back_up(full(volume, "h/p/v", 10 * CHUNK), items).await.unwrap();
    place.repository.store.settle().await.unwrap();
    let mut packs = fs::read_dir(place.dir.path().join("packs")).unwrap();
    fs::remove_dir_all(packs.next().unwrap().unwrap().path()).unwrap();
    let place = place.reopen().await;
    let store = &place.repository.store;
    let is_sound = |generation: &v1::Generation| {
        let tree = super::super::tree_of(generation).unwrap();
        place.repository.sound.contains(tree, store.damages())
    };
    assert!(store.any_damage() && damaged_ranges(&place, 1).await > 0 && !is_sound(&first));

    let healed = full(volume, "h/p/v", 10 * CHUNK);
    let second = place.back_up(healed, vec![new(0, 1), new(4, 2)]).await.unwrap();
    assert!(is_sound(&second), "all of it was just looked up");
    assert_eq!((damaged_ranges(&place, 1).await, damaged_ranges(&place, 2).await), (0, 0));
    assert!(is_sound(&first));
    let third = place.back_up(after(&second, 10 * CHUNK), vec![new(5, 3)]).await.unwrap();
    assert!(is_sound(&third), "what it adds was looked up, the rest before");

    let location = store.locate(vec![*id(2).as_bytes()]).await.unwrap()[0].unwrap();
    let (record, kind, reason) = (*id(2).as_bytes(), location.kind, "a test".to_owned());
    store.quarantine(crate::store::DamagedRecord { place: location.place(), id: record, kind, reason });
    assert!(!is_sound(&third));
    assert_eq!(damaged_ranges(&place, 3).await, 1);
    assert!(!is_sound(&third));
}
