//! Commits. Whoever waits for one that is under way shares the next with all others who do.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;

use parking_lot::{MutexGuard, RwLockWriteGuard};

use super::state::{Sealed, State};
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
    /// Writes nothing when nothing changed, or when another commit has done it meanwhile. Lookups and changes go on beside
    /// it; these are then in the next transaction.
    ///
    /// # Errors
    /// Failures of the devices, after which the open transaction is given up and the pool is at its last commit, in need
    /// of a check, and read-only.
    pub fn commit(&self) -> Result<()> {
        let wanted = (self.state.read().last_changed(), self.written.load(Ordering::Acquire));
        let _commits = self.commits.lock();
        let sealed = self.changing().seal_transaction(wanted.0);
        let committed = sealed.and_then(|sealed| self.make_durable(sealed, wanted.1, || self.changing()));
        self.pass_down();
        committed
    }

    /// A change that is in a transaction, and a commit, of its own.
    pub(super) fn alone(&self, change: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        // Most of what is open is committed here, while others still change the metadata.
        self.commit()?;
        let _commits = self.commits.lock();
        let changed = {
            let _change = self.change.lock();
            let commit = || {
                let sealed = self.state.write().seal_transaction(u64::MAX)?;
                self.make_durable(sealed, u64::MAX, || self.state.write())
            };
            commit().and_then(|()| change(&mut self.state.write())).and_then(|()| commit())
        };
        self.pass_down();
        changed
    }

    /// Flushes the data, unless `written` writes are durable and no mapping waits for it, and then writes a sealed
    /// transaction. What its mappings name was written before it was sealed.
    fn make_durable<G: DerefMut<Target = State>>(
        &self,
        sealed: Option<Sealed>,
        written: u64,
        state: impl Fn() -> G,
    ) -> Result<()> {
        if (sealed.is_some() || self.flushed.load(Ordering::Acquire) < written)
            && let Err(error) = self.flush_data()
        {
            return Err(state().data_lost(error));
        }
        let Some(sealed) = sealed else { return Ok(()) };
        let written = sealed.write();
        state().finish_commit(sealed, written)
    }

    /// Flushes the data device, when anything was written to it. Only with the commit lock.
    fn flush_data(&self) -> Result<()> {
        let written = self.written.load(Ordering::Acquire);
        if self.flushed.load(Ordering::Acquire) >= written {
            return Ok(());
        }
        self.data_device.flush().map_err(|source| PoolError::Io {
            action: "flush",
            offset: 0,
            length: 0,
            source,
        })?;
        self.flushed.store(written, Ordering::Release);
        Ok(())
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
