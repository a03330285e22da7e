//! Trees of an image: the two mapping trees, which share nodes, and the small ones.

use anyhow::{Context as _, Result};
use thinbak_engine::{
    DataBlock, MetadataBlock,
    format::{MappedBlock, NodeValue, max_entries},
};

use super::{
    DataLayout,
    blocks::{BlockFile, Counts, encode_node},
};

/// Entries that the kernel leaves in a node that is no root: a third of what it has room for.
const LEAST_ENTRIES: u64 = 84;

/// Entries or children of one level, dealt evenly to its nodes.
#[derive(Debug, Clone, Copy)]
struct Level {
    items: u64,
    nodes: u64,
}

impl Level {
    /// The first item of a node; of the node after the last the number of items.
    fn first(&self, node: u64) -> u64 {
        let (even, extra) = (self.items / self.nodes, self.items % self.nodes);
        node * even + node.min(extra)
    }

    fn node_of(&self, item: u64) -> u64 {
        let (even, extra) = (self.items / self.nodes, self.items % self.nodes);
        let in_longer = item / (even + 1);
        if in_longer < extra { in_longer } else { (item - extra) / even }
    }
}

/// The shape of a mapping tree, leaves first.
pub(super) struct Levels(Vec<Level>);

impl Levels {
    pub(super) fn new(blocks: u64, entries_per_node: u64) -> Self {
        let mut levels = Vec::new();
        let mut items = blocks;
        loop {
            let nodes = items.div_ceil(entries_per_node).min((items / LEAST_ENTRIES).max(1));
            levels.push(Level { items, nodes });
            if nodes == 1 {
                return Self(levels);
            }
            items = nodes;
        }
    }

    pub(super) fn nodes(&self) -> u64 {
        self.0.iter().map(|level| level.nodes).sum()
    }

    /// The first key under a node of the level above `below`.
    fn first_key(below: &[Level], node: u64) -> u64 {
        below.iter().rev().fold(node, |node, level| level.first(node))
    }
}

/// The nodes on the way to changed blocks, by level, ascending.
pub(super) struct Copies(Vec<Vec<u64>>);

impl Copies {
    pub(super) fn new(levels: &Levels, changed: &[u64]) -> Self {
        let mut copies: Vec<Vec<u64>> = Vec::new();
        for level in &levels.0 {
            let below = copies.last().map_or(changed, Vec::as_slice);
            let mut nodes: Vec<u64> = below.iter().map(|item| level.node_of(*item)).collect();
            nodes.dedup();
            copies.push(nodes);
        }
        Self(copies)
    }

    pub(super) fn nodes(&self) -> u64 {
        self.0.iter().map(|nodes| nodes.len() as u64).sum()
    }
}

/// What the leaves hold.
pub(super) struct Entries<'a> {
    pub(super) data: &'a DataLayout,
    /// Changed virtual blocks, ascending, and their new data blocks.
    pub(super) changed: &'a [u64],
    pub(super) new_data: &'a [u64],
}

impl Entries<'_> {
    fn of_snapshot(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, MappedBlock)> + '_ {
        let mapped = |data| MappedBlock { data_block: DataBlock(data), time: 0 };
        (first..end).zip(self.data.from(first).map(mapped))
    }

    fn of_origin(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, MappedBlock)> + '_ {
        let at = self.changed.partition_point(|block| *block < first);
        let changed = self.changed.get(at..).unwrap_or_default();
        let mut changed = changed.iter().zip(self.new_data.get(at..).unwrap_or_default()).peekable();
        self.of_snapshot(first, end).map(move |(key, mapped)| {
            match changed.next_if(|(block, _)| **block == key) {
                Some((_, data)) => (key, MappedBlock { data_block: DataBlock(*data), time: 1 }),
                None => (key, mapped),
            }
        })
    }
}

/// Writes the tree of the snapshot and what of the origin's is its own, at `places`, level by level, all of the snapshot's
/// before those of the origin. Returns the roots of origin and snapshot, which are one if nothing changed.
pub(super) fn write_mapping_trees(
    file: &BlockFile,
    levels: &Levels,
    copies: &Copies,
    places: &[u64],
    entries: &Entries<'_>,
    counts: &mut Counts,
) -> Result<(u64, u64)> {
    let (mut old_rest, mut new_rest) = places.split_at_checked(levels.nodes() as usize).context("places")?;
    let (mut old_below, mut new_below): (&[u64], &[u64]) = (&[], &[]);
    let mut copied_below: &[u64] = &[];
    let at = |places: &[u64], index: u64| places.get(index as usize).copied().unwrap_or_default();
    for (height, (level, copied)) in levels.0.iter().zip(&copies.0).enumerate() {
        let (old, new);
        (old, old_rest) = old_rest.split_at_checked(level.nodes as usize).context("places")?;
        (new, new_rest) = new_rest.split_at_checked(copied.len()).context("places")?;
        let below = levels.0.get(..height).unwrap_or_default();
        let old_children = |node: u64| {
            let children = level.first(node)..level.first(node + 1);
            children.map(|child| (Levels::first_key(below, child), MetadataBlock(at(old_below, child))))
        };
        let new_children = |node: u64| {
            let mut copy = copied_below.partition_point(|copied| *copied < level.first(node));
            (level.first(node)..level.first(node + 1)).zip(old_children(node)).map(
                move |(child, (key, old))| {
                    if copied_below.get(copy) != Some(&child) {
                        return (key, old);
                    }
                    copy += 1;
                    (key, MetadataBlock(at(new_below, copy as u64 - 1)))
                },
            )
        };
        file.put_all(level.nodes, |node| {
            let place = at(old, node);
            let bytes = match height {
                0 => encode_node(place, true, entries.of_snapshot(level.first(node), level.first(node + 1))),
                _ => encode_node(place, false, old_children(node)),
            };
            (place, bytes)
        })?;
        file.put_all(copied.len() as u64, |copy| {
            let (place, node) = (at(new, copy), at(copied, copy));
            let bytes = match height {
                0 => encode_node(place, true, entries.of_origin(level.first(node), level.first(node + 1))),
                _ => encode_node(place, false, new_children(node)),
            };
            (place, bytes)
        })?;
        if height == 0 {
            entries.of_snapshot(0, level.items).for_each(|(_, mapped)| counts.data(mapped.data_block.0));
            for node in copied {
                let new = entries.of_origin(level.first(*node), level.first(*node + 1));
                new.for_each(|(_, mapped)| counts.data(mapped.data_block.0));
            }
        } else {
            (0..level.nodes).flat_map(old_children).for_each(|(_, child)| counts.metadata(child.0));
            copied
                .iter()
                .flat_map(|node| new_children(*node))
                .for_each(|(_, child)| counts.metadata(child.0));
        }
        (old_below, new_below, copied_below) = (old, new, copied);
    }
    let old_root = at(old_below, 0);
    Ok((new_below.first().copied().unwrap_or(old_root), old_root))
}

/// Writes a tree of any height from block `next` on, and returns its root, to which nobody refers yet.
pub(super) fn write_tree<V: NodeValue>(
    file: &BlockFile,
    next: &mut u64,
    counts: &mut Counts,
    entries: &[(u64, V)],
) -> Result<u64> {
    let mut nodes = write_level(file, next, true, entries)?;
    while nodes.len() > 1 {
        nodes.iter().for_each(|(_, block)| counts.metadata(block.0));
        nodes = write_level(file, next, false, &nodes)?;
    }
    Ok(nodes.first().context("a tree without a root")?.1.0)
}

fn write_level<V: NodeValue>(
    file: &BlockFile,
    next: &mut u64,
    is_leaf: bool,
    entries: &[(u64, V)],
) -> Result<Vec<(u64, MetadataBlock)>> {
    let count = entries.len().div_ceil(max_entries(V::SIZE)).max(1);
    let level = Level { items: entries.len() as u64, nodes: count as u64 };
    let mut nodes = Vec::with_capacity(count);
    for node in 0..level.nodes {
        let held =
            entries.get(level.first(node) as usize..level.first(node + 1) as usize).unwrap_or_default();
        file.put(*next, &encode_node(*next, is_leaf, held.iter().copied()))?;
        nodes.push((held.first().map_or(0, |(key, _)| *key), MetadataBlock(*next)));
        *next += 1;
    }
    Ok(nodes)
}
