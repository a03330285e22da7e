//! Pools that the kernel runs: `dm:NAME`, a device-mapper device with a thin-pool target, and LVM's ([`lvm`]).
//!
//! Its metadata are read beside it through metadata snapshots, its devices are made and deleted by messages, and what they
//! are called stands in a registry of ours ([`book`]). Snapshots are read straight from the data device, through their own
//! mappings: no device is made for them that would keep the pool busy or that a crash would leave. A mapping tree of a
//! snapshot stays as it is while the snapshot is there and not written, also without the metadata snapshot in which its root
//! was found; that it was there all the time is proven again before anything that was read is committed. Only what is
//! written, the private head of a restore, is a device of its own.
//!
//! The transaction id of such a pool is somebody else's: it is never moved.

mod book;
mod content;
mod driver;
mod heads;
mod lease;
mod lock;
mod look;
mod lvm;
mod mapper;
mod reread;
mod resumers;
mod snapshots;
mod survey;
mod switch;
mod text;
mod volumes;
mod watchdog;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use devicemapper::Device;
use parking_lot::Mutex;
use thinbak_engine::{
    Access, BlockDevice, DeviceId, FileDevice, MetadataBlock, MetadataView, PoolMode, PoolStatus,
};
use thinbak_proto::{Failed, FailureKind};

pub(crate) use self::watchdog::watch;
use self::{book::Book, lease::Turn, lock::HostLock, look::Found, mapper::Mapper, reread::Reread};
pub(super) use self::{
    look::{look, pools_of_host},
    lvm::{
        LvmPlace, LvmPool, look as look_at_lvm, pools_of_host as lvm_pools_of_host,
        pools_with_books as lvm_pools_with_books, prepare as prepare_lvm,
    },
};

/// A thin pool of the device-mapper, open for this process alone.
pub(super) struct KernelPool {
    inner: Arc<Inner>,
}

/// What the pool and its guards share.
struct Inner {
    /// What the pool is called: the name of its device, or VG/POOL.
    name: String,
    /// The same with the kind.
    spec: String,
    /// Whether LVM gives the device its name, and another one with the first volume.
    is_lvms: bool,
    found: Found,
    mapper: Arc<Mapper>,
    metadata: Arc<dyn BlockDevice>,
    data: FileDevice,
    book: Mutex<Book>,
    /// Held by who replaces a volume.
    switching: Mutex<()>,
    turn: Turn,
    /// Roots of snapshots as they were last seen, to read them by.
    roots: Mutex<HashMap<DeviceId, (MetadataBlock, MetadataView)>>,
    _lock: HostLock,
}

impl KernelPool {
    /// Finds the pool, takes it for this process, and clears away what a dead process left.
    pub(super) fn open(name: &str, state_dir: &Path) -> Result<Self, Failed> {
        let mapper = Arc::new(Mapper::open()?);
        let found = look::find(&mapper, name)?;
        let lock = HostLock::take(found.line.metadata, name)?;
        let metadata = Arc::new(open_device(found.line.metadata, "metadata", name)?);
        let data = open_device(found.line.data, "data", name)?;
        let book = Book::open(book_path(state_dir, &found, name))?;
        let inner = Inner {
            name: name.to_owned(),
            spec: format!("dm:{name}"),
            is_lvms: false,
            found,
            mapper,
            metadata: Arc::new(Reread::new(metadata)),
            data,
            book: Mutex::new(book),
            switching: Mutex::default(),
            turn: Turn::default(),
            roots: Mutex::default(),
            _lock: lock,
        };
        let pool = Self { inner: Arc::new(inner) };
        // The pool's identity must outlive this process before anything is told by it.
        pool.inner.book.lock().change(|_| Ok(()))?;
        pool.recover()?;
        Ok(pool)
    }

    /// Whether it is still the pool that was opened: nobody removed it, made it anew or gave it other devices.
    pub(super) fn is_current(&self) -> bool {
        look::find(&self.inner.mapper, &self.inner.name).is_ok_and(|found| found.is_same(&self.inner.found))
    }
}

impl Inner {
    /// The status of the pool, which must be able to take messages.
    fn writable_status(&self) -> Result<PoolStatus, Failed> {
        let status = self.status()?;
        let refused = |why: &str| {
            Failed::new(FailureKind::Failed, format!("pool {}: {why}", self.name))
                .with_hint("dmsetup status says so; the kernel's log says why")
        };
        match status.mode {
            PoolMode::Fail => Err(refused("it has failed")),
            _ if status.needs_check => Err(refused("its metadata need a check")),
            PoolMode::ReadOnly | PoolMode::OutOfMetadataSpace => Err(refused("it is read-only")),
            PoolMode::Write | PoolMode::OutOfDataSpace => Ok(status),
        }
    }

    fn status(&self) -> Result<PoolStatus, Failed> {
        look::status(&self.mapper, &self.target()?)
    }

    /// The name of the device that has the target.
    fn target(&self) -> Result<String, Failed> {
        if !self.is_lvms {
            return Ok(self.name.clone());
        }
        let devices = self.mapper.devices()?;
        let target = devices.into_iter().find(|(_, number)| *number == self.found.number);
        target.map(|(name, _)| name).ok_or_else(|| {
            Failed::new(FailureKind::Failed, format!("pool {}: it is not active any more", self.name))
        })
    }

    fn block_bytes(&self) -> u64 {
        self.found.line.block_size.bytes()
    }
}

/// Around the page cache, which is not coherent with what the target reads and writes.
fn open_device(number: Device, what: &str, pool: &str) -> Result<FileDevice, Failed> {
    let opened = mapper::node(number).and_then(|path| FileDevice::open(&path, Access::ReadOnly));
    opened.map_err(|error| {
        let message = format!("open the {what} device {number} of pool {pool}: {error}");
        Failed::new(FailureKind::Failed, message)
    })
}

/// The registry of a pool: by the uuid of its device where it has one, else by the name.
fn book_path(state_dir: &Path, found: &Found, name: &str) -> PathBuf {
    let key = match found.uuid.as_str() {
        "" => format!("name-{name}"),
        uuid => format!("uuid-{}", escaped(uuid)),
    };
    state_dir.join("dm").join(format!("{key}.json"))
}

/// As part of a file's name.
fn escaped(uuid: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    uuid.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") })
        .collect()
}
