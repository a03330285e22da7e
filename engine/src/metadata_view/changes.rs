//! What changed between two mapping trees.

use super::{
    lock_step::Pair,
    runs::{Relation, Run, Runs},
};

/// How a range of virtual blocks differs between the old tree and the new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// Mapped in the new tree, to another data block than in the old one or where the old one maps nothing.
    Changed,
    /// Mapped in the old tree only.
    Unmapped,
}

/// A run of virtual blocks that differ in the same way.
pub type Change = Run<ChangeKind>;

/// The changes between two mapping trees. Made by [`MetadataView::changes`](super::MetadataView::changes).
pub type Changes = Runs<ChangeKind>;

impl Relation for ChangeKind {
    /// Data blocks decide; the time of a mapping is no change by itself.
    fn of(pair: &Pair) -> Option<Self> {
        match (pair.old, pair.new) {
            (Some(old), Some(new)) if old.data_block == new.data_block => None,
            (_, Some(_)) => Some(Self::Changed),
            (Some(_), None) => Some(Self::Unmapped),
            (None, None) => None,
        }
    }

    fn advanced(self, _blocks: u64) -> Option<Self> {
        Some(self)
    }
}
