//! Metadata with right checksums that contradict themselves. Findings of fuzzing are frozen here.

use rand::Rng;
use rand::rngs::StdRng;

use super::super::history::recording::Recorder;
use super::super::{id, seeded};
use super::{CHANGES, bitmap_place, blocks_in_use, data, image, open, read_all};
use crate::format::{
    Bitmap, BlockKind, DataBlock, MappedBlock, Node, NodeValue, RawBlock, RawCount, Superblock, seal,
};
use crate::{BlockDevice, MemoryDevice, MetadataBlock, Pool, PoolError, VirtualBlock};

/// Found by fuzzing: the space map of metadata called two nodes free that trees have. One was given out again, the other
/// with it, and an assertion failed.
#[test]
fn wrong_counts_of_metadata_blocks_are_no_panic() {
    let mut rng = seeded();
    let [fresh, _] = Recorder::format(256, 420).disks();
    for image in [fresh, image()] {
        wrong_counts(&image, &mut rng);
    }
}

fn wrong_counts(image: &MemoryDevice, rng: &mut StdRng) {
    let place = bitmap_place(image);
    let blocks = blocks_in_use(image);
    for trial in 0..600 {
        let mut bitmap = Bitmap::verify(RawBlock::read(image, place).unwrap()).unwrap();
        let counts = [RawCount::Exact(0), RawCount::Exact(1), RawCount::Exact(2), RawCount::Many];
        for _ in 0..rng.random_range(1..=3) {
            let count = if trial % 2 == 0 { counts[0] } else { counts[rng.random_range(0..4)] };
            bitmap.set(blocks[rng.random_range(0..blocks.len())], count);
        }
        seal(bitmap.bytes_mut(), place, BlockKind::Bitmap);
        let spoilt = image.duplicate();
        spoilt.write_at(place.0 * 4096, bitmap.bytes()).unwrap();
        let pool = open(spoilt.duplicate(), data()).pool.unwrap();
        for _ in 0..6 {
            let (name, change) = CHANGES[rng.random_range(0..CHANGES.len())];
            let done = change(&pool).and_then(|()| if rng.random() { pool.commit() } else { Ok(()) });
            let known = !matches!(done, Err(PoolError::OutOfRange { .. } | PoolError::InvalidMessage(_)));
            assert!(known, "{name}: {done:?}");
            read_all(&pool);
        }
    }
}

/// Nodes whose children are all the same node, three levels of them: each key of the lowest one is met 63,504 times, and with
/// a few more levels for ever. It shows in keys that lie outside of what the parent says.
#[test]
fn a_node_with_many_parents_is_refused_and_not_walked_again_and_again() {
    let image = image();
    let root = open(image.duplicate(), data()).pool.unwrap().device(id(0)).unwrap().unwrap().root;
    let superblock = Superblock::read(&image, MetadataBlock(0)).unwrap();
    let mapped = MappedBlock { data_block: DataBlock(0), time: 0 };
    let pool = with_many_parents(&image, root, &mapped);
    let runs = pool.mapped_runs(id(0), VirtualBlock(0), VirtualBlock(1000), usize::MAX);
    assert!(matches!(runs, Err(PoolError::Metadata(_))), "{} runs", runs.unwrap().len());
    let pool = with_many_parents(&image, superblock.mapping_root, &root);
    let devices = pool.devices();
    assert!(matches!(devices, Err(PoolError::Metadata(_))), "{devices:?}");
}

/// The pool whose tree at `root` is one leaf with one value, and two levels of 252 pointers each above it.
fn with_many_parents<V: NodeValue>(image: &MemoryDevice, root: MetadataBlock, value: &V) -> Pool {
    let image = image.duplicate();
    let put = |mut node: Node, block: MetadataBlock| {
        seal(node.bytes_mut(), block, BlockKind::Node);
        image.write_at(block.0 * 4096, node.bytes()).unwrap();
    };
    let (middle, lowest) = (MetadataBlock(250), MetadataBlock(251));
    let mut leaf = Node::empty_leaf::<V>();
    leaf.insert_entry(0, 0, value).unwrap();
    put(leaf, lowest);
    for (block, child) in [(middle, lowest), (root, middle)] {
        let mut node = Node::empty_internal();
        for entry in 0..node.capacity() {
            node.insert_entry(entry, entry as u64, &child).unwrap();
        }
        put(node, block);
    }
    open(image, data()).pool.unwrap()
}
