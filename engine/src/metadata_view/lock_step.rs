//! Two mapping trees read side by side, in key order.
//!
//! Each side keeps a queue of pending subtrees per level, lowest level first in key order, and the packed
//! leaves already read. A level is topped up from the one above it by *batches*: the next few
//! hundred subtrees that are needed, of both sides, are read together, and while one batch of leaves is looked at the
//! next is being read. Two subtrees that are the same block for the same key range are dropped unread: nothing under them
//! differs, and in both trees nothing else lies in that range.
//!
//! Invariants:
//! - every key in a queue of a level is below every key in the queues of the levels above it, same side; the keys
//!   of the batch that is being read are below those of the lowest queue;
//! - a level is read only while the other side has nothing pending, at that level or above, that begins lower
//!   (so neither side runs ahead, and memory is bounded by height x batch x fan-out, whatever the trees' size).

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    blocks::BlockReader,
    disk_order::Wanted,
    error::ViewError,
    leaf::MapRun,
    leaf_cache::LeafCache,
    read_ahead::{Batch, Decoded, Nodes, Scratch},
    subtree::{Chosen, Side, Subtree, drop_shared},
};
use crate::{DataBlock, MetadataBlock};

/// Pairs of leaves, or leaves, read in one batch. Two batches are held, packed: some MiB at the worst.
const LEAF_BATCH: usize = 1024;
/// Internal nodes, or pairs of them, read in one batch: each of them becomes up to 252 pending subtrees.
const INTERNAL_BATCH: usize = 128;
/// The same where what is shared is dropped at once, so that they become fewer.
const SKIPPING_INTERNAL_BATCH: usize = 512;

/// Where the first block of a run of keys lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) data_block: DataBlock,
    pub(super) time: u32,
}

impl From<MapRun> for Mapped {
    fn from(run: MapRun) -> Self {
        Self { data_block: run.data_block, time: run.time }
    }
}

/// What the two trees say of consecutive keys; at least one of them maps them, each side to consecutive data blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) key: u64,
    /// At least 1.
    pub(super) length: u64,
    pub(super) old: Option<Mapped>,
    pub(super) new: Option<Mapped>,
}

/// Subtrees that are being read.
#[derive(Debug)]
struct Reading {
    chosen: Vec<Chosen>,
    batch: Arc<Batch>,
    /// What need not be read.
    cached: HashMap<MetadataBlock, Arc<[u8]>>,
    /// The lowest key of each side.
    old_bound: Option<u64>,
    new_bound: Option<u64>,
}

/// What to do about the fronts of two queues.
enum Turn {
    Old,
    New,
    Both,
    /// One side may have something lower that is not in its queue yet.
    TopUp,
    End,
}

/// Whose front is next, given each side's front key and the bound of what has not reached its queue.
fn turn(
    old: Option<u64>,
    old_bound: impl Fn() -> Option<u64>,
    new: Option<u64>,
    new_bound: impl Fn() -> Option<u64>,
) -> Turn {
    match (old, new) {
        (Some(old), Some(new)) => match old.cmp(&new) {
            Ordering::Less => Turn::Old,
            Ordering::Greater => Turn::New,
            Ordering::Equal => Turn::Both,
        },
        (Some(old), None) => match new_bound() {
            Some(bound) if bound <= old => Turn::TopUp,
            _ => Turn::Old,
        },
        (None, Some(new)) => match old_bound() {
            Some(bound) if bound <= new => Turn::TopUp,
            _ => Turn::New,
        },
        (None, None) if old_bound().is_some() || new_bound().is_some() => Turn::TopUp,
        (None, None) => Turn::End,
    }
}

/// The walk. After an error it is over.
#[derive(Debug)]
pub(super) struct LockStep {
    reader: Arc<BlockReader>,
    /// The roots, until the first call reads them.
    unread: Option<(Option<MetadataBlock>, Option<MetadataBlock>)>,
    /// The roots, until it has been decided in which order leaves are read.
    undecided: Option<(Option<MetadataBlock>, Option<MetadataBlock>)>,
    old: Side,
    new: Side,
    /// The leaves after those that the sides have.
    ahead: Option<Reading>,
    scratch: Scratch,
    cache: Option<LeafCache>,
    /// Whether other walks will come to the cache for what this one reads.
    keeps_leaves: bool,
    skip_shared: bool,
    from: u64,
}

impl LockStep {
    /// Starts at the first key not below `from`. With `skip_shared` the keys under nodes that both trees
    /// share are left out, and so are equal entries of nodes that they do not share.
    pub(super) fn new(
        reader: Arc<BlockReader>,
        old_root: Option<MetadataBlock>,
        new_root: Option<MetadataBlock>,
        skip_shared: bool,
        from: u64,
    ) -> Self {
        let unread = Some((old_root, new_root)).filter(|_| !(skip_shared && old_root == new_root));
        Self {
            reader,
            unread,
            undecided: unread,
            old: Side::default(),
            new: Side::default(),
            ahead: None,
            scratch: Scratch::default(),
            cache: None,
            keeps_leaves: false,
            skip_shared,
            from,
        }
    }

    /// Takes leaves from a cache, and puts them there.
    pub(super) fn with_cache(self, cache: LeafCache) -> Self {
        Self { cache: Some(cache), keeps_leaves: true, ..self }
    }

    /// The next keys, ascending.
    pub(super) fn next(&mut self) -> Result<Option<Pair>, ViewError> {
        let next = self.advance();
        if next.is_err() {
            self.unread = None;
            self.ahead = None;
            self.old = Side::default();
            self.new = Side::default();
        }
        next
    }

    fn advance(&mut self) -> Result<Option<Pair>, ViewError> {
        if let Some((old, new)) = self.unread.take() {
            self.old = self.start(old)?;
            self.new = self.start(new)?;
        }
        loop {
            let (old, new) = (self.old.leaves.front()?, self.new.leaves.front()?);
            let ahead = self.ahead.as_ref();
            let old_bound = || ahead.and_then(|ahead| ahead.old_bound).or_else(|| self.old.bound(0));
            let new_bound = || ahead.and_then(|ahead| ahead.new_bound).or_else(|| self.new.bound(0));
            let turn = turn(old.map(|run| run.key), old_bound, new.map(|run| run.key), new_bound);
            match (turn, old, new) {
                (Turn::Old, Some(run), _) => {
                    let length = run.until(new.map(|new| new.key).or_else(new_bound));
                    self.old.leaves.advance(length);
                    return Ok(Some(Pair { key: run.key, length, old: Some(run.into()), new: None }));
                }
                (Turn::New, _, Some(run)) => {
                    let length = run.until(old.map(|old| old.key).or_else(old_bound));
                    self.new.leaves.advance(length);
                    return Ok(Some(Pair { key: run.key, length, old: None, new: Some(run.into()) }));
                }
                (Turn::Both, Some(old), Some(new)) => {
                    let length = old.length.min(new.length);
                    self.old.leaves.advance(length);
                    self.new.leaves.advance(length);
                    let (key, old, new) = (old.key, Mapped::from(old), Mapped::from(new));
                    // Most pairs of leaves that differ are equal but for a few entries.
                    if !(self.skip_shared && old == new) {
                        return Ok(Some(Pair { key, length, old: Some(old), new: Some(new) }));
                    }
                }
                (Turn::TopUp, ..) => self.read_leaves()?,
                _ => return Ok(None),
            }
        }
    }

    fn start(&self, root: Option<MetadataBlock>) -> Result<Side, ViewError> {
        match root {
            Some(root) => Ok(Side::new(root, self.reader.mapping_tree_height(root)?, self.from)),
            None => Ok(Side::default()),
        }
    }

    /// Gives the sides the leaves that are being read, and has the next ones read.
    fn read_leaves(&mut self) -> Result<(), ViewError> {
        let ready = match self.ahead.take() {
            Some(ready) => Some(ready),
            None => self.begin_batch(0)?,
        };
        // Where a first batch leaves much to be read.
        if self.old.levels.iter().chain(&self.new.levels).map(VecDeque::len).sum::<usize>() >= LEAF_BATCH
            && let Some((old, new)) = self.undecided.take()
        {
            self.read_in_disk_order(old, new);
        }
        self.ahead = self.begin_batch(0)?;
        match ready {
            Some(ready) => self.finish_batch(0, ready),
            None => Ok(()),
        }
    }

    /// Has the leaves read in the order of the disk into the cache, where that is faster.
    fn read_in_disk_order(&mut self, old: Option<MetadataBlock>, new: Option<MetadataBlock>) {
        let mut walk = Self::new(Arc::clone(&self.reader), old, new, self.skip_shared, self.from);
        let cache = self.cache.clone().unwrap_or_default();
        let wanted = walk.wanted(&cache);
        if wanted.are_many_and_scattered() {
            wanted.read_into(&cache, &self.reader);
            self.cache = Some(cache);
        }
    }

    /// The leaves that this walk would read, as far as it would come.
    fn wanted(&mut self, known: &LeafCache) -> Wanted {
        let mut wanted = Wanted::new(self.reader.blocks());
        let (mut old_before, mut new_before) = (None, None);
        let Some((old, new)) = self.unread.take() else { return wanted };
        let (Ok(old), Ok(new)) = (self.start(old), self.start(new)) else { return wanted };
        (self.old, self.new) = (old, new);
        while let Ok(Some(chosen)) = self.choose(0) {
            for (subtree, before) in [(chosen.of_old(), &mut old_before), (chosen.of_new(), &mut new_before)]
            {
                let Some(subtree) = subtree else { continue };
                if !known.has(subtree.block) {
                    wanted.add(subtree.block, *before);
                }
                *before = Some(subtree.block);
            }
        }
        wanted
    }

    /// Chooses the next subtrees of `level` and has them read; none where nothing is left to be read.
    fn begin_batch(&mut self, level: usize) -> Result<Option<Reading>, ViewError> {
        let limit = match (level, self.skip_shared) {
            (0, _) => LEAF_BATCH,
            (_, false) => INTERNAL_BATCH,
            (_, true) => SKIPPING_INTERNAL_BATCH,
        };
        let mut chosen = Vec::new();
        while chosen.len() < limit {
            match self.choose(level)? {
                Some(subtree) => chosen.push(subtree),
                None => break,
            }
        }
        if chosen.is_empty() {
            return Ok(None);
        }
        let blocks = chosen.iter().flat_map(|chosen| [chosen.of_old(), chosen.of_new()]).flatten();
        let blocks = blocks.map(|subtree| subtree.block);
        let mut cached = HashMap::new();
        let blocks = match self.cache.as_ref().filter(|_| level == 0) {
            None => blocks.collect(),
            Some(cache) => {
                let mut unknown = Vec::with_capacity(chosen.len());
                for block in blocks {
                    match cache.get(block) {
                        Some(leaf) => drop(cached.insert(block, leaf)),
                        None => unknown.push(block),
                    }
                }
                unknown
            }
        };
        let batch = self.reader.begin(blocks)?;
        let first = |subtree: &Subtree| subtree.first_key;
        let old_bound = chosen.iter().find_map(Chosen::of_old).map(first);
        let new_bound = chosen.iter().find_map(Chosen::of_new).map(first);
        Ok(Some(Reading { chosen, batch, cached, old_bound, new_bound }))
    }

    /// Waits for subtrees of `level`, and queues what is under them.
    fn finish_batch(&mut self, level: usize, reading: Reading) -> Result<(), ViewError> {
        let mut nodes = self.reader.finish(&reading.batch, &mut self.scratch);
        for chosen in &reading.chosen {
            let (old, new) = (chosen.of_old(), chosen.of_new());
            match level.checked_sub(1) {
                None => {
                    for (side, subtree) in [(&mut self.old, old), (&mut self.new, new)] {
                        let Some(subtree) = subtree else { continue };
                        let packed = match reading.cached.get(&subtree.block) {
                            Some(packed) => Arc::clone(packed),
                            None => {
                                leaf(&mut nodes, subtree, self.cache.as_ref().filter(|_| self.keeps_leaves))?
                            }
                        };
                        side.leaves.push(*subtree, packed);
                    }
                }
                Some(below) => {
                    let mut old = children(&mut nodes, old, self.from)?;
                    let mut new = children(&mut nodes, new, self.from)?;
                    if self.skip_shared {
                        drop_shared(&mut old, &mut new);
                    }
                    self.old.queue(below, old);
                    self.new.queue(below, new);
                }
            }
        }
        Ok(())
    }

    /// Takes the next subtree that must be read off the queues of `level`.
    fn choose(&mut self, level: usize) -> Result<Option<Chosen>, ViewError> {
        loop {
            let (old, new) = (self.old.front(level), self.new.front(level));
            let turn = turn(
                old.map(|subtree| subtree.first_key),
                || self.old.bound(level + 1),
                new.map(|subtree| subtree.first_key),
                || self.new.bound(level + 1),
            );
            match (turn, old, new) {
                (Turn::Old, Some(old), _) => {
                    self.old.pop(level);
                    return Ok(Some(Chosen::Old(old)));
                }
                (Turn::New, _, Some(new)) => {
                    self.new.pop(level);
                    return Ok(Some(Chosen::New(new)));
                }
                (Turn::Both, Some(old), Some(new)) => {
                    self.old.pop(level);
                    self.new.pop(level);
                    if !(self.skip_shared && old == new) {
                        return Ok(Some(Chosen::Both(old, new)));
                    }
                }
                (Turn::TopUp, _, _) => {
                    if let Some(reading) = self.begin_batch(level + 1)? {
                        self.finish_batch(level + 1, reading)?;
                    }
                }
                _ => return Ok(None),
            }
        }
    }
}

/// A leaf that was read, which goes into the cache.
fn leaf(nodes: &mut Nodes, subtree: &Subtree, cache: Option<&LeafCache>) -> Result<Arc<[u8]>, ViewError> {
    let Decoded::Leaf(packed) = nodes.get(subtree.block)? else { return Err(subtree.uneven()) };
    if let Some(cache) = cache {
        cache.insert(subtree.block, &packed);
    }
    Ok(packed)
}

/// The subtrees under an internal node that was read; none under no node.
fn children(nodes: &mut Nodes, of: Option<&Subtree>, from: u64) -> Result<Vec<Subtree>, ViewError> {
    let Some(subtree) = of else { return Ok(Vec::new()) };
    match nodes.get(subtree.block)? {
        Decoded::Internal(node) => subtree.children(&node, from),
        Decoded::Leaf(_) => Err(subtree.uneven()),
    }
}
