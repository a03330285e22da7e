//! What changed between two mapping trees.

use super::{
    error::ViewError,
    lock_step::{LockStep, Pair},
};
use crate::VirtualBlock;

/// How a range of virtual blocks differs between the old tree and the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// Mapped in the new tree, to another data block than in the old one or where the old one maps nothing.
    Changed,
    /// Mapped in the old tree only.
    Unmapped,
}

/// A run of virtual blocks that differ in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Change {
    /// First virtual block.
    pub begin: VirtualBlock,
    /// Number of virtual blocks, at least 1.
    pub length: u64,
    /// How they differ.
    pub kind: ChangeKind,
}

/// The changes between two mapping trees, ascending, as long as possible each. Made by
/// [`MetadataView::changes`](super::MetadataView::changes). Over after the first error.
#[derive(Debug)]
pub struct Changes {
    walk: LockStep,
    pending: Option<Change>,
}

impl Changes {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { walk, pending: None }
    }

    /// Makes `pending` longer, or puts the next run in its place and returns what was there.
    fn add(&mut self, key: u64, kind: ChangeKind) -> Option<Change> {
        if let Some(run) = &mut self.pending
            && run.kind == kind
            && run.begin.0.checked_add(run.length) == Some(key)
        {
            run.length += 1;
            return None;
        }
        self.pending.replace(Change { begin: VirtualBlock(key), length: 1, kind })
    }
}

/// Data blocks decide; the time of a mapping is no change by itself.
fn difference(pair: &Pair) -> Option<(u64, ChangeKind)> {
    match (pair.old, pair.new) {
        (Some(old), Some(new)) if old.data_block() == new.data_block() => None,
        (_, Some(new)) => Some((new.key, ChangeKind::Changed)),
        (Some(old), None) => Some((old.key, ChangeKind::Unmapped)),
        (None, None) => None,
    }
}

impl Iterator for Changes {
    type Item = Result<Change, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.next() {
                Ok(Some(pair)) => {
                    let complete = difference(&pair).and_then(|(key, kind)| self.add(key, kind));
                    if let Some(run) = complete {
                        return Some(Ok(run));
                    }
                }
                Ok(None) => return self.pending.take().map(Ok),
                Err(error) => {
                    self.pending = None;
                    return Some(Err(error));
                }
            }
        }
    }
}
