//! The tables of `FORMAT.md` against what the code writes: each field of a sample is looked for at the
//! offset and in the size that its row gives, rows must follow each other without a gap, and their sum
//! must be the length that the code works with.

use crate::store::{
    format::{
        FOOTER_LEN, INDEX_MARK_KEY_LEN, INDEX_MARK_LEN, INDEX_MARK_PREFIX, INDEX_OWNER_KEY, INDEX_VALUE_LEN,
        INDEX_VERSION, MAX_PACK_LEN, MAX_PLAIN_LEN, MAX_STORED_GROWTH, PACK_ENTRY_LEN, PACK_HEADER_LEN,
        PACK_TARGET_LEN, PACK_TARGET_RECORDS, PACK_VERSION, RECORD_ALIGN, RECORD_HEADER_LEN,
    },
    index::{Count, Location, Mark, PackState, mark_key, owner_value},
    layout::{Footer, PackEntry, PackHeader},
    record::{Kind, Place, RecordHeader},
};

use super::REPOSITORY;

const DOCUMENT: &str = include_str!("../../../FORMAT.md");

struct Row {
    offset: usize,
    size: usize,
    field: String,
    meaning: String,
}

/// The rows of the table below a heading.
fn table(heading: &str) -> Vec<Row> {
    let (_, section) = DOCUMENT.split_once(&format!("\n### {heading}\n")).expect("the heading is there");
    section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            Row {
                offset: cells[0].parse().unwrap(),
                size: cells[1].parse().unwrap(),
                field: cells[2].to_owned(),
                meaning: cells[3].to_owned(),
            }
        })
        .collect()
}

/// Compares a table with an encoded sample. `fields` are the bytes expected for each row, in order;
/// checksums are recomputed by the caller.
fn compare(heading: &str, len: usize, encoded: &[u8], fields: &[(&str, Vec<u8>)]) {
    let rows = table(heading);
    assert_eq!(encoded.len(), len, "{heading}");
    assert_eq!(
        rows.iter().map(|row| row.field.as_str()).collect::<Vec<_>>(),
        fields.iter().map(|(field, _)| *field).collect::<Vec<_>>(),
        "{heading}"
    );
    let mut end = 0;
    for (row, (field, bytes)) in rows.iter().zip(fields) {
        assert_eq!(row.offset, end, "{heading}, {field}");
        end += row.size;
        assert_eq!(&encoded[row.offset..end], bytes, "{heading}, {field}");
        if *field == "magic" || *field == "prefix" {
            let quoted = row.meaning.trim_matches('`');
            assert_eq!(quoted.as_bytes(), bytes, "{heading}, {field}");
        }
    }
    assert_eq!(end, len, "{heading}");
}

fn crc(parts: &[&[u8]]) -> Vec<u8> {
    crc32c::crc32c(&parts.concat()).to_le_bytes().to_vec()
}

fn sample_record() -> RecordHeader {
    RecordHeader {
        kind: Kind::Manifest,
        codec: 1,
        domain: 0x0102_0304,
        stored_len: 0x0000_1234,
        plain_len: 0x0000_5678,
        key_id: [0x11; 16],
        id: [0x22; 32],
        stored_hash: [0x33; 32],
    }
}

#[test]
fn pack_header() {
    let header =
        PackHeader { version: PACK_VERSION, number: 0x0a0b_0c0d, repository: REPOSITORY, created_at_ms: 77 };
    let bytes = header.encode();
    compare(
        "Pack header",
        PACK_HEADER_LEN,
        &bytes,
        &[
            ("magic", b"tbakpack".to_vec()),
            ("version", vec![1, 0]),
            ("flags", vec![0; 2]),
            ("pack number", vec![0x0d, 0x0c, 0x0b, 0x0a]),
            ("repository", REPOSITORY.as_bytes().to_vec()),
            ("created at", 77u64.to_le_bytes().to_vec()),
            ("reserved", vec![0; 20]),
            ("checksum", crc(&[&bytes[..60]])),
        ],
    );
    assert_eq!(PackHeader::decode(&bytes), Some(header));
}

#[test]
fn record_header() {
    let place = Place { repository: REPOSITORY, pack: 5, offset: 4096 };
    let header = sample_record();
    let bytes = header.encode(place);
    compare(
        "Record header",
        RECORD_HEADER_LEN,
        &bytes,
        &[
            ("magic", b"tbrc".to_vec()),
            ("kind", vec![3]),
            ("codec", vec![1]),
            ("flags", vec![0; 2]),
            ("domain", vec![4, 3, 2, 1]),
            ("stored length", vec![0x34, 0x12, 0, 0]),
            ("plain length", vec![0x78, 0x56, 0, 0]),
            ("key id", vec![0x11; 16]),
            ("id", vec![0x22; 32]),
            ("stored checksum", vec![0x33; 32]),
            (
                "header checksum",
                crc(&[REPOSITORY.as_bytes(), &5u32.to_le_bytes(), &4096u64.to_le_bytes(), &bytes[..100]]),
            ),
        ],
    );
    assert_eq!(RecordHeader::decode(&bytes, place), Some(header));
    for elsewhere in [
        Place { repository: uuid::Uuid::nil(), ..place },
        Place { pack: 6, ..place },
        Place { offset: 4104, ..place },
    ] {
        assert_eq!(RecordHeader::decode(&bytes, elsewhere), None);
    }
}

#[test]
fn pack_index() {
    let entry = PackEntry::new(&sample_record(), 0x0102_0308);
    let bytes = entry.encode();
    compare(
        "Pack index",
        PACK_ENTRY_LEN,
        &bytes,
        &[
            ("id", vec![0x22; 32]),
            ("offset", vec![8, 3, 2, 1]),
            ("stored length", vec![0x34, 0x12, 0, 0]),
            ("plain length", vec![0x78, 0x56, 0, 0]),
            ("kind", vec![3]),
            ("codec", vec![1]),
            ("flags", vec![0; 2]),
            ("domain", vec![4, 3, 2, 1]),
            ("reserved", vec![0; 4]),
        ],
    );
    assert_eq!(PackEntry::decode(&bytes), Some(entry));
}

#[test]
fn footer() {
    let footer = Footer {
        number: 9,
        repository: REPOSITORY,
        index_offset: 640,
        entries: 2,
        index_hash: [0x44; 32],
        pack_len: 640 + 2 * 56 + 96,
    };
    let bytes = footer.encode();
    compare(
        "Footer",
        FOOTER_LEN,
        &bytes,
        &[
            ("magic", b"tbakfoot".to_vec()),
            ("version", vec![1, 0]),
            ("flags", vec![0; 2]),
            ("pack number", vec![9, 0, 0, 0]),
            ("repository", REPOSITORY.as_bytes().to_vec()),
            ("index offset", 640u64.to_le_bytes().to_vec()),
            ("entries", vec![2, 0, 0, 0]),
            ("index checksum", vec![0x44; 32]),
            ("pack length", 848u64.to_le_bytes().to_vec()),
            ("reserved", vec![0; 8]),
            ("checksum", crc(&[&bytes[..92]])),
        ],
    );
    assert_eq!(Footer::decode(&bytes, REPOSITORY, 9, 848), Some(footer));
    assert_eq!(Footer::decode(&bytes, REPOSITORY, 9, 849), None);
    assert_eq!(Footer::decode(&bytes, REPOSITORY, 8, 848), None);
}

#[test]
fn index_entries() {
    compare("Index key of a record", 32, &[0x22; 32], &[("id", vec![0x22; 32])]);
    let location = Location {
        pack: 0x0a0b_0c0d,
        offset: 16,
        ordinal: 7,
        stored_len: 5,
        plain_len: 6,
        kind: Kind::MapNode,
    };
    compare(
        "Index value of a record",
        INDEX_VALUE_LEN,
        &location.encode(),
        &[
            ("kind", vec![2]),
            ("pack number", vec![0x0d, 0x0c, 0x0b, 0x0a]),
            ("offset", vec![16, 0, 0, 0]),
            ("ordinal", vec![7, 0, 0, 0]),
            ("stored length", vec![5, 0, 0, 0]),
            ("plain length", vec![6, 0, 0, 0]),
        ],
    );
    assert_eq!(Location::decode(&location.encode()), Some(location));
    compare(
        "Index key of a mark",
        INDEX_MARK_KEY_LEN,
        &mark_key(0x0a0b_0c0d),
        &[("prefix", INDEX_MARK_PREFIX.to_vec()), ("pack number", vec![0x0a, 0x0b, 0x0c, 0x0d])],
    );
    let count =
        |n: u8| Count { records: n.into(), plain_bytes: u64::from(n) + 1, stored_bytes: u64::from(n) + 2 };
    let mark =
        Mark { state: PackState::Sealed, len: 99, counts: [count(10), count(20), count(30), count(40)] };
    let counted = |n: u8| {
        let count = count(n);
        [
            count.records.to_le_bytes().to_vec(),
            count.plain_bytes.to_le_bytes().to_vec(),
            count.stored_bytes.to_le_bytes().to_vec(),
        ]
        .concat()
    };
    compare(
        "Index value of a mark",
        INDEX_MARK_LEN,
        &mark.encode(),
        &[
            ("state", vec![1]),
            ("length", 99u64.to_le_bytes().to_vec()),
            ("chunks", counted(10)),
            ("map nodes", counted(20)),
            ("manifests", counted(30)),
            ("tombstones", counted(40)),
        ],
    );
    assert_eq!(Mark::decode(&mark.encode()), Some(mark));
    compare(
        "Index value of the owner",
        17,
        &owner_value(REPOSITORY),
        &[("index version", vec![INDEX_VERSION]), ("repository", REPOSITORY.as_bytes().to_vec())],
    );
    assert!(DOCUMENT.contains(&format!("Under the key `{}`", str::from_utf8(INDEX_OWNER_KEY).unwrap())));
}

#[test]
fn limits_named_in_the_text() {
    assert!(DOCUMENT.contains("records reach 64 MiB or number 65,536"));
    assert_eq!((PACK_TARGET_LEN, PACK_TARGET_RECORDS), (64 << 20, 65_536));
    assert!(DOCUMENT.contains("never longer than 1 GiB"));
    assert_eq!(MAX_PACK_LEN, 1 << 30);
    assert!(DOCUMENT.contains("at most 1,024 more than the plain length"));
    assert_eq!(MAX_STORED_GROWTH, 1024);
    assert!(DOCUMENT.contains("| at most 16 MiB |"));
    assert_eq!(MAX_PLAIN_LEN, 16 << 20);
    assert!(DOCUMENT.contains("a multiple of 8"));
    assert_eq!(RECORD_ALIGN, 8);
    assert!(DOCUMENT.contains("index length / 56"));
    assert_eq!(PACK_ENTRY_LEN, 56);
}
