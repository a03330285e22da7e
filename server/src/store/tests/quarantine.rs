//! Damaged records count as not stored until they are stored anew.

use super::{
    format::{PACK_HEADER_LEN, RECORD_HEADER_LEN},
    *,
};

/// Flips a byte in the content of the record number 0 of pack 0.
fn damage(dir: &Dir) {
    let mut bytes = fs::read(dir.pack(0)).unwrap();
    bytes[PACK_HEADER_LEN + RECORD_HEADER_LEN + 3] ^= 0x20;
    fs::write(dir.pack(0), bytes).unwrap();
}

async fn open_knowing(dir: &Dir, known: Vec<Quarantined>) -> Store {
    let path = dir.path().to_owned();
    let open = move || Store::open_in(&path, REPOSITORY, &Environment::system(), &known).unwrap();
    spawn_blocking(open).await.unwrap()
}

#[tokio::test]
async fn a_record_found_damaged_is_stored_anew_and_stays_so_when_the_index_is_lost() {
    let (dir, records) = (Dir::new(), chunks(0..3, 100));
    let store = dir.open().await;
    store.put(records.clone()).await.unwrap();
    store.close().await;
    damage(&dir);

    let store = dir.open().await;
    let id = records[0].id;
    assert!(store.contains(vec![id]).await.unwrap()[0], "nobody knows yet");
    assert!(!store.any_damage());
    store.get(id).await.unwrap_err();
    assert!(!store.contains(vec![id]).await.unwrap()[0]);
    assert!(store.any_damage());
    let outcome = store.put(records.clone()).await.unwrap();
    assert_eq!((outcome.new_records, outcome.healed_plain_bytes), (1, 100));
    assert!(!store.any_damage());
    assert_all_there(&store, &records).await;
    assert_eq!(store.put(records.clone()).await.unwrap().new_records, 0);
    let changes = store.quarantine_changes();
    let place = RecordPlace { pack: 0, offset: PACK_HEADER_LEN as u32 };
    assert!(matches!(&changes[..], [Change::Found(found), Change::Healed(healed)]
        if found.place == place && found.id == id && *healed == place));
    store.close().await;

    for healed in [false, true] {
        dir.remove_index();
        let store = open_knowing(&dir, vec![Quarantined { place, healed }]).await;
        assert_all_there(&store, &records).await;
        store.close().await;
    }
}

#[tokio::test]
async fn a_damaged_record_that_is_nowhere_else_is_named_and_not_missed() {
    let (dir, records) = (Dir::new(), chunks(0..3, 100));
    let store = dir.open().await;
    store.put(records.clone()).await.unwrap();
    store.close().await;
    damage(&dir);
    dir.remove_index();
    let place = RecordPlace { pack: 0, offset: PACK_HEADER_LEN as u32 };
    let store = open_knowing(&dir, vec![Quarantined { place, healed: false }]).await;
    assert!(!store.contains(vec![records[0].id]).await.unwrap()[0]);
    assert!(matches!(store.get(records[0].id).await, Err(StoreError::Damaged { .. })));
    assert_all_there(&store, &records[1..]).await;
    store.close().await;
}

/// The damaged place is the higher one here: a pack that is read into the index later must not win.
#[tokio::test]
async fn a_damaged_copy_in_a_later_pack_never_takes_the_place_of_a_good_one() {
    let (dir, records) = (Dir::new(), chunks(0..3, 100));
    let store = dir.open().await;
    store.put(records.clone()).await.unwrap();
    let location = store.locate(vec![records[0].id]).await.unwrap()[0].unwrap();
    let reason = "a test".to_owned();
    store.quarantine(DamagedRecord { place: location.place(), id: records[0].id, kind: Kind::Chunk, reason });
    store.close().await;
    let store = open_knowing(&dir, vec![Quarantined { place: location.place(), healed: false }]).await;
    store.put(records.clone()).await.unwrap();
    let copy = store.locate(vec![records[0].id]).await.unwrap()[0].unwrap();
    assert_eq!((location.pack, copy.pack), (0, 1));
    store.close().await;
    dir.remove_index();
    let store = open_knowing(&dir, vec![Quarantined { place: copy.place(), healed: false }]).await;
    assert_eq!(store.locate(vec![records[0].id]).await.unwrap()[0].unwrap().place(), location.place());
    assert_all_there(&store, &records).await;
    store.close().await;
}

#[tokio::test]
async fn a_false_alarm_is_lifted() {
    let (dir, records) = (Dir::new(), chunks(0..1, 100));
    let store = dir.open().await;
    store.put(records.clone()).await.unwrap();
    let place = store.locate(vec![records[0].id]).await.unwrap()[0].unwrap().place();
    let reason = "a test".to_owned();
    store.quarantine(DamagedRecord { place, id: records[0].id, kind: Kind::Chunk, reason });
    assert!(!store.contains(vec![records[0].id]).await.unwrap()[0]);
    assert!(store.lift_quarantine(place));
    assert!(store.contains(vec![records[0].id]).await.unwrap()[0] && !store.any_damage());
    store.close().await;
}
