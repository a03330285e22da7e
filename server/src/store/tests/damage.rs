//! Flipped, cut, swapped and missing packs: detected, contained, named.

use super::{
    format::{FOOTER_LEN, PACK_HEADER_LEN, RECORD_HEADER_LEN},
    index::Location,
    memory_medium::MemoryMedium,
    pack::Pack,
    *,
};

/// A pack with a few records of every kind, sealed or not, and where the records lie.
async fn small_pack(sealed: bool) -> (Vec<u8>, Vec<(NewRecord, Location)>) {
    let records: Vec<_> = [
        (Kind::Chunk, 61),
        (Kind::MapNode, 40),
        (Kind::Manifest, 7),
        (Kind::Chunk, 120),
        (Kind::Tombstone, 16),
    ]
    .into_iter()
    .zip(0..)
    .map(|((kind, len), number)| record(kind, number, len))
    .collect();
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let store = dir.open_on(&medium).await.unwrap();
    for record in &records {
        store.put(vec![record.clone()]).await.unwrap();
    }
    let ids: Vec<_> = records.iter().map(|record| record.id).collect();
    let located = store.inner.shared.index.locate(&ids).unwrap();
    if sealed {
        store.close().await;
    } else {
        kill(store).await;
    }
    (medium.contents(0), records.into_iter().zip(located.into_iter().flatten()).collect())
}

fn open_pack(bytes: Vec<u8>) -> Pack {
    Pack::open(&*MemoryMedium::with_pack(0, bytes), REPOSITORY, 0).unwrap()
}

#[tokio::test]
async fn any_flipped_byte_is_detected_and_costs_at_most_its_record() {
    let (bytes, records) = small_pack(true).await;
    let index_at = usize::try_from(records.last().unwrap().1.end()).unwrap();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            let pack = open_pack(damaged);
            let broken: Vec<_> = records
                .iter()
                .filter(|(record, location)| {
                    !pack.read_record(location, &record.id).is_ok_and(|found| is_same(record, &found))
                })
                .map(|(_, location)| location)
                .collect();
            let hit = records.iter().map(|(_, location)| location).find(|location| {
                let content = RECORD_HEADER_LEN + location.stored_len as usize;
                (location.offset as usize..location.offset as usize + content).contains(&at)
            });
            // Padding between records is read by nobody.
            assert_eq!(broken, Vec::from_iter(hit), "byte {at} ^ {flip:#x}");
            assert_eq!(pack.header_valid(), at >= PACK_HEADER_LEN);
            assert_eq!(pack.sealed_entries().is_ok(), at < index_at);
            // And without the pack's index the others are found by scanning.
            let scan = pack.scan(index_at as u64).unwrap();
            let expected: Vec<_> = records
                .iter()
                .filter(|(_, location)| Some(location) != hit)
                .map(|(record, _)| record.id)
                .collect();
            assert_eq!(scan.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), expected);
        }
    }
}

/// With the index lost, the files alone give back every record that is not hit.
#[tokio::test]
async fn a_store_with_a_flipped_byte_and_no_index_opens_with_all_other_records() {
    let (bytes, records) = small_pack(true).await;
    for at in (0..bytes.len()).step_by(31) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let dir = Dir::new();
        let store = dir.open_on(&MemoryMedium::with_pack(0, damaged)).await.unwrap();
        for (record, location) in &records {
            let hit = (location.offset as usize..usize::try_from(location.end()).unwrap()).contains(&at);
            match store.get(record.id).await {
                Ok(Some(found)) => assert!(is_same(record, &found)),
                Ok(None) | Err(StoreError::Damaged { .. }) => assert!(hit, "byte {at}"),
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        kill(store).await;
    }
}

#[tokio::test]
async fn an_unfinished_pack_cut_anywhere_keeps_every_whole_record() {
    let (bytes, records) = small_pack(false).await;
    for len in PACK_HEADER_LEN..=bytes.len() {
        let pack = open_pack(bytes[..len].to_vec());
        let scan = pack.scan(len as u64).unwrap();
        let whole: Vec<_> = records
            .iter()
            .filter(|(_, location)| location.end() <= len as u64)
            .map(|(record, _)| record.id)
            .collect();
        assert_eq!(scan.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), whole, "cut at {len}");
        assert!(scan.gaps.is_empty());
    }
    for len in (0..=bytes.len()).step_by(53) {
        let dir = Dir::new();
        let medium = MemoryMedium::with_pack(0, bytes[..len].to_vec());
        let store = dir.open_on(&medium).await.unwrap();
        let whole: Vec<_> = records
            .iter()
            .filter(|(_, location)| location.end() <= len as u64)
            .map(|(record, _)| record.clone())
            .collect();
        assert_all_there(&store, &whole).await;
        assert_eq!(store.stats().packs, u64::from(len > PACK_HEADER_LEN));
        // Completed: the next open finds nothing to do, and more can be stored.
        store.put(chunks(50..52, 300)).await.unwrap();
        store.close().await;
        let operations = medium.operations();
        let store = dir.open_on(&medium).await.unwrap();
        assert_eq!(medium.operations(), operations);
        assert_all_there(&store, &whole).await;
        assert!(store.problems().is_empty());
        kill(store).await;
    }
}

#[tokio::test]
async fn a_record_damaged_in_the_middle_of_an_unfinished_pack_is_passed_over_and_reported() {
    let (mut bytes, records) = small_pack(false).await;
    let (_, hit) = &records[2];
    bytes[hit.offset as usize + 10] ^= 1;
    let dir = Dir::new();
    let medium = MemoryMedium::with_pack(0, bytes.clone());
    let store = dir.open_on(&medium).await.unwrap();
    assert!(matches!(
        store.problems()[..],
        [Problem::Skipped { pack: 0, offset, len }] if offset == u64::from(hit.offset) && offset + len == hit.end()
    ));
    assert!(medium.contents(0).starts_with(&bytes), "nothing is cut out of the middle");
    let others: Vec<_> =
        records.iter().filter(|(_, location)| location != hit).map(|(record, _)| record.clone()).collect();
    assert_all_there(&store, &others).await;
    assert_eq!(store.contains(vec![records[2].0.id]).await.unwrap(), [false]);
    store.put(vec![records[2].0.clone()]).await.unwrap();
    assert_all_there(&store, &[records[2].0.clone()]).await;
    kill(store).await;
}

/// A volume that holds a repository is backed up: its packs' bytes are inside a chunk, and the header in
/// front of that chunk is lost. The scan must not take the records inside for its own.
#[tokio::test]
async fn records_inside_a_chunk_are_never_taken_for_records() {
    let (inner, _) = small_pack(false).await;
    let mut outer = record(Kind::Chunk, 900, 0);
    outer.plain_len = u32::try_from(inner.len()).unwrap();
    outer.stored = Bytes::from(inner);
    let (dir, medium) = (Dir::new(), Arc::new(MemoryMedium::default()));
    let store = dir.open_on(&medium).await.unwrap();
    let after = record(Kind::Chunk, 901, 50);
    store.put(vec![outer, after.clone()]).await.unwrap();
    kill(store).await;
    let mut bytes = medium.contents(0);
    bytes[PACK_HEADER_LEN + 9] ^= 4;
    let found = open_pack(bytes.clone()).scan(bytes.len() as u64).unwrap();
    assert_eq!(found.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [after.id]);
}

/// Three sealed packs of two records each.
async fn three_packs(dir: &Dir) -> Vec<NewRecord> {
    for number in 0..3 {
        let store = dir.open().await;
        store.put(chunks(number * 2..number * 2 + 2, 500)).await.unwrap();
        store.close().await;
    }
    chunks(0..6, 500)
}

/// The records of the packs 0 and 2 are there; those of pack 1 give an error, are not 'contained', and
/// can be stored again.
async fn assert_only_pack_1_is_lost(dir: &Dir, is_expected: impl Fn(&StoreError) -> bool) {
    let records = chunks(0..6, 500);
    let store = dir.open().await;
    assert_all_there(&store, &records[..2]).await;
    assert_all_there(&store, &records[4..]).await;
    for record in &records[2..4] {
        let error = store.get(record.id).await.unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert!(error.to_string().contains("00000001"), "{error}");
    }
    assert!(
        store.problems().iter().any(|problem| matches!(problem, Problem::Pack(error) if is_expected(error))),
        "{:?}",
        store.problems()
    );
    let ids = records.iter().map(|record| record.id).collect();
    assert_eq!(store.contains(ids).await.unwrap(), [true, true, false, false, true, true]);
    assert_eq!(store.put(records.clone()).await.unwrap().new_records, 2);
    assert_all_there(&store, &records).await;
    store.close().await;
}

#[tokio::test]
async fn a_missing_pack_is_named_and_its_records_can_be_stored_again() {
    let dir = Dir::new();
    three_packs(&dir).await;
    fs::remove_file(dir.pack(1)).unwrap();
    assert_only_pack_1_is_lost(&dir, |error| matches!(error, StoreError::PackMissing { pack: 1 })).await;
}

#[tokio::test]
async fn a_truncated_pack_is_named_and_what_is_left_of_it_is_read() {
    let dir = Dir::new();
    let records = three_packs(&dir).await;
    let len = fs::metadata(dir.pack(1)).unwrap().len();
    fs::File::options().write(true).open(dir.pack(1)).unwrap().set_len(len / 3).unwrap();
    let truncated = |error: &StoreError| matches!(error, StoreError::PackTruncated { pack: 1, .. });
    let store = dir.open().await;
    assert!(matches!(&store.problems()[..], [Problem::Pack(error)] if truncated(error)));
    let found = store.get_many(records.iter().map(|record| record.id).collect()).await.unwrap();
    let lost: Vec<_> =
        found.iter().map(|found| found.as_ref().unwrap().as_ref().is_err_and(truncated)).collect();
    assert_eq!(lost, [false, false, true, true, false, false]);
    kill(store).await;
    fs::File::options().write(true).open(dir.pack(1)).unwrap().set_len(10).unwrap();
    assert_only_pack_1_is_lost(&dir, truncated).await;
}

#[tokio::test]
async fn a_pack_in_the_place_of_another_is_named() {
    let dir = Dir::new();
    three_packs(&dir).await;
    fs::copy(dir.pack(0), dir.pack(1)).unwrap();
    let wrong = |error: &StoreError| matches!(error, StoreError::WrongPack { pack: 1, found: 0, .. });
    let store = dir.open().await;
    // Same length: seen at the first read.
    assert!(wrong(&store.get(record(Kind::Chunk, 2, 500).id).await.unwrap_err()));
    assert_eq!(store.contains(vec![record(Kind::Chunk, 2, 500).id]).await.unwrap(), [false]);
    kill(store).await;
    // And while the index is made anew.
    dir.remove_index();
    let store = dir.open().await;
    assert!(matches!(&store.problems()[..], [Problem::Pack(error)] if wrong(error)));
    assert_all_there(&store, &chunks(0..2, 500)).await;
    assert_all_there(&store, &chunks(4..6, 500)).await;
    assert!(store.get(record(Kind::Chunk, 2, 500).id).await.unwrap().is_none());
    kill(store).await;
}

#[tokio::test]
async fn a_pack_of_another_repository_is_named() {
    let (dir, other) = (Dir::new(), Dir::new());
    three_packs(&dir).await;
    let path = other.path().to_owned();
    let store = spawn_blocking(move || Store::open(&path, Uuid::from_u128(5)).unwrap()).await.unwrap();
    store.put(chunks(0..1, 1300)).await.unwrap();
    store.close().await;
    fs::copy(other.pack(0), dir.pack(1)).unwrap();
    let foreign = |error: &StoreError| matches!(error, StoreError::WrongPack { pack: 1, repository, .. } if *repository == Uuid::from_u128(5));
    assert_only_pack_1_is_lost(&dir, foreign).await;
}

#[tokio::test]
async fn a_pack_of_a_newer_format_is_left_alone() {
    let dir = Dir::new();
    three_packs(&dir).await;
    let header =
        layout::PackHeader { version: 2, number: 1, repository: REPOSITORY, created_at_ms: 0 }.encode();
    let mut bytes = fs::read(dir.pack(1)).unwrap();
    bytes[..PACK_HEADER_LEN].copy_from_slice(&header);
    fs::write(dir.pack(1), &bytes).unwrap();
    dir.remove_index();
    let store = dir.open().await;
    assert!(matches!(store.problems()[..], [Problem::Pack(StoreError::NewerPack { pack: 1, version: 2 })]));
    assert_eq!(fs::read(dir.pack(1)).unwrap(), bytes);
    kill(store).await;
}

#[tokio::test]
async fn an_index_that_is_lost_foreign_or_torn_is_made_anew() {
    let dir = Dir::new();
    let records = three_packs(&dir).await;
    let before = dir.open().await.stats();
    let index = dir.path().join(INDEX_DIR);
    let damages: [&dyn Fn(); 4] = [
        &|| fs::remove_dir_all(&index).unwrap(),
        &|| fs::write(dir.path().join(INDEX_REBUILD_MARK), b"").unwrap(),
        &|| overwrite_files(&index),
        &|| {
            fs::remove_dir_all(&index).unwrap();
            let mark = dir.path().join(INDEX_REBUILD_MARK);
            drop(Index::open(index.clone(), mark, Uuid::from_u128(9)).unwrap());
        },
    ];
    for damage in damages {
        damage();
        let store = dir.open().await;
        assert_all_there(&store, &records).await;
        let stats = store.stats();
        assert_eq!(
            (stats.packs, stats.chunks, stats.pack_bytes),
            (before.packs, before.chunks, before.pack_bytes)
        );
        assert!(store.problems().is_empty());
        kill(store).await;
        assert!(!dir.path().join(INDEX_REBUILD_MARK).exists());
    }
}

fn overwrite_files(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            overwrite_files(&path);
        } else {
            let len = fs::metadata(&path).unwrap().len().min(100_000);
            fs::write(&path, vec![0x5a; usize::try_from(len).unwrap()]).unwrap();
        }
    }
}

/// The index as it was some puts ago, as a power failure can leave it since it is never synced.
#[tokio::test]
async fn an_index_that_is_behind_is_brought_up_to_date() {
    let dir = Dir::new();
    let store = dir.open().await;
    store.put(chunks(0..4, 300)).await.unwrap();
    kill(store).await;
    let old = tempfile::tempdir().unwrap();
    let (index, saved) = (dir.path().join(INDEX_DIR), old.path().join("index"));
    copy_dir(&index, &saved);
    let store = dir.open().await;
    store.put(chunks(4..9, 300)).await.unwrap();
    store.close().await;
    let store = dir.open().await;
    store.put(chunks(9..12, 300)).await.unwrap();
    kill(store).await;
    fs::remove_dir_all(&index).unwrap();
    copy_dir(&saved, &index);
    let store = dir.open().await;
    assert_all_there(&store, &chunks(0..12, 300)).await;
    assert_eq!(store.stats().chunks, 12);
    kill(store).await;
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_footer_never_makes_more_memory_be_taken_than_the_file_is_long() {
    let (mut bytes, _) = small_pack(true).await;
    let at = bytes.len() - FOOTER_LEN;
    let footer = layout::Footer {
        number: 0,
        repository: REPOSITORY,
        index_offset: 64,
        entries: u32::MAX,
        index_hash: [0; 32],
        pack_len: bytes.len() as u64,
    };
    bytes[at..].copy_from_slice(&footer.encode());
    assert!(matches!(
        open_pack(bytes).sealed_entries(),
        Err(StoreError::Damaged { reason: DamageReason::Footer, .. })
    ));
}

/// Somebody else's hand, or a copy that is put back, while the store goes on writing.
#[tokio::test]
async fn what_is_put_after_the_pack_being_written_was_taken_away_is_there_when_the_store_is_opened_again() {
    let spoil: [fn(&Path); 4] = [
        |pack| fs::remove_file(pack).unwrap(),
        |pack| fs::OpenOptions::new().write(true).open(pack).unwrap().set_len(250).unwrap(),
        |pack| {
            let bytes = fs::read(pack).unwrap();
            fs::remove_file(pack).unwrap();
            fs::write(pack, bytes).unwrap();
        },
        |pack| fs::rename(pack, pack.with_extension("away")).unwrap(),
    ];
    for spoil in spoil {
        let (dir, before, after) = (Dir::new(), chunks(0..4, 100), chunks(4..7, 100));
        let store = dir.open().await;
        store.put(before.clone()).await.unwrap();
        spoil(&dir.pack(0));
        assert_eq!(store.put(after.clone()).await.unwrap().new_records, 3);
        assert!(store.any_damage() && !store.problems().is_empty());
        // What was in the pack may come again, and goes into the other.
        let outcome = store.put(before.clone()).await.unwrap();
        assert!(outcome.new_records > 0 && outcome.new_plain_bytes == outcome.healed_plain_bytes);
        store.close().await;
        let store = dir.open().await;
        assert_all_there(&store, &after).await;
        assert_all_there(&store, &before).await;
        store.close().await;
    }
}
