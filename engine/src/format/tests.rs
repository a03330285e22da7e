mod document;

use super::{
    BLOCK_BYTES, Bitmap, BlockBytes, BlockKind, BlockSize, DataBlock, DeviceDetails, DeviceId, IndexEntry,
    MappedBlock, MetadataBlock, MetadataError, MetadataIndex, Node, NodeValue, RawBlock, RawCount,
    Superblock, VirtualBlock, checksum, max_entries, put, raw_block::seal,
};

/// A block given by its lines of non-zero bytes.
fn block(lines: &[(usize, &str)]) -> Box<BlockBytes> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    for (at, line) in lines {
        for (offset, byte) in line.split_whitespace().enumerate() {
            bytes[at + offset] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    bytes
}

/// The superblock of a pool that thin_restore 1.3.3 made: 1024 metadata blocks, 1024 data blocks of 64 KiB.
fn restored_superblock() -> Box<BlockBytes> {
    block(&[
        (0x000, "67 8e 8f a2"),
        (0x020, "ba 52 9c 01 00 00 00 00 02 00 00 00 01 00 00 00"),
        (0x030, "05"),
        (0x040, "00 04 00 00 00 00 00 00 04"),
        (0x050, "07 00 00 00 00 00 00 00 06"),
        (0x0c0, "00 04 00 00 00 00 00 00 0b"),
        (0x0d0, "0a 00 00 00 00 00 00 00 09"),
        (0x140, "04 00 00 00 00 00 00 00 03"),
        (0x150, "80 00 00 00 08 00 00 00 00 04"),
    ])
}

fn at(block: u64, bytes: Box<BlockBytes>) -> RawBlock {
    RawBlock::new(MetadataBlock(block), bytes)
}

#[test]
fn superblock_decodes_and_encodes_to_the_same_bytes() {
    let superblock = Superblock::verify(at(0, restored_superblock())).unwrap();
    assert_eq!((superblock.time, superblock.transaction_id), (1, 5));
    assert_eq!(superblock.block_size.bytes(), 65_536);
    assert_eq!(superblock.data_space_map.bitmap_root, MetadataBlock(7));
    assert_eq!(superblock.metadata_space_map.nr_allocated, 11);
    assert_eq!((superblock.mapping_root, superblock.details_root), (MetadataBlock(4), MetadataBlock(3)));
    assert_eq!(superblock.held_root, None);
    assert!(!superblock.needs_check);
    assert_eq!(superblock.encode(), restored_superblock());
}

#[test]
fn mapping_leaf_decodes() {
    let mut bytes = block(&[
        (0x000, "00 00 00 00 02 00 00 00 01 00 00 00 00 00 00 00"),
        (0x010, "04 00 00 00 fc 00 00 00 08"),
    ]);
    for (entry, (key, word)) in
        [(0, 0), (1, 0x0100_0000), (2, 0x0200_0000), (7, 0x0400_0001_u64)].into_iter().enumerate()
    {
        put(bytes.as_mut_slice(), 32 + 8 * entry, &u64::to_le_bytes(key));
        put(bytes.as_mut_slice(), 2048 + 8 * entry, &word.to_le_bytes());
    }
    seal(&mut bytes, MetadataBlock(1), BlockKind::Node);
    let node = Node::verify::<MappedBlock>(at(1, bytes)).unwrap();
    assert!(node.is_leaf());
    let entries: Vec<_> =
        node.entries::<MappedBlock>().map(|(key, value)| (key, value.data_block.0, value.time)).collect();
    assert_eq!(entries, [(0, 0, 0), (1, 1, 0), (2, 2, 0), (7, 4, 1)]);
    assert_eq!((node.search(7), node.search(3), node.lower_bound(6)), (Ok(3), Err(3), Some(2)));
}

#[test]
fn bitmap_holds_counts_in_the_kernel_s_bit_order() {
    let bytes = block(&[(0, "44 35 9b e0 00 00 00 00 05"), (16, "15 02")]);
    let bitmap = Bitmap::verify(at(5, bytes)).unwrap();
    let counts: Vec<_> = (0..6).map(|entry| bitmap.get(entry)).collect();
    assert_eq!(counts, [2, 2, 2, 0, 1, 0].map(RawCount::Exact));
    assert_eq!(
        (bitmap.find_zero(0, 100), bitmap.find_zero(4, 5), bitmap.find_zero(4, 100)),
        (Some(3), None, Some(5))
    );
    let mut built = Bitmap::empty();
    for (entry, count) in [2, 2, 2, 0, 1].into_iter().enumerate() {
        built.set(entry as u64, RawCount::from_count(count));
    }
    assert_eq!(&built.bytes()[16..], &bitmap.bytes()[16..]);
    built.set(1, RawCount::from_count(7));
    assert_eq!(built.get(1), RawCount::Many);
    assert_eq!(built.get(0), RawCount::Exact(2));
}

#[test]
fn index_tree_leaf_and_metadata_index_decode() {
    let mut bytes = block(&[
        (0x000, "a0 f4 9e 43 02 00 00 00 07"),
        (0x010, "01 00 00 00 a8 00 00 00 10"),
        (0x560, "05 00 00 00 00 00 00 00 bc 3f 00 00 03"),
    ]);
    let expected = IndexEntry { bitmap: MetadataBlock(5), nr_free: 16_316, none_free_before: 3 };
    let node = Node::verify::<IndexEntry>(at(7, bytes.clone())).unwrap();
    assert_eq!(node.value::<IndexEntry>(0), Some(expected));
    bytes[0x560] = 6;
    assert!(matches!(Node::verify::<IndexEntry>(at(7, bytes)), Err(MetadataError::Checksum { .. })));

    let bytes = block(&[(0, "e4 dc 70 5a 00 00 00 00 0a"), (16, "08 00 00 00 00 00 00 00 b5 3f 00 00 0b")]);
    let index = MetadataIndex::verify(at(10, bytes.clone()), 1024).unwrap();
    let entry = IndexEntry { bitmap: MetadataBlock(8), nr_free: 16_309, none_free_before: 11 };
    assert_eq!(index.entries, [entry]);
    let mut encoded = index.encode();
    seal(&mut encoded, MetadataBlock(10), BlockKind::Index);
    assert_eq!(encoded, bytes);
}

#[test]
fn details_leaf_encodes_to_the_bytes_of_thin_restore() {
    let mut node = Node::empty_leaf::<DeviceDetails>();
    let snapshot =
        DeviceDetails { mapped_blocks: 3, transaction_id: 3, creation_time: 1, snapshotted_time: 1 };
    node.insert_entry(0, 1, &snapshot).unwrap();
    let origin = DeviceDetails { mapped_blocks: 4, transaction_id: 1, creation_time: 0, snapshotted_time: 1 };
    node.insert_entry(0, 0, &origin).unwrap();
    let mut bytes = Box::new(*node.bytes());
    seal(&mut bytes, MetadataBlock(3), BlockKind::Node);
    assert_eq!(bytes[..16], block(&[(0, "fa 34 54 ec 02 00 00 00 03")])[..16]);
    let back = Node::verify::<DeviceDetails>(at(3, bytes)).unwrap();
    assert_eq!(back.entries().collect::<Vec<_>>(), [(0, origin), (1, snapshot)]);
}

#[test]
fn capacities_are_those_of_the_kernel() {
    assert_eq!([4, 8, 16, 24].map(max_entries), [336, 252, 168, 126]);
    assert_eq!([u32::SIZE, MappedBlock::SIZE, IndexEntry::SIZE, DeviceDetails::SIZE], [4, 8, 16, 24]);
}

#[test]
fn a_flipped_bit_a_foreign_place_and_a_foreign_kind_are_refused() {
    for bit in [0, 37, 8 * 63, 8 * 4095 + 7] {
        let mut bytes = restored_superblock();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Superblock::verify(at(0, bytes)).is_err(), "bit {bit}");
    }
    let moved = Superblock::verify(at(3, restored_superblock()));
    assert!(matches!(moved, Err(MetadataError::WrongLocation { found: 0, .. })));
    assert!(Node::verify::<u32>(at(0, restored_superblock())).is_err());
    assert!(matches!(Superblock::verify(at(0, block(&[]))), Err(MetadataError::BadSuperblock { .. })));
}

#[test]
fn nodes_that_break_a_rule_are_refused() {
    let with = |change: fn(&mut BlockBytes)| {
        let mut node = Node::empty_leaf::<u32>();
        node.insert_entry(0, 5, &7_u32).unwrap();
        node.insert_entry(1, 9, &8_u32).unwrap();
        let mut bytes = Box::new(*node.bytes());
        change(&mut bytes);
        seal(&mut bytes, MetadataBlock(2), BlockKind::Node);
        Node::verify::<u32>(at(2, bytes))
    };
    assert!(with(|_| ()).is_ok());
    assert!(with(|bytes| bytes[4] = 3).is_err());
    assert!(with(|bytes| bytes[4] = 1).is_err());
    assert!(with(|bytes| bytes[16] = 255).is_ok_and(|_| false) || with(|bytes| bytes[17] = 2).is_err());
    assert!(with(|bytes| bytes[20] = 1).is_err());
    assert!(with(|bytes| bytes[24] = 8).is_err());
    assert!(with(|bytes| bytes[40] = 5).is_err());
}

#[test]
fn node_edits_keep_order_and_refuse_what_does_not_fit() {
    let mut node = Node::empty_leaf::<u32>();
    for key in (0..336_u64).rev() {
        node.insert_entry(0, key, &(key as u32 * 2)).unwrap();
    }
    assert!(node.insert_entry(336, 999, &1_u32).is_err());
    node.remove_entries(10, 300).unwrap();
    assert_eq!(node.len(), 36);
    assert_eq!((node.key(9), node.key(10), node.value::<u32>(10)), (Some(9), Some(310), Some(620)));
    assert!(node.remove_entries(36, 1).is_err());
    let mut other = node.empty_like();
    other.append_from(&node, 30, 6).unwrap();
    assert_eq!(other.keys().collect::<Vec<_>>(), [330, 331, 332, 333, 334, 335]);
    assert!(other.append_from(&node, 35, 2).is_err());
    assert_eq!((node.key(36), node.value::<u32>(36), node.value::<MetadataBlock>(0)), (None, None, None));
}

#[test]
fn units_refuse_what_the_kernel_refuses() {
    assert!(DeviceId::new(1 << 24).is_err());
    assert_eq!(DeviceId::new((1 << 24) - 1).unwrap().get(), 16_777_215);
    for bytes in [0, 32_768, 94_720, 65_537, (1 << 30) + 65_536] {
        assert!(BlockSize::from_bytes(bytes).is_err(), "{bytes}");
    }
    for bytes in [65_536, 196_608, 1 << 30] {
        assert_eq!(BlockSize::from_bytes(bytes).unwrap().bytes(), bytes);
    }
    assert_eq!(VirtualBlock(3).to_string(), "3");
}

#[test]
fn mapping_words_pack_40_bits_of_block_and_24_of_time() {
    let mapped = MappedBlock { data_block: DataBlock((1 << 40) - 1), time: (1 << 24) - 1 };
    assert_eq!(mapped.pack(), u64::MAX);
    assert_eq!(MappedBlock::unpack(0x0400_0001), MappedBlock { data_block: DataBlock(4), time: 1 });
}

#[test]
fn checksum_is_the_raw_register_of_crc32c() {
    let zeroes = [0; BLOCK_BYTES];
    assert_eq!(checksum(&zeroes, BlockKind::Node) ^ checksum(&zeroes, BlockKind::Bitmap), 121_107 ^ 240_779);
    assert_eq!(!crc32c::crc32c(b"123456789"), 0x1CF9_6D7C);
}
