//! Read-only access to a pool's metadata: of a pool at rest, or beside a live one through its metadata snapshot.
//!
//! Every block is verified when it is read. Memory is bounded (some MiB), whatever the size of the pool.
//!
//! [`Roots::Live`] is right only while nobody writes the metadata. Beside a live pool only what is
//! reachable from its metadata snapshot stays as it is, for as long as that is held; the device must then be
//! opened so that reads see what the kernel wrote (`O_DIRECT`, which [`FileDevice`](crate::FileDevice) does).

mod blocks;
mod changes;
mod delta;
mod disk_order;
mod error;
mod leaf;
mod leaf_cache;
mod lock_step;
mod mappings;
mod read_ahead;
mod runs;
mod subtree;
mod tree;

use std::sync::Arc;

use self::{blocks::BlockReader, lock_step::LockStep};
use crate::{
    BlockDevice, DeviceId, DeviceInfo, MetadataBlock, VirtualBlock,
    format::{DeviceDetails, MAX_METADATA_BLOCKS, MappedBlock, MetadataError, Superblock},
};

pub use self::{
    changes::{Change, ChangeKind, Changes},
    delta::{Delta, DeltaKind, DeltaRun, Differences},
    error::ViewError,
    leaf_cache::LeafCache,
    mappings::{Mapping, MappingRun, MappingRuns, Mappings},
};

/// Which state of the pool a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Roots {
    /// The last commit.
    Live,
    /// The metadata snapshot that the pool holds.
    MetadataSnap,
}

/// A view of the metadata of one pool. Clones and iterators share its small cache of nodes.
#[derive(Debug, Clone)]
pub struct MetadataView {
    reader: Arc<BlockReader>,
    superblock: Superblock,
}

impl MetadataView {
    /// Reads the superblock and, for [`Roots::MetadataSnap`], the copy of it that the metadata snapshot is.
    ///
    /// # Errors
    /// [`ViewError::NoMetadataSnapshot`] when none is held; a superblock that is damaged or cannot be read.
    pub fn open(device: Arc<dyn BlockDevice>, roots: Roots) -> Result<Self, ViewError> {
        let live = Superblock::read(device.as_ref(), MetadataBlock(0))?;
        let blocks = live.metadata_space_map.nr_blocks.min(MAX_METADATA_BLOCKS);
        let superblock = match roots {
            Roots::Live => live,
            Roots::MetadataSnap => {
                let block = live.held_root.ok_or(ViewError::NoMetadataSnapshot)?;
                if block.0 >= blocks {
                    return Err(MetadataError::OutOfRange { block, blocks }.into());
                }
                let copy = Superblock::read(device.as_ref(), block)?;
                if let Some(held) = copy.held_root {
                    return Err(ViewError::NotASnapshot { block, held });
                }
                copy
            }
        };
        Ok(Self { reader: Arc::new(BlockReader::new(device, blocks)), superblock })
    }

    /// The superblock of the chosen roots: that of the last commit, or the metadata snapshot's copy, which
    /// says nothing of the space maps (their sizes are zero).
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The device with this id, if there is one.
    ///
    /// # Errors
    /// Damaged or unreadable metadata; a device that only one of the two trees of devices knows.
    pub fn device(&self, id: DeviceId) -> Result<Option<DeviceInfo>, ViewError> {
        let root = self.reader.lookup(self.superblock.mapping_root, id.key())?;
        let details: Option<DeviceDetails> = self.reader.lookup(self.superblock.details_root, id.key())?;
        match (root, details) {
            (Some(root), Some(details)) => Ok(Some(DeviceInfo { id, details, root })),
            (None, None) => Ok(None),
            _ => Err(MetadataError::DeviceMismatch { device: id.key() }.into()),
        }
    }

    /// All devices, by ascending id.
    ///
    /// # Errors
    /// As [`MetadataView::device`].
    pub fn devices(&self) -> Result<Vec<DeviceInfo>, ViewError> {
        let roots = self.reader.device_tree::<MetadataBlock>(self.superblock.mapping_root)?;
        let details = self.reader.device_tree::<DeviceDetails>(self.superblock.details_root)?;
        let ids = |index: usize| {
            [roots.get(index).map(|(id, _)| *id), details.get(index).map(|(id, _)| *id)]
                .into_iter()
                .flatten()
                .min()
        };
        let different = roots.iter().zip(&details).position(|((left, _), (right, _))| left != right);
        let different = different.or((roots.len() != details.len()).then(|| roots.len().min(details.len())));
        if let Some(id) = different.and_then(ids) {
            return Err(MetadataError::DeviceMismatch { device: id.key() }.into());
        }
        let devices = roots.into_iter().zip(details);
        Ok(devices.map(|((id, root), (_, details))| DeviceInfo { id, details, root }).collect())
    }

    /// The checksum that is stored in the root of a mapping tree, after it was verified. Together with the
    /// block's number it tells whether a tree is still the one that it was.
    ///
    /// # Errors
    /// A damaged or unreadable block, one that is no node of a mapping tree.
    pub fn root_checksum(&self, root: MetadataBlock) -> Result<u32, ViewError> {
        Ok(self.reader.node::<MappedBlock>(root)?.stored_checksum())
    }

    /// The mappings of a tree, from `from` on. Damage met on the way is the iterator's last item.
    #[must_use]
    pub fn mappings(&self, root: MetadataBlock, from: VirtualBlock) -> Mappings {
        Mappings::new(LockStep::new(Arc::clone(&self.reader), None, Some(root), false, from.0))
    }

    /// All mappings of a tree, in runs. Leaves that `cache` has are not read, and those that are read go into it where
    /// there is room. Damage met on the way is the iterator's last item.
    #[must_use]
    pub fn mapping_runs(&self, root: MetadataBlock, cache: &LeafCache) -> MappingRuns {
        cache.begin_walk();
        let walk = LockStep::new(Arc::clone(&self.reader), None, Some(root), false, 0);
        MappingRuns::new(walk.with_cache(cache.clone()))
    }

    /// What changed from the old tree to the new one; without an old one, all that the new one maps. Nodes that
    /// both trees share are not read. Damage met on the way is the iterator's last item.
    #[must_use]
    pub fn changes(&self, old_root: Option<MetadataBlock>, new_root: MetadataBlock) -> Changes {
        Changes::new(LockStep::new(Arc::clone(&self.reader), old_root, Some(new_root), true, 0))
    }

    /// The runs of [`MetadataView::delta`] in which the trees differ. Nodes that both trees share are not read. Damage
    /// met on the way is the iterator's last item.
    #[must_use]
    pub fn differences(&self, left_root: MetadataBlock, right_root: MetadataBlock) -> Differences {
        let reader = Arc::clone(&self.reader);
        Differences::new(LockStep::new(reader, Some(left_root), Some(right_root), true, 0))
    }

    /// Every run of both trees, those that are the same included. Damage met on the way is the iterator's last item.
    #[must_use]
    pub fn delta(&self, left_root: MetadataBlock, right_root: MetadataBlock) -> Delta {
        Delta::new(LockStep::new(Arc::clone(&self.reader), Some(left_root), Some(right_root), false, 0))
    }
}
