//! Whether a record that was read back is what its id says.

use thinbak_proto::{CODEC_PLAIN, ChunkId, ManifestId, MapNode, MapNodeError, NodeId};

use crate::{
    content::{PlainError, Unpacker},
    store::{Kind, StoredRecord},
};

/// Why content is not what its id says, although the stored bytes match their checksum.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContentError {
    #[error(transparent)]
    Plain(#[from] PlainError),
    #[error("its content has another id")]
    Id,
    #[error("{expected} bytes are announced, where {found} are stored")]
    Length { expected: u32, found: usize },
    #[error("codec {0} is not allowed for it")]
    Codec(u8),
    #[error(transparent)]
    Node(#[from] MapNodeError),
}

/// Recomputes ids. Synchronous: takes a processor for a while.
pub(super) struct Checker {
    unpacker: Unpacker,
}

impl Checker {
    /// For chunks of at most `chunk_bytes`.
    pub(super) fn new(chunk_bytes: u32) -> Result<Self, PlainError> {
        Ok(Self { unpacker: Unpacker::new(chunk_bytes)? })
    }

    /// Checks one record, whose header and stored checksum were verified.
    pub(super) fn check(&mut self, record: &StoredRecord) -> Result<(), ContentError> {
        let StoredRecord { kind, id, codec, plain_len, stored } = record;
        if *kind == Kind::Chunk {
            self.unpacker.check(ChunkId::from_bytes(*id), u32::from(*codec), *plain_len, stored)?;
            return Ok(());
        }
        if u32::from(*codec) != CODEC_PLAIN {
            return Err(ContentError::Codec(*codec));
        }
        if u32::try_from(stored.len()) != Ok(*plain_len) {
            return Err(ContentError::Length { expected: *plain_len, found: stored.len() });
        }
        let found = match kind {
            Kind::MapNode => *NodeId::of(stored).as_bytes(),
            Kind::Chunk | Kind::Manifest | Kind::Tombstone => *ManifestId::of(stored).as_bytes(),
        };
        if found != *id {
            return Err(ContentError::Id);
        }
        if *kind == Kind::MapNode {
            MapNode::decode(stored)?;
        }
        Ok(())
    }
}
