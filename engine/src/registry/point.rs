//! Moments of volumes, and the bases of incremental backups.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::format::{DeviceId, MetadataBlock};

/// A moment of a volume: a read-only snapshot, described so that it can be recognised later.
///
/// When every field matches what is in the pool, the snapshot is the one that was described and nobody wrote to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Random identity of the snapshot.
    pub identity: Uuid,
    /// Identity of the pool.
    pub pool_uuid: Uuid,
    /// Device id of the snapshot.
    pub device_id: DeviceId,
    /// The pool's transaction id when the snapshot was made.
    pub transaction_id: u64,
    /// When the snapshot was made, unix time.
    pub created_at_ms: u64,
    /// Virtual size at that moment.
    pub size_bytes: u64,
    /// Data block size of the pool.
    pub block_bytes: u64,
    /// Blocks that the snapshot maps.
    pub mapped_blocks: u64,
    /// Root of the mapping tree.
    pub root_block: MetadataBlock,
    /// Checksum of that block as it is stored.
    pub root_checksum: u32,
}

/// What the next backup of a volume to a repository is compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Identity of the repository.
    pub repository: Uuid,
    /// Identity of the volume.
    pub volume: Uuid,
    /// The generation that the repository confirmed.
    pub generation: u64,
    /// Root of that generation's chunk map on the server.
    #[serde(with = "super::hex")]
    pub root: [u8; 32],
    /// The snapshot in the pool that holds the same content.
    pub point: Point,
}
