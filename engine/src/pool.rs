//! The thin pool: devices over one data device, provisioned as they are written.
//!
//! Three locks, always taken in this order:
//!
//! 1. the **traffic** table: which blocks of which device are being read, written, or given a new data block. It is held over
//!    the transfer of data, and orders what concerns the same block;
//! 2. the **commit** lock: one commit at a time, from the flush of the data device to the discards it sets free;
//! 3. the **metadata** lock: shared for lookups, exclusive for changes; never held over a transfer of data.
//!
//! | beside | read | write in place | provision, copy | discard | snapshot of the device | delete |
//! |---|---|---|---|---|---|---|
//! | read | together | together | waits | waits | together | waits |
//! | write in place | | together | waits | waits | waits | waits |
//! | provision, copy | | | waits | waits | waits | waits |
//!
//! ("waits" for the same blocks of the same device; snapshot and delete concern all blocks.) A data block cannot go away
//! under a transfer: whoever takes a mapping away waits for those who use it. A block that is free is *held* from the
//! moment it is chosen until it is mapped, and again while it is discarded, so that it is never given out twice. It is
//! counted only when it is mapped: a crash in between leaves no leak.
//!
//! Data reach the device before the mapping to them is inserted, and are flushed before a commit that names them.

mod error;
mod io;
mod message;
mod state;
mod status;
mod traffic;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::block_device::BlockDevice;
use crate::format::{BLOCK_BYTES, BlockSize, DeviceId, DeviceInfo, MetadataBlock, RawBlock, Superblock};
use crate::thin_metadata::ThinMetadata;

pub use self::error::PoolError;
pub use self::io::MappedRun;
pub use self::message::Operation;
use self::state::{Health, State};
pub use self::status::{PoolMode, PoolStatus};
use self::traffic::{Purpose, Traffic};

type Result<T> = std::result::Result<T, PoolError>;

/// The least metadata device: what the kernel's tools can work with, and enough for an empty pool.
const LEAST_METADATA_BLOCKS: u64 = 32;
/// Mapping words have 40 bits for the data block.
const MAX_DATA_BLOCKS: u64 = 1 << 40;
/// A transaction that has taken this many metadata blocks is committed by the next write.
const LARGE_TRANSACTION_BLOCKS: usize = 4096;
/// Ranges of freed blocks remembered to be discarded after the next commit; further ones are not passed down.
const PENDING_DISCARDS: usize = 1 << 16;

/// A thin pool. All methods take `&self` and may be called from many threads.
///
/// What the methods change is in the *open transaction* until [`Pool::commit`] (or a method that commits) returns; a crash
/// before that leaves the last commit. The pool commits by itself inside [`Pool::write`] when the transaction has
/// become large or space must be reclaimed; changes that belong together go through [`Pool::apply`].
pub struct Pool {
    metadata_device: Arc<dyn BlockDevice>,
    data_device: Arc<dyn BlockDevice>,
    block_size: BlockSize,
    traffic: Traffic,
    commits: Mutex<()>,
    state: RwLock<State>,
    /// Data were written since the last flush of the data device.
    unflushed: AtomicBool,
}

impl Pool {
    /// Makes an empty pool on two devices and commits it.
    ///
    /// # Errors
    /// [`PoolError::NotBlank`] unless the first 4 KiB of the metadata device are zero, [`PoolError::MetadataTooSmall`],
    /// [`PoolError::NoDataBlock`], and failures of the devices.
    pub fn format(
        metadata: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        block_size: BlockSize,
    ) -> Result<Self> {
        let needed = LEAST_METADATA_BLOCKS * BLOCK_BYTES as u64;
        if metadata.size_bytes() < needed {
            return Err(PoolError::MetadataTooSmall { bytes: metadata.size_bytes(), needed });
        }
        let first = RawBlock::read(metadata.as_ref(), MetadataBlock(0))?;
        if first.bytes().iter().any(|&byte| byte != 0) {
            return Err(PoolError::NotBlank);
        }
        let blocks = data_blocks(data.size_bytes(), block_size);
        if blocks == 0 {
            return Err(PoolError::NoDataBlock(block_size));
        }
        let thin = ThinMetadata::format(metadata.clone(), block_size, blocks)?;
        Ok(Self::new(metadata, data, thin))
    }

    /// Opens the pool that is on two devices, at its last commit. Metadata that need a check open read-only.
    ///
    /// # Errors
    /// Metadata that are not those of a pool, or of an unknown kind; [`PoolError::DataTooSmall`]; failures of the devices.
    pub fn open(metadata: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Result<Self> {
        let thin = ThinMetadata::open(metadata.clone())?;
        let expected = thin.data().nr_blocks();
        let found = data.size_bytes() / thin.superblock().block_size.bytes();
        if found < expected {
            return Err(PoolError::DataTooSmall { expected, found });
        }
        Ok(Self::new(metadata, data, thin))
    }

    fn new(
        metadata_device: Arc<dyn BlockDevice>,
        data_device: Arc<dyn BlockDevice>,
        metadata: ThinMetadata,
    ) -> Self {
        let block_size = metadata.superblock().block_size;
        let health = if metadata.superblock().needs_check { Health::ReadOnly } else { Health::Writable };
        let state = State {
            metadata,
            health,
            out_of_data: false,
            discards: Vec::new(),
            committed_discards: Vec::new(),
            lost: false,
        };
        Self {
            metadata_device,
            data_device,
            block_size,
            traffic: Traffic::default(),
            commits: Mutex::new(()),
            state: RwLock::new(state),
            unflushed: AtomicBool::new(false),
        }
    }

    /// Makes a thin device without mappings, in the open transaction.
    ///
    /// # Errors
    /// [`PoolError::DeviceExists`], [`PoolError::NoSpaceMetadata`], [`PoolError::ReadOnlyMode`].
    pub fn create_thin(&self, id: DeviceId) -> Result<()> {
        self.with_room(|state| state.run(Operation::CreateThin(id)))
    }

    /// Makes `new` a snapshot of `origin`, in the open transaction. Writes to the origin wait meanwhile: each is in the
    /// snapshot as a whole or not at all.
    ///
    /// # Errors
    /// [`PoolError::DeviceExists`], [`PoolError::NoSuchDevice`], [`PoolError::TimeExhausted`],
    /// [`PoolError::NoSpaceMetadata`], [`PoolError::ReadOnlyMode`].
    pub fn create_snap(&self, new: DeviceId, origin: DeviceId) -> Result<()> {
        let _traffic = self.traffic.enter(origin, 0..=u64::MAX, Purpose::Snapshot);
        self.with_room(|state| state.run(Operation::CreateSnap { new, origin }))
    }

    /// Deletes a device, in the open transaction.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], [`PoolError::ReadOnlyMode`], damaged metadata.
    pub fn delete(&self, id: DeviceId) -> Result<()> {
        let _traffic = self.traffic.enter(id, 0..=u64::MAX, Purpose::Exclusive);
        self.change(|state| state.run(Operation::Delete(id)))
    }

    /// Replaces the transaction id, in the open transaction.
    ///
    /// # Errors
    /// [`PoolError::WrongTransactionId`] unless it is `old`.
    pub fn set_transaction_id(&self, old: u64, new: u64) -> Result<()> {
        self.change(|state| state.run(Operation::SetTransactionId { old, new }))
    }

    /// Carries out operations as one: all of them are in the same commit, which has been made when this returns, or none is.
    ///
    /// # Errors
    /// Those of the operations; nothing has changed then.
    pub fn apply(&self, operations: &[Operation]) -> Result<()> {
        let _traffic = self.traffic.enter_all(operations.iter().filter_map(Operation::traffic));
        self.alone(|state| {
            state.check_writable()?;
            if operations.iter().any(Operation::takes_space) {
                state.check_room()?;
            }
            for &operation in operations {
                if let Err(error) = state.run(operation) {
                    // What the operations before this one did is all that is in the open transaction.
                    state.take_back();
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    /// Holds the metadata as they are now in a metadata snapshot, which readers beside the pool can use. Commits.
    ///
    /// # Errors
    /// [`PoolError::MetadataSnapHeld`], [`PoolError::NoSpaceMetadata`], [`PoolError::ReadOnlyMode`].
    pub fn reserve_metadata_snap(&self) -> Result<()> {
        self.alone(|state| {
            state.check_writable()?;
            if state.metadata.superblock().held_root.is_some() {
                return Err(PoolError::MetadataSnapHeld);
            }
            state.check_room()?;
            state.guarded(|metadata| metadata.reserve_snapshot())
        })
    }

    /// Gives the metadata snapshot up. Commits.
    ///
    /// # Errors
    /// [`PoolError::NoMetadataSnap`], [`PoolError::ReadOnlyMode`], damaged metadata.
    pub fn release_metadata_snap(&self) -> Result<()> {
        self.change(|state| {
            state.check_writable()?;
            let held = state.metadata.superblock().held_root.ok_or(PoolError::NoMetadataSnap)?;
            state.guarded(|metadata| metadata.release_snapshot(held))
        })?;
        self.commit()
    }

    /// Makes everything that was done so far durable: data first, then metadata, then the superblock that names them.
    /// Writes nothing when nothing changed.
    ///
    /// # Errors
    /// Failures of the devices. A failed commit of metadata is given up as a whole: the pool is at its last commit then,
    /// and read-only.
    pub fn commit(&self) -> Result<()> {
        let _commits = self.commits.lock();
        // Most of the data goes out here, while others still use the metadata.
        let flushed = self.flush_data();
        let (freed, committed) = {
            let mut state = self.state.write();
            let committed = match flushed {
                Ok(()) => self.commit_locked(&mut state),
                Err(error) => Err(state.data_lost(error)),
            };
            (std::mem::take(&mut state.committed_discards), committed)
        };
        self.pass_down(freed);
        committed
    }

    /// A change that is in a transaction, and a commit, of its own.
    fn alone(&self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        // Most of what is open is committed here, while others still use the metadata.
        self.commit()?;
        let _commits = self.commits.lock();
        let (freed, committed) = {
            let mut state = self.state.write();
            let committed = self.commit_locked(&mut state);
            let changed =
                committed.and_then(|()| change(&mut state)).and_then(|()| self.commit_locked(&mut state));
            (std::mem::take(&mut state.committed_discards), changed)
        };
        self.pass_down(freed);
        committed
    }

    /// A commit with both locks held. What it frees is left in `committed_discards`.
    fn commit_locked(&self, state: &mut State) -> Result<()> {
        if let Err(error) = self.flush_data() {
            return Err(state.data_lost(error));
        }
        state.check_usable()?;
        if state.lost {
            return Err(PoolError::ReadOnlyMode { needs_check: state.metadata.superblock().needs_check });
        }
        if !state.metadata.is_changed() {
            return Ok(());
        }
        state.guarded(ThinMetadata::commit)?;
        let freed = std::mem::take(&mut state.discards);
        state.committed_discards.extend(freed);
        let data = state.metadata.data();
        state.out_of_data &= data.nr_allocated() >= data.nr_blocks();
        Ok(())
    }

    fn flush_data(&self) -> Result<()> {
        if !self.unflushed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        self.data_device.flush().map_err(|source| {
            self.unflushed.store(true, Ordering::Release);
            PoolError::Io { action: "flush", offset: 0, length: 0, source }
        })
    }

    /// Gives the space of blocks back that a commit has freed. They are held meanwhile; a failure costs space only.
    fn pass_down(&self, freed: Vec<(u64, u64)>) {
        let bytes = self.block_size.bytes();
        for &(begin, end) in &freed {
            if let Err(error) = self.data_device.discard(begin * bytes, (end - begin) * bytes) {
                tracing::warn!(begin, end, %error, "freed data blocks could not be discarded");
            }
        }
        if !freed.is_empty() {
            let mut state = self.state.write();
            let (_, data) = state.metadata.data_mut();
            freed.into_iter().for_each(|(begin, end)| data.release(begin, end));
        }
    }

    /// A change of the open transaction.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state.write();
        state.check_writable()?;
        change(&mut state)
    }

    /// A change that needs metadata blocks, after a commit when there are none without it.
    fn with_room<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        if self.state.read().check_room().is_err() {
            self.commit()?;
        }
        let mut state = self.state.write();
        state.check_writable()?;
        state.check_room()?;
        change(&mut state)
    }

    /// A device, with what the open transaction has changed.
    ///
    /// # Errors
    /// Damaged metadata.
    pub fn device(&self, id: DeviceId) -> Result<Option<DeviceInfo>> {
        let state = self.state.read();
        state.check_usable()?;
        Ok(state.metadata.device(id)?)
    }

    /// All devices by id, with what the open transaction has changed.
    ///
    /// # Errors
    /// Damaged metadata.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let state = self.state.read();
        state.check_usable()?;
        Ok(state.metadata.all_devices()?)
    }

    /// Takes blocks of the data device into use up to `new_size_bytes`, and commits. The device has that size already. A pool
    /// does not shrink.
    ///
    /// # Errors
    /// [`PoolError::DataTooSmall`] when the device has not, or the pool has more.
    pub fn grow_data(&self, new_size_bytes: u64) -> Result<()> {
        let blocks = data_blocks(new_size_bytes, self.block_size);
        let found = data_blocks(self.data_device.size_bytes(), self.block_size);
        if found < blocks {
            return Err(PoolError::DataTooSmall { expected: blocks, found });
        }
        self.with_room(|state| {
            let expected = state.metadata.data().nr_blocks();
            if blocks < expected {
                return Err(PoolError::DataTooSmall { expected, found: blocks });
            }
            if blocks > expected {
                state.guarded(|metadata| metadata.extend_data(blocks))?;
                state.out_of_data = false;
            }
            Ok(())
        })?;
        self.commit()
    }

    /// The size of data blocks.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The transaction id, with what the open transaction has changed.
    #[must_use]
    pub fn transaction_id(&self) -> u64 {
        self.state.read().metadata.superblock().transaction_id
    }

    /// The metadata device.
    #[must_use]
    pub fn metadata_device(&self) -> &Arc<dyn BlockDevice> {
        &self.metadata_device
    }

    /// The data device.
    #[must_use]
    pub fn data_device(&self) -> &Arc<dyn BlockDevice> {
        &self.data_device
    }

    /// The superblock as it would be committed now, apart from the space maps.
    #[must_use]
    pub fn superblock(&self) -> Superblock {
        self.state.read().metadata.superblock().clone()
    }
}

/// Whole blocks of a data device that a mapping can name.
fn data_blocks(bytes: u64, block_size: BlockSize) -> u64 {
    (bytes / block_size.bytes()).min(MAX_DATA_BLOCKS)
}

#[cfg(test)]
mod tests;
