//! Whether metadata are those of the pool that a description and a registry speak of.
//!
//! Transaction ids and device ids are small numbers that two pools easily have in common. So a pool's uuid is written to
//! the uuid field of its superblock, which the kernel leaves as it is at every commit, and which `thin_check`, `thin_dump`
//! and `thin_restore` neither ask for nor print. Metadata that `thin_repair` or `thin_restore` wrote, and those of pools
//! that were made before there was this rule, have zeroes there: they are taken when they have all devices of the
//! registry, and get the uuid then.

use std::sync::Arc;

use uuid::Uuid;

use super::EmbeddedError;
use super::description::Description;
use crate::block_device::BlockDevice;
use crate::format::{MetadataBlock, Superblock};
use crate::metadata_view::{MetadataView, Roots};
use crate::persistent_data::write_superblock;
use crate::registry::Registry;

/// Refuses metadata of another pool. Whether they still lack the uuid.
pub(super) fn check(
    description: &Description,
    registry: &mut Registry,
    metadata: &Arc<dyn BlockDevice>,
) -> Result<bool, EmbeddedError> {
    let superblock = read(metadata)?;
    let found = Uuid::from_bytes(superblock.uuid);
    if !found.is_nil() && found != description.uuid {
        return Err(EmbeddedError::OtherMetadata { expected: description.uuid, found });
    }
    let (described, block_size) = (description.block_bytes.bytes(), superblock.block_size.bytes());
    if described != block_size {
        return Err(EmbeddedError::OtherBlockSize { described, found: block_size });
    }
    registry.settle(superblock.transaction_id)?;
    if found.is_nil() && !superblock.needs_check {
        let view = MetadataView::open(metadata.clone(), Roots::Live)?;
        for entry in registry.state().devices.values() {
            if view.device(entry.device)?.is_none() {
                return Err(EmbeddedError::DeviceMissing { device: entry.device });
            }
        }
    }
    Ok(found.is_nil())
}

/// Writes the pool's uuid into metadata that nobody has open.
pub(super) fn write(metadata: &Arc<dyn BlockDevice>, uuid: Uuid) -> Result<(), EmbeddedError> {
    let superblock = Superblock { uuid: uuid.into_bytes(), ..read(metadata)? };
    Ok(write_superblock(metadata.as_ref(), &superblock)?)
}

fn read(metadata: &Arc<dyn BlockDevice>) -> Result<Superblock, EmbeddedError> {
    let read = Superblock::read(metadata.as_ref(), MetadataBlock(0));
    read.map_err(|error| EmbeddedError::pool("the pool could not be opened")(error.into()))
}
