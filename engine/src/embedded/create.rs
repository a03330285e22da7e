//! Making a pool, and removing it: all of it, or nothing left behind.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::description::{DATA, DESCRIPTION, Description, METADATA, Table, UNFINISHED};
use super::locks::{LOCK, Lock};
use super::volumes::check_multiple;
use super::{EmbeddedError, EmbeddedPool, identity};
use crate::block_device::{Access, BlockDevice, FileDevice};
use crate::format::{BLOCK_BYTES, BlockSize, MAX_METADATA_BLOCKS};
use crate::pool::{Pool, PoolError, PoolTable};
use crate::registry::{FileLog, JOURNAL, JOURNAL_NEW, Registry, sync_directory};

/// Everything that a pool's directory may hold, the description first.
const FILES: [&str; 7] = [DESCRIPTION, UNFINISHED, METADATA, DATA, JOURNAL, JOURNAL_NEW, LOCK];
/// The least metadata device that is made.
const MIN_METADATA_BYTES: u64 = 2 << 20;
/// Bytes of metadata that the kernel's documentation reckons with for a data block.
const METADATA_BYTES_PER_BLOCK: u64 = 48;

/// What a new pool shall be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The name that it is given.
    pub name: String,
    /// Size of the data device, a multiple of the block size. With `devices`, 0 takes the device as it is.
    pub data_bytes: u64,
    /// Size of data blocks.
    pub block_size: BlockSize,
    /// Size of the metadata device; [`default_metadata_bytes`] unless given.
    pub metadata_bytes: Option<u64>,
    /// Files or block devices for data and metadata, which must exist. Empty files are brought to size. Else files in
    /// the directory.
    pub devices: Option<(PathBuf, PathBuf)>,
    /// How the pool behaves.
    pub table: PoolTable,
}

/// The size of a metadata device by the kernel's rule of thumb: 48 bytes for each data block, at least 2 MiB and at
/// most what the format can use, in whole metadata blocks.
#[must_use]
pub fn default_metadata_bytes(data_bytes: u64, block_size: BlockSize) -> u64 {
    let block = BLOCK_BYTES as u64;
    let wanted = data_bytes.div_ceil(block_size.bytes()).saturating_mul(METADATA_BYTES_PER_BLOCK);
    let most = MAX_METADATA_BLOCKS.saturating_mul(block);
    wanted.clamp(MIN_METADATA_BYTES, most).next_multiple_of(block)
}

impl EmbeddedPool {
    /// Makes a pool in a directory that is empty or does not exist, and opens it. What an interrupted `create` or
    /// `remove` left there is cleared away first.
    ///
    /// # Errors
    /// [`EmbeddedError::PoolExists`], [`EmbeddedError::NotEmpty`], [`EmbeddedError::Size`],
    /// [`EmbeddedError::MetadataNotBlank`], [`EmbeddedError::DeviceSize`], [`EmbeddedError::SameDevice`],
    /// [`EmbeddedError::Busy`], files that cannot be written, what the pool says. Nothing is left behind then.
    pub fn create(dir: &Path, options: CreateOptions) -> Result<Self, EmbeddedError> {
        if options.devices.is_none() || options.data_bytes > 0 {
            check_multiple(options.data_bytes, options.block_size.bytes())?;
        }
        let dir = std::path::absolute(dir).map_err(EmbeddedError::io("find", dir))?;
        let mut undo = Undo::default();
        match prepare(&dir, &mut undo).and_then(|lock| fill(&dir, options, lock, &mut undo)) {
            Ok(pool) => Ok(pool),
            Err(error) => {
                undo.run();
                Err(error)
            }
        }
    }

    /// Deletes the files of the pool that are in its directory, and the directory when nothing else is in it. Devices
    /// elsewhere stay as they are.
    ///
    /// # Errors
    /// A file that cannot be deleted. The rest can be cleared away by [`create`](Self::create).
    pub fn remove(self) -> Result<(), EmbeddedError> {
        let dir = &self.inner.dir;
        let unfinished = dir.join(UNFINISHED);
        fs::rename(dir.join(DESCRIPTION), &unfinished).map_err(EmbeddedError::io("rename", &unfinished))?;
        self.inner.removed.store(true, Ordering::Release);
        sync_directory(dir).map_err(EmbeddedError::io("sync", dir))?;
        clear(dir)?;
        match fs::remove_dir(dir) {
            Ok(()) => Ok(()),
            // What else is in it is not ours.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(source) => Err(EmbeddedError::Io { attempt: "remove", path: dir.clone(), source }),
        }
    }
}

/// What to take back when a pool cannot be made, in the order in which it was made.
#[derive(Default)]
struct Undo {
    steps: Vec<Step>,
}

enum Step {
    /// Remove this directory.
    Directory(PathBuf),
    /// Delete the pool's files in this directory.
    Files(PathBuf),
    /// Make this file, which was empty, empty again.
    Empty(PathBuf),
    /// Make the first block, which was zero, zero again.
    Blank(Arc<dyn BlockDevice>),
}

impl Undo {
    fn run(self) {
        for step in self.steps.into_iter().rev() {
            let undone = match &step {
                Step::Directory(dir) => fs::remove_dir(dir),
                Step::Files(dir) => clear(dir).map_err(io::Error::other),
                Step::Empty(path) => {
                    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0))
                }
                Step::Blank(device) => device.write_at(0, &[0; BLOCK_BYTES]).and_then(|()| device.flush()),
            };
            if let Err(error) = undone {
                tracing::warn!(%error, "what was made of a pool could not be taken back");
            }
        }
    }
}

/// Makes the directory, or clears what an interrupted `create` or `remove` left in it, and locks it.
fn prepare(dir: &Path, undo: &mut Undo) -> Result<Lock, EmbeddedError> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    for ancestor in missing.into_iter().rev() {
        fs::create_dir(ancestor).map_err(EmbeddedError::io("make", ancestor))?;
        undo.steps.push(Step::Directory(ancestor.to_owned()));
    }
    let unfinished = check_entries(dir)?;
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).open(&path).map_err(EmbeddedError::io("make", &path))?;
    let lock = Lock::take(&path)?;
    // Under the lock: nobody else is at it.
    if unfinished {
        check_entries(dir)?;
        clear_all_but_lock(dir)?;
    }
    undo.steps.push(Step::Files(dir.to_owned()));
    Ok(lock)
}

/// Refuses a directory that holds a pool or anything foreign. Whether it holds an unfinished pool.
fn check_entries(dir: &Path) -> Result<bool, EmbeddedError> {
    let list = || -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    };
    let entries = list().map_err(EmbeddedError::io("list", dir))?;
    if entries.iter().any(|entry| entry == DESCRIPTION) {
        return Err(EmbeddedError::PoolExists { dir: dir.to_owned() });
    }
    let unfinished = entries.iter().any(|entry| entry == UNFINISHED);
    let foreign = entries.iter().find(|entry| {
        let ours = FILES.iter().any(|file| entry == file);
        !(if unfinished { ours } else { *entry == LOCK })
    });
    match foreign {
        Some(entry) => {
            let entry = entry.to_string_lossy().into_owned();
            Err(EmbeddedError::NotEmpty { dir: dir.to_owned(), entry })
        }
        None => Ok(unfinished),
    }
}

/// Deletes the files of a pool. The unfinished description goes after all that it vouches for, then the lock.
fn clear(dir: &Path) -> Result<(), EmbeddedError> {
    clear_all_but_lock(dir)?;
    delete(&dir.join(LOCK))
}

fn clear_all_but_lock(dir: &Path) -> Result<(), EmbeddedError> {
    for file in [DATA, METADATA, JOURNAL, JOURNAL_NEW, UNFINISHED] {
        delete(&dir.join(file))?;
    }
    Ok(())
}

fn delete(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(EmbeddedError::Io { attempt: "delete", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Makes what is in the directory.
fn fill(
    dir: &Path,
    options: CreateOptions,
    lock: Lock,
    undo: &mut Undo,
) -> Result<EmbeddedPool, EmbeddedError> {
    let mut description = Description::new(&options.name, Uuid::new_v4(), options.block_size);
    description.table = Table(options.table);
    if let Some((data, metadata)) = &options.devices {
        description.data = Some(existing(data)?);
        description.metadata = Some(existing(metadata)?);
    }
    description.write_unfinished(dir)?;
    let (data_path, metadata_path) = (description.data_path(dir), description.metadata_path(dir));
    let (data, metadata);
    if options.devices.is_some() {
        let device_locks = Lock::take_devices(&metadata_path, &data_path)?;
        data = adopt(&data_path, options.data_bytes, undo)?;
        let wanted = match options.metadata_bytes {
            Some(bytes) => bytes,
            None if metadata_is_empty(&metadata_path) => {
                default_metadata_bytes(data.size_bytes(), options.block_size)
            }
            None => 0,
        };
        metadata = adopt(&metadata_path, wanted, undo)?;
        refuse_used(&metadata_path, metadata.as_ref())?;
        undo.steps.push(Step::Blank(Arc::clone(&metadata)));
        // Taken again by `open`, which wants none held.
        drop(device_locks);
    } else {
        let default = || default_metadata_bytes(options.data_bytes, options.block_size);
        data = make(&data_path, options.data_bytes)?;
        metadata = make(&metadata_path, options.metadata_bytes.unwrap_or_else(default))?;
    }
    let formatted = Pool::format_with(Arc::clone(&metadata), data, options.block_size, options.table);
    let pool = formatted.map_err(|source| match source {
        PoolError::NotBlank => EmbeddedError::MetadataNotBlank { path: metadata_path },
        source => EmbeddedError::Pool { attempt: "the pool could not be formatted", source },
    })?;
    pool.commit().map_err(EmbeddedError::pool("the pool could not be formatted"))?;
    let journal = Registry::initial(description.uuid, pool.transaction_id())?;
    drop(pool);
    identity::write(&metadata, description.uuid)?;
    FileLog::create(dir, &journal).map_err(EmbeddedError::io("write", dir.join(JOURNAL)))?;
    let sync = |dir: &Path| sync_directory(dir).map_err(EmbeddedError::io("sync", dir));
    sync(dir)?;
    fs::rename(dir.join(UNFINISHED), dir.join(DESCRIPTION))
        .map_err(EmbeddedError::io("rename", dir.join(UNFINISHED)))?;
    let opened = sync(dir)
        .and_then(|()| dir.parent().map_or(Ok(()), sync))
        .and_then(|()| EmbeddedPool::open_locked(dir, lock));
    if opened.is_err() {
        // So that it is cleared away like any other unfinished pool.
        let _ = fs::rename(dir.join(DESCRIPTION), dir.join(UNFINISHED));
    }
    opened
}

/// A new sparse file.
fn make(path: &Path, bytes: u64) -> Result<Arc<dyn BlockDevice>, EmbeddedError> {
    let device = FileDevice::create(path, bytes).map_err(EmbeddedError::io("make", path))?;
    Ok(Arc::new(device))
}

/// Opens a device that was brought along. An empty file gets the size that is wanted; anything else must have it.
fn adopt(path: &Path, wanted: u64, undo: &mut Undo) -> Result<Arc<dyn BlockDevice>, EmbeddedError> {
    let device = FileDevice::open(path, Access::ReadWrite).map_err(EmbeddedError::io("open", path))?;
    let found = device.size_bytes();
    if found == 0 && wanted > 0 {
        undo.steps.push(Step::Empty(path.to_owned()));
        device.resize(wanted).map_err(EmbeddedError::io("resize", path))?;
    } else if wanted > 0 && wanted != found {
        return Err(EmbeddedError::DeviceSize { path: path.to_owned(), found, wanted });
    }
    Ok(Arc::new(device))
}

fn existing(path: &Path) -> Result<PathBuf, EmbeddedError> {
    path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => EmbeddedError::Missing { path: path.to_owned() },
        _ => EmbeddedError::Io { attempt: "find", path: path.to_owned(), source },
    })
}

fn metadata_is_empty(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0)
}

/// Refuses a metadata device whose first block is not zero: it may hold data of somebody else.
fn refuse_used(path: &Path, device: &dyn BlockDevice) -> Result<(), EmbeddedError> {
    let mut block = [0; BLOCK_BYTES];
    device.read_at(0, &mut block).map_err(EmbeddedError::io("read", path))?;
    if block.iter().all(|&byte| byte == 0) {
        Ok(())
    } else {
        Err(EmbeddedError::MetadataNotBlank { path: path.to_owned() })
    }
}
