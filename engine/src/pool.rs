//! The thin pool: devices over one data device, provisioned as they are written.
//!
//! Four locks, always taken in this order:
//!
//! 1. the **traffic** table: which blocks of which device are being read, written, or given a new data block. It is held over
//!    the transfer of data, and orders what concerns the same block;
//! 2. the **commit** lock: one commit at a time, from the flush of the data device to the discards it sets free;
//! 3. the **change** lock: one change of the metadata at a time, and several that must stay together;
//! 4. the **metadata** lock: shared for lookups, exclusive for the moment of a change. It is never held while data are
//!    transferred or a device is flushed. (Only a transaction that has become too large for memory writes some of its blocks
//!    early, under it.)
//!
//! A commit *seals* the open transaction: from then on that does not change, and the next one is open. The sealed one is
//! written and flushed without the last two locks, so neither lookups nor changes wait for a commit; and those who wait for a
//! commit to begin have one together.
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

mod commit;
mod devices;
mod discard;
mod error;
mod events;
mod io;
mod message;
mod state;
mod status;
mod table;
mod thin;
mod traffic;
mod write;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::block_device::BlockDevice;
use crate::format::{
    BLOCK_BYTES, BlockSize, DeviceId, DeviceInfo, MetadataBlock, RawBlock, Superblock, WARN_METADATA_BYTES,
};
use crate::thin_metadata::ThinMetadata;

pub use self::error::PoolError;
use self::events::Events;
pub use self::io::MappedRun;
pub use self::message::Operation;
use self::state::State;
pub use self::status::{DiscardMode, PoolMode, PoolStatus};
pub use self::table::{Features, PoolTable};
use self::thin::OpenCounts;
pub use self::thin::Thin;
use self::traffic::Traffic;

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
    change: Mutex<()>,
    state: RwLock<State>,
    open: Mutex<OpenCounts>,
    events: Arc<Events>,
    /// Writes to the data device so far.
    written: AtomicU64,
    /// How many of them are durable.
    flushed: AtomicU64,
}

impl Pool {
    /// Makes an empty pool on two devices and commits it, with the table [`PoolTable::without_waiting`].
    ///
    /// # Errors
    /// [`PoolError::NotBlank`] unless the first 4 KiB of the metadata device are zero, [`PoolError::MetadataTooSmall`],
    /// [`PoolError::NoDataBlock`], and failures of the devices.
    pub fn format(
        metadata: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        block_size: BlockSize,
    ) -> Result<Self> {
        Self::format_with(metadata, data, block_size, PoolTable::without_waiting())
    }

    /// [`Pool::format`] with a table.
    ///
    /// # Errors
    /// As [`Pool::format`]; [`PoolError::ReadOnlyFormat`] when the table says read-only.
    pub fn format_with(
        metadata: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        block_size: BlockSize,
        table: PoolTable,
    ) -> Result<Self> {
        let needed = LEAST_METADATA_BLOCKS * BLOCK_BYTES as u64;
        if metadata.size_bytes() < needed {
            return Err(PoolError::MetadataTooSmall { bytes: metadata.size_bytes(), needed });
        }
        let first = RawBlock::read(metadata.as_ref(), MetadataBlock(0))?;
        if first.bytes().iter().any(|&byte| byte != 0) {
            return Err(PoolError::NotBlank);
        }
        if table.features.read_only {
            return Err(PoolError::ReadOnlyFormat);
        }
        let blocks = data_blocks(data.size_bytes(), block_size);
        if blocks == 0 {
            return Err(PoolError::NoDataBlock(block_size));
        }
        let thin = ThinMetadata::format(metadata.clone(), block_size, blocks)?;
        Ok(Self::new(metadata, data, thin, table))
    }

    /// Opens the pool that is on two devices, at its last commit, with the table [`PoolTable::without_waiting`]. Metadata
    /// that need a check open read-only. Nothing is written.
    ///
    /// # Errors
    /// Metadata that are not those of a pool, or of an unknown kind; [`PoolError::DataTooSmall`]; failures of the devices.
    pub fn open(metadata: Arc<dyn BlockDevice>, data: Arc<dyn BlockDevice>) -> Result<Self> {
        Self::open_with(metadata, data, PoolTable::without_waiting())
    }

    /// [`Pool::open`] with a table.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_with(
        metadata: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        table: PoolTable,
    ) -> Result<Self> {
        let thin = ThinMetadata::open(metadata.clone())?;
        let expected = thin.data().nr_blocks();
        let found = data.size_bytes() / thin.superblock().block_size.bytes();
        if found < expected {
            return Err(PoolError::DataTooSmall { expected, found });
        }
        Ok(Self::new(metadata, data, thin, table))
    }

    fn new(
        metadata_device: Arc<dyn BlockDevice>,
        data_device: Arc<dyn BlockDevice>,
        metadata: ThinMetadata,
        table: PoolTable,
    ) -> Self {
        let block_size = metadata.superblock().block_size;
        warn_excess(metadata_device.as_ref());
        let events = Arc::new(Events::default());
        Self {
            metadata_device,
            data_device,
            block_size,
            traffic: Traffic::default(),
            commits: Mutex::new(()),
            change: Mutex::new(()),
            state: RwLock::new(State::new(metadata, table, events.clone())),
            open: Mutex::default(),
            events,
            written: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
        }
    }

    /// The table in use.
    #[must_use]
    pub fn table(&self) -> PoolTable {
        self.state.read().table
    }

    /// Loads another table, as the kernel does when a pool is suspended and resumed with it: commits, takes new features
    /// over, and looks for a larger metadata device. A pool that ran out of space tries again.
    ///
    /// # Errors
    /// [`PoolError::DiscardsFixed`] when `ignore_discard` would change; those of [`Pool::commit`].
    pub fn reload(&self, table: PoolTable) -> Result<()> {
        if table.features.ignore_discard != self.table().features.ignore_discard {
            return Err(PoolError::DiscardsFixed);
        }
        if self.state.read().lost {
            // Nothing to commit; as with the kernel the pool stays read-only.
            self.changing().reload(table);
            return Ok(());
        }
        self.alone(|state| {
            state.reload(table);
            if state.mode < PoolMode::ReadOnly {
                state.grow_metadata()?;
            }
            Ok(())
        })?;
        self.changing().check_space();
        Ok(())
    }

    /// Events so far: changes of the mode, and each low water mark when it is reached.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events.count()
    }

    /// Waits until there were more than `seen` events, or until `deadline`, and returns how many there were.
    pub fn wait_event(&self, seen: u64, deadline: Option<Instant>) -> u64 {
        self.events.wait(seen, deadline)
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
            }
            Ok(())
        })?;
        self.commit()?;
        self.changing().check_data_space();
        Ok(())
    }

    /// Takes what the metadata device has more than the pool uses into use, as far as the format can, and commits. Also a
    /// pool without a free metadata block can grow.
    ///
    /// # Errors
    /// [`PoolError::ReadOnlyMode`], failures of the devices.
    pub fn grow_metadata(&self) -> Result<()> {
        self.alone(|state| {
            state.check_writable()?;
            state.grow_metadata()
        })
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

fn warn_excess(metadata: &dyn BlockDevice) {
    let bytes = metadata.size_bytes();
    if bytes > WARN_METADATA_BYTES {
        let used = crate::format::MAX_METADATA_BLOCKS * BLOCK_BYTES as u64;
        tracing::warn!(
            bytes,
            used,
            "the metadata device is larger than the format can use: the excess stays unused"
        );
    }
}

/// Whole blocks of a data device that a mapping can name.
fn data_blocks(bytes: u64, block_size: BlockSize) -> u64 {
    (bytes / block_size.bytes()).min(MAX_DATA_BLOCKS)
}

#[cfg(test)]
mod tests;
