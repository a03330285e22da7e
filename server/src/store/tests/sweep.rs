//! Moving records and removing packs, in every order with those who read and rely on them.

use std::collections::HashSet;

use super::{memory_medium::MemoryMedium, *};

/// Copies what is `needed` out of a pack and removes it.
async fn sweep(store: &Store, pack: u32, needed: &HashSet<[u8; 32]>) -> Result<Removal, StoreError> {
    let records = store.pack_records(pack).await?;
    let is_needed = |record: &PackRecord| record.indexed && needed.contains(&record.id);
    let moving = records.iter().copied().filter(is_needed).collect();
    let moved = store.move_records(pack, moving).await?;
    assert!(moved.damaged.is_empty());
    store.retire(pack, &records, is_needed).await
}

fn ids(records: &[NewRecord]) -> HashSet<[u8; 32]> {
    records.iter().map(|record| record.id).collect()
}

/// A store whose sealed pack 0 holds ten chunks.
async fn ten(dir: &Dir, medium: &Arc<MemoryMedium>) -> (Store, Vec<NewRecord>) {
    let store = dir.open_on(medium).await.unwrap();
    let records = chunks(0..10, 900);
    store.put(records.clone()).await.unwrap();
    assert_eq!(store.settle().await.unwrap(), 0);
    (store, records)
}

#[tokio::test]
async fn what_is_needed_moves_and_the_rest_goes_with_the_pack() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, records) = ten(&dir, &medium).await;
    let packs = store.sealed_packs().await.unwrap();
    assert_eq!(packs.len(), 1);
    assert!(packs[0].records == 10 && packs[0].whole && packs[0].number == 0);
    let (kept, dropped) = records.split_at(4);
    assert_eq!(sweep(&store, 0, &ids(kept)).await.unwrap(), Removal::Removed);
    assert_eq!(medium.numbers(), [1]);
    assert_all_there(&store, kept).await;
    let gone = dropped.iter().map(|record| record.id).collect::<Vec<_>>();
    assert_eq!(store.contains(gone.clone()).await.unwrap(), [false; 6]);
    assert!(store.get_many(gone).await.unwrap().iter().all(Option::is_none));
    assert_eq!((store.stats().packs, store.stats().chunks), (1, 4));
    store.close().await;
    let store = dir.open_on(&medium).await.unwrap();
    assert_all_there(&store, kept).await;
    assert_eq!((store.stats().packs, store.stats().chunks), (1, 4));
    assert!(store.problems().is_empty());
    // Dropped records can be stored again.
    assert_eq!(store.put(records.clone()).await.unwrap().new_records, 6);
    assert_all_there(&store, &records).await;
}

#[tokio::test]
async fn a_pack_stays_while_the_index_finds_needed_records_there() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, records) = ten(&dir, &medium).await;
    let listed = store.pack_records(0).await.unwrap();
    assert_eq!(store.retire(0, &listed, |_| true).await.unwrap(), Removal::InUse);
    store.put(chunks(10..12, 900)).await.unwrap();
    let current = store.pack_records(1).await.unwrap();
    assert_eq!(store.retire(1, &current, |_| false).await.unwrap(), Removal::InUse, "it is being written");
    assert_all_there(&store, &records).await;
}

#[tokio::test]
async fn who_was_told_that_a_record_is_there_keeps_it_wherever_it_moves() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, records) = ten(&dir, &medium).await;
    let claim = store.claim();
    assert_eq!(store.contains(vec![records[3].id]).await.unwrap(), [true]);
    // A duplicate and a new record are relied on as well.
    store.put(vec![records[4].clone(), record(Kind::Chunk, 77, 50)]).await.unwrap();
    store.settle().await.unwrap();
    let collection = store.claim_all();
    let listed = store.pack_records(0).await.unwrap();
    let touched = Removal::Touched(vec![records[3].id, records[4].id]);
    assert_eq!(store.retire(0, &listed, |_| false).await.unwrap(), touched);
    let relied = &records[3..5];
    assert_eq!(sweep(&store, 0, &ids(relied)).await.unwrap(), Removal::Removed);
    drop(collection);
    // The next collection finds them at their new place, where nobody asked for them.
    store.settle().await.unwrap();
    let collection = store.claim_all();
    let listed = store.pack_records(2).await.unwrap();
    assert_eq!(store.retire(2, &listed, |_| false).await.unwrap(), touched);
    let listed = store.pack_records(1).await.unwrap();
    let new = Removal::Touched(vec![record(Kind::Chunk, 77, 50).id]);
    assert_eq!(store.retire(1, &listed, |_| false).await.unwrap(), new);
    drop(claim);
    assert_eq!(store.retire(2, &store.pack_records(2).await.unwrap(), |_| false).await.unwrap(), touched);
    drop(collection);
    assert_eq!(
        store.retire(2, &store.pack_records(2).await.unwrap(), |_| false).await.unwrap(),
        Removal::Removed
    );
}

#[tokio::test]
async fn a_record_found_and_then_moved_is_read_from_its_new_place() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, records) = ten(&dir, &medium).await;
    let shared = store.inner.shared.clone();
    let id = records[2].id;
    let before = shared.index.locate(&[id]).unwrap();
    assert_eq!(sweep(&store, 0, &ids(&records[2..3])).await.unwrap(), Removal::Removed);
    assert_ne!(shared.index.locate(&[id]).unwrap(), before);
    // The pack is gone, which is nobody's damage.
    assert!(matches!(shared.pack(0), Err(StoreError::PackMissing { pack: 0 })));
    assert_all_there(&store, &records[2..3]).await;
    assert!(store.problems().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn reads_go_on_while_everything_moves_again_and_again() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let store = dir.open_on(&medium).await.unwrap();
    let records = chunks(0..200, 300);
    store.put(records.clone()).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (store, records, stopped) = (store.clone(), records.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut rounds = 0;
                while !*stopped.borrow() {
                    assert_all_there(&store, &records).await;
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    for _ in 0..40 {
        store.settle().await.unwrap();
        for pack in store.sealed_packs().await.unwrap() {
            assert_eq!(sweep(&store, pack.number, &ids(&records)).await.unwrap(), Removal::Removed);
        }
    }
    stop.send_replace(true);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    assert!(store.problems().is_empty());
    assert_eq!(store.stats().chunks, 200);
}

#[tokio::test]
async fn the_number_of_a_removed_pack_is_not_used_again() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, _) = ten(&dir, &medium).await;
    assert_eq!(sweep(&store, 0, &HashSet::new()).await.unwrap(), Removal::Removed);
    kill(store).await;
    let store = dir.open_on(&medium).await.unwrap();
    assert!(medium.numbers().is_empty() && store.problems().is_empty());
    store.put(chunks(0..1, 10)).await.unwrap();
    assert_eq!(medium.numbers(), [1]);
}

#[tokio::test]
async fn moving_may_take_the_space_that_puts_must_leave() {
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let (store, records) = ten(&dir, &medium).await;
    medium.set_available(Some(0));
    assert!(matches!(store.put(chunks(20..21, 10)).await, Err(StoreError::NoSpace { .. })));
    assert_eq!(sweep(&store, 0, &ids(&records[..2])).await.unwrap(), Removal::Removed);
    assert_all_there(&store, &records[..2]).await;
}

#[tokio::test]
async fn a_damaged_record_is_reported_and_not_moved() {
    let dir = Dir::new();
    let store = dir.open().await;
    let records = chunks(0..4, 900);
    store.put(records.clone()).await.unwrap();
    store.settle().await.unwrap();
    let listed = store.pack_records(0).await.unwrap();
    let mut bytes = fs::read(dir.pack(0)).unwrap();
    bytes[listed[1].location.offset as usize + 200] ^= 1;
    fs::write(dir.pack(0), bytes).unwrap();
    let moved = store.move_records(0, listed.clone()).await.unwrap();
    assert!(matches!(moved.damaged[..], [StoreError::Damaged { pack: 0, .. }]));
    assert_eq!(store.retire(0, &listed, |_| true).await.unwrap(), Removal::InUse);
    for (place, record) in records.iter().enumerate() {
        assert_eq!(store.get(record.id).await.is_ok(), place != 1);
    }
}

/// Every operation of a sweep fails once, alone or with all that follow, or is the last before a power failure: what
/// is needed stays readable, nobody is told that something is there which is not, and the next sweep frees the rest.
#[tokio::test]
async fn whichever_operation_fails_nothing_needed_is_lost() {
    let mut random = seeded();
    let run = async |medium: &Arc<MemoryMedium>, store: &Store, kept: &HashSet<[u8; 32]>| {
        let first = medium.operations();
        for pack in store.sealed_packs().await.unwrap() {
            if let Err(error) = sweep(store, pack.number, kept).await {
                assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
            }
        }
        medium.operations() - first
    };
    let prepare = async |dir: &Dir, medium: &Arc<MemoryMedium>| {
        let (store, mut records) = ten(dir, medium).await;
        records.extend(chunks(10..20, 700));
        store.put(records.clone()).await.unwrap();
        store.settle().await.unwrap();
        (store, records)
    };
    let operations = {
        let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
        let (store, records) = prepare(&dir, &medium).await;
        run(&medium, &store, &ids(&records[7..14])).await
    };
    assert!(operations >= 9, "{operations}");
    for (failing, lasting) in (1..=operations).flat_map(|failing| [(failing, false), (failing, true)]) {
        let (dir, mut medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
        let (mut store, records) = prepare(&dir, &medium).await;
        let kept = &records[7..14];
        let first = medium.operations() + failing;
        medium.fail(first..if lasting { u64::MAX } else { first + 1 });
        run(&medium, &store, &ids(kept)).await;
        assert_all_there(&store, kept).await;
        medium.fail(0..0);
        if failing % 2 == 0 {
            kill(store).await;
            medium = medium.crash(&mut random);
            if random.random_bool(0.3) {
                dir.remove_index();
            }
            store = dir.open_on(&medium).await.unwrap();
        }
        assert_all_there(&store, kept).await;
        let all: Vec<[u8; 32]> = records.iter().map(|record| record.id).collect();
        let told = store.contains(all.clone()).await.unwrap();
        for (told, found) in told.into_iter().zip(store.get_many(all).await.unwrap()) {
            assert_eq!(told, found.is_some_and(|read| read.is_ok()));
        }
        assert_eq!(store.settle().await.unwrap(), 0);
        run(&medium, &store, &ids(kept)).await;
        assert_all_there(&store, kept).await;
        assert_eq!(store.stats().chunks, kept.len() as u64, "operation {failing}");
        // A failed sync and a torn write leave bytes to pass over, but nothing that is missed.
        let missed = |problem: &Problem| matches!(problem, Problem::Pack(_) | Problem::PackHeader { .. });
        assert!(!store.problems().iter().any(missed), "{:?}", store.problems());
        kill(store).await;
        // And after all that the power fails.
        let store = dir.open_on(&medium.crash(&mut random)).await.unwrap();
        assert_all_there(&store, kept).await;
        kill(store).await;
    }
}
