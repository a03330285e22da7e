//! Reading: devices and mappings, with what the open transaction has changed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::format::{
    DeviceDetails, DeviceId, DeviceInfo, MappedBlock, MetadataBlock, MetadataError, NodeProblem, VirtualBlock,
};
use crate::persistent_data::btree;

use super::{OpenDevice, Result, ThinMetadata};

impl ThinMetadata {
    /// A device, as it is in the open transaction.
    pub(crate) fn device(&self, id: DeviceId) -> Result<Option<DeviceInfo>> {
        if let Some(OpenDevice { root, details, .. }) = self.devices.get(&id).copied() {
            return Ok(Some(DeviceInfo { id, details, root }));
        }
        let details = btree::lookup::<DeviceDetails>(&self.store, self.superblock.details_root, id.key())?;
        let root = btree::lookup::<MetadataBlock>(&self.store, self.superblock.mapping_root, id.key())?;
        match (details, root) {
            (Some(details), Some(root)) => Ok(Some(DeviceInfo { id, details, root })),
            (None, None) => Ok(None),
            _ => Err(MetadataError::DeviceMismatch { device: id.key() }),
        }
    }

    /// All devices by id.
    pub(crate) fn all_devices(&self) -> Result<Vec<DeviceInfo>> {
        let mut roots = BTreeMap::new();
        btree::walk::<MetadataBlock>(
            &self.store,
            self.superblock.mapping_root,
            0..=u64::MAX,
            |key, root| {
                roots.insert(key, root);
                ControlFlow::Continue(())
            },
        )?;
        let mut devices = Vec::with_capacity(roots.len());
        let mut bad = None;
        btree::walk::<DeviceDetails>(
            &self.store,
            self.superblock.details_root,
            0..=u64::MAX,
            |key, details| {
                match (DeviceId::new(key), roots.remove(&key)) {
                    (Ok(id), Some(root)) => devices.push(DeviceInfo { id, details, root }),
                    (Ok(_), None) => bad = Some(MetadataError::DeviceMismatch { device: key }),
                    (Err(_), _) => {
                        let problem = NodeProblem::DeviceId(key);
                        bad = Some(MetadataError::BadNode { block: self.superblock.details_root, problem });
                    }
                }
                if bad.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )?;
        if let Some((&device, _)) = roots.first_key_value().filter(|_| bad.is_none()) {
            bad = Some(MetadataError::DeviceMismatch { device });
        }
        for device in &mut devices {
            if let Some(open) = self.devices.get(&device.id) {
                (device.root, device.details) = (open.root, open.details);
            }
        }
        bad.map_or(Ok(devices), Err)
    }

    /// The mappings of `count` virtual blocks from `first` on; `None` where nothing is mapped.
    pub(crate) fn mappings(
        &self,
        device: &DeviceInfo,
        first: VirtualBlock,
        count: usize,
    ) -> Result<Vec<Option<MappedBlock>>> {
        let mut found = vec![None; count];
        let Some(last) = (count as u64).checked_sub(1) else { return Ok(found) };
        self.walk_mappings(device, first, VirtualBlock(first.0 + last), |block, mapped| {
            if let Some(slot) = usize::try_from(block.0 - first.0).ok().and_then(|index| found.get_mut(index))
            {
                *slot = Some(mapped);
            }
            ControlFlow::Continue(())
        })?;
        let nr_blocks = self.data.nr_blocks();
        match found.iter().flatten().find(|mapped| mapped.data_block.0 >= nr_blocks) {
            Some(bad) => {
                Err(MetadataError::DataBlockOutOfRange { block: bad.data_block.0, blocks: nr_blocks })
            }
            None => Ok(found),
        }
    }

    /// Calls `visit` for each mapping in `first..=last`, ascending, until it breaks.
    pub(crate) fn walk_mappings(
        &self,
        device: &DeviceInfo,
        first: VirtualBlock,
        last: VirtualBlock,
        mut visit: impl FnMut(VirtualBlock, MappedBlock) -> ControlFlow<()>,
    ) -> Result<()> {
        btree::walk(&self.store, device.root, first.0..=last.0, |key, mapped| {
            visit(VirtualBlock(key), mapped)
        })
    }

    /// The highest mapped block of a device.
    pub(crate) fn highest_mapped(&self, device: &DeviceInfo) -> Result<Option<VirtualBlock>> {
        Ok(btree::last_key::<MappedBlock>(&self.store, device.root)?.map(VirtualBlock))
    }
}
