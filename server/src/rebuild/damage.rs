//! What is found to be damaged while the packs are read.

use thinbak_proto::ManifestId;

use super::MAX_DAMAGE;
use crate::{
    manifest::ManifestError,
    store::{Problem, StoreError},
};

/// Something in the packs that is not as it was stored.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// A pack, or a part of it.
    #[error("{0}")]
    Store(Problem),
    /// A manifest or tombstone that cannot be read from its pack.
    #[error("a manifest or tombstone cannot be read: {0}")]
    Unreadable(StoreError),
    /// A record that is no manifest, or no tombstone, that this program can use.
    #[error("{what} {id} was left out: {reason}")]
    Record {
        /// `manifest` or `tombstone`.
        what: &'static str,
        /// The record's id.
        id: ManifestId,
        /// What is wrong with it.
        reason: ManifestError,
    },
    /// A generation whose content is gone.
    #[error("{volume}:{number} was left out: the root of its map is not in the packs")]
    RootMissing {
        /// Name of the volume.
        volume: String,
        /// Number of the generation.
        number: u64,
    },
    /// A generation that is kept, but whose root cannot be read now.
    #[error("{volume}:{number} was kept although the root of its map cannot be read: {reason}")]
    RootUnreadable {
        /// Name of the volume.
        volume: String,
        /// Number of the generation.
        number: u64,
        /// Why not.
        reason: StoreError,
    },
    /// A generation that is kept, although a part of it is gone or cannot be read.
    #[error("{volume}:{number} was kept although {chunks} of its chunks cannot be had")]
    Incomplete {
        /// Name of the volume.
        volume: String,
        /// Number of the generation.
        number: u64,
        /// How many chunks; of map nodes that are gone, all that may be under them.
        chunks: u64,
    },
    /// The manifest of a commit that died before anybody saw the generation, and of which a part was collected.
    #[error(
        "{volume}:{number} was left out: {chunks} of its chunks are in no pack, and its commit was never completed"
    )]
    Unborn {
        /// Name of the volume.
        volume: String,
        /// Number of the generation.
        number: u64,
        /// How many chunks; of map nodes that are gone, all that may be under them.
        chunks: u64,
    },
    /// A generation that only the copy of the catalogue knows, while packs are damaged.
    #[error("{volume}:{number} was kept although its manifest is not in the packs")]
    ManifestMissing {
        /// Name of the volume.
        volume: String,
        /// Number of the generation.
        number: u64,
    },
}

/// All damage, of which so much is named.
#[derive(Debug, Default)]
pub(super) struct Damages {
    pub(super) named: Vec<Damage>,
    pub(super) total: u64,
}

impl Damages {
    pub(super) fn add(&mut self, damage: Damage) {
        self.total += 1;
        if self.named.len() < MAX_DAMAGE {
            self.named.push(damage);
        }
    }
}
