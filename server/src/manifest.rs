//! Manifests and tombstones: the records from which the catalogue can be made again.
//!
//! Of several manifests of one generation the highest revision counts; of equal revisions (a commit that
//! did not reach the catalogue before its number was given to another) the one created last. A tombstone
//! ends all revisions up to the one it names.

use bytes::Bytes;
use prost::Message;
use thinbak_proto::{CODEC_PLAIN, ManifestId, v1};

use crate::{
    catalogue::GenerationKey,
    store::{Kind, NewRecord},
};

/// Version of both encodings.
const MANIFEST_VERSION: u32 = 1;

/// The revision of what is written after `revision`. A record whose change of the catalogue never happened, because
/// the server died in between, may be in a pack with a revision that the catalogue does not know; by the
/// clock it is lower than that of whatever is written later.
pub(crate) fn next_revision(revision: u64, now_ms: u64) -> u64 {
    revision.saturating_add(1).max(now_ms)
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

    /// The record, and its id.
    pub(crate) fn record(&self) -> (ManifestId, NewRecord) {
        record(Kind::Manifest, self.encode_to_vec())
    }
}

/// That a generation was deleted, as it rests in a pack.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tombstone {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    volume_uuid: String,
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(uint64, tag = "4")]
    revision: u64,
    #[prost(uint64, tag = "5")]
    deleted_at_ms: u64,
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
