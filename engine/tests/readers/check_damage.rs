//! The checker and damaged blocks: each is found wherever it is, is named with what it affects, and hides no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
};

use rand::{Rng, seq::IndexedRandom};
use thinbak_engine::{
    BlockSize, DeviceId, MemoryDevice, MetadataBlock, Pool,
    check::{CheckReport, Damage, check},
    format::BlockKind,
};

use crate::{
    fixture::id,
    image::{Image, Watched},
    random,
};

const DATA_MAP: usize = 64;
const METADATA_MAP: usize = 192;
const MAPPING_ROOT: usize = 320;
/// First value of a node with values of 8 bytes.
const VALUES: usize = 32 + 8 * 252;
/// First value of a leaf of large counts.
const COUNTS: usize = 32 + 8 * 336;
/// Set to look at every byte where otherwise a sample is looked at.
const EVERY_BYTE: &str = "THINBAK_EVERY_BYTE";

fn report_of(device: Watched) -> CheckReport {
    check(Arc::new(device), None).unwrap()
}

fn naming(report: &CheckReport, block: u64) -> Vec<&Damage> {
    let named = |damage: &&Damage| damage.fatal && damage.block == Some(MetadataBlock(block));
    report.damage.iter().filter(named).collect()
}

/// The nodes of a tree whose leaves have values of 8 bytes, with the levels under each.
fn nodes(image: &Image, block: u64, found: &mut BTreeMap<u64, usize>) -> usize {
    let entries = usize::try_from(image.u32_at(block, 16)).unwrap();
    let mut levels = 1;
    if image.u32_at(block, 4) == 1 {
        for entry in 0..entries {
            levels = 1 + nodes(image, image.u64_at(block, VALUES + 8 * entry), found);
        }
    }
    found.insert(block, levels);
    levels
}

/// The mapping trees, by device; the tree of devices is a single leaf.
fn mapping_trees(image: &Image) -> BTreeMap<DeviceId, BTreeMap<u64, usize>> {
    let top = image.u64_at(0, MAPPING_ROOT);
    let entries = usize::try_from(image.u32_at(top, 16)).unwrap();
    (0..entries)
        .map(|entry| {
            let mut found = BTreeMap::new();
            nodes(image, image.u64_at(top, VALUES + 8 * entry), &mut found);
            (id(image.u64_at(top, 32 + 8 * entry)), found)
        })
        .collect()
}

/// One byte wrong anywhere in a block in use: fatal damage, in which the block is named. By default at every 61st byte of
/// each block, with `THINBAK_EVERY_BYTE` set at every one.
#[test]
fn a_wrong_byte_anywhere_is_found_and_its_block_named() {
    let step = if std::env::var_os(EVERY_BYTE).is_some() { 1 } else { 61 };
    for case in ["c-nested-msnap", "h-data"] {
        let blocks = Image::load(case).reachable();
        assert!(blocks.len() > 10);
        let half = blocks.len() / 2;
        thread::scope(|scope| {
            for blocks in [&blocks[..half], &blocks[half..]] {
                scope.spawn(move || {
                    let image = Image::load(case);
                    for &block in blocks {
                        // Each block begins elsewhere.
                        for byte in (usize::try_from(block).unwrap() % step..4096).step_by(step) {
                            let bit = byte * 8 + (byte + byte / 8) % 8;
                            image.flip(block, bit);
                            let report = image.check();
                            assert!(
                                !naming(&report, block).is_empty(),
                                "{case}: byte {byte} of block {block}"
                            );
                            image.flip(block, bit);
                        }
                    }
                    assert!(image.check().is_sound());
                });
            }
        });
    }
}

#[test]
fn a_block_that_cannot_be_read_is_named_and_hides_no_other() {
    let mut random = random();
    let image = Image::load("f-fragmented-1t");
    let blocks = image.reachable();
    let trees = mapping_trees(&image);
    for _ in 0..40 {
        let bad: BTreeSet<u64> = blocks.choose_multiple(&mut random, 3).copied().collect();
        if bad.contains(&0) {
            continue;
        }
        let device = Watched::new(Arc::clone(&image.device));
        bad.iter().for_each(|block| device.fail(*block, u32::MAX));
        let report = report_of(device);
        let named: BTreeSet<u64> = report
            .damage
            .iter()
            .filter(|damage| damage.description.contains("bad sector"))
            .map(|damage| damage.block.unwrap().0)
            .collect();
        assert!(named.is_subset(&bad), "{bad:?} {:#?}", report.damage);
        // Only what is under a bad node is not seen.
        let is_leaf = |block: &&u64| trees.values().any(|tree| tree.get(block) == Some(&1));
        let seen: BTreeSet<u64> = bad.iter().filter(is_leaf).copied().collect();
        if seen == bad {
            assert_eq!(named, bad, "{:#?}", report.damage);
        }
        assert!(!named.is_empty());
    }
}

#[test]
fn free_blocks_that_cannot_be_read_are_no_damage() {
    let image = Image::load("f-fragmented-1t");
    let used: BTreeSet<u64> = image.reachable().into_iter().collect();
    let end = used.last().unwrap() + 300;
    let device = Watched::new(Arc::clone(&image.device));
    (0..end).filter(|block| !used.contains(block)).for_each(|block| device.fail(block, u32::MAX));
    assert_eq!(report_of(device).damage, []);
}

/// A node that the scan could not read, and all under it, is left to what comes after.
#[test]
fn a_node_that_can_be_read_the_second_time_is_no_damage() {
    for (case, step) in [("c-nested-msnap", 1), ("f-fragmented-1t", 13)] {
        let image = Image::load(case);
        let sound = image.check();
        let mut blocks = image.reachable();
        blocks.retain(|block| image.kind(*block) == Some(BlockKind::Node));
        let top = image.u64_at(0, MAPPING_ROOT);
        for &block in blocks.iter().step_by(step).chain([&top]) {
            let device = Watched::new(Arc::clone(&image.device));
            device.fail(block, 1);
            assert_eq!(report_of(device), sound, "{case}: block {block}");
        }
    }
}

#[test]
fn damage_in_a_shared_node_is_named_for_each_device() {
    let image = Image::load("f-fragmented-1t");
    let trees = mapping_trees(&image);
    let shares = |block: u64| -> Vec<DeviceId> {
        trees.iter().filter(|(_, tree)| tree.contains_key(&block)).map(|(device, _)| *device).collect()
    };
    let mut checked = BTreeSet::new();
    for (&block, &levels) in trees.values().flatten() {
        let devices = shares(block);
        if devices.len() < 2 || !checked.insert((levels, devices.clone())) {
            continue;
        }
        image.flip(block, 999);
        let report = image.check();
        image.flip(block, 999);
        let named: BTreeSet<DeviceId> =
            report.damage.iter().filter(|damage| damage.fatal).filter_map(|damage| damage.device).collect();
        assert_eq!(named, devices.iter().copied().collect(), "{:#?}", report.damage);
        assert_eq!(naming(&report, block)[0].invariant, "F3");
        assert!(naming(&report, block)[0].keys.is_some());
    }
    assert!(checked.len() > 1, "{checked:?}");
}

#[test]
fn a_tree_of_uneven_depth_is_found() {
    let image = Image::load("f-fragmented-1t");
    let trees = mapping_trees(&image);
    let (device, root) = trees
        .iter()
        .filter_map(|(device, tree)| {
            tree.iter().max_by_key(|(_, levels)| **levels).map(|(root, _)| (*device, *root))
        })
        .find(|(device, root)| trees[device][root] > 2)
        .unwrap();
    let child = image.u64_at(root, VALUES + 8);
    let first = image.u64_at(root, 32 + 8);
    let grandchild = image.u64_at(child, VALUES);
    image.put_u64(root, VALUES + 8, grandchild);
    let report = image.check();
    let damage = naming(&report, grandchild);
    assert_eq!(damage[0].invariant, "F5", "{:#?}", report.damage);
    assert_eq!(damage[0].device, Some(device));
    assert_eq!(damage[0].keys.unwrap().0, first);
}

#[test]
fn the_report_does_not_depend_on_how_the_threads_run() {
    let mut random = random();
    let image = Image::load("f-fragmented-1t");
    let blocks = image.reachable();
    for _ in 0..4 {
        let damaged = Image { device: Arc::new(image.device.duplicate()) };
        for _ in 0..random.random_range(1..30) {
            let block = *blocks.choose(&mut random).unwrap();
            let offset = random.random_range(4..4096);
            if block != 0 && random.random() {
                damaged.flip(block, offset * 8);
            } else if block != 0 && damaged.kind(block).is_some() {
                let value: u8 = random.random();
                damaged.edit(block, |bytes| bytes[offset] = value);
            }
        }
        let report = damaged.check();
        for _ in 0..15 {
            assert_eq!(damaged.check(), report);
        }
    }
}

/// A pool in which 261 devices share a mapping tree, and 261 others data blocks but no node.
fn much_shared() -> Image {
    const BLOCK: u64 = 65_536;
    let metadata = Arc::new(MemoryDevice::new(4096 * 4096));
    let data = Arc::new(MemoryDevice::new(1_024 * BLOCK));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
    for (origin, is_written) in [(0, false), (1_000, true)] {
        pool.create_thin(id(origin)).unwrap();
        (0..3).for_each(|block| pool.write(id(origin), block * BLOCK, &[1; 512]).unwrap());
        for snapshot in origin + 1..=origin + 260 {
            pool.create_snap(id(snapshot), id(origin)).unwrap();
            if is_written {
                pool.write(id(snapshot), 0, &[2; 512]).unwrap();
            }
        }
    }
    pool.commit().unwrap();
    Image { device: metadata }
}

#[test]
fn recorded_large_counts_that_are_wrong_are_found() {
    let image = much_shared();
    assert_eq!(image.check().damage, []);
    for (map, invariant) in [(DATA_MAP, "F9"), (METADATA_MAP, "F10")] {
        let leaf = image.u64_at(0, map + 24);
        let last = usize::try_from(image.u32_at(leaf, 16)).unwrap() - 1;
        let (key, value) = (32 + 8 * last, COUNTS + 4 * last);
        let block = image.u64_at(leaf, key);
        let count = image.u32_at(leaf, value);
        assert_eq!(count, 261);
        for (wrong, invariant) in
            [(260, invariant), (262, invariant), (255, invariant), (3, invariant), (2, "F11"), (0, "F11")]
        {
            image.put_u32(leaf, value, wrong);
            let report = image.check();
            let found = report.damage.iter().find(|damage| damage.keys == Some((block, block))).unwrap();
            assert_eq!(found.invariant, invariant, "{:#?}", report.damage);
        }
        image.put_u32(leaf, value, count);
        // As if it were the next block's, which by its bits has no large count.
        image.put_u64(leaf, key, block + 1);
        let report = image.check();
        let wrong = report.damage.iter().filter(|damage| damage.invariant == "F11");
        let keys: Vec<_> = wrong.map(|damage| damage.keys).collect();
        assert_eq!(keys, [Some((block, block)), Some((block + 1, block + 1))]);
        image.put_u64(leaf, key, block);
    }
    assert!(image.check().is_sound());
}

/// Bitmaps of which every entry stands for a block, which are compared as a whole.
#[test]
fn what_is_wrong_in_a_full_bitmap_is_found() {
    let image = Image::load("f-fragmented-1t");
    let mut index = image.u64_at(0, DATA_MAP + 16);
    while image.u32_at(index, 4) == 1 {
        index = image.u64_at(index, VALUES);
    }
    let first_entry = 32 + 8 * 168;
    let bitmap = image.u64_at(index, first_entry);
    let free = image.u32_at(index, first_entry + 8);
    for wrong in [free + 1, free.wrapping_sub(1)] {
        image.put_u32(index, first_entry + 8, wrong);
        let report = image.check();
        assert_eq!(naming(&report, bitmap)[0].invariant, "F12", "{:#?}", report.damage);
    }
    image.put_u32(index, first_entry + 8, free);
    for block in [0_u32, 9_000, 16_319] {
        let (byte, shift) = (16 + usize::try_from(block / 4).unwrap(), block % 4 * 2);
        let right = image.block(bitmap)[byte];
        let count_bits = right >> shift & 3;
        for (wrong, invariant) in [(if count_bits == 2 { 1 } else { 2 }, "F9"), (3, "F11")] {
            image.edit(bitmap, |bytes| bytes[byte] ^= (count_bits ^ wrong) << shift);
            let report = image.check();
            let is_there = |damage: &&Damage| damage.keys == Some((block.into(), block.into()));
            let found = report.damage.iter().find(is_there).unwrap();
            assert_eq!(found.invariant, invariant, "block {block}: {:#?}", report.damage);
            image.edit(bitmap, |bytes| bytes[byte] = right);
        }
    }
    assert_eq!(image.check().damage, []);
}

/// A small device, a superblock that speaks of the largest pool that could be, and mappings all over it.
#[test]
fn sizes_that_cannot_be_are_reported_and_not_believed() {
    let image = Image::load("b-seq-64k");
    let leaf = image.u64_at(image.u64_at(0, MAPPING_ROOT), VALUES);
    image.edit(leaf, |bytes| {
        for (far, value) in (1_u64..).zip(bytes[VALUES..VALUES + 8 * 200].chunks_mut(8)) {
            value.copy_from_slice(&(far << (24 + 32)).to_le_bytes());
        }
    });
    for blocks in [1 << 40, u64::MAX] {
        image.put_u64(0, DATA_MAP, blocks);
        image.put_u64(0, METADATA_MAP, blocks);
        let report = image.check();
        let found: BTreeSet<&str> = report.damage.iter().map(|damage| damage.invariant).collect();
        assert!(found.is_superset(&BTreeSet::from(["F2", "F12"])), "{:#?}", report.damage);
    }
}
