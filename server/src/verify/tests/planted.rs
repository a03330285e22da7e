//! Records that are whole, and yet are not what they should be: somebody else wrote them into the pack.

use bytes::Bytes;
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD, ChunkId, MapEntry, MapNode, NodeId};

use super::*;
use crate::store::{Kind, NewRecord};

fn planted(kind: Kind, id: [u8; 32], codec: u32, plain_len: u32, stored: Vec<u8>) -> NewRecord {
    NewRecord {
        kind,
        id,
        codec: u8::try_from(codec).unwrap(),
        plain_len,
        stored: Bytes::from(stored),
        stored_hash: None,
    }
}

/// A repository where one volume's only leaf names the chunk `id`, whose record is as given.
async fn with_chunk(record: NewRecord) -> (tempfile::TempDir, Arc<Repository>) {
    let mut leaf = MapNode::new(0);
    leaf.slots_mut()[5] = MapEntry::Id(record.id);
    with_tree(vec![record], leaf).await
}

/// A repository with a generation of 100 chunks whose root is `root`.
async fn with_tree(records: Vec<NewRecord>, root: MapNode) -> (tempfile::TempDir, Arc<Repository>) {
    let dir = tempfile::tempdir().unwrap();
    Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK }).await.unwrap();
    let repository = Repository::open(dir.path()).await.unwrap();
    let sound = back_up(&repository, None, Uuid::new_v4(), 100 * u64::from(CHUNK), &[(1, 1)]).await;
    let encoded = root.encode();
    let id = NodeId::of(&encoded);
    let len = u32::try_from(encoded.len()).unwrap();
    repository.store.put(records).await.unwrap();
    repository
        .store
        .put(vec![planted(Kind::MapNode, *id.as_bytes(), CODEC_PLAIN, len, encoded)])
        .await
        .unwrap();
    let volume_uuid = Uuid::new_v4().to_string();
    let generation = v1::Generation {
        volume_uuid,
        volume_name: "h/p/planted".into(),
        root: id.to_bytes(),
        number: 1,
        ..sound
    };
    let (manifest, record) = crate::manifest::Manifest::new(&generation, 1).record();
    repository.store.put(vec![record]).await.unwrap();
    repository.catalogue.add_generation(&generation, manifest, false).await.unwrap();
    (dir, repository)
}

async fn expect(record: NewRecord, reason: &str) {
    let (_dir, repository) = with_chunk(record.clone()).await;
    let found = verify(&repository, everything()).await;
    assert_eq!(found.places, BTreeMap::from([(1, vec![5])]), "{reason}: {found:?}");
    assert!(found.reasons[0].contains(reason), "{reason}: {found:?}");
    // It counts as not stored from now on.
    if found.summary.damaged_records > 0 {
        assert_eq!(found.records[0].id, record.id.as_slice());
        assert_eq!(repository.store.contains(vec![record.id]).await.unwrap(), [false]);
    }
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_inflate_too_far_or_to_something_else_are_named() {
    let plain = content(5, CHUNK as usize);
    let id = *ChunkId::of(&plain).as_bytes();
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    expect(planted(Kind::Chunk, id, CODEC_ZSTD, CHUNK, bomb), "cannot be decompressed").await;
    let packed = zstd::bulk::compress(&plain, 1).unwrap();
    expect(planted(Kind::Chunk, id, CODEC_ZSTD, CHUNK, packed[..packed.len() / 2].to_vec()), "decompressed")
        .await;
    expect(planted(Kind::Chunk, id, CODEC_ZSTD, CHUNK - 1, packed.clone()), "").await;
    expect(planted(Kind::Chunk, id, CODEC_ZSTD, 1 << 20, packed), "1048576 bytes are announced").await;
    expect(planted(Kind::Chunk, id, 9, CHUNK, plain.clone()), "codec 9").await;
    expect(planted(Kind::Chunk, id, CODEC_PLAIN, CHUNK, content(6, CHUNK as usize)), "has the id").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_of_another_length_is_named_where_it_lies() {
    let plain = content(5, 512);
    let id = *ChunkId::of(&plain).as_bytes();
    expect(planted(Kind::Chunk, id, CODEC_PLAIN, 512, plain), "has 512 bytes, not 4096").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_kind_or_none_at_all_is_lost() {
    let plain = content(5, CHUNK as usize);
    let id = *ChunkId::of(&plain).as_bytes();
    let mut leaf = MapNode::new(0);
    leaf.slots_mut()[5] = MapEntry::Id(id);
    let (_dir, repository) = with_tree(vec![], leaf).await;
    let found = verify(&repository, everything()).await;
    assert_eq!(found.places, BTreeMap::from([(1, vec![5])]));
    assert!(found.reasons[0].contains("not in the repository"), "{found:?}");
    assert_eq!((found.records.len(), found.records[0].pack), (1, None));
    repository.close().await;
}

/// A cycle would need a node that holds its own hash; what can be made is a node of a level that has no place there.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_wrong_level_is_named_with_all_that_is_under_it() {
    let mut root = MapNode::new(1);
    root.slots_mut()[0] = MapEntry::Zero;
    let (_dir, repository) = with_tree(vec![], root).await;
    let found = verify(&repository, everything()).await;
    assert_eq!(found.places, BTreeMap::from([(1, (0..100).collect())]));
    assert!(found.reasons[0].contains("is of level 1, not 0"), "{found:?}");
    repository.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_no_node_is_named() {
    for bytes in [vec![7; 40], vec![], vec![0xff; 4000]] {
        let id = *NodeId::of(&bytes).as_bytes();
        let len = u32::try_from(bytes.len()).unwrap();
        let (_dir, repository) =
            with_tree(vec![planted(Kind::MapNode, id, CODEC_PLAIN, len, bytes)], MapNode::new(0)).await;
        let found = verify(&repository, everything()).await;
        assert_eq!((found.records.len(), found.places.len()), (1, 0), "{found:?}");
        repository.close().await;
    }
}
