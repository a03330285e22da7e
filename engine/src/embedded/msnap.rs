//! The metadata snapshot: a pool holds at most one, so it is known whose it is.
//!
//! 1. An intent with the pool's transaction id and clock is made durable while the pool holds none.
//! 2. The pool reserves.
//! 3. The root and the checksum of the copied superblock are made durable.
//!
//! What is held is ours when root and checksum match. After a crash between 2 and 3 it is ours when the copy shows the
//! transaction id and the clock of the intent: the pool is locked to one process, and none but ours followed. What does
//! not match is a stranger's and only released when forced.

use std::sync::Arc;

use super::{Books, EmbeddedError, EmbeddedPool, Inner};
use crate::format::{BLOCK_BYTES, MetadataBlock, Superblock};
use crate::registry::{Change, HeldSnapshot, State};

/// A reserved metadata snapshot of a running job. It is released when this is dropped.
pub struct MsnapGuard {
    inner: Arc<Inner>,
    lease: u64,
    root: MetadataBlock,
}

impl MsnapGuard {
    /// Where the copy of the superblock is.
    #[must_use]
    pub fn root(&self) -> MetadataBlock {
        self.root
    }

    /// Releases it now.
    ///
    /// # Errors
    /// What pool and registry say.
    pub fn release(self) -> Result<(), EmbeddedError> {
        self.inner.release_lease(self.lease)
    }
}

impl Drop for MsnapGuard {
    fn drop(&mut self) {
        if let Err(error) = self.inner.release_lease(self.lease) {
            tracing::error!(%error, "the metadata snapshot could not be released: the next open will");
        }
    }
}

impl EmbeddedPool {
    /// Reserves the metadata snapshot for a job of this process.
    ///
    /// # Errors
    /// [`EmbeddedError::MsnapHeld`] while one is held; what pool and registry say.
    pub fn reserve_msnap(&self) -> Result<MsnapGuard, EmbeddedError> {
        let mut books = self.inner.books.lock();
        let root = self.inner.reserve(&mut books, false)?;
        books.leases = books.leases.wrapping_add(1);
        books.lease = Some(books.leases);
        let lease = books.leases;
        drop(books);
        Ok(MsnapGuard { inner: Arc::clone(&self.inner), lease, root })
    }

    /// Reserves the metadata snapshot for a user: it stays, also when the pool is closed, until
    /// [`release_msnap`](Self::release_msnap).
    ///
    /// # Errors
    /// As [`reserve_msnap`](Self::reserve_msnap).
    pub fn hold_msnap(&self) -> Result<MetadataBlock, EmbeddedError> {
        self.inner.reserve(&mut self.inner.books.lock(), true)
    }

    /// Releases the metadata snapshot. By `force` also one that a running job uses or that thinbak did not reserve.
    ///
    /// # Errors
    /// [`EmbeddedError::NoMsnap`], [`EmbeddedError::MsnapInUse`], [`EmbeddedError::MsnapHeld`] for a stranger's; what
    /// pool and registry say.
    pub fn release_msnap(&self, force: bool) -> Result<(), EmbeddedError> {
        let inner = &self.inner;
        let mut books = inner.books.lock();
        let root = inner.held_root().ok_or(EmbeddedError::NoMsnap)?;
        if !force {
            if books.lease.is_some() {
                return Err(EmbeddedError::MsnapInUse { root });
            }
            if !inner.is_ours(books.registry.state(), root)? {
                return Err(EmbeddedError::MsnapHeld { root, ours: false });
            }
        }
        inner.release(&mut books)
    }

    /// Whether the metadata snapshot that the pool holds was reserved by thinbak. False when it holds none.
    ///
    /// # Errors
    /// Unreadable metadata.
    pub fn msnap_is_ours(&self) -> Result<bool, EmbeddedError> {
        let books = self.inner.books.lock();
        match self.inner.held_root() {
            Some(root) => self.inner.is_ours(books.registry.state(), root),
            None => Ok(false),
        }
    }
}

impl Inner {
    fn reserve(&self, books: &mut Books, keep: bool) -> Result<MetadataBlock, EmbeddedError> {
        if let Some(root) = self.held_root() {
            let ours = self.is_ours(books.registry.state(), root)?;
            return Err(EmbeddedError::MsnapHeld { root, ours });
        }
        let superblock = self.pool.superblock();
        let (transaction_id, time) = (superblock.transaction_id, superblock.time);
        let intent = HeldSnapshot::Intended { keep, transaction_id, time };
        books.registry.record(vec![Change::Msnap(Some(intent))])?;
        let attempt = "the metadata snapshot could not be reserved";
        self.pool.reserve_metadata_snap().map_err(EmbeddedError::pool(attempt))?;
        let root = self.held_root().ok_or(EmbeddedError::NoMsnap)?;
        let recorded = self.checksum(root).and_then(|checksum| {
            let held = HeldSnapshot::Held { keep, root, checksum };
            Ok(books.registry.record(vec![Change::Msnap(Some(held))])?)
        });
        if let Err(error) = recorded {
            // Nobody may be left with a snapshot that nobody knows of.
            if let Err(error) = self.pool.release_metadata_snap() {
                tracing::error!(%error, "the metadata snapshot could not be released");
            }
            return Err(error);
        }
        Ok(root)
    }

    fn release(&self, books: &mut Books) -> Result<(), EmbeddedError> {
        let attempt = "the metadata snapshot could not be released";
        self.pool.release_metadata_snap().map_err(EmbeddedError::pool(attempt))?;
        books.lease = None;
        Ok(books.registry.record(vec![Change::Msnap(None)])?)
    }

    /// Releases what a guard holds, unless that was done already.
    fn release_lease(&self, lease: u64) -> Result<(), EmbeddedError> {
        let mut books = self.books.lock();
        if books.lease != Some(lease) {
            return Ok(());
        }
        self.release(&mut books)
    }

    /// Whether root and checksum are those that were recorded.
    fn is_ours(&self, state: &State, held: MetadataBlock) -> Result<bool, EmbeddedError> {
        match state.msnap {
            Some(HeldSnapshot::Held { root, checksum, .. }) if root == held => {
                Ok(self.checksum(held)? == checksum)
            }
            _ => Ok(false),
        }
    }

    /// The stored checksum of the copied superblock, after it was verified.
    fn checksum(&self, root: MetadataBlock) -> Result<u32, EmbeddedError> {
        let device = self.pool.metadata_device();
        Superblock::read(device.as_ref(), root)?;
        let mut stored = [0; 4];
        let offset = root.get().saturating_mul(BLOCK_BYTES as u64);
        let path = || self.description.metadata_path(&self.dir);
        device.read_at(offset, &mut stored).map_err(|source| EmbeddedError::Io {
            attempt: "read",
            path: path(),
            source,
        })?;
        Ok(u32::from_le_bytes(stored))
    }

    /// Decides about the record of a process that is gone.
    pub(super) fn recover_msnap(&self, books: &mut Books) -> Result<(), EmbeddedError> {
        let Some(recorded) = books.registry.state().msnap else { return Ok(()) };
        let forget = vec![Change::Msnap(None)];
        let Some(root) = self.held_root() else { return Ok(books.registry.record(forget)?) };
        let (ours, keep) = match recorded {
            HeldSnapshot::Held { keep, .. } => (self.is_ours(books.registry.state(), root)?, keep),
            HeldSnapshot::Intended { keep, transaction_id, time } => {
                let copy = Superblock::read(self.pool.metadata_device().as_ref(), root)?;
                ((copy.transaction_id, copy.time) == (transaction_id, time), keep)
            }
        };
        match (ours, keep) {
            (false, _) => {
                tracing::warn!(
                    root = root.get(),
                    "the pool holds a metadata snapshot that thinbak did not reserve"
                );
                Ok(books.registry.record(forget)?)
            }
            (true, true) => {
                let held = HeldSnapshot::Held { keep, root, checksum: self.checksum(root)? };
                if held == recorded {
                    return Ok(());
                }
                Ok(books.registry.record(vec![Change::Msnap(Some(held))])?)
            }
            (true, false) => {
                tracing::info!(root = root.get(), "releasing the metadata snapshot of a dead process");
                self.release(books)
            }
        }
    }
}
