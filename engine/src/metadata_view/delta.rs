//! Every run of two mapping trees, the equal ones included.

use super::{
    lock_step::Pair,
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

impl Relation for DeltaKind {
    fn of(pair: &Pair) -> Option<(u64, Self)> {
        match (pair.old, pair.new) {
            (Some(old), Some(new)) if old.data_block() == new.data_block() => {
                Some((new.key, Self::Same { data_begin: new.data_block() }))
            }
            (Some(old), Some(new)) => Some((
                new.key,
                Self::Different { left_data_begin: old.data_block(), right_data_begin: new.data_block() },
            )),
            (Some(old), None) => Some((old.key, Self::LeftOnly { data_begin: old.data_block() })),
            (None, Some(new)) => Some((new.key, Self::RightOnly { data_begin: new.data_block() })),
            (None, None) => None,
        }
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
