//! Every run of two mapping trees, the equal ones included.

use super::{
    error::ViewError,
    lock_step::{LockStep, Pair},
};
use crate::{DataBlock, VirtualBlock};

/// How the left tree and the right one map a run of virtual blocks, with the data block of the run's first
/// block. Data blocks ascend by one with the virtual blocks on each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeltaKind {
    /// Both map it to the same data blocks.
    Same {
        /// First data block.
        data_begin: DataBlock,
    },
    /// Both map it, to different data blocks.
    Different {
        /// First data block on the left.
        left_data_begin: DataBlock,
        /// First data block on the right.
        right_data_begin: DataBlock,
    },
    /// Only the left maps it.
    LeftOnly {
        /// First data block.
        data_begin: DataBlock,
    },
    /// Only the right maps it.
    RightOnly {
        /// First data block.
        data_begin: DataBlock,
    },
}

impl DeltaKind {
    /// The kind of the block that is `blocks` further on in the same run; none when it has no such block.
    fn advanced(self, blocks: u64) -> Option<Self> {
        let add = |begin: DataBlock| begin.0.checked_add(blocks).map(DataBlock);
        Some(match self {
            Self::Same { data_begin } => Self::Same { data_begin: add(data_begin)? },
            Self::Different { left_data_begin, right_data_begin } => Self::Different {
                left_data_begin: add(left_data_begin)?,
                right_data_begin: add(right_data_begin)?,
            },
            Self::LeftOnly { data_begin } => Self::LeftOnly { data_begin: add(data_begin)? },
            Self::RightOnly { data_begin } => Self::RightOnly { data_begin: add(data_begin)? },
        })
    }
}

/// A run of virtual blocks that two trees map in the same relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeltaRun {
    /// First virtual block.
    pub begin: VirtualBlock,
    /// Number of virtual blocks, at least 1.
    pub length: u64,
    /// How the sides map it.
    pub kind: DeltaKind,
}

/// The runs of two trees, ascending, as long as possible each. Made by
/// [`MetadataView::delta`](super::MetadataView::delta). Over after the first error.
#[derive(Debug)]
pub struct Delta {
    walk: LockStep,
    pending: Option<DeltaRun>,
}

impl Delta {
    pub(super) fn new(walk: LockStep) -> Self {
        Self { walk, pending: None }
    }

    /// Makes `pending` longer, or puts the next run in its place and returns what was there.
    fn add(&mut self, key: u64, kind: DeltaKind) -> Option<DeltaRun> {
        if let Some(run) = &mut self.pending
            && run.begin.0.checked_add(run.length) == Some(key)
            && run.kind.advanced(run.length) == Some(kind)
        {
            run.length += 1;
            return None;
        }
        self.pending.replace(DeltaRun { begin: VirtualBlock(key), length: 1, kind })
    }
}

fn relation(pair: &Pair) -> Option<(u64, DeltaKind)> {
    match (pair.old, pair.new) {
        (Some(old), Some(new)) if old.data_block() == new.data_block() => {
            Some((new.key, DeltaKind::Same { data_begin: new.data_block() }))
        }
        (Some(old), Some(new)) => Some((
            new.key,
            DeltaKind::Different { left_data_begin: old.data_block(), right_data_begin: new.data_block() },
        )),
        (Some(old), None) => Some((old.key, DeltaKind::LeftOnly { data_begin: old.data_block() })),
        (None, Some(new)) => Some((new.key, DeltaKind::RightOnly { data_begin: new.data_block() })),
        (None, None) => None,
    }
}

impl Iterator for Delta {
    type Item = Result<DeltaRun, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.walk.next() {
                Ok(Some(pair)) => {
                    let complete = relation(&pair).and_then(|(key, kind)| self.add(key, kind));
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
