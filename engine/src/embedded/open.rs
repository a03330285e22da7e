//! Opening a pool, and clearing away what a dead process left in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::description::{DESCRIPTION, Description};
use super::locks::{LOCK, Lock};
use super::{Books, EmbeddedError, EmbeddedPool, ErrorClass, Inner, identity};
use crate::block_device::{Access, BlockDevice, FileDevice};
use crate::check::{CheckError, CheckReport, check};
use crate::format::{DeviceId, MetadataBlock, Superblock};
use crate::persistent_data::write_superblock;
use crate::pool::{Pool, PoolError};
use crate::registry::{Change, FileLog, JOURNAL, JOURNAL_NEW, Plan, Registry, Role, State};

impl EmbeddedPool {
    /// Opens the pool in a directory, alone. Metadata that need a check are checked. Nothing
    /// else is written before everything was found right. Then the registry
    /// is brought into step with the pool, private devices and the metadata snapshot of a dead process are removed, and a
    /// metadata device that has become larger is taken into use.
    ///
    /// # Errors
    /// [`EmbeddedError::NoPool`], [`EmbeddedError::Busy`], [`EmbeddedError::Missing`],
    /// [`EmbeddedError::NewerFormat`], [`EmbeddedError::Description`], [`EmbeddedError::Registry`] when the journal is
    /// damaged or not of one time with the pool, [`EmbeddedError::OtherMetadata`], [`EmbeddedError::OtherBlockSize`],
    /// [`EmbeddedError::DeviceMissing`]; what the pool says.
    pub fn open(dir: &Path) -> Result<Self, EmbeddedError> {
        let (dir, lock) = take(dir)?;
        Self::open_locked(&dir, lock)
    }

    /// Checks the pool in a directory that nobody has open, and writes nothing: its metadata, and whether they are
    /// those that description and registry speak of. What is wrong with the latter is beside the report.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for damage, which is told.
    pub fn check(dir: &Path) -> Result<(CheckReport, Option<EmbeddedError>), EmbeddedError> {
        let (dir, _lock) = take(dir)?;
        let (metadata, data_bytes, wrong): (Arc<dyn BlockDevice>, _, _) = match Parts::load(&dir) {
            Ok(parts) => (parts.metadata.clone(), Some(parts.data.size_bytes()), None),
            Err(error) if error.class() == ErrorClass::Damaged => {
                let path = Description::read(&dir)?.metadata_path(&dir);
                let device = FileDevice::open(&path, Access::ReadOnly);
                (Arc::new(device.map_err(EmbeddedError::io("open", &path))?), None, Some(error))
            }
            Err(error) => return Err(error),
        };
        let attempt = |error: CheckError| std::io::Error::other(error);
        let report =
            check(metadata, data_bytes).map_err(attempt).map_err(EmbeddedError::io("check", &dir))?;
        Ok((report, wrong))
    }

    pub(super) fn open_locked(dir: &Path, lock: Lock) -> Result<Self, EmbeddedError> {
        let Parts { description, metadata, data, registry, unmarked, mut locks } = Parts::load(dir)?;
        locks.push(lock);
        let table = description.table.0;
        let open = || {
            let opened = Pool::open_with(metadata.clone(), data.clone(), table);
            opened.map_err(EmbeddedError::pool("the pool could not be opened"))
        };
        let mut pool = open()?;
        if !table.features.read_only {
            let checked = make_writable(&description.name, &metadata, data.size_bytes());
            let marked = unmarked && !pool.status().needs_check;
            if marked {
                identity::write(&metadata, description.uuid)?;
            }
            if checked || marked {
                pool = open()?;
            }
        }
        let pool = Self::assemble(description, dir, pool, registry, locks)?;
        pool.take_larger_metadata()?;
        // Left by a compaction that was cut off; the next one would write over it.
        let _ = fs::remove_file(dir.join(JOURNAL_NEW));
        Ok(pool)
    }

    /// Puts together what was opened, and recovers.
    pub(super) fn assemble(
        description: Description,
        dir: &Path,
        pool: Pool,
        mut registry: Registry,
        locks: Vec<Lock>,
    ) -> Result<Self, EmbeddedError> {
        let (described, found) = (description.block_bytes.bytes(), pool.block_size().bytes());
        if described != found {
            return Err(EmbeddedError::OtherBlockSize { described, found });
        }
        registry.settle(pool.transaction_id())?;
        let inner = Inner {
            description,
            dir: dir.to_owned(),
            pool,
            books: Mutex::new(Books { registry, lease: None, leases: 0 }),
            removed: AtomicBool::new(false),
            _locks: locks,
        };
        inner.recover()?;
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// The directory of a pool, locked.
fn take(dir: &Path) -> Result<(PathBuf, Lock), EmbeddedError> {
    let dir = std::path::absolute(dir).map_err(EmbeddedError::io("find", dir))?;
    if let Err(error) = fs::metadata(dir.join(DESCRIPTION))
        && matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    {
        return Err(EmbeddedError::NoPool { dir });
    }
    let lock = Lock::take(&dir.join(LOCK))?;
    Ok((dir, lock))
}

/// What a pool in a directory consists of, found to belong together. Nothing has been written.
struct Parts {
    description: Description,
    metadata: Arc<dyn BlockDevice>,
    data: Arc<dyn BlockDevice>,
    registry: Registry,
    /// The metadata lack the pool's uuid.
    unmarked: bool,
    /// Of the devices.
    locks: Vec<Lock>,
}

impl Parts {
    /// The caller has locked the directory.
    fn load(dir: &Path) -> Result<Self, EmbeddedError> {
        let description = Description::read(dir)?;
        let (metadata_path, data_path) = (description.metadata_path(dir), description.data_path(dir));
        let locks = Lock::take_devices(&metadata_path, &data_path)?.into();
        let open = |path: &Path| -> Result<Arc<dyn BlockDevice>, EmbeddedError> {
            match FileDevice::open(path, Access::ReadWrite) {
                Ok(device) => Ok(Arc::new(device)),
                Err(source) => Err(EmbeddedError::Io { attempt: "open", path: path.to_owned(), source }),
            }
        };
        let (metadata, data) = (open(&metadata_path)?, open(&data_path)?);
        let journal = dir.join(JOURNAL);
        let (log, content) = FileLog::open(dir).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => EmbeddedError::Missing { path: journal },
            _ => EmbeddedError::Io { attempt: "read", path: journal, source },
        })?;
        let mut registry = Registry::load(Box::new(log), &content, description.uuid)?;
        let unmarked = identity::check(&description, &mut registry, &metadata)?;
        Ok(Self { description, metadata, data, registry, unmarked, locks })
    }
}

/// Takes the mark off metadata that need a check once a check has found nothing else. A full file system sets it: what
/// was committed is whole, and the pool is to write again when there is room. On any doubt the mark stays and the pool
/// opens read-only. Whether something was written.
fn make_writable(name: &str, metadata: &Arc<dyn BlockDevice>, data_bytes: u64) -> bool {
    let marked = Superblock::read(metadata.as_ref(), MetadataBlock(0)).ok();
    let Some(mut superblock) = marked.filter(|superblock| superblock.needs_check) else { return false };
    let found = match check(metadata.clone(), Some(data_bytes)) {
        Ok(report) => report.damage.len() as u64 + report.fatal_omitted + report.minor_omitted,
        Err(error) => {
            tracing::warn!(pool = name, %error, "the metadata could not be checked");
            return false;
        }
    };
    // The mark itself is the one finding.
    if found > 1 {
        tracing::warn!(pool = name, findings = found - 1, "the metadata need a repair");
        return false;
    }
    superblock.needs_check = false;
    match write_superblock(metadata.as_ref(), &superblock) {
        Ok(()) => tracing::info!(pool = name, "the metadata needed a check, which found nothing wrong"),
        Err(error) => tracing::warn!(pool = name, %error, "the need of a check stays recorded"),
    }
    true
}

impl Inner {
    /// Removes what only a process that is gone could use. A pool that does not write any more is left as it is.
    fn recover(&self) -> Result<(), EmbeddedError> {
        let mut books = self.books.lock();
        let left = left_behind(books.registry.state());
        let recovered = self.recover_msnap(&mut books).and_then(|()| {
            if left.is_empty() {
                return Ok(());
            }
            tracing::info!(
                pool = self.description.name,
                devices = left.len(),
                "removing what a dead process left"
            );
            for &device in left.iter().filter(|&device| is_trash(books.registry.state(), device)) {
                let attempt = "a deleted device could not be given up";
                self.pool.shed(device).map_err(EmbeddedError::pool(attempt))?;
            }
            let changes = left.into_iter().map(Change::Remove).collect();
            Ok(books.registry.transact(&self.pool, Plan { create: Vec::new(), changes })?)
        });
        match recovered {
            Err(EmbeddedError::Pool { source: source @ PoolError::ReadOnlyMode { .. }, .. }) => {
                tracing::warn!(pool = self.description.name, error = %source, "opened without clearing up");
                Ok(())
            }
            other => other,
        }
    }
}

fn is_trash(state: &State, device: &DeviceId) -> bool {
    state.devices.get(device).is_some_and(|entry| entry.role == Role::Trash)
}

/// The private devices, which no process but their own can use.
fn left_behind(state: &State) -> Vec<DeviceId> {
    state.devices.values().filter(|entry| entry.role.is_transient()).map(|entry| entry.device).collect()
}
