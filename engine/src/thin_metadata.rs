//! Devices, their mapping trees, snapshots and commits.
//!
//! Two trees keyed by device id hold, for each device, the root of its mapping tree and its details. A snapshot is a second
//! entry with the same root: O(1), whatever the depth. Nodes are shared until one side changes them.
//!
//! A device that is being written has its root and details in memory; they are put into the trees before a commit. Before its
//! mapping tree may be changed, the way to its entry in the upper tree is shadowed: were that way shared with a metadata
//! snapshot, the root would look exclusive although two leaves hold it.
//!
//! What happens in a transaction, and what a crash leaves:
//!
//! | point | after a crash |
//! |---|---|
//! | any change before the commit | the last commit |
//! | blocks of the commit written, not flushed | the last commit: nothing it can reach was written over |
//! | superblock being written | the last commit or this one; its used part fits one sector |
//! | superblock flushed | this commit |

mod change;
mod read;

use std::collections::HashMap;
use std::sync::Arc;

use crate::block_device::BlockDevice;
use crate::format::{
    BLOCK_BYTES, BlockSize, DeviceDetails, DeviceId, MAX_METADATA_BLOCKS, MetadataBlock, MetadataError,
    Superblock, SuperblockProblem,
};
use crate::persistent_data::btree::{self, MappingRoots, Plain};
use crate::persistent_data::{DataSpaceMap, MetadataStore, SealedTransaction};

type Result<T> = std::result::Result<T, MetadataError>;

/// Devices kept in memory.
const OPEN_DEVICES: usize = 1024;
/// The kernel hides a tenth of the metadata, up to this many blocks, from what is free.
const MAX_RESERVE: u64 = 4096;

/// Blocks that must be free for a change to begin: what one batch of mappings and a commit take in a small pool.
const CHANGE_BLOCKS: u64 = 64;

/// A device whose root or details may differ from the trees.
#[derive(Clone, Copy, Debug)]
struct OpenDevice {
    root: MetadataBlock,
    details: DeviceDetails,
    /// The way to its entry in the upper tree belongs to the open transaction.
    unshared: bool,
    /// Root or details differ from the trees.
    changed: bool,
}

/// Blocks of a metadata device of `bytes` bytes that the format can use.
pub(crate) fn usable_blocks(bytes: u64) -> u64 {
    (bytes / BLOCK_BYTES as u64).min(MAX_METADATA_BLOCKS)
}

/// The metadata of a pool with its open transaction.
pub(crate) struct ThinMetadata {
    device: Arc<dyn BlockDevice>,
    store: MetadataStore,
    data: DataSpaceMap,
    /// Current values; space map roots are those of the last commit.
    superblock: Superblock,
    devices: HashMap<DeviceId, OpenDevice>,
    changed: bool,
}

impl ThinMetadata {
    /// Lays out an empty pool of `data_blocks` blocks and commits it.
    pub(crate) fn format(
        device: Arc<dyn BlockDevice>,
        block_size: BlockSize,
        data_blocks: u64,
    ) -> Result<Self> {
        let nr_blocks = usable_blocks(device.size_bytes());
        let mut store = MetadataStore::format(device.clone(), nr_blocks)?;
        let mut data = DataSpaceMap::format(&mut store)?;
        let superblock = Superblock {
            mapping_root: btree::empty::<MetadataBlock>(&mut store)?,
            details_root: btree::empty::<DeviceDetails>(&mut store)?,
            ..Superblock::blank(block_size, nr_blocks)
        };
        data.extend(&mut store, data_blocks)?;
        let mut metadata = Self { device, store, data, superblock, devices: HashMap::new(), changed: true };
        metadata.commit()?;
        Ok(metadata)
    }

    /// Opens the last commit.
    pub(crate) fn open(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let superblock = Superblock::read(device.as_ref(), MetadataBlock(0))?;
        if superblock.compat_ro_flags != 0 {
            let problem = SuperblockProblem::ReadOnlyCompatible(superblock.compat_ro_flags);
            return Err(MetadataError::BadSuperblock { block: MetadataBlock(0), problem });
        }
        let store = MetadataStore::open(device.clone(), &superblock)?;
        let data = DataSpaceMap::open(superblock.data_space_map);
        Ok(Self { device, store, data, superblock, devices: HashMap::new(), changed: false })
    }

    /// Forgets the open transaction. What is held in the data space map stays held.
    pub(crate) fn roll_back(&mut self) -> Result<()> {
        let held = self.data.take_held();
        let fresh = Self::open(self.device.clone());
        self.data.restore_held(held);
        let mut fresh = fresh?;
        fresh.data.restore_held(self.data.take_held());
        *self = fresh;
        Ok(())
    }

    /// Marks the last commit as in need of a check. Only right after [`Self::roll_back`].
    pub(crate) fn set_needs_check(&mut self) -> Result<()> {
        self.superblock.needs_check = true;
        crate::persistent_data::write_superblock(self.device.as_ref(), &self.superblock)
    }

    /// Ends the open transaction in memory, when it has changes, and begins the next one. The caller flushes the data
    /// device, writes the sealed transaction, and then calls [`finish_commit`](Self::finish_commit), before another one is
    /// sealed.
    pub(crate) fn seal_transaction(&mut self) -> Result<Option<SealedTransaction>> {
        if !self.changed {
            return Ok(None);
        }
        self.put_devices_back()?;
        self.superblock.data_space_map = self.data.settle(&mut self.store)?;
        let transaction = self.store.seal_transaction(&mut self.superblock)?;
        self.data.seal();
        self.devices.values_mut().for_each(|device| device.unshared = false);
        self.changed = false;
        Ok(Some(transaction))
    }

    /// The sealed transaction is durable.
    pub(crate) fn finish_commit(&mut self, transaction: SealedTransaction) {
        self.store.finish_commit(transaction);
        self.data.committed();
    }

    fn commit(&mut self) -> Result<()> {
        if let Some(transaction) = self.seal_transaction()? {
            transaction.write()?;
            self.finish_commit(transaction);
        }
        Ok(())
    }

    /// Takes more blocks of the metadata device into use; the caller commits at once. False when there are no more.
    pub(crate) fn extend_metadata(&mut self) -> Result<bool> {
        let nr_blocks = self.device_blocks();
        if nr_blocks <= self.store.nr_blocks() {
            return Ok(false);
        }
        self.changed = true;
        self.store.extend(nr_blocks)?;
        Ok(true)
    }

    fn put_devices_back(&mut self) -> Result<()> {
        let Self { store, data, superblock, devices, .. } = self;
        let mut changed: Vec<_> = devices.iter_mut().filter(|(_, device)| device.changed).collect();
        changed.sort_unstable_by_key(|(id, _)| **id);
        for (id, device) in changed {
            let roots = &mut MappingRoots(data);
            superblock.mapping_root =
                btree::insert(store, roots, superblock.mapping_root, id.key(), &device.root)?.0;
            superblock.details_root =
                btree::insert(store, &mut Plain, superblock.details_root, id.key(), &device.details)?.0;
            device.changed = false;
        }
        Ok(())
    }

    /// Whether the open transaction has changes.
    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    /// Metadata blocks that the open transaction has taken.
    pub(crate) fn new_blocks(&self) -> usize {
        self.store.new_blocks()
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    pub(crate) fn data(&self) -> &DataSpaceMap {
        &self.data
    }

    pub(crate) fn data_mut(&mut self) -> (&MetadataStore, &mut DataSpaceMap) {
        (&self.store, &mut self.data)
    }

    /// Blocks of the metadata device that the format can use.
    pub(crate) fn device_blocks(&self) -> u64 {
        usable_blocks(self.device.size_bytes())
    }

    /// Blocks of the metadata.
    pub(crate) fn metadata_blocks(&self) -> u64 {
        self.store.nr_blocks()
    }

    /// Metadata blocks that can be taken before the next commit without touching the reserve.
    pub(crate) fn metadata_free(&self) -> u64 {
        let reserve = MAX_RESERVE.min(self.store.nr_blocks() / 10);
        self.store.nr_free().saturating_sub(reserve)
    }

    /// Whether a change that adds something may begin: it and the commit after it must find the blocks they need, and so must
    /// a deletion that makes room again.
    pub(crate) fn has_room(&self) -> bool {
        let needed = CHANGE_BLOCKS.min(self.store.nr_blocks() / 2);
        self.metadata_free() > 0 && self.store.nr_free() > needed
    }
}
