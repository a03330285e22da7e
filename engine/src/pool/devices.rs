//! Making and deleting devices, and the metadata snapshot.

use crate::format::DeviceId;

use super::message::Operation;
use super::state::State;
use super::traffic::Purpose;
use super::{Pool, PoolError, PoolMode, Result};

/// Leaves of a mapping tree that one step of a deletion takes: a few thousand mappings.
const STEP_LEAVES: usize = 16;
/// A device with fewer mappings is deleted in one step.
const SMALL_DEVICE_BLOCKS: u64 = 1 << 15;

impl Pool {
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

    /// Deletes a device, in the open transaction. Unlike the kernel it gives back the space of data blocks that nothing
    /// maps any more, as a discard would.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], [`PoolError::DeviceOpen`], [`PoolError::ReadOnlyMode`], damaged metadata.
    pub fn delete(&self, id: DeviceId) -> Result<()> {
        let _traffic = self.traffic.enter(id, 0..=u64::MAX, Purpose::Exclusive);
        self.change(|state| {
            self.check_deletable(state, id)?;
            state.run(Operation::Delete(id))
        })
    }

    /// Prepares a large device for deletion: gives most of its mappings up, in many small steps between which others use
    /// the pool. What it shares with snapshots costs nothing to delete and stays. A crash leaves a device that has lost
    /// some of its content: it is to be deleted in any case.
    ///
    /// # Errors
    /// As [`Pool::delete`].
    pub fn shed(&self, id: DeviceId) -> Result<()> {
        let _traffic = self.traffic.enter(id, 0..=u64::MAX, Purpose::Exclusive);
        loop {
            let shed = self.change(|state| {
                self.check_deletable(state, id)?;
                let device = state.check_present(id)?;
                if device.details.mapped_blocks < SMALL_DEVICE_BLOCKS {
                    return Ok(0);
                }
                state.freeing(|metadata| metadata.shed_leaves(id, STEP_LEAVES))
            })?;
            if shed == 0 {
                return Ok(());
            }
            self.commit_large()?;
        }
    }

    fn check_deletable(&self, state: &State, id: DeviceId) -> Result<()> {
        state.check_present(id)?;
        self.check_closed(id)
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
                let closed = match operation {
                    Operation::Delete(id) => self.check_closed(id),
                    _ => Ok(()),
                };
                if let Err(error) = closed.and_then(|()| state.run(operation)) {
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
            let held = state.metadata.superblock().held_root.ok_or(PoolError::NoMetadataSnap)?;
            state.freeing(|metadata| metadata.release_snapshot(held).map(|freed| ((), freed)))
        })?;
        self.commit()
    }

    /// Whether the kernel would take a message now.
    pub(crate) fn check_messages(&self) -> Result<()> {
        let state = self.state.read();
        match state.mode {
            PoolMode::OutOfMetadataSpace => Err(PoolError::OutOfMetadataMode),
            _ => state.check_writable(),
        }
    }
}
