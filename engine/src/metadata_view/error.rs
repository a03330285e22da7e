//! Why a view of the metadata cannot answer.

use crate::{MetadataBlock, MetadataError};

/// Metadata that a view cannot read, or that contradicts itself. Every variant names the block.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// A block is damaged, or reading it failed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The pool holds no metadata snapshot.
    #[error("the pool holds no metadata snapshot")]
    NoMetadataSnapshot,
    /// The block that should be the metadata snapshot's superblock says of itself that it holds a snapshot.
    #[error("metadata block {block} is not a metadata snapshot: it names metadata snapshot {held} itself")]
    NotASnapshot {
        /// Where the pool's superblock says that the snapshot is.
        block: MetadataBlock,
        /// What that block names.
        held: MetadataBlock,
    },
    /// A node has a key that its tree cannot find in it.
    #[error("metadata block {block}: key {key} is outside of {first} to {last}, which the tree keeps there")]
    KeyOutOfRange {
        /// The node.
        block: MetadataBlock,
        /// The key.
        key: u64,
        /// First key that may be in the node.
        first: u64,
        /// Last key that may be in the node.
        last: u64,
    },
    /// A leaf where the tree's other branches go on, or the other way round.
    #[error("metadata block {block}: the tree's branches are not of the same length")]
    UnevenTree {
        /// The node at which the branch should go on, or end.
        block: MetadataBlock,
    },
}
