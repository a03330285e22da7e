//! Metadata that a test can damage: blocks in use are known, and can be sealed again. A check that writes fails the test.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex},
};

use thinbak_engine::{
    BlockDevice, MemoryDevice, MetadataBlock,
    check::{CheckReport, check},
    format::{BlockKind, checksum},
};

use crate::fixture::Fixture;

/// A device that panics when anything would change it, and remembers which blocks were read. Blocks can be made
/// unreadable, for good or for the next so many attempts.
pub(crate) struct Watched {
    device: Arc<MemoryDevice>,
    read: Mutex<BTreeSet<u64>>,
    unreadable: Mutex<BTreeMap<u64, u32>>,
}

impl Watched {
    pub(crate) fn new(device: Arc<MemoryDevice>) -> Self {
        Self { device, read: Mutex::default(), unreadable: Mutex::default() }
    }

    /// Lets the next reads of a block fail, and of whatever includes it.
    pub(crate) fn fail(&self, block: u64, attempts: u32) {
        self.unreadable.lock().unwrap().insert(block, attempts);
    }
}

impl BlockDevice for Watched {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let blocks = offset / 4096..(offset + buf.len() as u64).div_ceil(4096);
        for (_, attempts) in self.unreadable.lock().unwrap().range_mut(blocks.clone()) {
            if *attempts > 0 {
                *attempts -= 1;
                return Err(io::Error::other("a bad sector"));
            }
        }
        self.read.lock().unwrap().extend(blocks);
        self.device.read_at(offset, buf)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        panic!("a check writes");
    }
    fn flush(&self) -> io::Result<()> {
        panic!("a check flushes");
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("a check discards");
    }
    fn resize(&self, _: u64) -> io::Result<()> {
        panic!("a check resizes");
    }
}

/// An image under test.
pub(crate) struct Image {
    pub(crate) device: Arc<MemoryDevice>,
}

impl Image {
    /// A copy of a fixture's metadata.
    pub(crate) fn load(case: &str) -> Self {
        Self { device: Arc::new(Fixture::load(case).device().duplicate()) }
    }

    pub(crate) fn check(&self) -> CheckReport {
        check(Arc::new(Watched::new(Arc::clone(&self.device))), None).unwrap()
    }

    /// The blocks in use, by the metadata space map. A check of the sound image reads them all.
    pub(crate) fn reachable(&self) -> Vec<u64> {
        let index = self.u64_at(0, 192 + 16);
        let blocks = self.u64_at(0, 192);
        let is_used = |block: &u64| {
            let bitmap = self.u64_at(index, 16 + 16 * usize::try_from(block / 16_320).unwrap());
            let entry = usize::try_from(block % 16_320).unwrap();
            self.block(bitmap)[16 + entry / 4] >> (entry % 4 * 2) & 3 != 0
        };
        let used: Vec<u64> = (0..blocks).filter(is_used).collect();
        let watched = Arc::new(Watched::new(Arc::clone(&self.device)));
        let report = check(Arc::clone(&watched) as Arc<dyn BlockDevice>, None).unwrap();
        assert!(report.is_sound());
        assert_eq!(used.len() as u64, report.blocks);
        let read = watched.read.lock().unwrap();
        assert!(used.iter().all(|block| read.contains(block)));
        used
    }

    pub(crate) fn block(&self, block: u64) -> Box<[u8; 4096]> {
        let mut bytes = Box::new([0; 4096]);
        self.device.read_at(block * 4096, bytes.as_mut_slice()).unwrap();
        bytes
    }

    pub(crate) fn u64_at(&self, block: u64, offset: usize) -> u64 {
        u64::from_le_bytes(self.block(block)[offset..offset + 8].try_into().unwrap())
    }

    pub(crate) fn u32_at(&self, block: u64, offset: usize) -> u32 {
        u32::from_le_bytes(self.block(block)[offset..offset + 4].try_into().unwrap())
    }

    pub(crate) fn flip(&self, block: u64, bit: usize) {
        let mut bytes = self.block(block);
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.device.write_at(block * 4096, bytes.as_slice()).unwrap();
    }

    /// Which kind of block the checksum says it is; none when it is wrong.
    pub(crate) fn kind(&self, block: u64) -> Option<BlockKind> {
        let bytes = self.block(block);
        let stored = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        [BlockKind::Superblock, BlockKind::Node, BlockKind::Bitmap, BlockKind::Index]
            .into_iter()
            .find(|kind| checksum(&bytes, *kind) == stored)
    }

    /// Changes a block and gives it a valid checksum again.
    pub(crate) fn edit(&self, block: u64, change: impl FnOnce(&mut [u8])) {
        let kind = self.kind(block).unwrap_or_else(|| panic!("{} is not sealed", MetadataBlock(block)));
        let mut bytes = self.block(block);
        change(bytes.as_mut_slice());
        let sum = checksum(&bytes, kind);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        self.device.write_at(block * 4096, bytes.as_slice()).unwrap();
    }

    pub(crate) fn put_u64(&self, block: u64, offset: usize, value: u64) {
        self.edit(block, |bytes| bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes()));
    }

    pub(crate) fn put_u32(&self, block: u64, offset: usize, value: u32) {
        self.edit(block, |bytes| bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes()));
    }
}
