//! B-tree nodes.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | checksum |
//! | 4 | 4 | 1 internal, 2 leaf |
//! | 8 | 8 | own location |
//! | 16 | 4 | entries |
//! | 20 | 4 | maximum of entries, a multiple of 3 |
//! | 24 | 4 | bytes of a value |
//! | 28 | 4 | zero |
//! | 32 | 8 x maximum | keys, ascending |
//! | then | value size x maximum | values; in internal nodes the children's blocks |
//!
//! Slots beyond the entries hold anything.

mod edit;

use super::checksum::BlockKind;
use super::error::{MetadataError, NodeProblem};
use super::raw_block::{BLOCK_BYTES, BlockBytes, RawBlock};
use super::units::MetadataBlock;
use super::{get_u32, get_u64, put};

const HEADER_BYTES: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// Entries that a node has room for with values of `value_size` bytes.
#[must_use]
pub const fn max_entries(value_size: usize) -> usize {
    (BLOCK_BYTES - HEADER_BYTES) / (8 + value_size) / 3 * 3
}

/// A value that a tree's leaves hold.
pub trait NodeValue: Copy {
    /// Bytes of the encoded value.
    const SIZE: usize;

    /// From [`SIZE`](NodeValue::SIZE) bytes.
    fn decode(bytes: &[u8]) -> Self;

    /// Into [`SIZE`](NodeValue::SIZE) bytes.
    fn encode(&self, bytes: &mut [u8]);
}

impl NodeValue for u32 {
    const SIZE: usize = 4;

    fn decode(bytes: &[u8]) -> Self {
        get_u32(bytes, 0)
    }

    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.to_le_bytes());
    }
}

impl NodeValue for MetadataBlock {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Self(get_u64(bytes, 0))
    }

    fn encode(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.0.to_le_bytes());
    }
}

/// A verified node of a tree.
#[derive(Clone, Debug)]
pub struct Node {
    bytes: Box<BlockBytes>,
}

impl Node {
    /// An empty leaf of a tree with values of type `V`.
    #[must_use]
    pub fn empty_leaf<V: NodeValue>() -> Self {
        Self::empty(LEAF, V::SIZE)
    }

    /// An internal node without children, to be filled.
    pub(crate) fn empty_internal() -> Self {
        Self::empty(INTERNAL, MetadataBlock::SIZE)
    }

    fn empty(flags: u32, value_size: usize) -> Self {
        let mut bytes = Box::new([0; BLOCK_BYTES]);
        put(bytes.as_mut_slice(), 4, &flags.to_le_bytes());
        put(bytes.as_mut_slice(), 20, &(max_entries(value_size) as u32).to_le_bytes());
        put(bytes.as_mut_slice(), 24, &(value_size as u32).to_le_bytes());
        Self { bytes }
    }

    /// The node in a block that was read, as a node of a tree whose leaves hold `V`.
    ///
    /// # Errors
    /// A wrong checksum or location, or a node that breaks the rules above.
    pub fn verify<V: NodeValue>(raw: RawBlock) -> Result<Self, MetadataError> {
        let block = raw.location();
        let node = Self { bytes: raw.verify(BlockKind::Node)? };
        node.obey_rules(V::SIZE).map_err(|problem| MetadataError::BadNode { block, problem })?;
        Ok(node)
    }

    /// The node in a block, whatever its tree holds: for a block that was verified as its tree's before.
    pub(crate) fn verify_any(raw: RawBlock) -> Result<Self, MetadataError> {
        let block = raw.location();
        let node = Self { bytes: raw.verify(BlockKind::Node)? };
        let value_size = node.value_size();
        node.obey_rules(value_size).map_err(|problem| MetadataError::BadNode { block, problem })?;
        Ok(node)
    }

    fn obey_rules(&self, leaf_value_size: usize) -> Result<(), NodeProblem> {
        let bytes = self.bytes.as_slice();
        let flags = get_u32(bytes, 4);
        let value_size = match flags {
            INTERNAL => MetadataBlock::SIZE,
            LEAF => leaf_value_size,
            other => return Err(NodeProblem::Flags(other)),
        };
        let found = get_u32(bytes, 24);
        if found as usize != value_size {
            return Err(NodeProblem::ValueSize { expected: value_size as u32, found });
        }
        let (expected, found) = (max_entries(value_size) as u32, get_u32(bytes, 20));
        if found != expected {
            return Err(NodeProblem::MaxEntries { expected, found });
        }
        let entries = get_u32(bytes, 16);
        if entries > expected {
            return Err(NodeProblem::TooManyEntries { entries, max: expected });
        }
        if entries == 0 && flags == INTERNAL {
            return Err(NodeProblem::Empty);
        }
        let keys = self.keys().enumerate();
        match keys.zip(self.keys().skip(1)).find(|((_, key), next)| next <= key) {
            Some(((entry, _), key)) => Err(NodeProblem::KeyOrder { entry: entry + 1, key }),
            None => Ok(()),
        }
    }

    /// Whether the node has values rather than children.
    #[must_use]
    pub fn is_leaf(&self) -> bool {
        get_u32(self.bytes.as_slice(), 4) == LEAF
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        get_u32(self.bytes.as_slice(), 16) as usize
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Entries that there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        get_u32(self.bytes.as_slice(), 20) as usize
    }

    /// The checksum as it stands in the block: valid for a node that was read and not changed.
    #[must_use]
    pub fn stored_checksum(&self) -> u32 {
        get_u32(self.bytes.as_slice(), 0)
    }

    /// The key of an entry.
    #[must_use]
    pub fn key(&self, entry: usize) -> Option<u64> {
        (entry < self.len()).then(|| get_u64(self.bytes.as_slice(), HEADER_BYTES + 8 * entry))
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = u64> + Clone + '_ {
        let keys = self.bytes.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<8>().0;
        keys.iter().take(self.len()).map(|key| u64::from_le_bytes(*key))
    }

    /// The value of a leaf's entry.
    #[must_use]
    pub fn value<V: NodeValue>(&self, entry: usize) -> Option<V> {
        if entry >= self.len() || self.value_size() != V::SIZE {
            return None;
        }
        let at = self.value_offset(entry);
        self.bytes.get(at..at + V::SIZE).map(V::decode)
    }

    /// The child at an internal node's entry.
    #[must_use]
    pub fn child(&self, entry: usize) -> Option<MetadataBlock> {
        self.value(entry)
    }

    /// All entries of a leaf, ascending.
    pub fn entries<V: NodeValue>(&self) -> impl Iterator<Item = (u64, V)> + '_ {
        self.keys().enumerate().filter_map(|(entry, key)| Some((key, self.value(entry)?)))
    }

    /// All keys with the words that stand beside them, ascending: for nodes whose values are words.
    pub(crate) fn words(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let values = self.bytes.get(HEADER_BYTES + 8 * self.capacity()..).unwrap_or_default();
        let values = values.as_chunks::<8>().0;
        self.keys().zip(values.iter().map(|value| u64::from_le_bytes(*value)))
    }

    /// All children of an internal node with their keys, ascending.
    pub fn children(&self) -> impl Iterator<Item = (u64, MetadataBlock)> + '_ {
        self.entries()
    }

    /// `Ok` with the entry of `key`, or `Err` with the entry before which it would stand.
    ///
    /// # Errors
    /// No error: the two outcomes of a search.
    pub fn search(&self, key: u64) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let found = get_u64(self.bytes.as_slice(), HEADER_BYTES + 8 * middle);
            match found.cmp(&key) {
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The last entry whose key is not above `key`: where to descend.
    #[must_use]
    pub fn lower_bound(&self, key: u64) -> Option<usize> {
        match self.search(key) {
            Ok(entry) => Some(entry),
            Err(entry) => entry.checked_sub(1),
        }
    }

    /// The bytes; checksum and location are those of the last reading or writing.
    #[must_use]
    pub fn bytes(&self) -> &BlockBytes {
        &self.bytes
    }

    /// The memory of a node that is no longer needed.
    pub(crate) fn into_bytes(self) -> Box<BlockBytes> {
        self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut BlockBytes {
        &mut self.bytes
    }

    pub(crate) fn value_size(&self) -> usize {
        get_u32(self.bytes.as_slice(), 24) as usize
    }

    fn value_offset(&self, entry: usize) -> usize {
        HEADER_BYTES + 8 * self.capacity() + self.value_size() * entry
    }
}
