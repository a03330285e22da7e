//! Changes between random pairs of trees, against a comparison of the maps that they were made of; and what it costs.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use rand::{Rng, rngs::StdRng};
use thinbak_engine::{
    BlockDevice, MetadataBlock, Roots, VirtualBlock,
    metadata_view::{
        Change, ChangeKind, DeltaKind, DeltaRun, LeafCache, MappingRun, MetadataView, ViewError,
    },
};

use crate::{
    random,
    trees::{Counted, Cut, Forest, Mappings},
};

fn naive(old: &Mappings, new: &Mappings) -> Vec<Change> {
    let mut runs: Vec<Change> = Vec::new();
    let mut keys: Vec<u64> = old.keys().chain(new.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let kind = match (old.get(&key), new.get(&key)) {
            (Some(old), Some(new)) if old.0 == new.0 => continue,
            (_, Some(_)) => ChangeKind::Changed,
            _ => ChangeKind::Unmapped,
        };
        match runs.last_mut() {
            Some(run) if run.kind == kind && run.begin.0 + run.length == key => run.length += 1,
            _ => runs.push(Change { begin: VirtualBlock(key), length: 1, kind }),
        }
    }
    runs
}

fn changes(view: &MetadataView, old: Option<MetadataBlock>, new: MetadataBlock) -> Vec<Change> {
    view.changes(old, new).collect::<Result<_, _>>().unwrap()
}

/// What the runs say of each block: key, old data block, new data block.
fn blocks(runs: &[DeltaRun]) -> Vec<(u64, Option<u64>, Option<u64>)> {
    let mut blocks = Vec::new();
    for run in runs {
        for index in 0..run.length {
            let (left, right) = match run.kind {
                DeltaKind::Same { data_begin } => (Some(data_begin), Some(data_begin)),
                DeltaKind::Different { left_data_begin, right_data_begin } => {
                    (Some(left_data_begin), Some(right_data_begin))
                }
                DeltaKind::LeftOnly { data_begin } => (Some(data_begin), None),
                DeltaKind::RightOnly { data_begin } => (None, Some(data_begin)),
            };
            let at = |begin: thinbak_engine::DataBlock| begin.0 + index;
            blocks.push((run.begin.0 + index, left.map(at), right.map(at)));
        }
    }
    blocks
}

fn random_mappings(random: &mut StdRng) -> Mappings {
    let keys = random.random_range(1..6_000);
    let count = if random.random_bool(0.1) { 0 } else { random.random_range(0..1_500) };
    let mut mappings = Mappings::new();
    while mappings.len() < count.min(keys as usize * 3 / 4) {
        let begin = random.random_range(0..keys);
        let data = random.random_range(0..10_000);
        for index in 0..random.random_range(1..30) {
            mappings.insert(begin + index, (data + index, 0));
        }
    }
    mappings
}

fn mutate(random: &mut StdRng, mappings: &Mappings) -> Mappings {
    let mut changed = mappings.clone();
    let end = mappings.last_key_value().map_or(100, |(key, _)| key + 50);
    for _ in 0..random.random_range(0..40) {
        let begin = random.random_range(0..end);
        let longest = [2, 20, 300][random.random_range(0..3)];
        let length = random.random_range(1..longest);
        match random.random_range(0..4) {
            0 => changed.retain(|key, _| !(begin..begin + length).contains(key)),
            1 => {
                // A new time is no change.
                for (_, mapped) in changed.range_mut(begin..begin + length) {
                    mapped.1 = 1;
                }
            }
            _ => {
                let data = random.random_range(0..10_000);
                changed.extend((0..length).map(|index| (begin + index, (data + index, 1))));
            }
        }
    }
    changed
}

fn random_cut(random: &mut StdRng) -> Cut {
    match random.random_range(0..3) {
        0 => Cut::Every(random.random_range(2..252)),
        _ => Cut::Hash { one_in: random.random_range(3..60), salt: random.random_range(0..2) },
    }
}

#[test]
fn random_pairs_of_trees_differ_as_their_maps_do() {
    let mut random = random();
    for round in 0..400 {
        let mut forest = Forest::new(1 << 14);
        forest.loose_keys = random.random();
        let old = random_mappings(&mut random);
        let new =
            if random.random_bool(0.1) { random_mappings(&mut random) } else { mutate(&mut random, &old) };
        let cut = random_cut(&mut random);
        let old_root = forest.add(&old, cut);
        let new_cut = if random.random_bool(0.2) { random_cut(&mut random) } else { cut };
        let new_root = forest.add(&new, new_cut);
        let (view, _) = forest.view();
        let what = format!("round {round}, {cut:?}, {new_cut:?}");
        assert_eq!(changes(&view, Some(old_root), new_root), naive(&old, &new), "{what}");
        assert_eq!(changes(&view, Some(new_root), old_root), naive(&new, &old), "{what}, backwards");
        assert_eq!(changes(&view, None, new_root), naive(&Mappings::new(), &new), "{what}, all");
        let delta: Vec<DeltaRun> = view.delta(old_root, new_root).collect::<Result<_, _>>().unwrap();
        let mut keys: Vec<u64> = old.keys().chain(new.keys()).copied().collect();
        keys.sort_unstable();
        keys.dedup();
        let data = |mappings: &Mappings, key: &u64| mappings.get(key).map(|mapped| mapped.0);
        let expected: Vec<_> = keys.iter().map(|key| (*key, data(&old, key), data(&new, key))).collect();
        assert_eq!(blocks(&delta), expected, "{what}, delta");
        let is_same = |run: &DeltaRun| matches!(run.kind, DeltaKind::Same { .. });
        let differing: Vec<DeltaRun> = delta.into_iter().filter(|run| !is_same(run)).collect();
        let found: Vec<DeltaRun> = view.differences(old_root, new_root).collect::<Result<_, _>>().unwrap();
        assert_eq!(found, differing, "{what}, differences");
        let cache = LeafCache::default();
        for attempt in ["read", "kept"] {
            let runs = view.mapping_runs(new_root, &cache).map(Result::unwrap);
            let mapped = runs.flat_map(|MappingRun { first, length }| {
                (0..length).map(move |at| (first.virtual_block.0 + at, (first.data_block.0 + at, first.time)))
            });
            assert_eq!(mapped.collect::<Mappings>(), new, "{what}, runs of mappings, {attempt}");
        }
        let mapped = view.mappings(new_root, VirtualBlock(0)).map(Result::unwrap);
        let mapped: Mappings = mapped.map(|at| (at.virtual_block.0, (at.data_block.0, at.time))).collect();
        assert_eq!(mapped, new, "{what}, mappings");
    }
}

fn large() -> Mappings {
    (0..300_000).map(|key| (key * 2, (key * 3 % 1_000_003, 0))).collect()
}

#[test]
fn a_walk_reads_what_changed_and_little_more() {
    let mut random = random();
    let mut forest = Forest::new(1 << 13);
    let old = large();
    let cut = Cut::Hash { one_in: 100, salt: 1 };
    let old_root = forest.add(&old, cut);
    for changed in [0_u64, 1, 10, 100] {
        let mut new = old.clone();
        for _ in 0..changed {
            new.insert(random.random_range(0..600_000), (2_000_000, 1));
        }
        let new_root = forest.add(&new, cut);
        let (view, counted) = forest.view();
        assert_eq!(changes(&view, Some(old_root), new_root), naive(&old, &new));
        // Of both trees a path for each change, and of each the leftmost path; up to 3 unwanted blocks between wanted ones.
        let nodes = counted.blocks_read();
        let bound = if changed == 0 { 0 } else { (changed * 2 * 4 + 2 * 4) * 2 };
        assert!(nodes <= bound, "{nodes} blocks read for {changed} changes, at most {bound} are due");
    }
}

#[test]
fn equal_roots_are_not_even_read() {
    let mut forest = Forest::new(1 << 13);
    let root = forest.add(&large(), Cut::Every(250));
    let (view, counted) = forest.view();
    assert!(changes(&view, Some(root), root).is_empty());
    assert_eq!(counted.requests.load(Ordering::Relaxed), 0);
}

#[test]
fn batches_read_neighbours_together() {
    let mut forest = Forest::new(1 << 13);
    let new_root = forest.add(&large(), Cut::Every(250));
    let (view, counted) = forest.view();
    assert_eq!(changes(&view, None, new_root).len(), 300_000);
    let (requests, read) =
        (counted.requests.load(Ordering::Relaxed), counted.blocks.lock().unwrap().len() as u64);
    assert!(read >= 1_205, "{read} blocks read");
    assert!(counted.blocks_read() <= read * 2, "{} blocks read for {read}", counted.blocks_read());
    println!("{requests} requests for {read} blocks");
}

#[test]
fn leaves_that_trees_share_are_read_once() {
    let mut forest = Forest::new(1 << 13);
    let cut = Cut::Hash { one_in: 100, salt: 1 };
    let mut mappings = large();
    let old_root = forest.add(&mappings, cut);
    mappings.insert(5, (7, 1));
    let new_root = forest.add(&mappings, cut);
    let (view, counted) = forest.view();
    let cache = LeafCache::default();
    let old = view.mapping_runs(old_root, &cache).map(Result::unwrap).count();
    let once = counted.blocks_read();
    counted.reset();
    let new = view.mapping_runs(new_root, &cache).map(Result::unwrap).count();
    assert_eq!(new, old + 1);
    let again = counted.blocks_read();
    assert!(again * 20 < once, "{again} blocks read again, {once} before");
}

#[test]
fn many_scattered_leaves_are_read_in_the_order_of_the_disk() {
    let mut forest = Forest::new(1 << 15);
    let old: Mappings = (0..200_000).map(|key| (key, (key / 7 * 1_009 % 1_000_003, 0))).collect();
    let mut new = old.clone();
    new.extend((0..200_000).step_by(11).map(|key| (key, (2_000_000 + key, 1))));
    new.retain(|key, _| key % 1_000 != 3);
    let (old_root, new_root) = (forest.add(&old, Cut::Every(14)), forest.add(&new, Cut::Every(14)));
    let leaves = 2 * 200_000 / 14;
    let (view, counted) = forest.view();
    let few = || {
        let requests = counted.requests.swap(0, Ordering::Relaxed);
        assert!(requests * 3 < leaves, "{requests} requests for {leaves} leaves");
    };
    assert_eq!(changes(&view, Some(old_root), new_root), naive(&old, &new));
    few();
    let delta: Vec<DeltaRun> = view.delta(old_root, new_root).collect::<Result<_, _>>().unwrap();
    assert_eq!(blocks(&delta).len(), old.len());
    few();
    let mapped = view.mappings(new_root, VirtualBlock(0)).map(Result::unwrap);
    let mapped: Mappings = mapped.map(|at| (at.virtual_block.0, (at.data_block.0, at.time))).collect();
    assert_eq!(mapped, new);
    few();
}

/// Reads that cover a certain block fail.
struct Unreadable {
    device: Arc<Counted>,
    block: u64,
}

impl BlockDevice for Unreadable {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if (offset..offset + buf.len() as u64).contains(&(self.block * 4096)) {
            return Err(io::Error::other("a bad sector"));
        }
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn resize(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_block_that_cannot_be_read_ends_the_walk_only_if_it_is_wanted() {
    let mut forest = Forest::new(1 << 12);
    let mappings = large();
    let root = forest.add(&mappings, Cut::Every(250));
    let (_, counted) = forest.view();
    let mut outcomes = [0, 0];
    for block in (1..1 << 12).step_by(101) {
        let device = Arc::new(Unreadable { device: Arc::clone(&counted), block });
        let view = MetadataView::open(device, Roots::Live).unwrap();
        let walked: Vec<_> = view.mappings(root, VirtualBlock(0)).collect();
        match walked.last() {
            Some(Err(error)) => {
                let named = format!("metadata block {block}");
                assert!(error.to_string().contains(&named), "{error} should name {named}");
                outcomes[1] += 1;
            }
            _ => {
                assert_eq!(walked.len(), mappings.len());
                outcomes[0] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 5), "{outcomes:?}");
}

#[test]
fn damage_ends_the_walk_with_the_block() {
    let mut forest = Forest::new(1 << 13);
    let root = forest.add(&large(), Cut::Every(250));
    let (view, _) = forest.view();
    let beyond = MetadataBlock((1 << 13) + 1);
    let found: Vec<_> = view.changes(Some(beyond), root).collect();
    assert_eq!(found.len(), 1);
    let error = found.into_iter().next().unwrap().unwrap_err();
    assert!(matches!(error, ViewError::Metadata(_)), "{error}");
    assert!(error.to_string().contains(&beyond.to_string()), "{error}");
}
