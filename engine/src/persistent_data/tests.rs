use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::btree::{self, Uncounted, delete_tree};
use super::{DataSpaceMap, MetadataStore, RangeSet};
use crate::MemoryDevice;
use crate::format::{BlockSize, DataBlock, DeviceDetails, MappedBlock, MetadataBlock, Superblock};

fn seeded() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

struct Bed {
    device: Arc<MemoryDevice>,
    store: MetadataStore,
    data: DataSpaceMap,
    superblock: Superblock,
}

impl Bed {
    fn new(metadata_blocks: u64, data_blocks: u64) -> Self {
        let device = Arc::new(MemoryDevice::new(metadata_blocks * 4096));
        let mut store = MetadataStore::format(device.clone(), metadata_blocks).unwrap();
        let mut data = DataSpaceMap::format(&mut store).unwrap();
        data.extend(&mut store, data_blocks).unwrap();
        let superblock = Superblock {
            mapping_root: btree::empty::<MetadataBlock>(&mut store).unwrap(),
            details_root: btree::empty::<DeviceDetails>(&mut store).unwrap(),
            ..Superblock::blank(BlockSize::from_bytes(65_536).unwrap(), metadata_blocks)
        };
        let mut bed = Self { device, store, data, superblock };
        bed.commit();
        bed
    }

    fn commit(&mut self) {
        self.superblock.data_space_map = self.data.settle(&mut self.store).unwrap();
        let transaction = self.store.seal_transaction(&mut self.superblock).unwrap();
        self.data.seal();
        transaction.write().unwrap();
        self.store.finish_commit(transaction);
        self.data.committed();
    }

    fn map(&mut self, root: &mut MetadataBlock, key: u64) {
        let block = self.data.find_free(&self.store).unwrap().unwrap();
        self.data.inc(&mut self.store, block).unwrap();
        self.data.release(block.0, block.0 + 1);
        let value = MappedBlock { data_block: block, time: 0 };
        let (new_root, old) = btree::insert(&mut self.store, &mut self.data, *root, key, &value).unwrap();
        *root = new_root;
        if let Some(old) = old {
            self.data.dec(&mut self.store, old.data_block).unwrap();
        }
    }

    fn unmap(&mut self, root: &mut MetadataBlock, key: u64) -> bool {
        let (new_root, old) =
            btree::remove::<MappedBlock, _>(&mut self.store, &mut self.data, *root, key).unwrap();
        *root = new_root;
        if let Some(old) = old {
            self.data.dec(&mut self.store, old.data_block).unwrap();
        }
        old.is_some()
    }

    fn keys(&self, root: MetadataBlock) -> Vec<u64> {
        let mut keys = Vec::new();
        btree::walk::<MappedBlock>(&self.store, root, 0..=u64::MAX, |key, _| {
            keys.push(key);
            ControlFlow::Continue(())
        })
        .unwrap();
        keys
    }

    /// Every node holds a third of what it can, all leaves are on one level, and keys are in their bounds. The height.
    fn verify_shape(&self, block: MetadataBlock, bounds: (u64, u64), is_root: bool) -> usize {
        let node = self.store.node::<MappedBlock>(block).unwrap();
        assert!(is_root || node.len() >= node.capacity() / 3, "{} entries in block {block}", node.len());
        assert!(node.keys().all(|key| (bounds.0..=bounds.1).contains(&key)));
        if node.is_leaf() {
            return 1;
        }
        assert!(node.len() >= 2 || is_root);
        let children: Vec<_> = node.children().collect();
        let heights: Vec<_> = (0..children.len())
            .map(|entry| {
                let end = children.get(entry + 1).map_or(bounds.1, |(key, _)| key - 1);
                self.verify_shape(children[entry].1, (children[entry].0, end), false)
            })
            .collect();
        assert!(heights.iter().all(|height| *height == heights[0]));
        heights[0] + 1
    }
}

#[test]
fn a_hundred_thousand_random_mappings_come_and_go() {
    let mut rng = seeded();
    let mut bed = Bed::new(8192, 120_000);
    let mut root = btree::empty::<MappedBlock>(&mut bed.store).unwrap();
    let mut model = BTreeMap::new();
    for step in 0..100_000 {
        let key = rng.random_range(0..1 << 40);
        bed.map(&mut root, key);
        model.insert(key, ());
        if step % 20_000 == 7 {
            bed.commit();
            bed.verify_shape(root, (0, u64::MAX), true);
        }
    }
    assert_eq!(bed.verify_shape(root, (0, u64::MAX), true), 3);
    assert!(bed.keys(root).iter().eq(model.keys()));
    let mut keys: Vec<u64> = model.keys().copied().collect();
    for step in 0..99_000 {
        let key = keys.swap_remove(rng.random_range(0..keys.len()));
        assert!(bed.unmap(&mut root, key));
        assert!(!bed.unmap(&mut root, key));
        model.remove(&key);
        if step % 10_000 == 3 {
            bed.commit();
            bed.verify_shape(root, (0, u64::MAX), true);
        }
    }
    bed.verify_shape(root, (0, u64::MAX), true);
    assert!(bed.keys(root).iter().eq(model.keys()));
    assert_eq!(bed.data.nr_allocated(), 1_000);
    delete_tree::<MappedBlock, _>(&mut bed.store, &mut bed.data, root).unwrap();
    assert_eq!(bed.data.nr_allocated(), 0);
    bed.commit();
    bed.commit();
    // All that is left is what an empty pool of this size has: superblock, index, two bitmaps for 120000 blocks and more.
    let fresh = Bed::new(8192, 120_000);
    assert_eq!(bed.store.nr_free(), fresh.store.nr_free());
}

#[test]
fn ranges_are_removed_as_single_keys_are() {
    let mut rng = seeded();
    let mut bed = Bed::new(4096, 40_000);
    let mut root = btree::empty::<MappedBlock>(&mut bed.store).unwrap();
    let mut model: BTreeMap<u64, ()> = BTreeMap::new();
    for key in 0..20_000 {
        bed.map(&mut root, key);
        model.insert(key, ());
    }
    while model.len() > 10 {
        let begin = rng.random_range(0..20_000);
        let mut from = begin;
        let end = begin + rng.random_range(0..1500);
        loop {
            let (new_root, removed) =
                btree::remove_run::<MappedBlock, _>(&mut bed.store, &mut bed.data, root, from, end).unwrap();
            root = new_root;
            let Some(&(last, _)) = removed.last() else { break };
            removed.iter().for_each(|(_, value)| bed.data.dec(&mut bed.store, value.data_block).unwrap());
            from = last + 1;
        }
        model.retain(|key, ()| !(begin..=end).contains(key));
        bed.verify_shape(root, (0, u64::MAX), true);
        assert!(bed.keys(root).iter().eq(model.keys()));
        assert_eq!(bed.data.nr_allocated(), model.len() as u64);
    }
}

#[test]
fn counts_go_up_and_down_through_the_overflow_tree() {
    let mut bed = Bed::new(1024, 100);
    let many = |bed: &Bed| {
        let root = bed.superblock.data_space_map.ref_count_root;
        btree::lookup::<u32>(&bed.store, root, 42).unwrap()
    };
    for (expected, up) in
        [(1, true), (2, true), (3, true), (4, true), (3, false), (2, false), (1, false), (0, false)]
    {
        let block = DataBlock(42);
        match up {
            true => bed.data.inc(&mut bed.store, block).unwrap(),
            false => bed.data.dec(&mut bed.store, block).unwrap(),
        }
        bed.commit();
        assert_eq!(bed.data.count(&bed.store, block).unwrap(), expected);
        assert_eq!(many(&bed), (expected >= 3).then_some(expected));
        assert_eq!(bed.data.nr_allocated(), u64::from(expected > 0));
        let again = DataSpaceMap::open(bed.superblock.data_space_map);
        let store = MetadataStore::open(bed.device.clone(), &bed.superblock).unwrap();
        assert_eq!(again.count(&store, block).unwrap(), expected);
    }
    assert!(bed.data.dec(&mut bed.store, DataBlock(42)).is_err());
    assert!(bed.data.inc(&mut bed.store, DataBlock(100)).is_err());
}

#[test]
fn metadata_counts_go_through_the_overflow_tree_too() {
    let mut rng = seeded();
    let mut bed = Bed::new(20_000, 100);
    let blocks: Vec<_> = (0..400).map(|_| btree::empty::<u32>(&mut bed.store).unwrap()).collect();
    let mut counts = vec![1_u32; blocks.len()];
    for step in 0..20_000 {
        let which = rng.random_range(0..blocks.len());
        if counts[which] > 1 && rng.random_bool(0.48) {
            bed.store.dec(blocks[which]).unwrap();
            counts[which] -= 1;
        } else {
            bed.store.inc(blocks[which]).unwrap();
            counts[which] += 1;
        }
        if step % 1000 == 0 {
            bed.commit();
        }
    }
    bed.commit();
    let store = MetadataStore::open(bed.device.clone(), &bed.superblock).unwrap();
    for (block, count) in blocks.iter().zip(&counts) {
        assert_eq!(store.count(*block).unwrap(), *count);
    }
}

#[test]
fn what_a_transaction_freed_is_not_given_out_before_the_commit() {
    let mut bed = Bed::new(64, 3);
    let mut root = btree::empty::<MappedBlock>(&mut bed.store).unwrap();
    (0..3).for_each(|key| bed.map(&mut root, key));
    bed.commit();
    assert!(bed.unmap(&mut root, 1));
    assert_eq!(bed.data.find_free(&bed.store).unwrap(), None);
    bed.commit();
    assert_eq!(bed.data.find_free(&bed.store).unwrap(), Some(DataBlock(1)));
    assert_eq!(bed.data.find_free(&bed.store).unwrap(), None, "it is held");
    bed.data.release(1, 2);
    assert_eq!(bed.data.find_free(&bed.store).unwrap(), Some(DataBlock(1)));

    let freed = root;
    delete_tree::<MappedBlock, _>(&mut bed.store, &mut bed.data, root).unwrap();
    let mut taken = Vec::new();
    while let Ok(block) = bed.store.allocate() {
        taken.push(block);
    }
    assert!(taken.len() > 30);
    assert!(!taken.contains(&freed));
}

#[test]
fn a_transaction_larger_than_memory_is_written_early_and_commits() {
    let mut bed = Bed::new(20_000, 100);
    let mut root = btree::empty::<DeviceDetails>(&mut bed.store).unwrap();
    for number in 0..600_000_u64 {
        let key = number.wrapping_mul(0x9E37_79B9) % (1 << 32);
        let value = DeviceDetails { mapped_blocks: key, ..DeviceDetails::default() };
        root = btree::insert(&mut bed.store, &mut Uncounted, root, key, &value).unwrap().0;
    }
    assert!(bed.store.new_blocks() > 4096);
    bed.commit();
    let store = MetadataStore::open(bed.device.clone(), &bed.superblock).unwrap();
    let mut count = 0;
    btree::walk::<DeviceDetails>(&store, root, 0..=u64::MAX, |key, value| {
        assert_eq!(key, value.mapped_blocks);
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(count, 600_000);
}

#[test]
fn range_sets_join_and_split() {
    let mut set = RangeSet::default();
    set.insert(5, 10);
    set.insert(10, 12);
    set.insert(1, 2);
    set.insert(3, 4);
    assert_eq!(set.iter().collect::<Vec<_>>(), [(1, 2), (3, 4), (5, 12)]);
    set.remove(6, 8);
    set.remove(0, 2);
    set.insert(4, 4);
    assert_eq!(set.iter().collect::<Vec<_>>(), [(3, 4), (5, 6), (8, 12)]);
    assert_eq!(
        (set.end_of(7), set.end_of(8), set.end_of(11), set.end_of(12)),
        (None, Some(12), Some(12), None)
    );
    set.insert(2, 9);
    assert_eq!(set.iter().collect::<Vec<_>>(), [(2, 12)]);
}
