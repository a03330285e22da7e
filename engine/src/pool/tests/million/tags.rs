//! A data device that keeps the first eight bytes of each block only: what a block holds costs nothing then, whatever its
//! size.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::BlockDevice;

/// What a discarded block may read as, on a device that says nothing of it.
const GARBAGE: u64 = 0xDEAD_DEAD_DEAD_DEAD;

pub(super) struct TagDevice {
    block_size: u64,
    tags: Mutex<Vec<u64>>,
}

impl TagDevice {
    pub(super) fn new(block_size: u64, blocks: u64) -> Arc<Self> {
        Arc::new(Self { block_size, tags: Mutex::new(vec![GARBAGE; blocks as usize]) })
    }

    /// The blocks whose tag lies in a transfer, with the tag's place in the transfer's bytes. No transfer ends in a tag.
    fn tags_in(&self, offset: u64, length: u64) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (size, first) = (self.block_size, offset.div_ceil(self.block_size));
        assert!(offset.is_multiple_of(size) || offset % size >= 8, "a transfer begins in a tag");
        let end = (offset + length).div_ceil(size);
        assert!(length == 0 || (offset + length - 1) % size >= 7, "a transfer ends in a tag");
        (first..end).map(move |block| (block as usize, (block * size - offset) as usize))
    }
}

impl BlockDevice for TagDevice {
    fn size_bytes(&self) -> u64 {
        self.tags.lock().len() as u64 * self.block_size
    }

    /// Bytes that are no tag stay as they are in `buf`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let tags = self.tags.lock();
        for (block, at) in self.tags_in(offset, buf.len() as u64) {
            buf[at..at + 8].copy_from_slice(&tags[block].to_le_bytes());
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut tags = self.tags.lock();
        for (block, at) in self.tags_in(offset, buf.len() as u64) {
            tags[block] = u64::from_le_bytes(buf[at..at + 8].try_into().unwrap());
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut tags = self.tags.lock();
        for (block, _) in self.tags_in(offset, len) {
            tags[block] = GARBAGE;
        }
        Ok(())
    }

    fn resize(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}
