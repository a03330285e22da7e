//! Packs made of an input's bytes, and what must hold whatever they are.

use std::{collections::HashMap, path::Path, sync::Arc};

use bytes::Bytes;
use uuid::Uuid;

use super::{
    Kind, NewRecord, Store, StoreError,
    format::{
        FOOTER_LEN, INDEX_MARK_LEN, INDEX_VALUE_LEN, PACK_ENTRY_LEN, PACK_HEADER_LEN, PACK_VERSION,
        RECORD_HEADER_LEN,
    },
    index::{Location, Mark},
    layout::{Footer, PackEntry, PackHeader, encode_tail},
    medium::PackFile,
    memory_medium::MemoryMedium,
    pack::Pack,
    record::{Place, RecordHeader},
};
use crate::{environment::Environment, fuzzing::Input};

const REPOSITORY: Uuid = Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef);
/// Pieces that a pack is made of at most.
const MAX_PIECES: usize = 24;
/// Packs of a store.
const MAX_PACKS: u8 = 3;
/// Edits after a pack was made.
const MAX_EDITS: u8 = 8;

/// `[which] [bytes]`: fixed structures, each of which has one encoding.
pub(crate) fn values(input: &mut Input<'_>) {
    let which = input.byte() % 6;
    let place = Place { repository: REPOSITORY, pack: input.u32(), offset: input.u64() };
    match which {
        0 => {
            let bytes: [u8; INDEX_VALUE_LEN] = input.array();
            if let Some(location) = Location::decode(&bytes) {
                assert_eq!(location.encode(), bytes);
                assert!(location.end() > u64::from(location.offset));
            }
        }
        1 => {
            let bytes: [u8; INDEX_MARK_LEN] = input.array();
            if let Some(mark) = Mark::decode(&bytes) {
                assert_eq!(mark.encode(), bytes);
            }
        }
        2 => {
            let bytes: [u8; PACK_ENTRY_LEN] = input.array();
            if let Some(entry) = PackEntry::decode(&bytes) {
                assert_eq!(entry.encode(), bytes);
            }
        }
        3 => {
            let mut bytes: [u8; RECORD_HEADER_LEN] = input.array();
            RecordHeader::seal(&mut bytes, place);
            if let Some(header) = RecordHeader::decode(&bytes, place) {
                assert_eq!(header.encode(place), bytes);
                let elsewhere = Place { offset: place.offset.wrapping_add(8), ..place };
                assert_eq!(RecordHeader::decode(&bytes, elsewhere), None, "a header is valid in one place");
            }
        }
        4 => {
            let mut bytes: [u8; PACK_HEADER_LEN] = input.array();
            super::layout::seal_crc(&mut bytes);
            if let Some(header) = PackHeader::decode(&bytes)
                && header.version == PACK_VERSION
            {
                assert_eq!(header.encode(), bytes);
            }
        }
        _ => {
            let mut bytes: [u8; FOOTER_LEN] = input.array();
            super::layout::seal_crc(&mut bytes);
            if let Some(footer) = Footer::decode(&bytes, REPOSITORY, place.pack, place.offset) {
                assert_eq!(footer.encode(), bytes);
                assert!(u64::from(footer.entries) * (PACK_ENTRY_LEN as u64) < place.offset);
            }
        }
    }
}

/// The bytes of pack `number`, as the input describes it: `[how] [pieces]`.
fn pack_of(number: u32, input: &mut Input<'_>) -> Vec<u8> {
    let how = input.byte();
    if how & 1 != 0 {
        let len = usize::from(input.u16());
        return input.bytes(len).to_vec();
    }
    let header = PackHeader {
        version: if how & 2 != 0 { input.u16() } else { PACK_VERSION },
        number: if how & 4 != 0 { input.u32() } else { number },
        repository: REPOSITORY,
        created_at_ms: input.u16().into(),
    };
    let mut out = header.encode().to_vec();
    let mut entries = Vec::new();
    for _ in 0..usize::from(input.byte()) % (MAX_PIECES + 1) {
        piece(number, input, &mut out, &mut entries);
    }
    if how & 8 != 0 {
        let offset = if how & 16 != 0 { u64::from(input.u32()) } else { out.len() as u64 };
        out.extend_from_slice(&encode_tail(REPOSITORY, number, offset, &entries));
    }
    for _ in 0..input.byte() % (MAX_EDITS + 1) {
        let (at, value) = (usize::from(input.u16()), input.byte());
        if let Some(len) = out.len().checked_sub(1) {
            out[at.min(len)] ^= value;
        }
    }
    if how & 32 != 0 {
        out.truncate(out.len().saturating_sub(input.u16().into()));
    }
    out
}

/// One piece of a pack: `[what] ...`.
fn piece(number: u32, input: &mut Input<'_>, out: &mut Vec<u8>, entries: &mut Vec<PackEntry>) {
    let what = input.byte();
    let place = Place { repository: REPOSITORY, pack: number, offset: out.len() as u64 };
    match what % 6 {
        // A whole record.
        0 | 1 => {
            let kind = Kind::ALL[usize::from(input.byte()) % 4];
            let len = usize::from(input.byte());
            let stored = Bytes::copy_from_slice(input.bytes(len));
            let id = [input.byte() % 8; 32];
            let plain_len = if what.is_multiple_of(6) { stored.len() as u32 } else { input.u32() };
            let record =
                NewRecord { kind, id, codec: input.byte() % 3, plain_len, stored, stored_hash: None };
            let Ok(header) = RecordHeader::new(&record) else { return };
            out.extend_from_slice(&header.encode(place));
            out.extend_from_slice(&record.stored);
            out.resize(out.len().next_multiple_of(8), 0);
            entries.push(PackEntry::new(&header, place.offset as u32));
        }
        // A header of any content with a checksum that is right.
        2 => {
            let mut bytes: [u8; RECORD_HEADER_LEN] = input.array();
            bytes[..4].copy_from_slice(&super::format::RECORD_MAGIC);
            RecordHeader::seal(&mut bytes, place);
            out.extend_from_slice(&bytes);
        }
        // An index entry of any content.
        3 => entries.extend(PackEntry::decode(&input.array())),
        // Bytes that may throw the alignment.
        4 => {
            let len = usize::from(input.byte());
            out.extend_from_slice(input.bytes(len));
        }
        _ => out.resize(out.len() + usize::from(input.u16() % 2048), 0),
    }
}

/// Reads one pack in all ways there are.
pub(crate) fn read_pack(input: &mut Input<'_>) {
    let number = u32::from(input.byte());
    let bytes = pack_of(number, input);
    let len = bytes.len() as u64;
    let medium = MemoryMedium::with_pack(number, bytes);
    let pack = match Pack::open(&*medium, REPOSITORY, number) {
        Ok(pack) => pack,
        Err(error) => return assert_clear(&error),
    };
    match pack.sealed_entries() {
        Ok(entries) => {
            assert!(entries.iter().all(|entry| entry.end() <= len));
            for (ordinal, entry) in (0..).zip(&entries) {
                match pack.read_record(&Location::of(number, ordinal, entry), &entry.id) {
                    Ok(record) => assert_eq!((record.kind, record.plain_len), (entry.kind, entry.plain_len)),
                    Err(error) => assert_clear(&error),
                }
            }
        }
        Err(error) => assert_clear(&error),
    }
    for limit in [len, len / 2] {
        let scan = pack.scan(limit).expect("nothing fails in memory");
        assert!(scan.end <= limit.max(PACK_HEADER_LEN as u64));
        let mut end = PACK_HEADER_LEN as u64;
        for (ordinal, entry) in (0..).zip(&scan.entries) {
            assert!(u64::from(entry.offset) >= end, "records overlap");
            end = entry.end();
            pack.read_record(&Location::of(number, ordinal, entry), &entry.id)
                .expect("a scan finds whole records");
        }
        assert!(scan.gaps.iter().all(|(offset, len)| offset + len <= scan.end));
    }
}

fn assert_clear(error: &StoreError) {
    let newer = matches!(error, StoreError::NewerPack { .. });
    assert!(newer || error.is_damage(), "a pack of wrong bytes is damage, not: {error}");
    assert!(!error.to_string().is_empty());
}

/// Opens a store over some packs, stores more, and opens it again: what could be read once can be read for
/// ever, and nothing written is lost.
pub(crate) fn recover_packs(dir: &Path, input: &mut Input<'_>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let packs = 1 + input.byte() % MAX_PACKS;
    let medium = Arc::new(MemoryMedium::default());
    for number in (0..packs).map(u32::from) {
        medium.add_pack(number, pack_of(number, input));
    }
    let written: Vec<NewRecord> = (0..input.byte() % 4).map(record).collect();
    let environment = Environment { packs: Some(medium.clone()), ..Environment::system() };
    let open = |forget: bool| {
        let index = dir.join(super::format::INDEX_DIR);
        if forget && index.exists() {
            std::fs::remove_dir_all(index).expect("removing the index");
        }
        Store::open_in(dir, REPOSITORY, &environment, &[])
            .expect("damaged packs do not keep a store from opening")
    };
    let store = open(true);
    let before = all_records(&store);
    runtime.block_on(store.put(written.clone())).expect("a put beside damaged packs");
    drop(store);
    for forget in [false, true] {
        let store = open(forget);
        let found = runtime.block_on(store.get_many(written.iter().map(|record| record.id).collect()));
        for (record, found) in written.iter().zip(found.expect("reading")) {
            let found = found.expect("what was stored is found").expect("and whole");
            assert_eq!((found.kind, &found.stored), (record.kind, &record.stored));
        }
        let after = all_records(&store);
        for (key, count) in &before {
            assert!(after.get(key) >= Some(count), "a record was there before the store was opened again");
        }
        for problem in store.problems() {
            assert!(!problem.to_string().is_empty());
        }
        if forget { runtime.block_on(store.close()) } else { drop(store) }
    }
    assert!(medium.files().iter().all(|PackFile { len, .. }| *len < 1 << 20), "packs grow without end");
}

fn record(number: u8) -> NewRecord {
    let stored = Bytes::from(vec![number; 100]);
    NewRecord {
        kind: Kind::Chunk,
        id: [0x80 | number; 32],
        codec: 0,
        plain_len: 100,
        stored,
        stored_hash: None,
    }
}

/// How often each readable record is there.
fn all_records(store: &Store) -> HashMap<(Kind, [u8; 32], Bytes), usize> {
    let mut found = HashMap::new();
    for kind in Kind::ALL {
        for record in store.records(kind).expect("listing packs") {
            match record {
                Ok(record) => *found.entry((kind, record.id, record.stored)).or_default() += 1,
                Err(error) => assert_clear(&error),
            }
        }
    }
    found
}
