//! Metadata that a test can damage: every block that a check reads is known, and blocks can be sealed again.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};

use thinbak_engine::{
    BlockDevice, MemoryDevice, MetadataBlock,
    check::{CheckReport, check},
    format::{BlockKind, checksum},
};

/// A device that remembers which blocks were read.
pub(crate) struct Watched {
    device: MemoryDevice,
    pub(crate) read: Mutex<BTreeSet<u64>>,
}

impl Watched {
    pub(crate) fn new(device: MemoryDevice) -> Self {
        Self { device, read: Mutex::default() }
    }
}

impl BlockDevice for Watched {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let blocks = offset / 4096..(offset + buf.len() as u64).div_ceil(4096);
        self.read.lock().unwrap().extend(blocks);
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

/// An image under test.
pub(crate) struct Image {
    pub(crate) device: Arc<MemoryDevice>,
}

impl Image {
    pub(crate) fn check(&self) -> CheckReport {
        check(Arc::clone(&self.device) as Arc<dyn BlockDevice>, None).unwrap()
    }

    /// The blocks that a check of the sound image reads: all that is reachable.
    pub(crate) fn reachable(&self) -> Vec<u64> {
        let watched = Arc::new(Watched::new(self.device.duplicate()));
        let report = check(Arc::clone(&watched) as Arc<dyn BlockDevice>, None).unwrap();
        assert!(report.is_sound());
        let read = watched.read.lock().unwrap().iter().copied().collect::<Vec<_>>();
        assert_eq!(read.len() as u64, report.blocks);
        read
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

    /// Which kind of block the checksum says it is.
    pub(crate) fn kind(&self, block: u64) -> BlockKind {
        let bytes = self.block(block);
        let stored = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        [BlockKind::Superblock, BlockKind::Node, BlockKind::Bitmap, BlockKind::Index]
            .into_iter()
            .find(|kind| checksum(&bytes, *kind) == stored)
            .unwrap_or_else(|| panic!("{} is not sealed", MetadataBlock(block)))
    }

    /// Changes a block and gives it a valid checksum again.
    pub(crate) fn edit(&self, block: u64, change: impl FnOnce(&mut [u8])) {
        let kind = self.kind(block);
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
