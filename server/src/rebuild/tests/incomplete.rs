//! Generations of which something is not in the packs.

use std::fs;

use tempfile::TempDir;
use thinbak_proto::ChunkId;
use uuid::Uuid;

use super::super::{Damage, Rebuilt, rebuild_catalogue};
use crate::{
    ingest::tests::client::{CHUNK, Place, content},
    store::{Kind, NewRecord},
};

const A: Uuid = Uuid::from_u128(0xa);
const B: Uuid = Uuid::from_u128(0xb);

/// Three generations of A, the last one with a chunk that lies alone in pack 1, and one of B. As far as packs tell,
/// the last one may be the work of a commit that died.
async fn packs() -> TempDir {
    let world = Place::new().await;
    let first = world.back_up_chunk((A, "h/p/a"), (0, 1), None).await.unwrap();
    let second = world.back_up_chunk((A, "h/p/a"), (9, 2), Some(&first)).await.unwrap();
    let world = Place::open(world.close().await).await;
    let plain = content(3, CHUNK as usize);
    let (id, plain_len) = (*ChunkId::of(&plain).as_bytes(), plain.len() as u32);
    let chunk =
        NewRecord { kind: Kind::Chunk, id, codec: 0, plain_len, stored: plain.into(), stored_hash: None };
    world.repository.store.put(vec![chunk]).await.unwrap();
    let world = Place::open(world.close().await).await;
    world.back_up_chunk((A, "h/p/a"), (200, 3), Some(&second)).await.unwrap();
    world.back_up_chunk((B, "h/p/b"), (0, 4), None).await.unwrap();
    world.close().await
}

fn lose_pack_1(dir: &TempDir) {
    fs::remove_file(dir.path().join("packs/00000/00000001.pack")).unwrap();
}

fn forget_packs(dir: &TempDir) {
    fs::remove_dir_all(dir.path().join("index")).unwrap();
}

fn said(rebuilt: &Rebuilt) -> Vec<String> {
    rebuilt.damage.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn a_commit_that_died_and_was_partly_collected_is_left_out_and_named() {
    let dir = packs().await;
    lose_pack_1(&dir);
    // A collection removes a pack from the index, too.
    forget_packs(&dir);
    for _ in 0..2 {
        let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
        assert_eq!((rebuilt.generations, rebuilt.added, rebuilt.damaged), (3, 3, 1), "{rebuilt:?}");
        let is_named = |damage: &Damage| matches!(damage, Damage::Unborn { volume, number: 3, chunks: 1 } if volume == "h/p/a");
        assert!(is_named(&rebuilt.damage[0]), "{rebuilt:?}");
    }
    let world = Place::open(dir).await;
    let expected = [("h/p/a", 1), ("h/p/a", 2), ("h/p/b", 1)];
    assert_eq!(world.visible().await, expected.map(|(name, number)| (name.to_owned(), number)));
    assert_eq!(world.back_up_chunk((A, "h/p/a"), (1, 3), None).await.unwrap().number, 4);
}

#[tokio::test]
async fn what_lacks_something_because_a_pack_is_lost_is_kept_and_named() {
    let dir = packs().await;
    lose_pack_1(&dir);
    // The index knows of the pack.
    let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
    let lost = "h/p/a:3 was kept although 1 of its chunks cannot be had";
    assert_eq!(said(&rebuilt), ["pack 00000001 is missing", lost]);
    assert_eq!((rebuilt.generations, rebuilt.damaged), (4, 2), "{rebuilt:?}");
}

#[tokio::test]
async fn what_lacks_something_is_kept_when_others_lack_it_too() {
    let dir = packs().await;
    let world = Place::open(dir).await;
    let third =
        world.repository.catalogue.generation(A, crate::catalogue::Selector::Number(3)).await.unwrap();
    let third = third.unwrap().generation;
    world.back_up_chunk((A, "h/p/a"), (0, 5), Some(&third)).await.unwrap();
    let dir = world.close().await;
    lose_pack_1(&dir);
    forget_packs(&dir);
    let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
    let lost = |number| format!("h/p/a:{number} was kept although 1 of its chunks cannot be had");
    assert_eq!(said(&rebuilt), [lost(3), lost(4)]);
    assert_eq!((rebuilt.generations, rebuilt.damaged), (5, 2), "{rebuilt:?}");
}

#[tokio::test]
async fn a_map_node_that_is_damaged_does_not_make_its_generation_one_that_never_was() {
    let dir = packs().await;
    // Not the root: that is named as such.
    let world = Place::open(dir).await;
    let store = &world.repository.store;
    let nodes: Vec<_> = store.records(Kind::MapNode).unwrap().map(|record| record.unwrap().id).collect();
    let generation = world.repository.catalogue.generation(A, crate::catalogue::Selector::Number(3)).await;
    let root: Vec<u8> = generation.unwrap().unwrap().generation.root.into();
    let places = store.locate(nodes.clone()).await.unwrap();
    let leaf = nodes.iter().zip(&places).filter(|(id, place)| {
        // What generation 3 has anew lies in pack 2, and so does B: the first one there is of generation 3.
        place.is_some_and(|place| place.pack == 2) && id.as_slice() != root
    });
    let offset = leaf.map(|(_, place)| place.unwrap().offset).min().unwrap();
    let dir = world.close().await;
    let pack = dir.path().join("packs/00000/00000002.pack");
    let mut bytes = fs::read(&pack).unwrap();
    bytes[offset as usize + 104] ^= 1;
    fs::write(&pack, bytes).unwrap();
    forget_packs(&dir);
    let rebuilt = rebuild_catalogue(dir.path()).await.unwrap();
    assert_eq!((rebuilt.generations, rebuilt.damaged), (4, 1), "{rebuilt:?}");
    assert_eq!(said(&rebuilt), ["h/p/a:3 was kept although 128 of its chunks cannot be had"]);
}
