//! A record: one stored object with a header that describes and protects it.
//!
//! The header's CRC covers, before the header itself, the repository's uuid, the pack's number and the
//! record's offset. A record is therefore valid in one place only: bytes inside a chunk that look like
//! a record (somebody backs up a disk with a repository on it) are never taken for one by a scan.

use bytes::Bytes;
use uuid::Uuid;

use super::{
    error::StoreError,
    format::{MAX_PLAIN_LEN, MAX_STORED_GROWTH, Put, RECORD_HEADER_LEN, RECORD_MAGIC, Take, record_len},
};

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Content of a volume.
    Chunk = 1,
    /// A node of a generation's chunk map.
    MapNode = 2,
    /// A generation.
    Manifest = 3,
    /// The deletion of a generation.
    Tombstone = 4,
}

impl Kind {
    /// All kinds, in the order of their codes.
    pub const ALL: [Self; 4] = [Self::Chunk, Self::MapNode, Self::Manifest, Self::Tombstone];

    /// The code in the format.
    pub(super) fn code(self) -> u8 {
        self as u8
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// A record to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// What it is.
    pub kind: Kind,
    /// Under what id it is found.
    pub id: [u8; 32],
    /// How `stored` is made from the plain bytes (`thinbak_proto::CODEC_*`).
    pub codec: u8,
    /// Length of the plain bytes.
    pub plain_len: u32,
    /// The bytes to keep.
    pub stored: Bytes,
    /// BLAKE3 of `stored`, where the caller has computed it of these very bytes: hashing is a good part of the work of
    /// storing. Without it the store computes it.
    pub stored_hash: Option<[u8; 32]>,
}

/// A record read back: header and checksum of the stored bytes were verified, the id was not
/// recomputed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: [u8; 32],
    /// How `stored` is made from the plain bytes.
    pub codec: u8,
    /// Length of the plain bytes, as the writer gave it.
    pub plain_len: u32,
    /// The bytes that were kept.
    pub stored: Bytes,
}

/// The one place where a record header is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) repository: Uuid,
    pub(super) pack: u32,
    pub(super) offset: u64,
}

/// A record header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    pub(super) codec: u8,
    pub(super) domain: u32,
    pub(super) stored_len: u32,
    pub(super) plain_len: u32,
    pub(super) key_id: [u8; 16],
    pub(super) id: [u8; 32],
    pub(super) stored_hash: [u8; 32],
}

impl RecordHeader {
    /// The header of a new record, whose lengths are checked here.
    pub(super) fn new(record: &NewRecord) -> Result<Self, StoreError> {
        let too_large = StoreError::RecordTooLarge {
            plain_len: record.plain_len.into(),
            stored_len: record.stored.len() as u64,
        };
        let Ok(stored_len) = u32::try_from(record.stored.len()) else { return Err(too_large) };
        if !lengths_allowed(record.plain_len, stored_len) {
            return Err(too_large);
        }
        Ok(Self {
            kind: record.kind,
            codec: record.codec,
            domain: 0,
            stored_len,
            plain_len: record.plain_len,
            key_id: [0; 16],
            id: record.id,
            stored_hash: record.stored_hash.unwrap_or_else(|| *blake3::hash(&record.stored).as_bytes()),
        })
    }

    pub(super) fn encode(&self, place: Place) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        Put(&mut out)
            .bytes(&RECORD_MAGIC)
            .bytes(&[self.kind.code(), self.codec])
            .bytes(&0u16.to_le_bytes())
            .bytes(&self.domain.to_le_bytes())
            .bytes(&self.stored_len.to_le_bytes())
            .bytes(&self.plain_len.to_le_bytes())
            .bytes(&self.key_id)
            .bytes(&self.id)
            .bytes(&self.stored_hash);
        Self::seal(&mut out, place);
        out
    }

    /// Writes the checksum that makes a header valid at `place`.
    pub(super) fn seal(bytes: &mut [u8; RECORD_HEADER_LEN], place: Place) {
        let (body, crc) = bytes.split_at_mut(RECORD_HEADER_LEN - 4);
        crc.copy_from_slice(&header_crc(place, body).to_le_bytes());
    }

    /// Reads the header at `place`; `None` for anything that is no valid header there.
    pub(super) fn decode(bytes: &[u8], place: Place) -> Option<Self> {
        let (body, crc) = bytes.first_chunk::<RECORD_HEADER_LEN>()?.split_last_chunk::<4>()?;
        if !body.starts_with(&RECORD_MAGIC) || header_crc(place, body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut take = Take(body);
        let _magic: [u8; 4] = take.array();
        let (kind, codec, flags) = (Kind::from_code(take.u8())?, take.u8(), take.u16());
        let header = Self {
            kind,
            codec,
            domain: take.u32(),
            stored_len: take.u32(),
            plain_len: take.u32(),
            key_id: take.array(),
            id: take.array(),
            stored_hash: take.array(),
        };
        (flags == 0 && lengths_allowed(header.plain_len, header.stored_len)).then_some(header)
    }

    /// Length of the whole record in the pack.
    pub(super) fn record_len(&self) -> u64 {
        record_len(self.stored_len)
    }

    /// Whether these are the bytes that were stored.
    pub(super) fn matches(&self, stored: &[u8]) -> bool {
        stored.len() as u64 == u64::from(self.stored_len)
            && blake3::hash(stored) == blake3::Hash::from_bytes(self.stored_hash)
    }

    pub(super) fn with_stored(self, stored: Bytes) -> StoredRecord {
        StoredRecord { kind: self.kind, id: self.id, codec: self.codec, plain_len: self.plain_len, stored }
    }
}

/// The bounds that hold before memory is taken for a record.
pub(super) fn lengths_allowed(plain_len: u32, stored_len: u32) -> bool {
    plain_len <= MAX_PLAIN_LEN && stored_len <= plain_len + MAX_STORED_GROWTH
}

fn header_crc(place: Place, body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(place.repository.as_bytes());
    let crc = crc32c::crc32c_append(crc, &place.pack.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &place.offset.to_le_bytes());
    crc32c::crc32c_append(crc, body)
}
