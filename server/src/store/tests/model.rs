//! A store against a `HashMap`, over kills, power failures, clean closes and lost indexes.

use std::collections::HashMap;

use rand::{Rng as _, seq::IndexedRandom as _};

use super::{memory_medium::MemoryMedium, *};

#[tokio::test]
async fn a_store_behaves_as_a_map_over_kills_and_crashes() {
    let mut random = seeded();
    let dir = Dir::new();
    let mut medium = Arc::new(MemoryMedium::default());
    let mut store = dir.open_on(&medium).await.unwrap();
    let mut model: HashMap<[u8; 32], NewRecord> = HashMap::new();
    for step in 0..150 {
        match random.random_range(0..20) {
            0..12 => {
                let records: Vec<_> = (0..random.random_range(0..20))
                    .map(|_| {
                        let kind = *Kind::ALL.choose(&mut random).unwrap();
                        let number = random.random_range(0..400u64);
                        record(kind, number, usize::try_from(number * 37 % 3000).unwrap())
                    })
                    .collect();
                let before = model.len();
                model.extend(
                    records
                        .iter()
                        .map(|record| (record.id, record.clone()))
                        .filter(|(id, _)| !model.contains_key(id))
                        .collect::<Vec<_>>(),
                );
                let outcome = store.put(records).await.unwrap();
                assert_eq!(outcome.new_records, (model.len() - before) as u64, "step {step}");
            }
            12..16 => check(&store, &model, &mut random).await,
            16 => {
                store.close().await;
                store = dir.open_on(&medium).await.unwrap();
            }
            17 => {
                kill(store).await;
                dir.remove_index();
                store = dir.open_on(&medium).await.unwrap();
            }
            18 => {
                kill(store).await;
                store = dir.open_on(&medium).await.unwrap();
            }
            _ => {
                kill(store).await;
                medium = medium.crash(&mut random);
                store = dir.open_on(&medium).await.unwrap();
            }
        }
    }
    check(&store, &model, &mut random).await;
    let mut listed = HashMap::new();
    for kind in Kind::ALL {
        for found in store.records(kind).unwrap() {
            let found = found.unwrap();
            assert_eq!(found.kind, kind);
            listed.insert(found.id, found);
        }
    }
    assert_eq!(listed.len(), model.len());
    assert!(model.values().all(|record| is_same(record, &listed[&record.id])));
}

async fn check(store: &Store, model: &HashMap<[u8; 32], NewRecord>, random: &mut StdRng) {
    let mut ids: Vec<[u8; 32]> = model.keys().copied().collect();
    ids.push(random.random());
    ids.extend(ids.first().copied());
    let found = store.get_many(ids.clone()).await.unwrap();
    let contained = store.contains(ids.clone()).await.unwrap();
    for ((id, found), contained) in ids.iter().zip(found).zip(contained) {
        assert_eq!(model.contains_key(id), contained);
        match (model.get(id), found) {
            (None, None) => {}
            (Some(expected), Some(Ok(found))) => assert!(is_same(expected, &found)),
            (expected, found) => panic!("{expected:?} became {found:?}"),
        }
    }
}

/// A power failure while an unfinished pack is being completed, and again, and again.
#[tokio::test]
async fn a_crash_during_recovery_is_recovered_from() {
    let mut random = seeded();
    let records = chunks(0..6, 800);
    for _ in 0..20 {
        let dir = Dir::new();
        let mut medium = Arc::new(MemoryMedium::default());
        let store = dir.open_on(&medium).await.unwrap();
        store.put(records.clone()).await.unwrap();
        kill(store).await;
        for failing in 1..=4 {
            medium = medium.crash(&mut random);
            dir.remove_index();
            medium.fail(failing..u64::MAX);
            let store = dir.open_on(&medium).await.unwrap();
            assert_all_there(&store, &records).await;
            kill(store).await;
        }
        let store = dir.open_on(&medium.crash(&mut random)).await.unwrap();
        assert_all_there(&store, &records).await;
        assert!(store.problems().is_empty());
        kill(store).await;
    }
}
