//! The images that are edited: one of the engine's own and some that the kernel wrote.

use std::io::Read;
use std::sync::{Arc, LazyLock};

use ruzstd::decoding::StreamingDecoder;
use thinbak_engine::format::{BlockBytes, BlockKind, RawBlock};
use thinbak_engine::{BlockDevice, BlockSize, DeviceId, MemoryDevice, MetadataBlock, Pool};

/// All kinds of metadata blocks.
pub const KINDS: [BlockKind; 4] =
    [BlockKind::Superblock, BlockKind::Node, BlockKind::Bitmap, BlockKind::Index];

/// A valid image.
#[derive(Debug)]
pub struct Image {
    /// The metadata.
    pub device: MemoryDevice,
    /// Every block that is of some kind.
    pub blocks: Vec<(MetadataBlock, BlockKind)>,
}

/// All images; an input chooses one by its first byte.
pub static IMAGES: LazyLock<Vec<Image>> = LazyLock::new(|| {
    let fixtures: [&[u8]; 3] = [
        include_bytes!("../../../tests/fixtures/c-nested-msnap/metadata.img.zst"),
        include_bytes!("../../../tests/fixtures/a-empty/metadata.img.zst"),
        include_bytes!("../../../tests/fixtures/h-data/metadata.img.zst"),
    ];
    let fixtures = fixtures.into_iter().map(|compressed| {
        let mut bytes = Vec::new();
        let mut decoder = StreamingDecoder::new(compressed).expect("a frame");
        decoder.read_to_end(&mut bytes).expect("a whole frame");
        MemoryDevice::from_bytes(&bytes)
    });
    std::iter::once(own()).chain(fixtures).map(Image::new).collect()
});

fn id(id: u64) -> DeviceId {
    DeviceId::new(id).expect("a small number")
}

/// Trees of two levels, counts above 2, a metadata snapshot.
fn own() -> MemoryDevice {
    let metadata = Arc::new(MemoryDevice::new(128 * 4096));
    let data = Arc::new(MemoryDevice::new(400 * 65_536));
    let pool = Pool::format(metadata.clone(), data, BlockSize::from_bytes(65_536).expect("a legal size"))
        .expect("a new pool");
    let fill = || {
        pool.create_thin(id(0))?;
        for block in 0..270 {
            pool.write(id(0), block * 131_072, b"x")?;
        }
        for device in 1..6 {
            pool.create_snap(id(device), id(device - 1))?;
            pool.write(id(device), device * 10 * 65_536, b"y")?;
        }
        pool.create_thin(id(9))?;
        pool.write(id(9), 0, b"z")?;
        pool.reserve_metadata_snap()?;
        pool.write(id(5), 0, b"w")?;
        pool.delete(id(2))?;
        pool.commit()
    };
    fill().expect("room for it");
    drop(pool);
    metadata.duplicate()
}

impl Image {
    fn new(device: MemoryDevice) -> Self {
        let blocks = (0..device.size_bytes() / 4096).filter_map(|block| {
            let raw = RawBlock::read(&device, MetadataBlock(block)).ok()?;
            Some((MetadataBlock(block), KINDS.into_iter().find(|kind| raw.is_of(*kind))?))
        });
        let blocks = blocks.collect();
        Self { device, blocks }
    }

    /// A block of the image, in its own memory.
    pub fn block(&self, block: MetadataBlock) -> Box<BlockBytes> {
        let mut bytes = Box::new([0; 4096]);
        self.device.read_at(block.0 * 4096, bytes.as_mut_slice()).expect("a block of the image");
        bytes
    }
}
