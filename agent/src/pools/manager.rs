//! The pools that this process has open.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use thinbak_engine::{PoolTable, embedded::EmbeddedPool};
use thinbak_proto::{Failed, FailureKind};
use uuid::Uuid;

use super::{
    ThinPool,
    failure::{hint_at_agent, while_doing},
    kernel::{self, KernelPool, LvmPlace, LvmPool, lvm_pools_with_books},
    known::KnownPools,
    place::PoolSpec,
    running::{JobTable, VolumeLock, VolumeLocks},
};
use crate::config::GuardLimits;

/// The pools of this process: finds them by name or place, opens them once, keeps them open.
///
/// All methods but [`jobs`](Self::jobs), [`lease`](Self::lease) and [`lock_volume`](Self::lock_volume) block.
pub struct PoolManager {
    pub(super) known: KnownPools,
    /// By directory. The lock is held while a pool is opened or removed, so that neither happens twice.
    open: Mutex<HashMap<PathBuf, Arc<EmbeddedPool>>>,
    /// By name of the device; the lock is held as that of the others.
    mapped: Mutex<HashMap<String, Arc<KernelPool>>>,
    /// By `VG/POOL`. Those that somebody works with: open, one keeps LVM from deactivating it.
    lvms: Mutex<HashMap<String, Weak<LvmPool>>>,
    locks: VolumeLocks,
    jobs: JobTable,
    /// By pool: who may reserve its one metadata snapshot.
    leases: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
    guard: GuardLimits,
}

impl PoolManager {
    /// The pools that `state_dir` knows; nothing is opened or made yet.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>) -> Arc<Self> {
        Self::with_guard(state_dir, GuardLimits::default())
    }

    /// The same, of which so much is left alone.
    #[must_use]
    pub fn with_guard(state_dir: impl Into<PathBuf>, guard: GuardLimits) -> Arc<Self> {
        Arc::new(Self {
            known: KnownPools::new(state_dir.into()),
            open: Mutex::default(),
            mapped: Mutex::default(),
            lvms: Mutex::default(),
            locks: VolumeLocks::default(),
            jobs: JobTable::default(),
            leases: Mutex::default(),
            guard,
        })
    }

    /// The pool called `spec`, or at the place `dir:/path`; opened if it is not.
    pub fn open(&self, spec: &str) -> Result<Arc<dyn ThinPool>, Failed> {
        match PoolSpec::parse(spec)? {
            PoolSpec::Mapper(name) => Ok(self.open_mapped(&name)?),
            PoolSpec::Lvm(place) => Ok(self.open_lvm(place)?),
            PoolSpec::Dir(_) | PoolSpec::Name(_) => Ok(self.open_embedded(spec, "open")?),
        }
    }

    /// The same, to make a volume in it.
    pub fn open_for_volume(&self, spec: &str) -> Result<Arc<dyn ThinPool>, Failed> {
        if let PoolSpec::Lvm(place) = PoolSpec::parse(spec)? {
            let mut open = self.lvms.lock();
            open.retain(|_, pool| pool.strong_count() > 0);
            if !open.contains_key(&place.to_string()) {
                kernel::prepare_lvm(&place).map_err(hint_at_agent)?;
            }
        }
        self.open(spec)
    }

    /// The same of a pool of the engine's, for what only those can do: `verb` says what.
    pub(super) fn open_embedded(&self, spec: &str, verb: &str) -> Result<Arc<EmbeddedPool>, Failed> {
        let dir = self.dir_of(spec, verb)?;
        self.open_dir(spec, &dir)
    }

    /// Excludes other jobs of this process from a volume.
    pub fn lock_volume(&self, pool_uuid: Uuid, volume: &str) -> Result<VolumeLock, Failed> {
        self.locks.lock(pool_uuid, volume)
    }

    /// Where the agent keeps what it knows.
    pub(crate) fn state_dir(&self) -> &Path {
        self.known.state_dir()
    }

    /// How much of pools is left alone.
    pub(super) fn guard_limits(&self) -> &GuardLimits {
        &self.guard
    }

    /// Waits for its turn with the pool's metadata snapshot, of which there is one: jobs of this process on
    /// different volumes of a pool take turns. Given back when dropped.
    pub async fn lease(&self, pool_uuid: Uuid) -> tokio::sync::OwnedMutexGuard<()> {
        let lease = Arc::clone(self.leases.lock().entry(pool_uuid).or_default());
        lease.lock_owned().await
    }

    /// The jobs that are running.
    #[must_use]
    pub fn jobs(&self) -> &JobTable {
        &self.jobs
    }

    /// Closes all pools that nobody uses any more; the others close when their last user ends.
    pub fn close(&self) {
        let pools = std::mem::take(&mut *self.open.lock());
        drop(pools);
        let pools = std::mem::take(&mut *self.mapped.lock());
        drop(pools);
    }

    /// Opens the pools of LVM once that were worked with: what a process left in them that was killed, an inactive volume of
    /// somebody's say, is brought in order then.
    pub(crate) fn settle_lvm(&self) {
        for place in lvm_pools_with_books(self.known.state_dir()) {
            let name = place.to_string();
            if let Err(error) = self.open_lvm(place) {
                tracing::warn!(pool = name, %error, "what was left in the pool could not be looked after");
            }
        }
    }

    fn open_mapped(&self, name: &str) -> Result<Arc<KernelPool>, Failed> {
        let mut open = self.mapped.lock();
        if let Some(pool) = open.get(name).filter(|pool| pool.is_current()) {
            return Ok(Arc::clone(pool));
        }
        // Its lock must be free before it can be taken again.
        open.remove(name);
        let pool = Arc::new(KernelPool::open(name, self.known.state_dir()).map_err(hint_at_agent)?);
        open.insert(name.to_owned(), Arc::clone(&pool));
        Ok(pool)
    }

    fn open_lvm(&self, place: LvmPlace) -> Result<Arc<LvmPool>, Failed> {
        let mut open = self.lvms.lock();
        open.retain(|_, pool| pool.strong_count() > 0);
        let name = place.to_string();
        if let Some(pool) = open.get(&name).and_then(Weak::upgrade).filter(|pool| pool.is_current()) {
            return Ok(pool);
        }
        let pool = Arc::new(LvmPool::open(place, self.known.state_dir()).map_err(hint_at_agent)?);
        open.insert(name, Arc::downgrade(&pool));
        Ok(pool)
    }

    /// The directory that `spec` stands for.
    pub(super) fn dir_of(&self, spec: &str, verb: &str) -> Result<PathBuf, Failed> {
        match PoolSpec::parse(spec)? {
            PoolSpec::Dir(dir) => Ok(dir),
            PoolSpec::Name(name) => self.known.dir_of(&name),
            PoolSpec::Mapper(name) => {
                let message =
                    format!("{verb} pool {spec}: it is the kernel's, made and changed with dmsetup");
                let hint = match verb {
                    "check" => format!(
                        "take it down, then: thin_check METADATA_DEVICE; dmsetup table {name} shows it"
                    ),
                    "send a message to" => {
                        format!("dmsetup message {name} 0 WORDS; thinbak would not know of it")
                    }
                    _ => format!("as in: dmsetup table {name}; thinbak pool status {spec}"),
                };
                Err(Failed::new(FailureKind::Usage, message).with_hint(hint))
            }
            PoolSpec::Lvm(place) => {
                let message =
                    format!("{verb} pool {spec}: it is LVM's, made and changed with LVM's commands");
                Err(Failed::new(FailureKind::Usage, message)
                    .with_hint(format!("as in: lvs {place}; thinbak pool status {spec}")))
            }
        }
    }

    pub(super) fn open_dir(&self, spec: &str, dir: &Path) -> Result<Arc<EmbeddedPool>, Failed> {
        let key = key(dir);
        let mut open = self.open.lock();
        if let Some(pool) = open.get(&key) {
            // A failed write, to a full disk say, made it read-only. Opening it anew checks it and lets it write again.
            let stuck = pool.pool().status().needs_check && Arc::strong_count(pool) == 1;
            if !stuck {
                return Ok(Arc::clone(pool));
            }
            open.remove(&key);
        }
        let opened = EmbeddedPool::open(&key).map_err(while_doing(|| format!("open pool {spec}")));
        let pool = opened.map_err(hint_at_agent)?;
        let pool = Arc::new(pool);
        open.insert(key, Arc::clone(&pool));
        Ok(pool)
    }

    /// The pool at a place, if it is open.
    pub(super) fn opened(&self, dir: &Path) -> Option<Arc<EmbeddedPool>> {
        self.open.lock().get(&key(dir)).map(Arc::clone)
    }

    /// Closes a pool that nobody uses and opens it again with another table.
    pub(super) fn reopen(
        &self,
        spec: &str,
        dir: &Path,
        table: PoolTable,
    ) -> Result<Arc<EmbeddedPool>, Failed> {
        let busy = || {
            let message = format!(
                "set pool {spec}: while it is in use, discards neither begin nor cease to be ignored"
            );
            Failed::new(FailureKind::Busy, message).with_hint("try again when no job is running on it")
        };
        let mut open = self.open.lock();
        let pool = open.remove(&key(dir)).ok_or_else(busy)?;
        match Arc::try_unwrap(pool).and_then(|pool| pool.reopen_with(table).map_err(Arc::new)) {
            Ok(reopened) => {
                let pool = Arc::new(reopened.map_err(while_doing(|| format!("set pool {spec}")))?);
                open.insert(key(dir), Arc::clone(&pool));
                Ok(pool)
            }
            Err(used) => {
                open.insert(key(dir), used);
                Err(busy())
            }
        }
    }

    /// Takes in a pool that was just made.
    pub(super) fn insert(&self, pool: EmbeddedPool) -> Arc<EmbeddedPool> {
        let pool = Arc::new(pool);
        self.open.lock().insert(key(pool.dir()), Arc::clone(&pool));
        pool
    }

    /// Those that are open.
    pub(super) fn open_pools(&self) -> Vec<Arc<dyn ThinPool>> {
        let mut pools: Vec<Arc<dyn ThinPool>> = Vec::new();
        for pool in self.open.lock().values() {
            pools.push(Arc::<EmbeddedPool>::clone(pool));
        }
        for pool in self.mapped.lock().values() {
            pools.push(Arc::<KernelPool>::clone(pool));
        }
        for pool in self.lvms.lock().values().filter_map(Weak::upgrade) {
            pools.push(pool);
        }
        pools
    }

    /// Removes a pool that nobody uses.
    pub(super) fn remove(&self, spec: &str, dir: &Path) -> Result<(), Failed> {
        let pool = self.open_dir(spec, dir)?;
        let busy = || {
            Failed::new(FailureKind::Busy, format!("remove pool {spec}: a job is working on it"))
                .with_hint("thinbak agent status shows it")
        };
        if self.locks.any(pool.uuid()) {
            return Err(busy());
        }
        let mut open = self.open.lock();
        open.remove(&key(dir));
        match Arc::try_unwrap(pool) {
            Ok(pool) => pool.remove().map_err(while_doing(|| format!("remove pool {spec}"))),
            Err(used) => {
                open.insert(key(dir), used);
                Err(busy())
            }
        }
    }
}

/// One key for all spellings of a directory.
fn key(dir: &Path) -> PathBuf {
    dir.canonicalize().unwrap_or_else(|_| dir.to_owned())
}
