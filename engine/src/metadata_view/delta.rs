//! Every run of two mapping trees, the equal ones included.

use super::{
    error::ViewError,
    lock_step::{LockStep, Pair},
    runs::{Relation, Run, Runs},
};
use crate::DataBlock;

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

/// A run of virtual blocks that two trees map in the same relation.
pub type DeltaRun = Run<DeltaKind>;

/// The runs of two trees. Made by [`MetadataView::delta`](super::MetadataView::delta).
pub type Delta = Runs<DeltaKind>;

/// The runs in which two trees differ. Made by [`MetadataView::differences`](super::MetadataView::differences).
#[derive(Debug)]
pub struct Differences(Delta);

impl Differences {
    pub(super) fn new(walk: LockStep) -> Self {
        Self(Delta::new(walk))
    }
}

impl Iterator for Differences {
    type Item = Result<DeltaRun, ViewError>;

    /// Nodes that the trees do not share may map blocks to the same place all the same.
    fn next(&mut self) -> Option<Self::Item> {
        self.0.find(|run| !matches!(run, Ok(Run { kind: DeltaKind::Same { .. }, .. })))
    }
}

impl Relation for DeltaKind {
    fn of(pair: &Pair) -> Option<Self> {
        Some(match (pair.old, pair.new) {
            (Some(old), Some(new)) if old.data_block == new.data_block => {
                Self::Same { data_begin: new.data_block }
            }
            (Some(old), Some(new)) => {
                Self::Different { left_data_begin: old.data_block, right_data_begin: new.data_block }
            }
            (Some(old), None) => Self::LeftOnly { data_begin: old.data_block },
            (None, Some(new)) => Self::RightOnly { data_begin: new.data_block },
            (None, None) => return None,
        })
    }

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
