//! The tables of `FORMAT.md` against the code.

use super::super::checksum::BlockKind;
use super::super::{
    BLOCK_BYTES, BlockSize, DataBlock, DeviceDetails, DeviceId, ENTRIES_PER_BITMAP, IndexEntry,
    MAX_METADATA_BLOCKS, MAX_TIME, MappedBlock, MetadataBlock, Node, NodeValue, SpaceMapRoot, Superblock,
    checksum, get_u32, max_entries,
};

const DOCUMENT: &str = include_str!("../../../FORMAT.md");

/// The cells of the tables below a heading, without their heads.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = DOCUMENT.split_once(&format!("# {heading}\n")).expect("the heading is there");
    let section = section.split("\n#").next().unwrap();
    let mut rows = Vec::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with('|') {
            continue;
        }
        if lines.peek().is_some_and(|next| next.starts_with("|---")) {
            lines.next();
            continue;
        }
        rows.push(line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect());
    }
    rows
}

fn number(heading: &str, name: &str, column: usize) -> u64 {
    let rows = rows(heading);
    let row = rows.iter().find(|row| row.contains(&name.to_owned()));
    row.unwrap_or_else(|| panic!("{heading} has no {name}"))[column].parse().unwrap()
}

/// Every row says where the bytes of its field are.
fn compare(heading: &str, encoded: &[u8], fields: &[(&str, Vec<u8>)]) {
    let rows: Vec<_> = rows(heading).into_iter().filter(|row| row[0].parse::<usize>().is_ok()).collect();
    let named: Vec<_> = rows.iter().map(|row| row[2].as_str()).collect();
    assert_eq!(named, fields.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{heading}");
    for (row, (name, bytes)) in rows.iter().zip(fields) {
        let (offset, size): (usize, usize) = (row[0].parse().unwrap(), row[1].parse().unwrap());
        assert_eq!(size, bytes.len(), "{heading}, {name}");
        assert_eq!(&encoded[offset..offset + size], bytes, "{heading}, {name}");
    }
}

fn encoded<V: NodeValue>(value: V) -> Vec<u8> {
    let mut bytes = vec![0; V::SIZE];
    value.encode(&mut bytes);
    bytes
}

#[test]
fn limits_are_those_of_the_code() {
    let limit = |name: &str| number("Limits", name, 1);
    assert_eq!(limit("metadata block"), BLOCK_BYTES as u64);
    assert_eq!(limit("metadata blocks"), MAX_METADATA_BLOCKS);
    assert_eq!(limit("blocks in a bitmap"), ENTRIES_PER_BITMAP);
    assert_eq!(limit("device id"), u64::from(DeviceId::MAX));
    assert_eq!(limit("time"), u64::from(MAX_TIME));
    let (least, most) = (limit("data block, least"), limit("data block, most"));
    assert!(BlockSize::from_bytes(least).is_ok() && BlockSize::from_bytes(most).is_ok());
    assert!(BlockSize::from_bytes(least / 2).is_err() && BlockSize::from_bytes(most + least).is_err());
    let last = MappedBlock { data_block: DataBlock(limit("data blocks") - 1), time: MAX_TIME };
    assert_eq!(last.pack(), u64::MAX);
}

#[test]
fn salts_are_those_of_the_code() {
    let bytes = [7; BLOCK_BYTES];
    let kinds = [
        ("superblock", BlockKind::Superblock),
        ("node", BlockKind::Node),
        ("bitmap", BlockKind::Bitmap),
        ("index", BlockKind::Index),
    ];
    for (name, kind) in kinds {
        let salt = number("Metadata blocks", name, 1);
        let expected = !crc32c::crc32c(&bytes[4..]) ^ u32::try_from(salt).unwrap();
        assert_eq!(checksum(&bytes, kind), expected, "{name}");
    }
}

#[test]
fn the_superblock_is_as_its_table_says() {
    let map = |first: u64| SpaceMapRoot {
        nr_blocks: first,
        nr_allocated: first + 1,
        bitmap_root: MetadataBlock(first + 2),
        ref_count_root: MetadataBlock(first + 3),
    };
    let superblock = Superblock {
        location: MetadataBlock(0x1122),
        needs_check: true,
        other_flags: 0,
        uuid: *b"0123456789abcdef",
        time: 0x3344,
        transaction_id: 0x5566,
        held_root: Some(MetadataBlock(0x7788)),
        data_space_map: map(100),
        metadata_space_map: map(200),
        mapping_root: MetadataBlock(0x99),
        details_root: MetadataBlock(0xAA),
        block_size: BlockSize::from_sectors(256).unwrap(),
        metadata_nr_blocks: 0xBB,
        compat_flags: 0xCC,
        compat_ro_flags: 0xDD,
    };
    let bytes = superblock.encode();
    let map_bytes = |map: SpaceMapRoot| {
        [map.nr_blocks, map.nr_allocated, map.bitmap_root.0, map.ref_count_root.0]
            .map(u64::to_le_bytes)
            .concat()
    };
    let (u32s, u64s) = (|value: u32| value.to_le_bytes().to_vec(), |value: u64| value.to_le_bytes().to_vec());
    let stated = |name: &str| number_in("Superblock", name);
    compare(
        "Superblock",
        bytes.as_slice(),
        &[
            ("flags", u32s(1)),
            ("own block number", u64s(0x1122)),
            ("uuid", b"0123456789abcdef".to_vec()),
            ("magic", u64s(stated("magic"))),
            ("version", u32s(u32::try_from(stated("version")).unwrap())),
            ("time", u32s(0x3344)),
            ("transaction id", u64s(0x5566)),
            ("held root", u64s(0x7788)),
            ("data space map", map_bytes(map(100))),
            ("metadata space map", map_bytes(map(200))),
            ("mapping root", u64s(0x99)),
            ("details root", u64s(0xAA)),
            ("data block size", u32s(256)),
            ("metadata block size", u32s(8)),
            ("metadata blocks", u64s(0xBB)),
            ("compatible features", u32s(0xCC)),
            ("read-only compatible features", u32s(0xDD)),
            ("incompatible features", u32s(0)),
        ],
    );
    compare(
        "Space map root",
        &bytes[64..96],
        &[
            ("blocks", u64s(100)),
            ("allocated", u64s(101)),
            ("bitmap root", u64s(102)),
            ("count root", u64s(103)),
        ],
    );
}

fn number_in(heading: &str, name: &str) -> u64 {
    number(heading, name, 3)
}

#[test]
fn nodes_and_values_are_as_their_tables_say() {
    let mut node = Node::empty_leaf::<MetadataBlock>();
    node.insert_entry(0, 0x1234, &MetadataBlock(0x5678)).unwrap();
    let bytes = node.bytes().as_slice();
    let u32s = |value: u32| value.to_le_bytes().to_vec();
    let expected = [
        ("kind", u32s(2)),
        ("entries", u32s(1)),
        ("room", u32s(252)),
        ("value size", u32s(8)),
        ("keys", 0x1234_u64.to_le_bytes().to_vec()),
    ];
    let trees: Vec<_> = rows("Node").into_iter().filter(|row| row[0].parse::<usize>().is_err()).collect();
    compare("Node", bytes, &expected);
    assert_eq!(get_u32(bytes, 32 + 8 * 252), 0x5678);
    assert_eq!(trees.len(), 5);
    for tree in trees {
        let (size, room): (usize, usize) = (tree[2].parse().unwrap(), tree[3].parse().unwrap());
        assert_eq!(max_entries(size), room, "{}", tree[0]);
    }
    let u64s = |value: u64| value.to_le_bytes().to_vec();
    let details =
        DeviceDetails { mapped_blocks: 1, transaction_id: 2, creation_time: 3, snapshotted_time: 4 };
    compare(
        "Device details",
        &encoded(details),
        &[
            ("mapped blocks", u64s(1)),
            ("transaction id", u64s(2)),
            ("creation time", u32s(3)),
            ("snapshot time", u32s(4)),
        ],
    );
    let entry = IndexEntry { bitmap: MetadataBlock(1), nr_free: 2, none_free_before: 3 };
    compare(
        "Index entry",
        &encoded(entry),
        &[("bitmap", u64s(1)), ("free", u32s(2)), ("none free before", u32s(3))],
    );
}
