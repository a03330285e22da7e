//! Metadata blocks: those of the open transaction, and a bounded cache of the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::block_device::BlockDevice;
use crate::format::{
    BLOCK_BYTES, Bitmap, BlockBytes, BlockKind, MetadataBlock, MetadataError, Node, NodeProblem, NodeValue,
    RawBlock, Superblock, seal,
};

use super::Result;
use super::metadata_space_map::MetadataSpaceMap;

/// Blocks of the clean cache: 16 MiB.
const CLEAN_BLOCKS: usize = 4096;
/// Changed blocks kept in memory: 16 MiB. More are written early; nothing refers to them before the commit.
const DIRTY_BLOCKS: usize = 4096;
/// Neighbouring blocks are written together, up to 1 MiB.
const WRITE_BLOCKS: usize = 256;

/// A block in memory, verified when it was read.
#[derive(Clone, Debug)]
pub(super) enum Cached {
    Node(Arc<Node>),
    Bitmap(Arc<Bitmap>),
    /// The metadata index, or a copy of the superblock: written, never read back through the store.
    Other(BlockKind, Box<BlockBytes>),
}

impl Cached {
    /// Sets location and checksum, as they go to the device.
    fn seal(&mut self, location: MetadataBlock) {
        match self {
            Self::Node(node) => seal(Arc::make_mut(node).bytes_mut(), location, BlockKind::Node),
            Self::Bitmap(bitmap) => seal(Arc::make_mut(bitmap).bytes_mut(), location, BlockKind::Bitmap),
            Self::Other(kind, bytes) => seal(bytes, location, *kind),
        }
    }

    fn bytes(&self) -> &BlockBytes {
        match self {
            Self::Node(node) => node.bytes(),
            Self::Bitmap(bitmap) => bitmap.bytes(),
            Self::Other(_, bytes) => bytes,
        }
    }
}

/// All metadata blocks of a pool.
pub(crate) struct MetadataStore {
    device: Arc<dyn BlockDevice>,
    clean: Cache<u64, Cached>,
    /// Blocks of the open transaction.
    dirty: HashMap<u64, Cached>,
    /// Blocks of a sealed transaction, until it is durable. They do not change any more.
    sealed: HashMap<u64, Cached>,
    /// Blocks allocated in the open transaction: they may be changed in place.
    shadows: HashSet<u64>,
    pub(super) map: MetadataSpaceMap,
}

impl MetadataStore {
    /// The store of a pool whose superblock was read.
    pub(crate) fn open(device: Arc<dyn BlockDevice>, superblock: &Superblock) -> Result<Self> {
        let map = MetadataSpaceMap::open(device.as_ref(), &superblock.metadata_space_map)?;
        Ok(Self::new(device, map))
    }

    /// The store of a pool to be: `nr_blocks` blocks, of which the first are taken by the space map itself.
    pub(crate) fn format(device: Arc<dyn BlockDevice>, nr_blocks: u64) -> Result<Self> {
        let mut store = Self::new(device, MetadataSpaceMap::default());
        store.format_map(nr_blocks)?;
        Ok(store)
    }

    fn new(device: Arc<dyn BlockDevice>, map: MetadataSpaceMap) -> Self {
        let clean = Cache::new(CLEAN_BLOCKS);
        Self { device, clean, dirty: HashMap::new(), sealed: HashMap::new(), shadows: HashSet::new(), map }
    }

    fn cached(&self, block: MetadataBlock) -> Option<Cached> {
        let pending = self.dirty.get(&block.0).or_else(|| self.sealed.get(&block.0));
        pending.cloned().or_else(|| self.clean.get(&block.0))
    }

    /// A node of a tree with values `V`.
    pub(crate) fn node<V: NodeValue>(&self, block: MetadataBlock) -> Result<Arc<Node>> {
        match self.cached(block) {
            Some(Cached::Node(node)) => {
                let found = node.value_size();
                if node.is_leaf() && found != V::SIZE {
                    let problem = NodeProblem::ValueSize { expected: V::SIZE as u32, found: found as u32 };
                    return Err(MetadataError::BadNode { block, problem });
                }
                Ok(node)
            }
            Some(other) => Err(wrong_kind(block, BlockKind::Node, &other)),
            None => {
                let node = Arc::new(Node::verify::<V>(RawBlock::read(self.device.as_ref(), block)?)?);
                self.clean.insert(block.0, Cached::Node(node.clone()));
                Ok(node)
            }
        }
    }

    /// A bitmap.
    pub(crate) fn bitmap(&self, block: MetadataBlock) -> Result<Arc<Bitmap>> {
        match self.cached(block) {
            Some(Cached::Bitmap(bitmap)) => Ok(bitmap),
            Some(other) => Err(wrong_kind(block, BlockKind::Bitmap, &other)),
            None => {
                let bitmap = Arc::new(Bitmap::verify(RawBlock::read(self.device.as_ref(), block)?)?);
                self.clean.insert(block.0, Cached::Bitmap(bitmap.clone()));
                Ok(bitmap)
            }
        }
    }

    /// Changes a node that belongs to the open transaction.
    pub(crate) fn edit_node<T>(
        &mut self,
        block: MetadataBlock,
        edit: impl FnOnce(&mut Node) -> std::result::Result<T, NodeProblem>,
    ) -> Result<T> {
        match self.dirty_entry(block)? {
            Cached::Node(node) => {
                edit(Arc::make_mut(node)).map_err(|problem| MetadataError::BadNode { block, problem })
            }
            other => Err(wrong_kind(block, BlockKind::Node, other)),
        }
    }

    /// Changes a bitmap that belongs to the open transaction.
    pub(crate) fn edit_bitmap<T>(
        &mut self,
        block: MetadataBlock,
        edit: impl FnOnce(&mut Bitmap) -> T,
    ) -> Result<T> {
        match self.dirty_entry(block)? {
            Cached::Bitmap(bitmap) => Ok(edit(Arc::make_mut(bitmap))),
            other => Err(wrong_kind(block, BlockKind::Bitmap, other)),
        }
    }

    /// The block of the open transaction, fetched back when it was written early.
    fn dirty_entry(&mut self, block: MetadataBlock) -> Result<&mut Cached> {
        self.check_new(block)?;
        if !self.dirty.contains_key(&block.0) {
            let cached = match self.clean.remove(&block.0) {
                Some((_, cached)) => cached,
                None => self.reload(block)?,
            };
            self.put(block, cached)?;
        }
        self.dirty.get_mut(&block.0).ok_or(MetadataError::OutOfRange { block, blocks: self.map.nr_blocks() })
    }

    /// Reads a block that this transaction wrote early: a node or a bitmap, told apart by its salt.
    fn reload(&self, block: MetadataBlock) -> Result<Cached> {
        let raw = RawBlock::read(self.device.as_ref(), block)?;
        if raw.is_of(BlockKind::Bitmap) {
            return Ok(Cached::Bitmap(Arc::new(Bitmap::verify(raw)?)));
        }
        Ok(Cached::Node(Arc::new(Node::verify_any(raw)?)))
    }

    /// Stores the contents of a block of the open transaction.
    pub(super) fn put(&mut self, block: MetadataBlock, contents: Cached) -> Result<()> {
        self.check_new(block)?;
        if self.dirty.len() >= DIRTY_BLOCKS {
            self.write_dirty()?;
        }
        self.dirty.insert(block.0, contents);
        Ok(())
    }

    /// Stores a node in a new block.
    pub(crate) fn add_node(&mut self, node: Node) -> Result<MetadataBlock> {
        let block = self.allocate()?;
        self.put(block, Cached::Node(Arc::new(node)))?;
        Ok(block)
    }

    /// Replaces the contents of a node's block of the open transaction.
    pub(crate) fn put_node(&mut self, block: MetadataBlock, node: Node) -> Result<()> {
        self.put(block, Cached::Node(Arc::new(node)))
    }

    /// Stores a bitmap in a new block.
    pub(crate) fn add_bitmap(&mut self, bitmap: Bitmap) -> Result<MetadataBlock> {
        let block = self.allocate()?;
        self.put(block, Cached::Bitmap(Arc::new(bitmap)))?;
        Ok(block)
    }

    /// Stores a copy of the superblock in a new block, for which `copy` makes it.
    pub(crate) fn add_superblock(
        &mut self,
        copy: impl FnOnce(MetadataBlock) -> Superblock,
    ) -> Result<MetadataBlock> {
        let block = self.allocate()?;
        self.put(block, Cached::Other(BlockKind::Superblock, copy(block).encode()))?;
        Ok(block)
    }

    /// The block of a bitmap that may be changed: itself when it belongs to the open transaction, else a copy.
    pub(crate) fn shadow_bitmap(&mut self, block: MetadataBlock) -> Result<MetadataBlock> {
        if self.is_new(block) {
            return Ok(block);
        }
        let bitmap = self.bitmap(block)?;
        let copy = self.allocate()?;
        self.put(copy, Cached::Bitmap(bitmap))?;
        self.dec(block)?;
        Ok(copy)
    }

    /// Refuses a block of the last commit, which is never written over. Only counts that are wrong lead to one.
    fn check_new(&self, block: MetadataBlock) -> Result<()> {
        if self.is_new(block) {
            return Ok(());
        }
        Err(MetadataError::WrongCount { map: "metadata", block: block.0, expected: 1, found: 0 })
    }

    /// Whether a block belongs to the open transaction.
    pub(crate) fn is_new(&self, block: MetadataBlock) -> bool {
        self.shadows.contains(&block.0)
    }

    /// Blocks that the open transaction has taken.
    pub(crate) fn new_blocks(&self) -> usize {
        self.shadows.len()
    }

    pub(super) fn mark_new(&mut self, block: MetadataBlock) {
        self.shadows.insert(block.0);
        self.clean.remove(&block.0);
    }

    /// Nothing refers to the block any more.
    pub(super) fn forget(&mut self, block: MetadataBlock) {
        if self.shadows.remove(&block.0) {
            self.dirty.remove(&block.0);
            self.clean.remove(&block.0);
        }
    }

    /// Writes all changed blocks before the commit, to make room. They stay in the cache.
    fn write_dirty(&mut self) -> Result<()> {
        let blocks = self.sealed_blocks();
        write_blocks(self.device.as_ref(), &blocks)?;
        self.dirty.clear();
        self.keep_clean(blocks);
        Ok(())
    }

    /// The changed blocks as they go to the device, ascending. They stay where they are.
    fn sealed_blocks(&mut self) -> Vec<(u64, Cached)> {
        let seal = |(block, cached): (&u64, &mut Cached)| {
            cached.seal(MetadataBlock(*block));
            (*block, cached.clone())
        };
        let mut blocks: Vec<(u64, Cached)> = self.dirty.iter_mut().map(seal).collect();
        blocks.sort_unstable_by_key(|(block, _)| *block);
        blocks
    }

    fn keep_clean(&self, blocks: Vec<(u64, Cached)>) {
        for (block, cached) in blocks {
            if !matches!(cached, Cached::Other(..)) {
                self.clean.insert(block, cached);
            }
        }
    }

    /// Ends the open transaction in memory and begins the next one: [`SealedTransaction::write`] makes it durable, after
    /// which [`finish_commit`](Self::finish_commit) is due before another one is sealed. Meanwhile everything can be read and
    /// changed; what the sealed transaction or the last commit have is never written over. The superblock's metadata space
    /// map is filled in here, since the index moves with every commit.
    pub(crate) fn seal_transaction(&mut self, superblock: &mut Superblock) -> Result<SealedTransaction> {
        self.settle_map()?;
        superblock.metadata_space_map = self.map.root();
        let blocks = self.sealed_blocks();
        self.sealed = std::mem::take(&mut self.dirty);
        self.shadows.clear();
        self.map.seal();
        Ok(SealedTransaction { device: self.device.clone(), blocks, superblock: superblock.clone() })
    }

    /// The sealed transaction is durable.
    pub(crate) fn finish_commit(&mut self, transaction: SealedTransaction) {
        self.sealed.clear();
        self.keep_clean(transaction.blocks);
        self.map.committed();
    }
}

/// A transaction that is complete in memory.
pub(crate) struct SealedTransaction {
    device: Arc<dyn BlockDevice>,
    /// Ascending.
    blocks: Vec<(u64, Cached)>,
    superblock: Superblock,
}

impl SealedTransaction {
    /// Writes the blocks, flushes, then writes the superblock that names them and flushes again. Touches no state of the
    /// pool: readers go on meanwhile.
    pub(crate) fn write(&self) -> Result<()> {
        write_blocks(self.device.as_ref(), &self.blocks)?;
        self.device.flush().map_err(|source| MetadataError::Flush { source })?;
        write_superblock(self.device.as_ref(), &self.superblock)
    }
}

/// Writes sealed blocks, ascending, neighbours together.
fn write_blocks(device: &dyn BlockDevice, blocks: &[(u64, Cached)]) -> Result<()> {
    let mut run = Vec::with_capacity(WRITE_BLOCKS.min(blocks.len()) * BLOCK_BYTES);
    let (mut begin, mut next) = (0, 0);
    for (block, cached) in blocks {
        if *block != next || run.len() >= WRITE_BLOCKS * BLOCK_BYTES {
            write_run(device, begin, &run)?;
            run.clear();
            begin = *block;
        }
        run.extend_from_slice(cached.bytes());
        next = *block + 1;
    }
    write_run(device, begin, &run)
}

fn write_run(device: &dyn BlockDevice, begin: u64, run: &[u8]) -> Result<()> {
    if run.is_empty() {
        return Ok(());
    }
    let block = MetadataBlock(begin);
    let written = device.write_at(begin * BLOCK_BYTES as u64, run);
    written.map_err(|source| MetadataError::Io { action: "write", block, source })
}

/// Writes and flushes a superblock.
pub(crate) fn write_superblock(device: &dyn BlockDevice, superblock: &Superblock) -> Result<()> {
    let block = superblock.location;
    device
        .write_at(block.0 * BLOCK_BYTES as u64, superblock.encode().as_slice())
        .map_err(|source| MetadataError::Io { action: "write", block, source })?;
    device.flush().map_err(|source| MetadataError::Flush { source })
}

/// A block that is referred to as one kind and was met as another.
fn wrong_kind(block: MetadataBlock, kind: BlockKind, found: &Cached) -> MetadataError {
    let found = match found {
        Cached::Node(_) => BlockKind::Node,
        Cached::Bitmap(_) => BlockKind::Bitmap,
        Cached::Other(kind, _) => *kind,
    };
    MetadataError::WrongKind { block, expected: kind, found }
}
