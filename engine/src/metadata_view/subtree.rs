//! Parts of mapping trees that a walk has still to read.

use std::collections::VecDeque;

use super::{error::ViewError, leaf::Leaves};
use crate::{MetadataBlock, format::Node};

/// A node and the keys that its tree keeps under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subtree {
    pub(super) block: MetadataBlock,
    pub(super) first_key: u64,
    pub(super) last_key: u64,
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

    pub(super) fn uneven(&self) -> ViewError {
        ViewError::UnevenTree { block: self.block }
    }

    /// What lies under an internal node, as far as it may hold keys from `from` on.
    pub(super) fn children(&self, node: &Node, from: u64) -> Result<Vec<Self>, ViewError> {
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
pub(super) struct Side {
    pub(super) levels: Vec<VecDeque<Subtree>>,
    pub(super) leaves: Leaves,
}

impl Side {
    pub(super) fn new(root: MetadataBlock, levels: usize, from: u64) -> Self {
        let mut side = Self { levels: vec![VecDeque::new(); levels], leaves: Leaves::new(from) };
        if let Some(top) = side.levels.last_mut() {
            top.push_back(Subtree { block: root, first_key: 0, last_key: u64::MAX });
        }
        side
    }

    pub(super) fn front(&self, level: usize) -> Option<Subtree> {
        self.levels.get(level).and_then(|queue| queue.front().copied())
    }

    pub(super) fn pop(&mut self, level: usize) {
        if let Some(queue) = self.levels.get_mut(level) {
            queue.pop_front();
        }
    }

    /// Queues the subtrees found under a node of the level above `level`.
    pub(super) fn queue(&mut self, level: usize, children: Vec<Subtree>) {
        if let Some(queue) = self.levels.get_mut(level) {
            queue.extend(children);
        }
    }

    /// No key pending at `level` or above it is below this; none when nothing is pending there.
    pub(super) fn bound(&self, level: usize) -> Option<u64> {
        self.levels.iter().skip(level).find_map(|queue| queue.front()).map(|subtree| subtree.first_key)
    }
}

/// A subtree chosen to be read, and the side or sides that it was chosen for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chosen {
    Old(Subtree),
    New(Subtree),
    Both(Subtree, Subtree),
}

impl Chosen {
    pub(super) fn of_old(&self) -> Option<&Subtree> {
        match self {
            Self::Old(subtree) | Self::Both(subtree, _) => Some(subtree),
            Self::New(_) => None,
        }
    }

    pub(super) fn of_new(&self) -> Option<&Subtree> {
        match self {
            Self::New(subtree) | Self::Both(_, subtree) => Some(subtree),
            Self::Old(_) => None,
        }
    }
}

/// Drops the subtrees that are in both lists. They ascend.
pub(super) fn drop_shared(old: &mut Vec<Subtree>, new: &mut Vec<Subtree>) {
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
