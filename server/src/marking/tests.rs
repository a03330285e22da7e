//! Marking on a real store.

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use thinbak_proto::CODEC_PLAIN;
use uuid::Uuid;

use super::*;
use crate::{
    map_tree::{Edit, Editor, FreshNode},
    store::NewRecord,
};

const CHUNKS: u64 = 40_000;

fn open(dir: &std::path::Path) -> Store {
    Store::init(dir, Uuid::from_u128(7)).unwrap()
}

fn chunk(number: u64) -> NewRecord {
    let stored = Bytes::from(number.to_le_bytes().to_vec());
    let id = *ChunkId::of(&stored).as_bytes();
    NewRecord { kind: Kind::Chunk, id, codec: CODEC_PLAIN as u8, plain_len: 8, stored, stored_hash: None }
}

fn node(node: FreshNode) -> NewRecord {
    let plain_len = u32::try_from(node.encoded.len()).unwrap();
    let (id, stored) = (*node.id.as_bytes(), node.encoded.into());
    NewRecord { kind: Kind::MapNode, id, codec: CODEC_PLAIN as u8, plain_len, stored, stored_hash: None }
}

/// Changes some chunks of a tree, and stores what is new.
async fn change(store: &Store, parent: Option<Tree>, random: &mut StdRng, content: &[u64]) -> Tree {
    let mut editor = Editor::new(store.clone(), parent, CHUNKS).await.unwrap();
    let mut places: Vec<u64> = (0..50).map(|_| random.random_range(0..CHUNKS)).collect();
    places.sort_unstable();
    places.dedup();
    for place in places {
        let new = chunk(*content.choose(random).unwrap());
        let edit = Edit::Chunk(ChunkId::from_bytes(new.id));
        store.put(vec![new]).await.unwrap();
        editor.apply(place, edit).await.unwrap();
    }
    let (root, fresh) = editor.finish().await.unwrap();
    store.put(fresh.into_iter().map(node).collect()).await.unwrap();
    Tree { root, chunks: CHUNKS }
}

/// Every record that a tree needs, found one by one.
async fn naive(store: &Store, tree: Tree, needed: &mut HashSet<[u8; 32]>) {
    let mut pending = vec![tree.root];
    while let Some(id) = pending.pop() {
        needed.insert(*id.as_bytes());
        let record = store.get(*id.as_bytes()).await.unwrap().unwrap();
        let found = MapNode::decode(&record.stored).unwrap();
        match found.level() {
            0 => needed.extend(found.slots().iter().filter_map(MapEntry::chunk).map(|id| *id.as_bytes())),
            _ => pending.extend(found.slots().iter().filter_map(MapEntry::node)),
        }
    }
}

#[tokio::test]
async fn what_trees_need_is_marked_and_nothing_else() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content: Vec<u64> = (0..200).collect();
    let mut trees = vec![change(&store, None, &mut random, &content).await];
    for _ in 0..8 {
        trees.push(change(&store, trees.last().copied(), &mut random, &content).await);
    }
    let (kept, dropped): (Vec<_>, Vec<_>) = trees.into_iter().partition(|_| random.random_bool(0.5));
    let (mut needed, mut all) = (HashSet::new(), HashSet::new());
    let mut marker = Marker::new(store.clone());
    for tree in kept {
        naive(&store, tree, &mut needed).await;
        marker.tree(tree).await.unwrap();
    }
    for tree in dropped {
        naive(&store, tree, &mut all).await;
    }
    all.extend(&needed);
    let nodes = marker.nodes_read();
    let (marks, lost) = marker.finish();
    assert!(lost.is_empty());
    let mut marked_nodes = 0;
    for id in all {
        let location = store.locate(vec![id]).await.unwrap()[0].unwrap();
        let marked = marks.contains(location.pack, location.ordinal);
        assert_eq!(marked, needed.contains(&id));
        marked_nodes += u64::from(marked && location.kind == Kind::MapNode);
    }
    assert_eq!(nodes, marked_nodes, "each node is read once");
    assert_eq!(marks.packs().map(|pack| marks.count(pack)).sum::<u64>(), needed.len() as u64);
}

#[tokio::test]
async fn what_is_not_stored_is_named_and_the_rest_is_marked() {
    let mut random = StdRng::seed_from_u64(1);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut editor = Editor::new(store.clone(), None, CHUNKS).await.unwrap();
    let (there, lost_chunk) = (chunk(1), chunk(2));
    store.put(vec![there.clone()]).await.unwrap();
    editor.apply(3, Edit::Chunk(ChunkId::from_bytes(there.id))).await.unwrap();
    editor.apply(4, Edit::Chunk(ChunkId::from_bytes(lost_chunk.id))).await.unwrap();
    let place = random.random_range(CHUNKS / 2..CHUNKS);
    editor.apply(place, Edit::Chunk(ChunkId::from_bytes(there.id))).await.unwrap();
    let (root, fresh) = editor.finish().await.unwrap();
    let mut records: Vec<NewRecord> = fresh.into_iter().map(node).collect();
    let lost_node = records
        .iter()
        .position(|record| {
            let found = MapNode::decode(&record.stored).unwrap();
            found.level() == 0 && found.slots().iter().filter_map(MapEntry::chunk).count() == 1
        })
        .map(|at| records.swap_remove(at))
        .unwrap();
    store.put(records).await.unwrap();
    let mut marker = Marker::new(store.clone());
    marker.tree(Tree { root, chunks: CHUNKS }).await.unwrap();
    let (marks, lost) = marker.finish();
    assert_eq!(lost.chunks, HashSet::from([ChunkId::from_bytes(lost_chunk.id)]));
    assert_eq!(lost.nodes, HashSet::from([NodeId::from_bytes(lost_node.id)]));
    let location = store.locate(vec![there.id]).await.unwrap()[0].unwrap();
    assert!(marks.contains(location.pack, location.ordinal));
}
