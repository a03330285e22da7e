//! What the metadata lock protects.

use crate::format::{DeviceId, DeviceInfo, MAX_TIME, MetadataError};
use crate::thin_metadata::ThinMetadata;

use super::message::Operation;
use super::{PoolError, Result};

/// How the metadata may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Writable,
    /// A transaction was given up, or the metadata were opened in need of a check.
    ReadOnly,
    /// The last commit could not be read again.
    Failed,
}

pub(super) struct State {
    pub(super) metadata: ThinMetadata,
    pub(super) health: Health,
    /// An allocation found nothing, and no commit has freed anything since.
    pub(super) out_of_data: bool,
    /// Blocks freed in the open transaction whose space is to be given back once that is committed. They are held.
    pub(super) discards: Vec<(u64, u64)>,
    /// Those of the last commits, until their space has been given back. They are held still.
    pub(super) committed_discards: Vec<(u64, u64)>,
    /// A transaction was given up: what it held was never made durable, and no commit may say so.
    pub(super) lost: bool,
}

impl State {
    pub(super) fn check_usable(&self) -> Result<()> {
        if self.health == Health::Failed { Err(PoolError::Failed) } else { Ok(()) }
    }

    pub(super) fn check_writable(&self) -> Result<()> {
        self.check_usable()?;
        if self.health == Health::ReadOnly {
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

    /// After a failed flush of the data: those that new mappings name may be gone, and a second flush would not tell.
    pub(super) fn data_lost(&mut self, error: PoolError) -> PoolError {
        if self.metadata.is_changed() {
            self.abort();
        }
        error
    }

    /// Back to the last commit, read-only, as the kernel does.
    pub(super) fn abort(&mut self) {
        self.health = Health::ReadOnly;
        self.lost = true;
        let (_, data) = self.metadata.data_mut();
        self.discards.drain(..).for_each(|(begin, end)| data.release(begin, end));
        if let Err(error) = self.metadata.roll_back() {
            tracing::error!(%error, "the last commit cannot be read");
            self.health = Health::Failed;
        } else if let Err(error) = self.metadata.set_needs_check() {
            tracing::error!(%error, "the need of a check cannot be recorded");
        }
    }

    /// Undoes what the open transaction holds; the commit before it was made under the same lock.
    pub(super) fn take_back(&mut self) {
        if self.health == Health::Writable && self.metadata.roll_back().is_err() {
            self.health = Health::Failed;
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
                self.guarded(|metadata| metadata.delete(id))
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
