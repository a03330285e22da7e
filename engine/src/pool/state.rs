//! What the metadata lock protects, and the modes of the pool.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::format::{DeviceId, DeviceInfo, MAX_TIME, MetadataError};
use crate::persistent_data::{RangeSet, SealedTransaction};
use crate::thin_metadata::ThinMetadata;

use super::events::Events;
use super::message::Operation;
use super::table::PoolTable;
use super::{PENDING_DISCARDS, PoolError, PoolMode, Result};

pub(super) struct State {
    pub(super) metadata: ThinMetadata,
    pub(super) mode: PoolMode,
    pub(super) table: PoolTable,
    /// When the pool ran out of data blocks.
    out_of_data_since: Option<Instant>,
    /// The event was raised that writes do not wait any more.
    gave_up_waiting: bool,
    /// The event of the low water mark was raised since the table was loaded.
    low_water_raised: bool,
    /// The event of the metadata's watermark was raised since there was more.
    metadata_low_raised: bool,
    /// Blocks freed in the open transaction whose space is to be given back once that is committed. They are held.
    pub(super) discards: Vec<(u64, u64)>,
    /// Those of the sealed transaction.
    sealed_discards: Vec<(u64, u64)>,
    /// Those of the last commits, until their space has been given back. They are held still.
    pub(super) committed_discards: Vec<(u64, u64)>,
    /// A transaction was given up: what it held was never made durable, and no commit may say so.
    pub(super) lost: bool,
    /// The number of the open transaction, which grows with each that is sealed.
    transaction: u64,
    /// The number of the last transaction that is durable.
    durable: u64,
    /// Held while a sealed transaction is being written: whoever goes back to the last commit waits for that. Set when a
    /// transaction that is not written yet must not be any more.
    writing: Arc<Mutex<bool>>,
    events: Arc<Events>,
}

/// A transaction that is complete in memory, with its number.
pub(super) struct Sealed {
    number: u64,
    transaction: SealedTransaction,
    writing: Arc<Mutex<bool>>,
}

impl Sealed {
    /// Makes it durable, unless it was given up meanwhile with one that is based on it.
    pub(super) fn write(&self) -> Result<()> {
        let given_up = self.writing.lock();
        if *given_up {
            return Err(PoolError::ReadOnlyMode { needs_check: true });
        }
        Ok(self.transaction.write()?)
    }
}

impl State {
    pub(super) fn new(metadata: ThinMetadata, table: PoolTable, events: Arc<Events>) -> Self {
        let read_only = table.features.read_only || metadata.superblock().needs_check;
        if read_only {
            // The kernel's pool begins by writing, and then changes its mode.
            events.raise();
        }
        Self {
            metadata,
            mode: if read_only { PoolMode::ReadOnly } else { PoolMode::Write },
            table,
            out_of_data_since: None,
            gave_up_waiting: false,
            low_water_raised: false,
            metadata_low_raised: false,
            discards: Vec::new(),
            sealed_discards: Vec::new(),
            committed_discards: Vec::new(),
            lost: false,
            transaction: 1,
            durable: 0,
            writing: Arc::default(),
            events,
        }
    }

    /// Takes over a new table.
    pub(super) fn reload(&mut self, table: PoolTable) {
        self.table = table;
        self.low_water_raised = false;
        self.out_of_data_since = None;
        match self.mode {
            PoolMode::Fail => {}
            _ if table.features.read_only => self.set_mode(PoolMode::ReadOnly),
            PoolMode::ReadOnly if self.lost || self.metadata.superblock().needs_check => {}
            _ => self.set_mode(PoolMode::Write),
        }
    }

    /// Changes the mode; a change is an event.
    pub(super) fn set_mode(&mut self, mode: PoolMode) {
        if self.mode == mode {
            return;
        }
        tracing::warn!(from = %self.mode.name(), to = %mode.name(), "the pool changes its mode");
        self.mode = mode;
        self.out_of_data_since = (mode == PoolMode::OutOfDataSpace).then(Instant::now);
        self.gave_up_waiting = false;
        self.events.raise();
    }

    /// A write has waited for a data block until its end; the first one that notices makes it an event.
    pub(super) fn give_up_waiting(&mut self) {
        if !self.gave_up_waiting {
            self.gave_up_waiting = true;
            tracing::warn!("writes waited too long for a free data block and fail from now on");
            self.events.raise();
        }
    }

    /// When writes that wait for a data block fail; none when they wait for ever.
    pub(super) fn no_space_deadline(&self) -> Option<Instant> {
        let timeout = Some(self.table.no_space_timeout).filter(|timeout| !timeout.is_zero())?;
        self.out_of_data_since?.checked_add(timeout)
    }

    /// Whether a write that finds no free data block fails at once: the table says so, or others have waited long enough.
    pub(super) fn errors_if_no_space(&self) -> bool {
        self.table.features.error_if_no_space
            || self.no_space_deadline().is_some_and(|deadline| deadline <= Instant::now())
    }

    pub(super) fn check_usable(&self) -> Result<()> {
        if self.mode == PoolMode::Fail { Err(PoolError::Failed) } else { Ok(()) }
    }

    /// Whether the metadata may be changed, be it only to free what they use.
    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_usable()?;
        if self.mode == PoolMode::ReadOnly {
            return Err(PoolError::ReadOnlyMode { needs_check: self.metadata.superblock().needs_check });
        }
        Ok(())
    }

    /// Whether metadata blocks can be taken without touching the reserve.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.metadata.has_room() {
            return Ok(());
        }
        let total = self.metadata.metadata_blocks();
        Err(PoolError::NoSpaceMetadata { used: total - self.metadata.metadata_free(), total })
    }

    /// Takes what the metadata device has more into use.
    pub(super) fn grow_metadata(&mut self) -> Result<()> {
        if self.guarded(ThinMetadata::extend_metadata)? {
            tracing::info!(blocks = self.metadata.metadata_blocks(), "the metadata have grown");
        }
        Ok(())
    }

    /// Free metadata blocks at which an event is raised. It follows the device, also before the pool takes all of it.
    pub(super) fn metadata_low_watermark(&self) -> u64 {
        super::status::MAX_LOW_WATERMARK.min(self.metadata.device_blocks() / 4)
    }

    /// After a commit: whether there is space again, or none any more.
    pub(super) fn check_space(&mut self) {
        let full = !self.metadata.has_room();
        match self.mode {
            PoolMode::Write | PoolMode::OutOfDataSpace if full => {
                self.set_mode(PoolMode::OutOfMetadataSpace);
            }
            PoolMode::OutOfMetadataSpace if !full => self.set_mode(PoolMode::Write),
            PoolMode::ReadOnly | PoolMode::Fail => return,
            _ => self.check_data_space(),
        }
        let low = self.metadata.metadata_free() <= self.metadata_low_watermark();
        if low && !self.metadata_low_raised {
            tracing::warn!(free = self.metadata.metadata_free(), "few metadata blocks are free");
            self.events.raise();
        }
        self.metadata_low_raised = low;
    }

    /// Back to writing when a data block is free.
    pub(super) fn check_data_space(&mut self) {
        let data = self.metadata.data();
        if self.mode == PoolMode::OutOfDataSpace && data.nr_allocated() < data.nr_blocks() {
            self.set_mode(PoolMode::Write);
        }
    }

    /// Before data blocks are taken: raises the event of the low water mark.
    pub(super) fn check_low_water(&mut self) {
        let data = self.metadata.data();
        let free = data.nr_blocks().saturating_sub(data.nr_allocated());
        if free <= self.table.low_water_blocks && !self.low_water_raised {
            self.low_water_raised = true;
            tracing::warn!(free, mark = self.table.low_water_blocks, "few data blocks are free");
            self.events.raise();
        }
    }

    /// Changes the metadata; a failure gives the open transaction up.
    pub(super) fn guarded<T>(
        &mut self,
        change: impl FnOnce(&mut ThinMetadata) -> std::result::Result<T, MetadataError>,
    ) -> Result<T> {
        change(&mut self.metadata).map_err(|error| {
            tracing::error!(%error, "the open transaction is given up");
            self.abort();
            error.into()
        })
    }

    /// As [`guarded`](Self::guarded); data blocks that nothing maps any more are given back after the commit.
    pub(super) fn freeing<T>(
        &mut self,
        change: impl FnOnce(&mut ThinMetadata) -> std::result::Result<(T, RangeSet), MetadataError>,
    ) -> Result<T> {
        let (result, freed) = self.guarded(change)?;
        let features = self.table.features;
        if !features.no_discard_passdown && !features.ignore_discard {
            let room = PENDING_DISCARDS.saturating_sub(self.discards.len());
            // Held at once: a block that this transaction had taken is free for it again.
            for (begin, end) in freed.iter().take(room) {
                self.metadata.data_mut().1.hold(begin, end);
                self.discards.push((begin, end));
            }
        }
        Ok(result)
    }

    /// The last transaction with changes.
    pub(super) fn last_changed(&self) -> u64 {
        if self.metadata.is_changed() { self.transaction } else { self.transaction - 1 }
    }

    /// Ends the open transaction in memory, unless all up to `wanted` are durable or nothing was changed.
    pub(super) fn seal_transaction(&mut self, wanted: u64) -> Result<Option<Sealed>> {
        self.check_usable()?;
        if self.lost {
            return Err(PoolError::ReadOnlyMode { needs_check: self.metadata.superblock().needs_check });
        }
        if wanted <= self.durable {
            return Ok(None);
        }
        let Some(transaction) = self.guarded(ThinMetadata::seal_transaction)? else { return Ok(None) };
        let number = self.transaction;
        self.transaction += 1;
        self.sealed_discards = std::mem::take(&mut self.discards);
        Ok(Some(Sealed { number, transaction, writing: self.writing.clone() }))
    }

    /// The sealed transaction was written, or not.
    pub(super) fn finish_commit(&mut self, sealed: Sealed, written: Result<()>) -> Result<()> {
        if self.lost {
            // A later one has failed meanwhile, and the last commit was read anew, be it this one or the one before.
            return written;
        }
        if let Err(error) = written {
            tracing::error!(%error, "the open transaction is given up");
            self.abort();
            return Err(error);
        }
        self.metadata.finish_commit(sealed.transaction);
        self.durable = sealed.number;
        let freed = std::mem::take(&mut self.sealed_discards);
        self.committed_discards.extend(freed);
        self.check_space();
        Ok(())
    }

    /// After a failed flush of the data: what was written since the last one may be gone, others' writes too, and a second
    /// flush would not tell. So nobody may be told any more that something is durable.
    pub(super) fn data_lost(&mut self, error: PoolError) -> PoolError {
        if !self.lost {
            self.abort();
        }
        error
    }

    /// Back to the last commit, read-only, as the kernel does.
    fn abort(&mut self) {
        self.lost = true;
        let writing = self.writing.clone();
        let mut given_up = writing.lock();
        *given_up = true;
        let (_, data) = self.metadata.data_mut();
        let freed = self.discards.drain(..).chain(self.sealed_discards.drain(..));
        freed.for_each(|(begin, end)| data.release(begin, end));
        if let Err(error) = self.metadata.roll_back() {
            tracing::error!(%error, "the last commit cannot be read");
            return self.set_mode(PoolMode::Fail);
        }
        if let Err(error) = self.metadata.set_needs_check() {
            tracing::error!(%error, "the need of a check cannot be recorded");
        }
        self.set_mode(PoolMode::ReadOnly);
    }

    /// Undoes what the open transaction holds; the commit before it was made under the same lock.
    pub(super) fn take_back(&mut self) {
        let (_, data) = self.metadata.data_mut();
        self.discards.drain(..).for_each(|(begin, end)| data.release(begin, end));
        if self.mode < PoolMode::ReadOnly && self.metadata.roll_back().is_err() {
            self.set_mode(PoolMode::Fail);
        }
    }

    pub(super) fn run(&mut self, operation: Operation) -> Result<()> {
        match operation {
            Operation::CreateThin(id) => {
                self.check_absent(id)?;
                self.guarded(|metadata| metadata.create_thin(id))
            }
            Operation::CreateSnap { new, origin } => {
                self.check_absent(new)?;
                self.check_present(origin)?;
                if self.metadata.superblock().time >= MAX_TIME {
                    return Err(PoolError::TimeExhausted);
                }
                self.guarded(|metadata| metadata.create_snap(new, origin))
            }
            Operation::Delete(id) => {
                self.check_present(id)?;
                self.freeing(|metadata| metadata.delete(id).map(|freed| ((), freed)))
            }
            Operation::SetTransactionId { old, new } => {
                let found = self.metadata.superblock().transaction_id;
                if found != old {
                    return Err(PoolError::WrongTransactionId { expected: old, found });
                }
                self.metadata.set_transaction_id(new);
                Ok(())
            }
        }
    }

    pub(super) fn check_absent(&self, id: DeviceId) -> Result<()> {
        if self.metadata.device(id)?.is_some() { Err(PoolError::DeviceExists(id)) } else { Ok(()) }
    }

    pub(super) fn check_present(&self, id: DeviceId) -> Result<DeviceInfo> {
        self.metadata.device(id)?.ok_or(PoolError::NoSuchDevice(id))
    }
}
