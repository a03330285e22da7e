//! Damage, deaths half-way, and what must not come back.

use std::{fs, path::Path};

use thinbak_proto::{ManifestId, v1};
use uuid::Uuid;

use super::{
    super::{Damage, rebuild_catalogue, restore_catalogue},
    world::{key, rows},
};
use crate::{
    Environment, Repository,
    catalogue::{CATALOGUE_NAME, DRAFT_NAME, Selector},
    ingest::tests::client::{Place, copy_of},
    manifest::{Manifest, Tombstone},
    retention::forget_expired,
    store::{Kind, NewRecord},
};

const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);

fn packs(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut packs: Vec<_> =
        fs::read_dir(dir.join("packs/00000")).unwrap().map(|entry| entry.unwrap().path()).collect();
    packs.sort();
    packs
}

async fn state(world: &Place, volume: Uuid, number: u64) -> Option<v1::Generation> {
    let found = world.repository.catalogue.generation(volume, Selector::Number(number)).await.unwrap();
    found.map(|entry| entry.generation)
}

#[tokio::test]
async fn a_generation_without_its_root_is_named_and_left_out() {
    // Each repository run writes a pack of its own.
    let world = Place::new().await;
    world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let world = Place::open(world.close().await).await;
    let two = world.back_up_chunk((A, "h/p/a"), (1, 2), None).await.unwrap();
    // The manifest of the second one moves on to a third pack, as a change of protection writes it.
    let world = Place::open(world.close().await).await;
    world.protect(&two, true).await.unwrap();
    let dir = world.close().await;
    let all = packs(dir.path());
    assert_eq!(all.len(), 3);
    fs::remove_file(&all[1]).unwrap();
    for _ in 0..2 {
        let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
        let named = |damage: &Damage| matches!(damage, Damage::RootMissing { volume, number: 2 } if volume == "h/p/a");
        assert!(rebuilt.damage.iter().any(named), "{rebuilt:?}");
        assert_eq!((rebuilt.generations, rebuilt.manifests), (1, 2));
    }
    let world = Place::open(dir).await;
    assert_eq!(world.visible().await, [("h/p/a".to_owned(), 1)]);
    // Its number is not given again, although nothing of it is left.
    assert_eq!(world.back_up_chunk((A, "h/p/a"), (1, 3), None).await.unwrap().number, 3);
}

#[tokio::test]
async fn a_pack_that_the_index_knew_and_that_is_gone_is_named() {
    let world = Place::new().await;
    world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let world = Place::open(world.close().await).await;
    world.back_up_chunk((B, "h/p/b"), (0, 2), None).await.unwrap();
    let dir = world.close().await;
    fs::remove_file(&packs(dir.path())[0]).unwrap();
    let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!((rebuilt.generations, rebuilt.damaged), (1, 1), "{rebuilt:?}");
    assert_eq!(rebuilt.damage[0].to_string(), "pack 00000000 is missing");
}

#[tokio::test]
async fn deleted_generations_come_back_as_deleted_and_undeleted_ones_alive() {
    let world = Place::new().await;
    let mut made = Vec::new();
    for seed in 1..5 {
        made.push(world.back_up_chunk((A, "h/p/a"), (0, seed), None).await.unwrap());
    }
    for generation in &made[..3] {
        world.delete(generation).await.unwrap();
    }
    // Undeleting is a manifest with a higher revision; here the catalogue never hears of it.
    let later = 1 << 50;
    let (_, record) = Manifest::new(&made[1], later).record();
    world.repository.store.put(vec![record]).await.unwrap();
    // And one of these is deleted again, when it has the higher revision.
    let (_, manifest) = Manifest::new(&made[2], later).record();
    let (tombstone, grave) = Tombstone::new(key(A, 3), later, 77).record();
    world.repository.store.put(vec![grave, manifest]).await.unwrap();
    let dir = world.close().await;
    let copy = copy_of(dir.path());
    for way in 0..2 {
        let rebuilt = match way {
            0 => rebuild_catalogue(dir.path()).await.unwrap(),
            _ => restore_catalogue(dir.path(), &copy.path().join(CATALOGUE_NAME)).await.unwrap(),
        };
        assert_eq!((rebuilt.generations, rebuilt.deleted, rebuilt.damaged), (2, 2, 0), "{rebuilt:?}");
        assert_eq!((rebuilt.manifests, rebuilt.tombstones), (6, 4));
        let all = rows(dir.path()).await;
        let third = all.iter().find(|row| row.contains(" number=3 ")).unwrap();
        let quoted: String = tombstone.as_bytes().iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(third.contains(&quoted), "{third}");
    }
    let world = Place::open(dir).await;
    assert_eq!(world.visible().await, [("h/p/a".to_owned(), 2), ("h/p/a".to_owned(), 4)]);
}

/// The server died between tombstone and catalogue, and the generation was there as before.
#[tokio::test]
async fn the_grace_of_a_deletion_that_nobody_saw_begins_with_the_rebuild() {
    let world = Place::new().await;
    let generation = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    world.back_up_chunk((A, "h/p/a"), (0, 2), None).await.unwrap();
    let copy = world.repository.back_up_catalogue(1).await.unwrap();
    let (_, grave) = Tombstone::new(key(A, 1), 5, 77).record();
    world.repository.store.put(vec![grave]).await.unwrap();
    let mut dir = world.close().await;
    for way in 0..2 {
        let before = now_ms();
        let rebuilt = match way {
            0 => rebuild_catalogue(dir.path()).await.unwrap(),
            _ => restore_catalogue(dir.path(), &copy.path).await.unwrap(),
        };
        assert_eq!((rebuilt.generations, rebuilt.deleted), (1, 1), "{rebuilt:?}");
        let world = Place::open(dir).await;
        let deleted = world.repository.catalogue.deleted(key(A, 1)).await.unwrap().unwrap();
        assert!((before..=now_ms()).contains(&deleted.deleted_at_ms), "{deleted:?}");
        assert_eq!(forget_expired(&world.repository, now_ms(), None).await.unwrap(), 0);
        if way == 1 {
            world.undelete(&generation).await.unwrap();
        }
        dir = world.close().await;
    }
}

fn now_ms() -> u64 {
    Environment::system().clock.now_ms()
}

#[tokio::test]
async fn what_was_deleted_and_collected_stays_away() {
    let world = Place::new().await;
    let gone = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    world.back_up_chunk((A, "h/p/a"), (0, 2), None).await.unwrap();
    let copy = world.repository.back_up_catalogue(1).await.unwrap();
    // The tombstone lies in a later pack than all that it ends.
    let world = Place::open(world.close().await).await;
    world.delete(&gone).await.unwrap();
    world.back_up_chunk((A, "h/p/a"), (0, 3), None).await.unwrap();
    let dir = world.close().await;
    // The collector took all of the first pack, manifests included.
    fs::remove_file(&packs(dir.path())[0]).unwrap();
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let rebuilt = restore_catalogue(dir.path(), &copy.path).await.unwrap();
    assert_eq!((rebuilt.generations, rebuilt.collected, rebuilt.damaged), (1, 2, 0), "{rebuilt:?}");
    let world = Place::open(dir).await;
    assert_eq!(world.visible().await, [("h/p/a".to_owned(), 3)]);
    assert_eq!(world.back_up_chunk((A, "h/p/a"), (0, 4), None).await.unwrap().number, 4);
}

#[tokio::test]
async fn what_was_given_up_stays_away_although_all_of_it_is_there() {
    let world = Place::new().await;
    let gone = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let copy = world.repository.back_up_catalogue(1).await.unwrap();
    world.back_up_chunk((A, "h/p/a"), (0, 2), None).await.unwrap();
    world.delete(&gone).await.unwrap();
    // Its collection has begun: nobody may have it again, and what is missing of it is no damage.
    assert_eq!(world.forget().await, 1);
    let dir = world.close().await;
    let before = rows(dir.path()).await;
    for way in 0..2 {
        let rebuilt = match way {
            0 => rebuild_catalogue(dir.path()).await.unwrap(),
            _ => restore_catalogue(dir.path(), &copy.path).await.unwrap(),
        };
        assert_eq!((rebuilt.generations, rebuilt.deleted, rebuilt.collected), (1, 0, 1), "{rebuilt:?}");
        assert_eq!(rows(dir.path()).await, before);
    }
}

#[tokio::test]
async fn of_two_manifests_with_one_number_the_later_one_counts() {
    let world = Place::new().await;
    let one = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    // A commit that died before the catalogue heard of it, and then the clock was put back.
    let dead = v1::Generation {
        number: 2,
        created_at_ms: one.created_at_ms + 600_000,
        changed_bytes: 7,
        ..one.clone()
    };
    let (_, record) = Manifest::new(&dead, 1).record();
    world.repository.store.put(vec![record]).await.unwrap();
    let alone = copy_of(world.dir.path());
    let two = world.back_up_chunk((A, "h/p/a"), (0, 2), None).await.unwrap();
    let dir = world.close().await;
    rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!(state(&Place::open(dir).await, A, 2).await, Some(two));
    // Alone it is a generation like any other: whole, for the manifest is written last.
    rebuild_catalogue(alone.path()).await.unwrap();
    assert_eq!(state(&Place::open(alone).await, A, 2).await, Some(dead));
}

#[tokio::test]
async fn records_that_no_server_would_write_are_named_and_harm_nobody() {
    let world = Place::new().await;
    let good = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let bad = [
        v1::Generation { volume_uuid: "nobody".into(), ..good.clone() },
        v1::Generation { volume_name: "../../etc/passwd:x".into(), number: 2, ..good.clone() },
        v1::Generation { number: 0, ..good.clone() },
        v1::Generation { number: u64::MAX, ..good.clone() },
        v1::Generation { number: i64::MAX as u64, ..good.clone() },
        v1::Generation { number: 2, size_bytes: 1 << 63, ..good.clone() },
        v1::Generation { number: 2, levels: 9, ..good.clone() },
        v1::Generation { number: 2, chunk_bytes: 3, ..good.clone() },
        v1::Generation { number: 2, root: vec![1; 31].into(), ..good.clone() },
        v1::Generation { number: 2, group: "x'; DROP TABLE volumes; --".into(), ..good.clone() },
        v1::Generation { number: 2, created_at_ms: u64::MAX, ..good.clone() },
    ];
    let mut records: Vec<NewRecord> = bad.iter().map(|bad| Manifest::new(bad, 1).record().1).collect();
    records.push(Tombstone::new(key(A, u64::MAX), 1, 0).record().1);
    records.push(Tombstone::new(key(A, 1), 0, 0).record().1);
    let noise = bytes::Bytes::from_static(b"\xff\xff\xff not a message");
    for (kind, id) in [(Kind::Manifest, *ManifestId::of(&noise).as_bytes()), (Kind::Tombstone, [9; 32])] {
        let (codec, plain_len) = (0, noise.len() as u32);
        records.push(NewRecord { kind, id, codec, plain_len, stored: noise.clone(), stored_hash: None });
    }
    let expected = records.len() as u64;
    world.repository.store.put(records).await.unwrap();
    let dir = world.close().await;
    let before = rows(dir.path()).await;
    let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!((rebuilt.damaged, rebuilt.generations), (expected, 1), "{rebuilt:?}");
    assert_eq!(rows(dir.path()).await, before);
}

#[tokio::test]
async fn a_draft_that_was_left_is_no_catalogue() {
    let world = Place::new().await;
    world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let dir = world.close().await;
    let before = rows(dir.path()).await;
    for left in [DRAFT_NAME, "catalogue.sqlite.draft-wal", "catalogue.sqlite.draft-journal"] {
        fs::write(dir.path().join(left), b"half a draft").unwrap();
    }
    rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!(rows(dir.path()).await, before);
    fs::write(dir.path().join(DRAFT_NAME), b"half a draft").unwrap();
    let dir = Place::open(dir).await.close().await;
    assert!(!dir.path().join(DRAFT_NAME).exists());
    assert_eq!(rows(dir.path()).await, before);
}

#[tokio::test]
async fn a_copy_of_another_repository_or_a_damaged_one_is_refused_and_nothing_is_changed() {
    let world = Place::new().await;
    world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let other = Place::new().await;
    let foreign = other.repository.back_up_catalogue(1).await.unwrap();
    let own = world.repository.back_up_catalogue(1).await.unwrap();
    let dir = world.close().await;
    let before = rows(dir.path()).await;
    let refused = restore_catalogue(dir.path(), &foreign.path).await.unwrap_err();
    assert_eq!(refused.exit_code(), 5, "{refused}");
    assert!(refused.message.contains(&foreign.path.display().to_string()), "{refused}");
    let torn = dir.path().join("torn.sqlite");
    let mut bytes = fs::read(&own.path).unwrap();
    let at = bytes.len() - 100;
    for broken in [vec![0x5a; 9000], bytes.split_off(at), Vec::new()] {
        fs::write(&torn, broken).unwrap();
        let refused = restore_catalogue(dir.path(), &torn).await.unwrap_err();
        assert!(matches!(refused.exit_code(), 4 | 5), "{refused}");
    }
    assert_eq!(rows(dir.path()).await, before);
    // What a person does next, with the file that the error names.
    fs::write(dir.path().join(CATALOGUE_NAME), b"gone").unwrap();
    let failed = thinbak_proto::Failed::from(Repository::open(dir.path()).await.unwrap_err());
    assert_eq!(failed.exit_code(), 4);
    let hint = failed.hint.unwrap();
    assert!(hint.contains(&own.path.display().to_string()) && hint.contains("rebuild-catalogue"), "{hint}");
    restore_catalogue(dir.path(), &own.path).await.unwrap();
    assert_eq!(rows(dir.path()).await, before);
}

#[tokio::test]
async fn copies_are_made_while_backups_run_and_only_the_newest_are_kept() {
    let world = Place::new().await;
    let (repository, mut last) = (&world.repository, None);
    for seed in 0..5 {
        let (made, copied) = tokio::join!(
            world.back_up_chunk((A, "h/p/a"), (seed, seed), None),
            repository.back_up_catalogue(2)
        );
        made.unwrap();
        let copied = copied.unwrap();
        assert!(Some(&copied.path) > last.as_ref());
        last = Some(copied.path);
    }
    let copies = || fs::read_dir(world.dir.path().join("catalogue-backups")).unwrap();
    let names: Vec<_> = copies().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

/// Found by seed 6966493782663703701: a change of protection writes down what the volume is called by then, and
/// with it hid that the generation had once taken its name from another volume.
#[tokio::test]
async fn a_volume_that_lost_its_name_does_not_get_it_back_when_the_other_has_gone_on() {
    let world = Place::new().await;
    world.back_up_chunk((B, "h/p/1"), (0, 1), None).await.unwrap();
    let taken = world.back_up_chunk((A, "h/p/1"), (0, 2), None).await.unwrap();
    world.back_up_chunk((A, "h/p/9"), (0, 3), None).await.unwrap();
    world.protect(&taken, true).await.unwrap();
    let dir = world.close().await;
    let before = rows(dir.path()).await;
    assert!(before.iter().any(|row| row.contains(&format!("h/p/1.{B}"))), "{before:?}");
    rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!(rows(dir.path()).await, before);
}
