//! Every block decoder, on a block of a real image with edits, sealed or not, taken for every kind.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thinbak_engine::MetadataBlock;
use thinbak_engine::format::{
    Bitmap, BlockBytes, DeviceDetails, ENTRIES_PER_BITMAP, IndexEntry, MappedBlock, MetadataIndex, Node,
    NodeValue, RawBlock, Superblock,
};
use thinbak_engine_fuzz::edits::{Input, seal};
use thinbak_engine_fuzz::images::{IMAGES, KINDS};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let image = &IMAGES[usize::from(input.byte()) % IMAGES.len()];
    let (block, own) = image.blocks[usize::from(input.byte()) % image.blocks.len()];
    let kind = KINDS.get(usize::from(input.byte())).copied().unwrap_or(own);
    let sealed = input.byte() != 7;
    let nr_blocks = input.u64();
    let mut bytes = image.block(block);
    while !input.is_empty() {
        let at = usize::from(input.u16()) % (4096 - 8);
        match input.byte() % 3 {
            0 => bytes[at] = input.byte(),
            1 => bytes[at..at + 2].copy_from_slice(&input.u16().to_le_bytes()),
            _ => bytes[at..at + 8].copy_from_slice(&input.u64().to_le_bytes()),
        }
    }
    if sealed {
        seal(&mut bytes, block, kind);
    }
    let raw = || RawBlock::new(block, bytes.clone());
    superblock(raw());
    bitmap(raw(), nr_blocks);
    if let Ok(index) = MetadataIndex::verify(raw(), nr_blocks) {
        assert_eq!(index.entries.len() as u64, nr_blocks.div_ceil(ENTRIES_PER_BITMAP));
    }
    node::<u32>(raw());
    node::<MetadataBlock>(raw());
    node::<MappedBlock>(raw());
    node::<DeviceDetails>(raw());
    node::<IndexEntry>(raw());
});

/// What was decoded says the same when it is encoded.
fn superblock(raw: RawBlock) {
    if let Ok(superblock) = Superblock::verify(raw) {
        let again: Box<BlockBytes> = superblock.encode();
        let again = Superblock::verify(RawBlock::new(superblock.location, again)).expect("its own encoding");
        assert_eq!(superblock, again);
    }
}

fn bitmap(raw: RawBlock, end: u64) {
    let Ok(mut bitmap) = Bitmap::verify(raw) else { return };
    let mut at = 0;
    while let Some(zero) = bitmap.find_zero(at, end) {
        assert!(zero >= at && zero < end.min(ENTRIES_PER_BITMAP));
        at = zero + 1;
    }
    let count = bitmap.get(end);
    bitmap.set(end % ENTRIES_PER_BITMAP, count);
}

fn node<V: NodeValue>(raw: RawBlock) {
    let Ok(node) = Node::verify::<V>(raw) else { return };
    assert!(node.len() <= node.capacity());
    assert!(node.keys().zip(node.keys().skip(1)).all(|(left, right)| left < right));
    for (entry, key) in node.keys().enumerate() {
        assert_eq!(node.search(key), Ok(entry));
        assert_eq!(node.lower_bound(key), Some(entry));
    }
    if node.is_leaf() {
        assert_eq!(node.entries::<V>().count(), node.len());
    } else {
        assert_eq!(node.children().count(), node.len());
    }
    assert_eq!(node.key(node.len()), None);
    assert!(node.value::<V>(node.len()).is_none());
}
