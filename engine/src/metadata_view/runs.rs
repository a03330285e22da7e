//! Runs: what a walk over two mapping trees says block by block, put together.

use super::{
    error::ViewError,
    lock_step::{LockStep, Pair},
};
use crate::VirtualBlock;

/// What the two sides of a pair are to each other.
pub(super) trait Relation: Copy + PartialEq {
    /// The relation of the pair's first block; none where there is nothing to tell of all of its blocks.
    fn of(pair: &Pair) -> Option<Self>;

    /// The relation of the block that is `blocks` further on in the same run; none when it has no such block.
    fn advanced(self, blocks: u64) -> Option<Self>;
}

/// A run of virtual blocks in the same relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Run<K> {
    /// First virtual block.
    pub begin: VirtualBlock,
    /// Number of virtual blocks, at least 1.
    pub length: u64,
    /// How the sides map it.
    pub kind: K,
}

/// The runs of two mapping trees, ascending, as long as possible each. Over after the first error.
#[derive(Debug)]
pub struct Runs<K> {
    walk: LockStep,
    pending: Option<Run<K>>,
}

impl<K> Runs<K> {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { walk, pending: None }
    }
}

/// Makes `pending` longer, or puts the next run in its place and returns what was there.
fn add<K: Relation>(pending: &mut Option<Run<K>>, pair: &Pair, kind: K) -> Option<Run<K>> {
    if let Some(run) = pending
        && run.begin.0.checked_add(run.length) == Some(pair.key)
        && run.kind.advanced(run.length) == Some(kind)
    {
        run.length = run.length.saturating_add(pair.length);
        return None;
    }
    pending.replace(Run { begin: VirtualBlock(pair.key), length: pair.length, kind })
}

impl<K: Relation> Iterator for Runs<K> {
    type Item = Result<Run<K>, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.next() {
                Ok(Some(pair)) => {
                    let complete = K::of(&pair).and_then(|kind| add(&mut self.pending, &pair, kind));
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
