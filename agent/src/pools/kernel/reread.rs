//! The metadata device of a live pool, read around the page cache while the kernel writes it.

use std::{io, sync::Arc};

use thinbak_engine::{
    BlockDevice, FileDevice, MetadataBlock,
    format::{BLOCK_BYTES, BlockKind, RawBlock},
};

/// How often a block is read whose checksum is not right.
const ATTEMPTS: u32 = 3;

/// Reads metadata blocks; one that is neither whole nor of any kind is read again: the superblock is written in place. What
/// stays wrong is for the reader to report. Nothing is ever written.
pub(super) struct Reread {
    device: Arc<FileDevice>,
}

impl Reread {
    pub(super) fn new(device: Arc<FileDevice>) -> Self {
        Self { device }
    }
}

impl BlockDevice for Reread {
    fn size_bytes(&self) -> u64 {
        self.device.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device.read_at(offset, buf)?;
        let (blocks, _) = buf.as_chunks_mut::<BLOCK_BYTES>();
        for (number, block) in (offset / BLOCK_BYTES as u64..).zip(blocks) {
            for _ in 1..ATTEMPTS {
                if is_whole(number, block) {
                    break;
                }
                self.device.read_at(number * BLOCK_BYTES as u64, block)?;
            }
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a live pool's metadata are the kernel's"))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, _len: u64) -> io::Result<()> {
        self.write_at(offset, &[])
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.device.resize(size)
    }
}

fn is_whole(number: u64, block: &[u8; BLOCK_BYTES]) -> bool {
    let raw = RawBlock::new(MetadataBlock::new(number), Box::new(*block));
    [BlockKind::Node, BlockKind::Superblock, BlockKind::Bitmap, BlockKind::Index]
        .into_iter()
        .any(|kind| raw.is_of(kind))
}
