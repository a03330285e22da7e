//! What a put promises: once, durable, all or an error.

use std::collections::HashSet;

use super::{memory_medium::MemoryMedium, *};

#[tokio::test]
async fn what_was_put_is_got_before_and_after_a_reopen() {
    let dir = Dir::new();
    let records: Vec<_> = Kind::ALL
        .into_iter()
        .zip(0..)
        .flat_map(|(kind, number)| {
            [(0, kind), (1, kind), (5000, kind)]
                .map(|(len, kind)| record(kind, number * 10 + len, len as usize))
        })
        .collect();
    let store = dir.open().await;
    let outcome = store.put(records.clone()).await.unwrap();
    assert_eq!(outcome.new_records, records.len() as u64);
    assert_eq!(
        outcome.new_plain_bytes,
        records.iter().map(|record| u64::from(record.plain_len)).sum::<u64>()
    );
    assert_all_there(&store, &records).await;
    assert!(store.get([7; 32]).await.unwrap().is_none());
    store.close().await;
    let store = dir.open().await;
    assert_all_there(&store, &records).await;
    assert!(store.problems().is_empty());
    let manifests: Vec<_> = store.records(Kind::Manifest).unwrap().collect::<Result<_, _>>().unwrap();
    let expected: Vec<_> = records.iter().filter(|record| record.kind == Kind::Manifest).collect();
    assert_eq!(manifests.len(), expected.len());
    assert!(manifests.iter().zip(expected).all(|(found, expected)| is_same(expected, found)));
}

#[tokio::test]
async fn records_of_the_pack_being_written_are_listed_too() {
    let dir = Dir::new();
    let store = dir.open().await;
    let manifest = record(Kind::Manifest, 1, 300);
    store.put(vec![record(Kind::Chunk, 2, 4000), manifest.clone()]).await.unwrap();
    let listed: Vec<_> = store.records(Kind::Manifest).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(listed.len(), 1);
    assert!(is_same(&manifest, &listed[0]));
}

#[tokio::test]
async fn a_duplicate_is_stored_once() {
    let dir = Dir::new();
    let store = dir.open().await;
    let one = record(Kind::Chunk, 1, 1000);
    let first = store.put(vec![one.clone(), one.clone()]).await.unwrap();
    assert_eq!((first.new_records, first.new_plain_bytes, first.new_stored_bytes), (1, 1000, 1104));
    assert_eq!(store.put(vec![one]).await.unwrap(), PutOutcome::default());
    assert_eq!(store.stats().chunks, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn duplicates_across_concurrent_puts_are_stored_once() {
    let dir = Dir::new();
    let store = dir.open().await;
    let puts: Vec<_> = (0..24u64)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                let outcome = store.put(chunks(task * 10..task * 10 + 40, 700)).await.unwrap();
                assert_all_there(&store, &chunks(task * 10..task * 10 + 40, 700)).await;
                outcome.new_records
            })
        })
        .collect();
    let mut stored = 0;
    for put in puts {
        stored += put.await.unwrap();
    }
    assert_eq!(stored, 23 * 10 + 40);
    assert_eq!(store.stats().chunks, 23 * 10 + 40);
}

#[tokio::test]
async fn a_full_pack_is_sealed_and_the_next_one_begun() {
    let dir = Dir::new();
    let store = dir.open().await;
    let records = chunks(0..80, 1024 * 1024);
    for batch in records.chunks(7) {
        store.put(batch.to_vec()).await.unwrap();
    }
    assert_eq!(store.stats().packs, 2);
    assert!(fs::metadata(dir.pack(0)).unwrap().len() <= format::PACK_TARGET_LEN + 1024 * 1024);
    assert_all_there(&store, &records).await;
    kill(store).await;
    let store = dir.open().await;
    assert_all_there(&store, &records).await;
    let stats = store.stats();
    assert_eq!((stats.packs, stats.chunks, stats.chunk_plain_bytes), (2, 80, 80 << 20));
    for number in 0..2 {
        store.inner.shared.pack(number).unwrap().sealed_entries().expect("the open has completed the pack");
    }
    let on_disk: u64 = (0..2).map(|number| fs::metadata(dir.pack(number)).unwrap().len()).sum();
    assert_eq!(stats.pack_bytes, on_disk);
}

#[tokio::test]
async fn contains_answers_in_the_order_asked() {
    let dir = Dir::new();
    let store = dir.open().await;
    store.put(chunks(0..5, 10)).await.unwrap();
    let ids: Vec<_> = [4, 9, 0, 8].into_iter().map(|number| record(Kind::Chunk, number, 10).id).collect();
    assert_eq!(store.contains(ids).await.unwrap(), [true, false, true, false]);
}

#[tokio::test]
async fn a_record_beyond_the_limits_is_refused() {
    let dir = Dir::new();
    let store = dir.open().await;
    let mut grown = record(Kind::Chunk, 1, 5000);
    grown.plain_len = 5000 - MAX_STORED_GROWTH - 1;
    assert!(matches!(store.put(vec![grown]).await, Err(StoreError::RecordTooLarge { .. })));
    let mut long = record(Kind::Chunk, 2, 10);
    long.plain_len = MAX_PLAIN_LEN + 1;
    assert!(matches!(store.put(vec![long]).await, Err(StoreError::RecordTooLarge { .. })));
    assert_eq!(store.stats().packs, 0);
}

#[tokio::test]
async fn after_close_other_handles_read_but_do_not_write() {
    let dir = Dir::new();
    let store = dir.open().await;
    let reader = store.clone();
    store.put(chunks(0..3, 100)).await.unwrap();
    store.close().await;
    assert_all_there(&reader, &chunks(0..3, 100)).await;
    assert!(matches!(reader.put(chunks(3..4, 100)).await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn a_store_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::init(dir.path(), REPOSITORY).unwrap());
    assert!(matches!(Store::init(dir.path(), REPOSITORY), Err(StoreError::Io { .. })));
}

#[tokio::test]
async fn a_folder_that_is_no_store_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(dir.path(), REPOSITORY), Err(StoreError::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_put_that_does_not_fit_says_so_and_a_later_one_succeeds() {
    let dir = Dir::new();
    let medium = Arc::new(MemoryMedium::default());
    let store = dir.open_on(&medium).await.unwrap();
    store.put(chunks(0..4, 1000)).await.unwrap();
    medium.set_available(Some(1500));
    assert!(matches!(store.put(chunks(4..8, 1000)).await, Err(StoreError::NoSpace { .. })));
    assert_all_there(&store, &chunks(0..4, 1000)).await;
    store.put(chunks(4..5, 1000)).await.unwrap();
    medium.set_available(None);
    store.put(chunks(4..8, 1000)).await.unwrap();
    assert_all_there(&store, &chunks(0..8, 1000)).await;
}

#[tokio::test]
async fn that_puts_fail_is_forgotten_when_they_would_succeed_although_there_is_none() {
    let dir = Dir::new();
    let medium = Arc::new(MemoryMedium::default());
    let store = dir.open_on(&medium).await.unwrap();
    assert_eq!(store.write_failure().await.map(|error| error.to_string()), None);
    medium.set_available(Some(1500));
    assert!(matches!(store.put(chunks(0..4, 1000)).await, Err(StoreError::NoSpace { .. })));
    assert!(matches!(store.write_failure().await, Some(StoreError::NoSpace { .. })));
    medium.set_available(None);
    assert!(store.write_failure().await.is_none());
    // Refused by the disk, whatever it says of the space.
    let next = medium.operations() + 1;
    medium.fail(next..next + 1);
    store.put(chunks(0..4, 1000)).await.unwrap_err();
    assert!(store.write_failure().await.is_none());
    medium.fail(0..u64::MAX);
    store.put(chunks(0..4, 1000)).await.unwrap_err();
    assert!(store.write_failure().await.is_some(), "the probe fails as well");
    medium.fail(0..0);
    store.put(chunks(0..4, 1000)).await.unwrap();
}

/// What the writer does after the index gave up on a full disk.
#[tokio::test]
async fn an_index_that_is_opened_again_knows_what_it_knew() {
    let dir = Dir::new();
    let store = dir.open().await;
    store.put(chunks(0..4, 100)).await.unwrap();
    store.inner.shared.index.reopen().unwrap();
    assert_all_there(&store, &chunks(0..4, 100)).await;
    store.put(chunks(2..8, 100)).await.unwrap();
    assert_all_there(&store, &chunks(0..8, 100)).await;
    assert_eq!(store.stats().chunks, 8);
    assert!(!dir.path().join("index.probe").exists());
}

/// Every operation of a workload fails once, alone or with all that follow: the put says so, what was
/// acknowledged stays, a later put succeeds, and a power failure at the end loses nothing acknowledged.
#[tokio::test]
async fn whichever_operation_fails_nothing_acknowledged_is_lost() {
    let mut random = seeded();
    let puts: Vec<Vec<NewRecord>> = (0..5).map(|put| chunks(put * 3..put * 3 + 4, 900)).collect();
    let clean = {
        let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
        let store = dir.open_on(&medium).await.unwrap();
        for put in &puts {
            store.put(put.clone()).await.unwrap();
        }
        store.close().await;
        medium.operations()
    };
    assert!(clean > 10);
    for (failing, lasting) in (1..=clean).flat_map(|failing| [(failing, false), (failing, true)]) {
        let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
        let store = dir.open_on(&medium).await.unwrap();
        medium.fail(failing..if lasting { u64::MAX } else { failing + 1 });
        let mut acknowledged = Vec::new();
        let mut failed = 0;
        for put in &puts {
            match store.put(put.clone()).await {
                Ok(_) => acknowledged.extend_from_slice(put),
                Err(StoreError::NoSpace { .. }) => failed += 1,
                Err(error) => panic!("operation {failing}: {error}"),
            }
            assert_all_there(&store, &acknowledged).await;
        }
        // The operations after the last put are those of sealing.
        assert!(failed > 0 || failing > clean - 2, "operation {failing} failed and no put noticed");
        medium.fail(0..0);
        let after = chunks(100..103, 2000);
        store.put(after.clone()).await.unwrap();
        acknowledged.extend_from_slice(&after);
        assert_all_there(&store, &acknowledged).await;
        kill(store).await;
        let store = dir.open_on(&medium.crash(&mut random)).await.unwrap();
        assert_all_there(&store, &acknowledged).await;
        kill(store).await;
    }
}

#[tokio::test]
async fn the_ids_of_a_test_differ() {
    let ids: HashSet<_> = chunks(0..100, 3).into_iter().map(|record| record.id).collect();
    assert_eq!(ids.len(), 100);
}
