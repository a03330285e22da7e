//! A tiny writer of mapping trees, of whatever shape: equal nodes become one block, so trees share what is equal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use thinbak_engine::{
    BlockDevice, BlockSize, MemoryDevice, MetadataBlock,
    format::{BlockKind, SpaceMapRoot, Superblock, checksum},
    metadata_view::{MetadataView, Roots},
};

/// Virtual block to data block and time.
pub(crate) type Mappings = BTreeMap<u64, (u64, u32)>;

/// How entries are cut into nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// Behind keys whose hash says so, one in so many: a change moves few cuts.
    Hash { one_in: u64, salt: u64 },
    /// Every so many entries.
    Every(usize),
}

impl Cut {
    fn after(self, key: u64, entries: usize, level: u64) -> bool {
        match self {
            Self::Hash { one_in, salt } => {
                entries >= 252 || hash(key ^ hash(salt ^ level)).is_multiple_of(one_in)
            }
            Self::Every(limit) => entries >= limit,
        }
    }
}

pub(crate) fn hash(value: u64) -> u64 {
    let mixed = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

/// A metadata device with trees on it.
pub(crate) struct Forest {
    device: MemoryDevice,
    known: HashMap<(bool, Vec<(u64, u64)>), u64>,
    blocks: u64,
    next: u64,
    /// Whether keys of inner nodes lie below the first key of the child, where there is room.
    pub(crate) loose_keys: bool,
}

impl Forest {
    /// Room for `blocks` nodes; a power of two.
    pub(crate) fn new(blocks: u64) -> Self {
        let device = MemoryDevice::new((blocks + 1) * 4096);
        Self { device, known: HashMap::new(), blocks, next: 0, loose_keys: false }
    }

    /// Writes a tree, and returns its root.
    pub(crate) fn add(&mut self, mappings: &Mappings, cut: Cut) -> MetadataBlock {
        let entries = mappings.iter().map(|(key, (data, time))| (*key, data << 24 | u64::from(*time)));
        let mut nodes = self.level(entries.collect(), cut, 0);
        let mut level = 1;
        while nodes.len() > 1 {
            nodes = self.level(nodes, cut, level);
            level += 1;
        }
        MetadataBlock(nodes.first().map_or_else(|| self.node(true, Vec::new()), |node| node.1))
    }

    fn level(&mut self, entries: Vec<(u64, u64)>, cut: Cut, level: u64) -> Vec<(u64, u64)> {
        // One cut in 8 levels at least, or hashes could make ever more levels of one entry each.
        let cut = if level > 8 { Cut::Every(200) } else { cut };
        let mut parents = Vec::new();
        let mut node: Vec<(u64, u64)> = Vec::new();
        let mut below = None;
        let count = entries.len();
        for (index, (key, value)) in entries.into_iter().enumerate() {
            node.push((key, value));
            if cut.after(key, node.len(), level) || index + 1 == count {
                let first = node[0].0;
                let room = below.map_or(first, |below: u64| first - below - 1);
                let slack = if self.loose_keys && level == 0 { (hash(first) % 3).min(room) } else { 0 };
                let block = self.node(level == 0, std::mem::take(&mut node));
                parents.push((first - slack, block));
                below = Some(key);
            }
        }
        parents
    }

    fn node(&mut self, leaf: bool, entries: Vec<(u64, u64)>) -> u64 {
        if let Some(block) = self.known.get(&(leaf, entries.clone())) {
            return *block;
        }
        assert!(self.next < self.blocks, "the forest is too small");
        // Scattered: an odd factor is a permutation of a power of two.
        let block = 1 + (self.next.wrapping_mul(0x9e37_79b1) & (self.blocks - 1));
        self.next += 1;
        let mut bytes = [0; 4096];
        bytes[4] = if leaf { 2 } else { 1 };
        bytes[16..20].copy_from_slice(&u32::try_from(entries.len()).unwrap().to_le_bytes());
        bytes[20] = 252;
        bytes[24] = 8;
        for (index, (key, value)) in entries.iter().enumerate() {
            bytes[32 + index * 8..][..8].copy_from_slice(&key.to_le_bytes());
            bytes[2048 + index * 8..][..8].copy_from_slice(&value.to_le_bytes());
        }
        self.seal(block, &mut bytes, BlockKind::Node);
        self.known.insert((leaf, entries), block);
        block
    }

    fn seal(&self, block: u64, bytes: &mut [u8; 4096], kind: BlockKind) {
        bytes[8..16].copy_from_slice(&block.to_le_bytes());
        let sum = checksum(bytes, kind);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        self.device.write_at(block * 4096, bytes).unwrap();
    }

    /// A view of all trees, and what it reads.
    pub(crate) fn view(&self) -> (MetadataView, Arc<Counted>) {
        let blocks = self.blocks + 1;
        let superblock = Superblock {
            time: 1,
            metadata_space_map: SpaceMapRoot { nr_blocks: blocks, ..SpaceMapRoot::default() },
            ..Superblock::blank(BlockSize::from_bytes(65536).unwrap(), blocks)
        };
        let mut bytes = superblock.encode();
        self.seal(0, &mut bytes, BlockKind::Superblock);
        let counted = Arc::new(Counted {
            device: self.device.duplicate(),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            blocks: Mutex::default(),
        });
        let view = MetadataView::open(Arc::clone(&counted) as Arc<dyn BlockDevice>, Roots::Live).unwrap();
        counted.reset();
        (view, counted)
    }
}

/// A device that counts reads.
pub(crate) struct Counted {
    device: MemoryDevice,
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) blocks: Mutex<BTreeSet<u64>>,
}

impl Counted {
    pub(crate) fn reset(&self) {
        self.requests.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        self.blocks.lock().unwrap().clear();
    }

    /// Bytes read, in blocks.
    pub(crate) fn blocks_read(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed) / 4096
    }
}

impl BlockDevice for Counted {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.blocks.lock().unwrap().extend(offset / 4096..(offset + buf.len() as u64) / 4096);
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.device.write_at(offset, buf)
    }
    fn flush(&self) -> io::Result<()> {
        self.device.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device.discard(offset, len)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.device.resize(size)
    }
}
