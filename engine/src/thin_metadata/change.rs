//! Changes, all in the open transaction. Whoever calls has checked that the device exists, or does not; an error means that the
//! transaction cannot go on.

use crate::format::{
    DataBlock, DeviceDetails, DeviceId, MappedBlock, MetadataBlock, MetadataError, Superblock, VirtualBlock,
};
use crate::persistent_data::RangeSet;
use crate::persistent_data::btree::{self, MappingRoots, Plain, delete_tree};

use super::{OPEN_DEVICES, OpenDevice, Result, ThinMetadata};

impl ThinMetadata {
    /// A new device without mappings.
    pub(crate) fn create_thin(&mut self, id: DeviceId) -> Result<()> {
        self.changed = true;
        let root = btree::empty::<MappedBlock>(&mut self.store)?;
        let time = self.superblock.time;
        let details = DeviceDetails {
            mapped_blocks: 0,
            transaction_id: self.superblock.transaction_id,
            creation_time: time,
            snapshotted_time: time,
        };
        self.insert_device(id, root, &details)
    }

    /// A new device that shares all mappings of `origin`. The snapshot time has not reached its end.
    pub(crate) fn create_snap(&mut self, id: DeviceId, origin: DeviceId) -> Result<()> {
        self.changed = true;
        let device = *self.open_device(origin)?;
        self.store.inc(device.root)?;
        self.superblock.time += 1;
        let time = self.superblock.time;
        let details = DeviceDetails {
            mapped_blocks: device.details.mapped_blocks,
            transaction_id: self.superblock.transaction_id,
            creation_time: time,
            snapshotted_time: time,
        };
        self.insert_device(id, device.root, &details)?;
        let open = self.open_device(origin)?;
        open.details.snapshotted_time = time;
        open.changed = true;
        Ok(())
    }

    fn insert_device(&mut self, id: DeviceId, root: MetadataBlock, details: &DeviceDetails) -> Result<()> {
        let Self { store, data, superblock, .. } = self;
        let mapping_root = superblock.mapping_root;
        superblock.mapping_root =
            btree::insert(store, &mut MappingRoots(data), mapping_root, id.key(), &root)?.0;
        superblock.details_root =
            btree::insert(store, &mut Plain, superblock.details_root, id.key(), details)?.0;
        Ok(())
    }

    /// Removes a device and gives up all its mappings; the data blocks that nothing maps any more.
    pub(crate) fn delete(&mut self, id: DeviceId) -> Result<RangeSet> {
        self.changed = true;
        let root = self.open_device(id)?.root;
        self.devices.remove(&id);
        let Self { store, data, superblock, .. } = self;
        let details_root = superblock.details_root;
        superblock.details_root =
            btree::remove::<DeviceDetails, _>(store, &mut Plain, details_root, id.key())?.0;
        let roots = &mut MappingRoots(data);
        // Removing the entry unshares its leaf first, so that the root's count is right when the tree is deleted.
        superblock.mapping_root =
            btree::remove::<MetadataBlock, _>(store, roots, superblock.mapping_root, id.key())?.0;
        data.watch_freed();
        delete_tree(store, data, root)?;
        Ok(data.take_freed())
    }

    /// Gives up mappings of a device that is to be deleted: up to `max` leaves of those parts of its tree that it shares
    /// with nobody. How many mappings, none at the end; and the data blocks that nothing maps any more.
    pub(crate) fn shed_leaves(&mut self, id: DeviceId, max: usize) -> Result<(u64, RangeSet)> {
        let mut device = self.open_for_mapping(id)?;
        let Self { store, data, .. } = self;
        data.watch_freed();
        let (root, removed) = btree::shed_leaves::<MappedBlock, _>(store, data, device.root, max)?;
        let freed = data.take_freed();
        device.root = root;
        device.details.mapped_blocks = device.details.mapped_blocks.saturating_sub(removed);
        self.set_device(id, device);
        Ok((removed, freed))
    }

    pub(crate) fn set_transaction_id(&mut self, id: u64) {
        self.superblock.transaction_id = id;
        self.changed = true;
    }

    /// The device with room for changes in memory.
    fn open_device(&mut self, id: DeviceId) -> Result<&mut OpenDevice> {
        if !self.devices.contains_key(&id) {
            let info = self.device(id)?.ok_or(MetadataError::DeviceMismatch { device: id.key() })?;
            if self.devices.len() >= OPEN_DEVICES {
                self.put_devices_back()?;
                self.devices.clear();
            }
            let open = OpenDevice { root: info.root, details: info.details, unshared: false, changed: false };
            self.devices.insert(id, open);
        }
        self.devices.get_mut(&id).ok_or(MetadataError::DeviceMismatch { device: id.key() })
    }

    /// The device, with the way to its entry in the upper tree unshared: its mapping tree may be changed.
    fn open_for_mapping(&mut self, id: DeviceId) -> Result<OpenDevice> {
        self.changed = true;
        let device = *self.open_device(id)?;
        if device.unshared {
            return Ok(device);
        }
        let Self { store, data, superblock, .. } = self;
        let mapping_root = superblock.mapping_root;
        superblock.mapping_root =
            btree::insert(store, &mut MappingRoots(data), mapping_root, id.key(), &device.root)?.0;
        let open = self.open_device(id)?;
        open.unshared = true;
        Ok(*open)
    }

    fn set_device(&mut self, id: DeviceId, device: OpenDevice) {
        self.devices.insert(id, OpenDevice { changed: true, ..device });
    }

    /// Maps a virtual block to a data block that nothing else maps. What was mapped there before loses a reference.
    pub(crate) fn insert_mapping(
        &mut self,
        id: DeviceId,
        block: VirtualBlock,
        data_block: DataBlock,
    ) -> Result<()> {
        let mut device = self.open_for_mapping(id)?;
        let Self { store, data, superblock, .. } = self;
        data.inc(store, data_block)?;
        let mapped = MappedBlock { data_block, time: superblock.time };
        let (root, old) = btree::insert(store, data, device.root, block.0, &mapped)?;
        device.root = root;
        match old {
            Some(old) => data.dec(store, old.data_block)?,
            None => device.details.mapped_blocks += 1,
        }
        self.set_device(id, device);
        Ok(())
    }

    /// Removes the mappings in `first..=last`, about `max` of them: where to go on, and the data blocks that nothing maps any
    /// more.
    pub(crate) fn remove_mappings(
        &mut self,
        id: DeviceId,
        first: VirtualBlock,
        last: VirtualBlock,
        max: u64,
    ) -> Result<(Option<VirtualBlock>, RangeSet)> {
        let mut device = self.open_for_mapping(id)?;
        let Self { store, data, .. } = self;
        data.watch_freed();
        let mut begin = first.0;
        let mut count = 0;
        let next = loop {
            let (root, removed) =
                btree::remove_run::<MappedBlock, _>(store, data, device.root, begin, last.0)?;
            device.root = root;
            let Some((highest, _)) = removed.last().copied() else { break None };
            for (_, mapped) in &removed {
                data.dec(store, mapped.data_block)?;
            }
            device.details.mapped_blocks = device.details.mapped_blocks.saturating_sub(removed.len() as u64);
            let Some(next) = highest.checked_add(1).filter(|next| *next <= last.0) else { break None };
            count += removed.len() as u64;
            if count >= max {
                break Some(VirtualBlock(next));
            }
            begin = next;
        };
        let freed = data.take_freed();
        self.set_device(id, device);
        Ok((next, freed))
    }

    /// Holds the trees as they are at this moment; the caller commits before and after.
    pub(crate) fn reserve_snapshot(&mut self) -> Result<()> {
        self.changed = true;
        let held = self.store.add_superblock(|location| self.superblock.snapshot_at(location))?;
        self.store.inc(self.superblock.mapping_root)?;
        self.store.inc(self.superblock.details_root)?;
        self.superblock.held_root = Some(held);
        // From here on the upper tree is shared.
        self.devices.values_mut().for_each(|device| device.unshared = false);
        Ok(())
    }

    /// Gives up the held trees; the data blocks that nothing maps any more.
    pub(crate) fn release_snapshot(&mut self, held: MetadataBlock) -> Result<RangeSet> {
        let copy = Superblock::read(self.device.as_ref(), held)?;
        self.changed = true;
        self.superblock.held_root = None;
        let Self { store, data, .. } = self;
        data.watch_freed();
        delete_tree(store, &mut MappingRoots(data), copy.mapping_root)?;
        delete_tree::<DeviceDetails, _>(store, &mut Plain, copy.details_root)?;
        store.dec(held)?;
        Ok(data.take_freed())
    }

    /// Covers more data blocks.
    pub(crate) fn extend_data(&mut self, nr_blocks: u64) -> Result<()> {
        self.changed = true;
        self.data.extend(&mut self.store, nr_blocks)
    }
}
