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
    error::ViewError,
    leaf::{Leaves, MapRun},
    leaf_cache::LeafCache,
    read_ahead::{Batch, Decoded, Nodes, Scratch},
};
use crate::{DataBlock, MetadataBlock, format::Node};

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

/// A node and the keys that its tree keeps under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subtree {
    block: MetadataBlock,
    first_key: u64,
    last_key: u64,
}

impl Subtree {
    /// Fails for a key that the tree could not find here.
    pub(super) fn holds(&self, key: u64) -> Result<(), ViewError> {
        let Self { block, first_key: first, last_key: last } = *self;
        if (first..=last).contains(&key) {
            return Ok(());
        }
        Err(ViewError::KeyOutOfRange { block, key, first, last })
    }

    fn uneven(&self) -> ViewError {
        ViewError::UnevenTree { block: self.block }
    }

    /// What lies under an internal node, as far as it may hold keys from `from` on.
    fn children(&self, node: &Node, from: u64) -> Result<Vec<Self>, ViewError> {
        node.keys().try_for_each(|key| self.holds(key))?;
        let ends = node.keys().skip(1).map(|key| key.saturating_sub(1));
        let ends = ends.chain(std::iter::once(self.last_key));
        let children = node.children().zip(ends);
        let children = children.map(|((first_key, block), last_key)| Self { block, first_key, last_key });
        Ok(children.filter(|child| child.last_key >= from).collect())
    }
}

/// What is still pending of one tree.
#[derive(Debug, Default)]
struct Side {
    levels: Vec<VecDeque<Subtree>>,
    leaves: Leaves,
}

impl Side {
    fn new(root: MetadataBlock, levels: usize, from: u64) -> Self {
        let mut side = Self { levels: vec![VecDeque::new(); levels], leaves: Leaves::new(from) };
        if let Some(top) = side.levels.last_mut() {
            top.push_back(Subtree { block: root, first_key: 0, last_key: u64::MAX });
        }
        side
    }

    fn front(&self, level: usize) -> Option<Subtree> {
        self.levels.get(level).and_then(|queue| queue.front().copied())
    }

    fn pop(&mut self, level: usize) {
        if let Some(queue) = self.levels.get_mut(level) {
            queue.pop_front();
        }
    }

    /// Queues the subtrees found under a node of the level above `level`.
    fn queue(&mut self, level: usize, children: Vec<Subtree>) {
        if let Some(queue) = self.levels.get_mut(level) {
            queue.extend(children);
        }
    }

    /// No key pending at `level` or above it is below this; none when nothing is pending there.
    fn bound(&self, level: usize) -> Option<u64> {
        self.levels.iter().skip(level).find_map(|queue| queue.front()).map(|subtree| subtree.first_key)
    }
}

/// A subtree chosen to be read, and the side or sides that it was chosen for.
#[derive(Debug, Clone, Copy)]
enum Chosen {
    Old(Subtree),
    New(Subtree),
    Both(Subtree, Subtree),
}

impl Chosen {
    fn of_old(&self) -> Option<&Subtree> {
        match self {
            Self::Old(subtree) | Self::Both(subtree, _) => Some(subtree),
            Self::New(_) => None,
        }
    }

    fn of_new(&self) -> Option<&Subtree> {
        match self {
            Self::New(subtree) | Self::Both(_, subtree) => Some(subtree),
            Self::Old(_) => None,
        }
    }
}

/// Subtrees that are being read.
#[derive(Debug)]
struct Reading {
    chosen: Vec<Chosen>,
    batch: Arc<Batch>,
    /// What need not be read.
    cached: HashMap<MetadataBlock, Arc<[u8]>>,
}

impl Reading {
    fn old_bound(&self) -> Option<u64> {
        self.chosen.iter().find_map(Chosen::of_old).map(|subtree| subtree.first_key)
    }

    fn new_bound(&self) -> Option<u64> {
        self.chosen.iter().find_map(Chosen::of_new).map(|subtree| subtree.first_key)
    }
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
    old: Side,
    new: Side,
    /// The leaves after those that the sides have.
    ahead: Option<Reading>,
    scratch: Scratch,
    cache: Option<LeafCache>,
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
            old: Side::default(),
            new: Side::default(),
            ahead: None,
            scratch: Scratch::default(),
            cache: None,
            skip_shared,
            from,
        }
    }

    /// Takes leaves from a cache, and puts them there.
    pub(super) fn with_cache(self, cache: LeafCache) -> Self {
        Self { cache: Some(cache), ..self }
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
            let old_bound = || ahead.and_then(Reading::old_bound).or_else(|| self.old.bound(0));
            let new_bound = || ahead.and_then(Reading::new_bound).or_else(|| self.new.bound(0));
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
        self.ahead = self.begin_batch(0)?;
        match ready {
            Some(ready) => self.finish_batch(0, ready),
            None => Ok(()),
        }
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
        Ok(Some(Reading { chosen, batch, cached }))
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
                            None => leaf(&mut nodes, subtree, self.cache.as_ref())?,
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

/// Drops the subtrees that are in both lists. They ascend.
fn drop_shared(old: &mut Vec<Subtree>, new: &mut Vec<Subtree>) {
    let same: Vec<Subtree> = {
        let mut others = new.iter().peekable();
        let shared = old.iter().filter(|subtree| {
            while others.next_if(|other| other.first_key < subtree.first_key).is_some() {}
            others.peek() == Some(subtree)
        });
        shared.copied().collect()
    };
    for list in [old, new] {
        let mut same = same.iter().peekable();
        list.retain(|subtree| same.next_if_eq(&subtree).is_none());
    }
}
