//! Verified reads of tree nodes: one at a time through a small cache, or many together.

use std::{fmt, sync::Arc};

use quick_cache::sync::Cache;

use super::{
    error::ViewError,
    read_ahead::{Batch, Nodes, ReadAhead, Scratch},
};
use crate::{
    BlockDevice, MetadataBlock, MetadataError,
    format::{BLOCK_BYTES, MappedBlock, Node, NodeValue, RawBlock},
};

/// Nodes kept of single reads.
const CACHED_NODES: usize = 512;
/// A tree of more levels cannot be: even a third full it would hold more keys than there are.
const MAX_LEVELS: usize = 16;

/// Reads nodes of a metadata device.
pub(super) struct BlockReader {
    device: Arc<dyn BlockDevice>,
    blocks: u64,
    /// By block and by size of the tree's values.
    cache: Cache<(MetadataBlock, usize), Arc<Node>>,
    ahead: ReadAhead,
}

impl fmt::Debug for BlockReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockReader").field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl BlockReader {
    /// Reads from the first `blocks` blocks of `device`, or from all where it has fewer.
    pub(super) fn new(device: Arc<dyn BlockDevice>, blocks: u64) -> Self {
        let blocks = blocks.min(device.size_bytes() / BLOCK_BYTES as u64);
        let ahead = ReadAhead::new(Arc::clone(&device));
        Self { device, blocks, cache: Cache::new(CACHED_NODES), ahead }
    }

    /// Blocks that can be read.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// A node of a tree with values of type `V`.
    pub(super) fn node<V: NodeValue>(&self, block: MetadataBlock) -> Result<Arc<Node>, ViewError> {
        if let Some(node) = self.cache.get(&(block, V::SIZE)) {
            return Ok(node);
        }
        self.in_range(block)?;
        let node = Arc::new(Node::verify::<V>(RawBlock::read(self.device.as_ref(), block)?)?);
        self.cache.insert((block, V::SIZE), Arc::clone(&node));
        Ok(node)
    }

    /// Levels of a mapping tree, at least 1.
    pub(super) fn mapping_tree_height(&self, root: MetadataBlock) -> Result<usize, ViewError> {
        let mut block = root;
        for level in 1..=MAX_LEVELS {
            let node = self.node::<MappedBlock>(block)?;
            match node.child(0) {
                Some(child) if !node.is_leaf() => block = child,
                _ => return Ok(level),
            }
        }
        Err(MetadataError::TooDeep { block, limit: MAX_LEVELS }.into())
    }

    /// Has nodes of mapping trees read, which takes a while.
    pub(super) fn begin(&self, blocks: Vec<MetadataBlock>) -> Result<Arc<Batch>, ViewError> {
        blocks.iter().try_for_each(|block| self.in_range(*block))?;
        Ok(self.ahead.begin(blocks))
    }

    /// The nodes, when they have been read.
    pub(super) fn finish(&self, batch: &Batch, scratch: &mut Scratch) -> Nodes {
        self.ahead.finish(batch, scratch)
    }

    fn in_range(&self, block: MetadataBlock) -> Result<(), MetadataError> {
        if block.0 >= self.blocks {
            return Err(MetadataError::OutOfRange { block, blocks: self.blocks });
        }
        Ok(())
    }
}
