//! A pool in a directory: the thin pool, the names of what is in it, and the locks that keep it to one process.
//!
//! | file | holds |
//! |---|---|
//! | `pool.json` | format, name, identity, block size; where the devices are when they are not the files below |
//! | `metadata` | the kernel's thin-pool metadata |
//! | `data` | the data device, sparse |
//! | `registry` | names, sizes and identities of the thin devices ([`registry`](crate::registry)) |
//! | `lock` | locked while the pool is open |
//!
//! `pool.json` appears last when a pool is made and goes first when it is removed (as `pool.json.new`), so a directory
//! either holds a whole pool or what `create` may clear away.
//!
//! A change of devices waits until the writes to them that are under way have ended, so all snapshots of one call show
//! one moment. Changes of devices and records are made one after the other, under the lock of the registry.
//!
//! Unless its table says otherwise, an embedded pool fails a write that finds no free data block at once: who writes to it
//! is mostly the one who would have to make room, and a job had better fail than hang.

mod bases;
mod create;
mod description;
mod devices;
mod error;
mod heads;
mod identity;
mod io;
mod locks;
mod message;
mod msnap;
mod names;
mod open;
mod origin;
mod point;
mod resize;
mod snapshots;
mod table;
mod trash;
mod volume;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use uuid::Uuid;

use self::description::Description;
use self::locks::Lock;
use crate::format::{DeviceId, MetadataBlock};
use crate::pool::Pool;
use crate::registry::{Plan, Registry, State};

pub use self::create::{CreateOptions, default_metadata_bytes};
pub use self::error::{EmbeddedError, ErrorClass};
pub use self::msnap::MsnapGuard;
pub use self::names::{MAX_NAME_BYTES, NameError, RESERVED_PREFIX, check_snapshot_name, check_volume_name};
pub use self::point::{BaseNotProven, NotProven};
pub use self::volume::{Kind, Volume};
pub use crate::registry::{Base, ExternalOrigin, Point};

/// Snapshots are refused when the pool's clock has passed this: the format's end is at twice as many.
const CLOCK_LIMIT: u64 = 1 << 23;
/// From here on every snapshot is accompanied by a warning.
const CLOCK_WARNING: u64 = 1 << 22;

/// An open embedded pool. No other process, and no other handle of this one, has it or its devices open.
///
/// All operations take `&self` and may be called from several threads.
pub struct EmbeddedPool {
    inner: Arc<Inner>,
}

/// What the pool and its guards share.
struct Inner {
    description: Description,
    dir: PathBuf,
    pool: Pool,
    books: Mutex<Books>,
    /// Set when there is nothing to commit any more.
    removed: AtomicBool,
    _locks: Vec<Lock>,
}

/// What only one thread works on at a time.
struct Books {
    registry: Registry,
    /// The number of the guard that holds the metadata snapshot.
    lease: Option<u64>,
    leases: u64,
}

impl EmbeddedPool {
    /// The name that the pool was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.description.name
    }

    /// The pool's identity.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.inner.description.uuid
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The path of the metadata device.
    #[must_use]
    pub fn metadata_path(&self) -> PathBuf {
        self.inner.description.metadata_path(&self.inner.dir)
    }

    /// The path of the data device.
    #[must_use]
    pub fn data_path(&self) -> PathBuf {
        self.inner.description.data_path(&self.inner.dir)
    }

    /// The thin pool itself. Its devices and its transaction id are the registry's: whoever changes them here brings
    /// both out of step.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.inner.pool
    }
}

impl Inner {
    /// Makes a change of the pool's devices. `plan` says which, from what is known. Large devices that go with it are
    /// trash when it is made, and then given up bit by bit while others use pool and registry.
    fn transact<T>(
        &self,
        plan: impl FnOnce(&State) -> Result<(Plan, T), EmbeddedError>,
    ) -> Result<T, EmbeddedError> {
        let mut books = self.books.lock();
        let (mut plan, result) = plan(books.registry.state())?;
        let trash = self.trash_large(books.registry.state(), &mut plan)?;
        books.registry.transact(&self.pool, plan)?;
        drop(books);
        self.empty_trash(&trash);
        Ok(result)
    }

    /// `count` device ids that were never given and that no device has.
    fn fresh_ids(&self, state: &State, count: usize) -> Result<Vec<DeviceId>, EmbeddedError> {
        let mut ids = Vec::with_capacity(count);
        let mut next = state.next_device;
        while ids.len() < count {
            let id = DeviceId::new(next.into()).map_err(|_| EmbeddedError::IdsExhausted)?;
            let taken =
                self.pool.device(id).map_err(EmbeddedError::pool("a device could not be looked up"))?;
            if taken.is_none() {
                ids.push(id);
            }
            next = next.saturating_add(1);
        }
        Ok(ids)
    }

    /// Refuses snapshots when the pool's clock is near its end.
    fn check_clock(&self, snapshots: usize) -> Result<(), EmbeddedError> {
        check_clock(self.pool.superblock().time, snapshots)
    }

    fn held_root(&self) -> Option<MetadataBlock> {
        self.pool.status().held_root
    }
}

fn check_clock(time: u32, snapshots: usize) -> Result<(), EmbeddedError> {
    let time = u64::from(time);
    if time.saturating_add(snapshots as u64) > CLOCK_LIMIT {
        return Err(EmbeddedError::ClockExhausted { time, limit: CLOCK_LIMIT });
    }
    if time > CLOCK_WARNING {
        tracing::warn!(time, limit = CLOCK_LIMIT, "the pool's snapshot clock is getting near its end");
    }
    Ok(())
}

impl std::fmt::Debug for EmbeddedPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedPool").field("dir", &self.inner.dir).field("uuid", &self.uuid()).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.removed.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.pool.commit() {
            tracing::error!(pool = self.description.name, %error, "the pool could not be committed when it was closed");
        }
    }
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
