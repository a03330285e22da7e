//! Where packs live. Everything above asks this trait, so that tests can refuse, tear and lose writes.

use std::{
    fs::{self, File},
    io::{self, IoSlice},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use thinbak_proto::BufferPool;

use super::{
    append_file::AppendFile,
    format::{pack_number, pack_path},
    read_file::ReadFile,
};

/// By so much free space, or this part of the file system if that is less, the storage stops short:
/// deletion, repair, the catalogue and the chunk index need room to work.
const RESERVE_BYTES: u64 = 256 * 1024 * 1024;
const RESERVE_DIVISOR: u64 = 16;
/// In the packs' folder, for the moment of a probe.
const PROBE_NAME: &str = "probe";
/// More than a chunk.
const PROBE_BYTES: usize = 2 << 20;

/// Bytes read at once, nearly always, with the block in which they begin and the one in which they end;
const READ_BYTES: usize = (4 << 20) + (1 << 20);
/// and so many buffers of that wait for their next use.
const IDLE_BUFFERS: usize = 8;

/// A pack by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackFile {
    pub(crate) number: u32,
    pub(crate) len: u64,
}

/// A place for packs.
///
/// Contract: a name is durable when `create` returns, its end when `remove` does, content when `sync` does;
/// nothing else is. After an error of `append` the file may have become longer by any part of it; after an
/// error of `sync` nothing is known about anything appended since the last one that succeeded.
pub(crate) trait Medium: Send + Sync + 'static {
    /// For messages.
    fn path(&self) -> &Path;
    /// All packs in ascending order of their numbers.
    fn list(&self) -> io::Result<Vec<PackFile>>;
    /// Makes a pack that must not exist.
    fn create(&self, number: u32) -> io::Result<Box<dyn PackWrite>>;
    /// Opens a pack to cut its tail and append to what is left.
    fn open_write(&self, number: u32) -> io::Result<Box<dyn PackWrite>>;
    /// Opens a pack to read.
    fn open_read(&self, number: u32) -> io::Result<Box<dyn PackRead>>;
    /// Removes a pack; one that is not there is removed already. Who has it open can still read it. After an error
    /// it may be there or not, and may come back.
    fn remove(&self, number: u32) -> io::Result<()>;
    /// Bytes that may be appended before the reserve is touched.
    fn available_bytes(&self) -> io::Result<u64>;
    /// Writes and syncs something beside the packs, and removes it again: whether that can be done.
    fn probe(&self) -> io::Result<()>;
}

/// A pack being written.
pub(crate) trait PackWrite: Send {
    /// Writes all of it at the end.
    fn append(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes everything appended durable, and the length.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts off everything from `len` on; the next append goes there.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A pack being read.
pub(crate) trait PackRead: Send + Sync {
    /// Fills `buf` from `offset`; `UnexpectedEof` past the end.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Length now, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// The `len` bytes from `offset`; `UnexpectedEof` past the end. For large pieces.
    fn read_bytes(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }
}

/// Packs as files in a directory.
#[derive(Debug)]
pub(crate) struct DirectoryMedium {
    root: PathBuf,
    /// What is read, and what is written.
    buffers: BufferPool,
}

impl DirectoryMedium {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, buffers: BufferPool::new(READ_BYTES, IDLE_BUFFERS) }
    }
}

/// Writes and syncs a file of `bytes` and removes it: whether there is room, and the disk takes it.
pub(super) fn probe(path: &Path, bytes: usize) -> io::Result<()> {
    let written = fs::write(path, vec![0xa5; bytes]).and_then(|()| File::open(path)?.sync_all());
    match fs::remove_file(path) {
        // There was not even room for the name.
        Err(error) if error.kind() == io::ErrorKind::NotFound => written,
        removed => written.and(removed),
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Medium for DirectoryMedium {
    fn path(&self) -> &Path {
        &self.root
    }

    fn list(&self) -> io::Result<Vec<PackFile>> {
        let mut packs = Vec::new();
        for dir in fs::read_dir(&self.root)? {
            let dir = dir?;
            if !dir.file_type()?.is_dir() {
                continue;
            }
            for file in fs::read_dir(dir.path())? {
                let file = file?;
                let names = (dir.file_name(), file.file_name());
                let (Some(dir_name), Some(file_name)) = (names.0.to_str(), names.1.to_str()) else {
                    continue;
                };
                if let Some(number) = pack_number(dir_name, file_name) {
                    packs.push(PackFile { number, len: file.metadata()?.len() });
                }
            }
        }
        packs.sort_unstable();
        Ok(packs)
    }

    fn create(&self, number: u32) -> io::Result<Box<dyn PackWrite>> {
        let path = self.root.join(pack_path(number));
        let dir = path.parent().unwrap_or(&self.root);
        match fs::create_dir(dir) {
            Ok(()) => sync_dir(&self.root)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let file = AppendFile::create(&path, &self.buffers)?;
        sync_dir(dir)?;
        Ok(Box::new(file))
    }

    fn open_write(&self, number: u32) -> io::Result<Box<dyn PackWrite>> {
        Ok(Box::new(AppendFile::open(&self.root.join(pack_path(number)), &self.buffers)?))
    }

    fn open_read(&self, number: u32) -> io::Result<Box<dyn PackRead>> {
        Ok(Box::new(ReadFile::open(&self.root.join(pack_path(number)), &self.buffers)?))
    }

    fn remove(&self, number: u32) -> io::Result<()> {
        let path = self.root.join(pack_path(number));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            // Synced also if it was gone: whoever removed it may have died before this.
            _ => match sync_dir(path.parent().unwrap_or(&self.root)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                synced => synced,
            },
        }
    }

    fn available_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.root)?;
        let reserve = RESERVE_BYTES.min(stat.f_blocks.saturating_mul(stat.f_frsize) / RESERVE_DIVISOR);
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(reserve))
    }

    fn probe(&self) -> io::Result<()> {
        probe(&self.root.join(PROBE_NAME), PROBE_BYTES)
    }
}
