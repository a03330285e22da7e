//! What can be wrong with metadata.

use std::io;

use thiserror::Error;

use super::checksum::BlockKind;
use super::units::{InvalidBlockSize, MetadataBlock};

/// Damaged or unusable metadata, or a failed transfer of it. Every variant names the block.
#[derive(Debug, Error)]
pub enum MetadataError {
    /// The contents do not have the checksum of this kind of block.
    #[error(
        "metadata block {block} is no intact {kind}: checksum {found:#010x}, its contents have {expected:#010x}"
    )]
    Checksum {
        /// Where.
        block: MetadataBlock,
        /// What it should be.
        kind: BlockKind,
        /// Checksum of the contents.
        expected: u32,
        /// Checksum stored.
        found: u32,
    },
    /// An intact block that belongs elsewhere.
    #[error("metadata block {block} ({kind}) says that it is block {found}")]
    WrongLocation {
        /// Where it was read.
        block: MetadataBlock,
        /// What it is.
        kind: BlockKind,
        /// Where it says it belongs.
        found: u64,
    },
    /// A block that is used as two kinds at once.
    #[error("metadata block {block} is referred to as {expected} and as {found}")]
    WrongKind {
        /// Where.
        block: MetadataBlock,
        /// What it is expected to be.
        expected: BlockKind,
        /// What it was met as before.
        found: BlockKind,
    },
    /// A reference to a block that the device or the space map does not have.
    #[error("a reference to metadata block {block}: there are only {blocks} blocks")]
    OutOfRange {
        /// The block referred to.
        block: MetadataBlock,
        /// Number of blocks there are.
        blocks: u64,
    },
    /// A node that breaks the rules of its kind.
    #[error("metadata block {block}: {problem}")]
    BadNode {
        /// Where.
        block: MetadataBlock,
        /// Which rule.
        problem: NodeProblem,
    },
    /// A superblock that this version cannot use.
    #[error("superblock in metadata block {block}: {problem}")]
    BadSuperblock {
        /// Where.
        block: MetadataBlock,
        /// Why not.
        problem: SuperblockProblem,
    },
    /// A tree deeper than any tree can be: a cycle.
    #[error("the tree through metadata block {block} is deeper than {limit} levels")]
    TooDeep {
        /// The block at which the search ended.
        block: MetadataBlock,
        /// Levels allowed.
        limit: usize,
    },
    /// The space map says something else than the trees.
    #[error("the {map} space map has count {found} for block {block}, at least {expected} is needed")]
    WrongCount {
        /// `metadata` or `data`.
        map: &'static str,
        /// The block counted.
        block: u64,
        /// What the count should at least be.
        expected: u32,
        /// The count found.
        found: u32,
    },
    /// A reference count that does not fit.
    #[error("the {map} space map cannot count more references to block {block}")]
    CountOverflow {
        /// `metadata` or `data`.
        map: &'static str,
        /// The block counted.
        block: u64,
    },
    /// An index entry or an overflow count that must be there is not.
    #[error("the {map} space map has no entry for {what} {number}")]
    MissingEntry {
        /// `metadata` or `data`.
        map: &'static str,
        /// What is missing.
        what: &'static str,
        /// Its key.
        number: u64,
    },
    /// A mapping to a data block beyond the data device.
    #[error("a mapping to data block {block}: there are only {blocks}")]
    DataBlockOutOfRange {
        /// The data block.
        block: u64,
        /// Number of data blocks there are.
        blocks: u64,
    },
    /// The two trees of devices do not agree.
    #[error("device {device} has an entry in one tree of devices only")]
    DeviceMismatch {
        /// The key.
        device: u64,
    },
    /// No free metadata block is left.
    #[error("the metadata device is full: {used} of {total} blocks are in use")]
    NoSpace {
        /// Blocks in use.
        used: u64,
        /// Blocks there are.
        total: u64,
    },
    /// A transfer failed.
    #[error("cannot {action} metadata block {block}: {source}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// Which block.
        block: MetadataBlock,
        /// Why.
        source: io::Error,
    },
    /// The metadata device could not be flushed.
    #[error("cannot flush the metadata device: {source}")]
    Flush {
        /// Why.
        source: io::Error,
    },
}

/// A rule that a node breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NodeProblem {
    /// Neither leaf nor internal node, or both.
    #[error("node flags {0:#x}, only 1 (internal) and 2 (leaf) are defined")]
    Flags(u32),
    /// Values of another size than the tree has.
    #[error("a value size of {found} bytes where {expected} are expected")]
    ValueSize {
        /// Bytes of a value in this tree.
        expected: u32,
        /// Bytes stored in the node.
        found: u32,
    },
    /// Another capacity than a block gives.
    #[error("room for {found} entries, a block has room for {expected}")]
    MaxEntries {
        /// The capacity of a block.
        expected: u32,
        /// The capacity stored in the node.
        found: u32,
    },
    /// More entries than fit.
    #[error("{entries} entries, more than the maximum of {max}")]
    TooManyEntries {
        /// Entries stored.
        entries: u32,
        /// Entries that fit.
        max: u32,
    },
    /// Keys out of order.
    #[error("key {key} at entry {entry} is not above the key before it")]
    KeyOrder {
        /// Index of the entry.
        entry: usize,
        /// Its key.
        key: u64,
    },
    /// An internal node without children.
    #[error("an internal node without entries")]
    Empty,
    /// A device id above the limit.
    #[error("key {0} is no device id")]
    DeviceId(u64),
    /// An entry that the node does not have.
    #[error("entry {entry} is used, the node has {entries}")]
    NoEntry {
        /// Index of the entry.
        entry: usize,
        /// Entries stored.
        entries: usize,
    },
}

/// Why a superblock cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuperblockProblem {
    /// Not dm-thin metadata.
    #[error("magic {0}, not 27022010")]
    Magic(u64),
    /// Written by another version.
    #[error("version {0}, only version 2 is supported")]
    Version(u32),
    /// Features that must be known.
    #[error("unknown incompatible features {0:#x}")]
    Incompatible(u32),
    /// Features that must be known before writing.
    #[error("unknown features {0:#x} that forbid writing")]
    ReadOnlyCompatible(u32),
    /// An impossible data block size.
    #[error(transparent)]
    BlockSize(#[from] InvalidBlockSize),
    /// Another metadata block size than 4 KiB.
    #[error("metadata blocks of {0} sectors, only 8 are supported")]
    MetadataBlockSize(u32),
    /// A space map that is larger than the device or the format allow.
    #[error("{map} space map of {blocks} blocks, there is room for {limit}")]
    TooLarge {
        /// `metadata` or `data`.
        map: &'static str,
        /// Blocks the map has.
        blocks: u64,
        /// Blocks possible.
        limit: u64,
    },
    /// The block is not a metadata snapshot.
    #[error("no metadata snapshot is held")]
    NoSnapshot,
}
