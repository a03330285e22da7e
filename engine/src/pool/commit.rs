//! Commits. Whoever waits for one that is under way shares the next with all others who do.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use parking_lot::{MutexGuard, RwLockWriteGuard};

use super::state::State;
use super::{Pool, PoolError, Result};

/// The right to change the metadata, and the metadata.
pub(super) struct Changing<'a> {
    // Dropped in this order.
    state: RwLockWriteGuard<'a, State>,
    _change: MutexGuard<'a, ()>,
}

impl Deref for Changing<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Changing<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Pool {
    /// Waits until the metadata may be changed.
    pub(super) fn changing(&self) -> Changing<'_> {
        let change = self.change.lock();
        Changing { state: self.state.write(), _change: change }
    }

    /// Makes everything that was done so far durable: data first, then metadata, then the superblock that names them.
    /// Writes nothing when nothing changed. Lookups go on meanwhile, and so do writes that change no mapping.
    ///
    /// # Errors
    /// Failures of the devices, after which the open transaction is given up and the pool is at its last commit, in need
    /// of a check, and read-only.
    pub fn commit(&self) -> Result<()> {
        let _commits = self.commits.lock();
        // Most of the data goes out here, while others still change the metadata.
        let flushed = self.flush_data();
        let committed = {
            let change = self.change.lock();
            match flushed {
                Ok(()) => self.commit_locked(&change),
                Err(error) => Err(self.state.write().data_lost(error)),
            }
        };
        self.pass_down();
        committed
    }

    /// A change that is in a transaction, and a commit, of its own.
    pub(super) fn alone(&self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        // Most of what is open is committed here, while others still change the metadata.
        self.commit()?;
        let _commits = self.commits.lock();
        let changed = {
            let lock = self.change.lock();
            self.commit_locked(&lock)
                .and_then(|()| change(&mut self.state.write()))
                .and_then(|()| self.commit_locked(&lock))
        };
        self.pass_down();
        changed
    }

    /// A commit while nobody else changes the metadata. The lock on what readers look at is not held while the devices
    /// work.
    fn commit_locked(&self, _change: &MutexGuard<'_, ()>) -> Result<()> {
        if let Err(error) = self.flush_data() {
            return Err(self.state.write().data_lost(error));
        }
        let Some(transaction) = self.state.write().seal_transaction()? else { return Ok(()) };
        let written = transaction.write();
        self.state.write().finish_commit(transaction, written)
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

    /// Gives the space of blocks back that commits have freed. They are held meanwhile; a failure costs space only.
    fn pass_down(&self) {
        if self.state.read().committed_discards.is_empty() {
            return;
        }
        let freed = std::mem::take(&mut self.changing().committed_discards);
        let bytes = self.block_size.bytes();
        for &(begin, end) in &freed {
            if let Err(error) = self.data_device.discard(begin * bytes, (end - begin) * bytes) {
                tracing::warn!(begin, end, %error, "freed data blocks could not be discarded");
            }
        }
        let mut state = self.changing();
        let (_, data) = state.metadata.data_mut();
        freed.into_iter().for_each(|(begin, end)| data.release(begin, end));
        state.check_data_space();
    }

    /// A change of the open transaction.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.changing();
        state.check_writable()?;
        change(&mut state)
    }

    /// A change that needs metadata blocks, after a commit when there are none without it.
    pub(super) fn with_room<T>(&self, change: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        if self.state.read().check_room().is_err() {
            self.commit()?;
        }
        let mut state = self.changing();
        state.check_writable()?;
        state.check_room()?;
        change(&mut state)
    }

    /// Commits when the open transaction has become large.
    pub(super) fn commit_large(&self) -> Result<()> {
        let large = {
            let state = self.state.read();
            state.metadata.new_blocks() >= super::LARGE_TRANSACTION_BLOCKS
                || state.discards.len() >= super::PENDING_DISCARDS
        };
        if large { self.commit() } else { Ok(()) }
    }
}
