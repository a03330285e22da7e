//! Verified reads of tree nodes: one at a time through a small cache, or many together.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use quick_cache::sync::Cache;

use super::error::ViewError;
use crate::{
    BlockDevice, MetadataBlock, MetadataError,
    format::{BLOCK_BYTES, MappedBlock, Node, NodeValue, RawBlock},
};

/// Nodes kept of single reads.
const CACHED_NODES: usize = 512;
/// A tree of more levels cannot be: even a third full it would hold more keys than there are.
const MAX_LEVELS: usize = 16;
/// Blocks that are not wanted but read all the same, because they lie between two that are.
const MAX_GAP_BLOCKS: u64 = 3;
/// Blocks in one read at most.
const MAX_RUN_BLOCKS: u64 = 64;
/// Threads that read one batch at most.
const MAX_THREADS: usize = 16;
/// Reads that are worth a thread.
const RUNS_PER_THREAD: usize = 4;

/// Wanted blocks that one read fetches: ascending, near each other.
type Run<'a> = &'a [MetadataBlock];

/// Reads nodes of a metadata device.
pub(super) struct BlockReader {
    device: Arc<dyn BlockDevice>,
    blocks: u64,
    /// By block and by size of the tree's values.
    cache: Cache<(MetadataBlock, usize), Arc<Node>>,
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
        Self { device, blocks, cache: Cache::new(CACHED_NODES) }
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

    /// Nodes of mapping trees, in the order asked for. Adjacent blocks are read together, and several reads
    /// are in flight.
    pub(super) fn mapping_nodes(&self, blocks: &[MetadataBlock]) -> Result<Vec<Arc<Node>>, ViewError> {
        let mut found: Vec<(MetadataBlock, Arc<Node>)> = Vec::with_capacity(blocks.len());
        let mut wanted = Vec::with_capacity(blocks.len());
        for &block in blocks {
            match self.cache.get(&(block, MappedBlock::SIZE)) {
                Some(node) => found.push((block, node)),
                None => {
                    self.in_range(block)?;
                    wanted.push(block);
                }
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        found.extend(self.read_runs(&split_runs(&wanted))?);
        found.sort_unstable_by_key(|(block, _)| *block);
        blocks
            .iter()
            .map(|block| {
                let at = found.binary_search_by_key(block, |(block, _)| *block).ok();
                match at.and_then(|at| found.get(at)) {
                    Some((_, node)) => Ok(Arc::clone(node)),
                    None => self.node::<MappedBlock>(*block),
                }
            })
            .collect()
    }

    fn in_range(&self, block: MetadataBlock) -> Result<(), MetadataError> {
        if block.0 >= self.blocks {
            return Err(MetadataError::OutOfRange { block, blocks: self.blocks });
        }
        Ok(())
    }

    fn read_runs(&self, runs: &[Run<'_>]) -> Result<Vec<(MetadataBlock, Arc<Node>)>, ViewError> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut nodes = Vec::new();
            while let Some(run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.read_run(run, &mut nodes)?;
            }
            Ok::<_, ViewError>(nodes)
        };
        let helpers = runs.len().div_ceil(RUNS_PER_THREAD).min(MAX_THREADS).saturating_sub(1);
        std::thread::scope(|scope| {
            // Where no thread can be had, those that are there do the work.
            let started: Vec<_> = (0..helpers)
                .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut nodes = work();
            for thread in started {
                let more = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                nodes = nodes.and_then(|mut nodes| {
                    nodes.extend(more?);
                    Ok(nodes)
                });
            }
            nodes
        })
    }

    fn read_run(&self, run: Run<'_>, nodes: &mut Vec<(MetadataBlock, Arc<Node>)>) -> Result<(), ViewError> {
        let (Some(&first), Some(&last)) = (run.first(), run.last()) else { return Ok(()) };
        let blocks = usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
        let mut bytes = vec![0; blocks * BLOCK_BYTES];
        self.device
            .read_at(first.0 * BLOCK_BYTES as u64, &mut bytes)
            .map_err(|source| MetadataError::Io { action: "read", block: first, source })?;
        let (read, _) = bytes.as_chunks::<BLOCK_BYTES>();
        let mut wanted = run.iter().peekable();
        for (number, bytes) in (first.0..).zip(read) {
            let block = MetadataBlock(number);
            if wanted.next_if(|wanted| **wanted == block).is_some() {
                let node = Node::verify::<MappedBlock>(RawBlock::new(block, Box::new(*bytes)))?;
                nodes.push((block, Arc::new(node)));
            }
        }
        Ok(())
    }
}

/// Splits ascending blocks where one read would fetch too much, or too much that is not wanted.
fn split_runs(blocks: &[MetadataBlock]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mut rest = blocks;
    while let Some(&first) = rest.first() {
        let mut last = first;
        let length = rest
            .iter()
            .take_while(|block| {
                let near = block.0 - last.0 <= MAX_GAP_BLOCKS + 1 && block.0 - first.0 < MAX_RUN_BLOCKS;
                last = **block;
                near
            })
            .count();
        let (run, tail) = rest.split_at(length.max(1).min(rest.len()));
        runs.push(run);
        rest = tail;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::split_runs;
    use crate::MetadataBlock;

    fn split(blocks: impl IntoIterator<Item = u64>) -> Vec<(u64, usize)> {
        let blocks: Vec<_> = blocks.into_iter().map(MetadataBlock).collect();
        split_runs(&blocks).iter().map(|run| (run[0].0, run.len())).collect()
    }

    #[test]
    fn near_blocks_are_one_read_and_far_ones_are_not() {
        assert_eq!(split([]), []);
        assert_eq!(split([7]), [(7, 1)]);
        assert_eq!(split([7, 8, 12, 17, 18, 100]), [(7, 3), (17, 2), (100, 1)]);
        assert_eq!(split(0..130), [(0, 64), (64, 64), (128, 2)]);
    }
}
