//! Two mapping trees read side by side, in key order.
//!
//! Each side keeps a queue of pending subtrees per level, lowest level first in key order, and a queue of
//! entries of leaves already read. A level is topped up from the one above it by *batches*: the next few
//! hundred subtrees that are needed, of both sides, are read together. Two subtrees at the fronts of
//! a level's queues that are the same block for the same key range are dropped unread: nothing under them
//! differs, and in both trees nothing else lies in that range.
//!
//! Invariants:
//! - every key in a queue of a level is below every key in the queues of the levels above it, same side;
//! - a level is read only while the other side has nothing pending, at that level or above, that begins lower
//!   (so neither side runs ahead, and memory is bounded by height x batch x fan-out, whatever the trees' size).

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use super::{blocks::BlockReader, error::ViewError};
use crate::{
    DataBlock, MetadataBlock,
    format::{MappedBlock, Node},
};

/// Leaves read in one batch.
const LEAF_BATCH: usize = 512;
/// Internal nodes read in one batch: each of them becomes up to 252 pending subtrees.
const INTERNAL_BATCH: usize = 128;

/// One entry of a mapping tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: u64,
    packed: u64,
}

impl Entry {
    pub(super) fn data_block(self) -> DataBlock {
        MappedBlock::unpack(self.packed).data_block
    }

    pub(super) fn time(self) -> u32 {
        MappedBlock::unpack(self.packed).time
    }
}

/// What the two trees say of one key; at least one of them maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) old: Option<Entry>,
    pub(super) new: Option<Entry>,
}

/// A node and the keys that its tree keeps under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subtree {
    block: MetadataBlock,
    first_key: u64,
    last_key: u64,
}

/// What is still pending of one tree.
#[derive(Debug, Default)]
struct Side {
    levels: Vec<VecDeque<Subtree>>,
    entries: VecDeque<Entry>,
}

impl Side {
    fn new(root: MetadataBlock, levels: usize) -> Self {
        let mut side = Self { levels: vec![VecDeque::new(); levels], entries: VecDeque::new() };
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

    /// Queues what is under `subtree`, whose keys must all lie in the range that it stands for.
    fn expand(
        &mut self,
        level: usize,
        subtree: &Subtree,
        node: Option<&Arc<Node>>,
        from: u64,
    ) -> Result<(), ViewError> {
        let uneven = ViewError::UnevenTree { block: subtree.block };
        let Some(node) = node.filter(|node| node.is_leaf() == (level == 0)) else { return Err(uneven) };
        let in_range = |key: &u64| (subtree.first_key..=subtree.last_key).contains(key);
        if let Some(key) = node.keys().find(|key| !in_range(key)) {
            return Err(ViewError::KeyOutOfRange {
                block: subtree.block,
                key,
                first: subtree.first_key,
                last: subtree.last_key,
            });
        }
        let Some(below) = level.checked_sub(1) else {
            let entries =
                node.entries().map(|(key, mapped): (u64, MappedBlock)| Entry { key, packed: mapped.pack() });
            self.entries.extend(entries.filter(|entry| entry.key >= from));
            return Ok(());
        };
        let queue = self.levels.get_mut(below).ok_or(uneven)?;
        let ends = node.keys().skip(1).map(|key| key.saturating_sub(1));
        let ends = ends.chain(std::iter::once(subtree.last_key));
        let children = node.children().zip(ends);
        let children = children.map(|((first_key, block), last_key)| Subtree { block, first_key, last_key });
        queue.extend(children.filter(|child| child.last_key >= from));
        Ok(())
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
        Self { reader, unread, old: Side::default(), new: Side::default(), skip_shared, from }
    }

    /// The next key, ascending.
    pub(super) fn next(&mut self) -> Result<Option<Pair>, ViewError> {
        let next = self.advance();
        if next.is_err() {
            self.unread = None;
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
            let (old, new) = (self.old.entries.front().copied(), self.new.entries.front().copied());
            // Most pairs of leaves that differ are equal but for a few entries.
            if let (true, Some(one), Some(other)) = (self.skip_shared, old, new)
                && one == other
            {
                self.old.entries.pop_front();
                self.new.entries.pop_front();
                continue;
            }
            let turn = turn(
                old.map(|entry| entry.key),
                || self.old.bound(0),
                new.map(|entry| entry.key),
                || self.new.bound(0),
            );
            match turn {
                Turn::Old => {
                    self.old.entries.pop_front();
                    return Ok(Some(Pair { old, new: None }));
                }
                Turn::New => {
                    self.new.entries.pop_front();
                    return Ok(Some(Pair { old: None, new }));
                }
                Turn::Both => {
                    self.old.entries.pop_front();
                    self.new.entries.pop_front();
                    return Ok(Some(Pair { old, new }));
                }
                Turn::TopUp => self.read_batch(0)?,
                Turn::End => return Ok(None),
            }
        }
    }

    fn start(&self, root: Option<MetadataBlock>) -> Result<Side, ViewError> {
        match root {
            Some(root) => Ok(Side::new(root, self.reader.mapping_tree_height(root)?)),
            None => Ok(Side::default()),
        }
    }

    /// Reads the next subtrees of `level` and queues what is under them.
    fn read_batch(&mut self, level: usize) -> Result<(), ViewError> {
        let limit = if level == 0 { LEAF_BATCH } else { INTERNAL_BATCH };
        let mut batch = Vec::new();
        while batch.len() < limit {
            match self.choose(level)? {
                Some(chosen) => batch.push(chosen),
                None => break,
            }
        }
        let mut blocks = Vec::with_capacity(batch.len() * 2);
        for chosen in &batch {
            match chosen {
                Chosen::Old(subtree) | Chosen::New(subtree) => blocks.push(subtree.block),
                Chosen::Both(old, new) => blocks.extend([old.block, new.block]),
            }
        }
        let nodes = self.reader.mapping_nodes(&blocks)?;
        let mut nodes = nodes.iter();
        for chosen in batch {
            match chosen {
                Chosen::Old(subtree) => self.old.expand(level, &subtree, nodes.next(), self.from)?,
                Chosen::New(subtree) => self.new.expand(level, &subtree, nodes.next(), self.from)?,
                Chosen::Both(old, new) => {
                    self.old.expand(level, &old, nodes.next(), self.from)?;
                    self.new.expand(level, &new, nodes.next(), self.from)?;
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
                (Turn::TopUp, _, _) => self.read_batch(level + 1)?,
                _ => return Ok(None),
            }
        }
    }
}
