//! Manifests and tombstones: the records from which the catalogue can be made again.
//!
//! Of several manifests of one generation the highest revision counts; of equal revisions (a commit that
//! did not reach the catalogue before its number was given to another) the one created last. A tombstone
//! ends all revisions up to the one it names.

use bytes::Bytes;
use prost::Message;
use thinbak_proto::{CODEC_PLAIN, ManifestId, v1};
use uuid::Uuid;

use crate::{
    catalogue::GenerationKey,
    store::{Kind, NewRecord, StoredRecord},
};

/// Version of both encodings.
const MANIFEST_VERSION: u32 = 1;

/// The revision of what is written after `revision`. A record whose change of the catalogue never happened, because
/// the server died in between, may be in a pack with a revision that the catalogue does not know; by the
/// clock it is lower than that of whatever is written later.
pub(crate) fn next_revision(revision: u64, now_ms: u64) -> u64 {
    revision.saturating_add(1).max(now_ms)
}

/// Why a record of a pack is no manifest or tombstone that this program can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Its id does not follow from its content.
    #[error("its content does not give its id")]
    Id,
    /// Not the encoding of one.
    #[error("it cannot be decoded")]
    Encoding,
    /// Written by a newer program.
    #[error("it has version {0}, which this program does not know")]
    Version(u32),
    /// A field that no program of ours would have written so.
    #[error("its {0} is impossible")]
    Field(&'static str),
}

/// What a generation is, as it rests in a pack.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Manifest {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, optional, tag = "3")]
    generation: Option<v1::Generation>,
}

impl Manifest {
    pub(crate) fn new(generation: &v1::Generation, revision: u64) -> Self {
        Self { version: MANIFEST_VERSION, revision, generation: Some(generation.clone()) }
    }

    /// Reads a record back: the generation and the revision. What the fields say is for the caller to judge.
    pub(crate) fn read(record: &StoredRecord) -> Result<(v1::Generation, u64), ManifestError> {
        let Self { version, revision, generation } = read(record)?;
        check_version(version)?;
        Ok((generation.ok_or(ManifestError::Field("generation"))?, revision))
    }

    /// The record, and its id.
    pub(crate) fn record(&self) -> (ManifestId, NewRecord) {
        record(Kind::Manifest, self.encode_to_vec())
    }
}

/// In the place of the time of a deletion: the generation was given up for good, and cannot be undeleted.
pub(crate) const GIVEN_UP: u64 = 0;

/// That a generation was deleted, as it rests in a pack.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tombstone {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    pub(crate) volume_uuid: String,
    #[prost(uint64, tag = "3")]
    pub(crate) number: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) revision: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) deleted_at_ms: u64,
}

impl Tombstone {
    pub(crate) fn new(key: GenerationKey, revision: u64, deleted_at_ms: u64) -> Self {
        let volume_uuid = key.volume.to_string();
        Self { version: MANIFEST_VERSION, volume_uuid, number: key.number, revision, deleted_at_ms }
    }

    /// The record, and its id.
    pub(crate) fn record(&self) -> (ManifestId, NewRecord) {
        record(Kind::Tombstone, self.encode_to_vec())
    }

    /// Reads a record back. What the fields say is for the caller to judge.
    pub(crate) fn read(record: &StoredRecord) -> Result<Self, ManifestError> {
        let tombstone: Self = read(record)?;
        check_version(tombstone.version)?;
        Ok(tombstone)
    }
}

fn check_version(version: u32) -> Result<(), ManifestError> {
    if version == MANIFEST_VERSION { Ok(()) } else { Err(ManifestError::Version(version)) }
}

/// Decodes a record whose id follows from what it holds.
fn read<M: Message + Default>(record: &StoredRecord) -> Result<M, ManifestError> {
    if u32::from(record.codec) != CODEC_PLAIN || ManifestId::of(&record.stored).as_bytes() != &record.id {
        return Err(ManifestError::Id);
    }
    M::decode(record.stored.clone()).map_err(|_| ManifestError::Encoding)
}

/// Which generation a manifest or a tombstone is of, and its revision; `None` for what is neither, whole and of a
/// version that is known.
pub(crate) fn subject_of(record: &StoredRecord) -> Option<(GenerationKey, u64)> {
    if ManifestId::of(&record.stored).as_bytes() != &record.id {
        return None;
    }
    let (version, volume, number, revision) = match record.kind {
        Kind::Manifest => {
            let Manifest { version, revision, generation } = Manifest::decode(record.stored.as_ref()).ok()?;
            let generation = generation?;
            (version, generation.volume_uuid, generation.number, revision)
        }
        Kind::Tombstone => {
            let tombstone = Tombstone::decode(record.stored.as_ref()).ok()?;
            (tombstone.version, tombstone.volume_uuid, tombstone.number, tombstone.revision)
        }
        Kind::Chunk | Kind::MapNode => return None,
    };
    let volume = Uuid::parse_str(&volume).ok().filter(|_| version == MANIFEST_VERSION)?;
    Some((GenerationKey { volume, number }, revision))
}

fn record(kind: Kind, encoded: Vec<u8>) -> (ManifestId, NewRecord) {
    let id = ManifestId::of(&encoded);
    let stored = Bytes::from(encoded);
    // A manifest is some hundred bytes: its strings are bounded where it comes in.
    let plain_len = u32::try_from(stored.len()).unwrap_or(u32::MAX);
    (
        id,
        NewRecord {
            kind,
            id: *id.as_bytes(),
            codec: CODEC_PLAIN as u8,
            plain_len,
            stored,
            stored_hash: None,
        },
    )
}
