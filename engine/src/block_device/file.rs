//! Files and block devices.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags};

use super::{BlockDevice, checked_end};

/// Transfers to a block device go through a bounce buffer of at most this many bytes.
const BOUNCE_BYTES: u64 = 1 << 20;
/// Memory alignment of bounce buffers: enough for every device.
const MEMORY_ALIGNMENT: usize = 4096;
/// A write to a regular file with fewer bytes than this goes through the page cache.
const LARGE_BYTES: usize = 128 << 10;

/// What a device is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// A regular file (buffered, or by [`open_direct`](FileDevice::open_direct) not) or a block device (`O_DIRECT`, through
/// aligned buffers).
///
/// Large writes to a regular file from aligned memory go around the page cache: what is restored to a pool is seldom read
/// soon, and would be copied once more and push out what is. Reads see it all the same.
///
/// Block devices are never read through the page cache: it is not coherent with what the device-mapper target writes to
/// the device underneath.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    /// The same regular file, for large writes; `None` where the file system cannot do that.
    around: Option<File>,
    size: AtomicU64,
    /// Unit of transfers around the page cache: a block device's logical block size, or what any file system can do;
    /// `None` where transfers go through it.
    sector: Option<u64>,
    /// Held while a sector is read, changed in part, and written back.
    partial: Mutex<()>,
    /// Discards give space back, as far as is known.
    discards: AtomicBool,
}

impl FileDevice {
    /// Creates a regular file of `size` bytes, sparse. The file must not exist.
    ///
    /// # Errors
    /// The error of creating or extending it.
    pub fn create(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        let around = open_around(path)?;
        Ok(Self { around, ..Self::new(file, size, None) })
    }

    fn new(file: File, size: u64, sector: Option<u64>) -> Self {
        let (size, discards) = (AtomicU64::new(size), AtomicBool::new(true));
        Self { file, around: None, size, sector, partial: Mutex::new(()), discards }
    }

    /// Opens a regular file or a block device.
    ///
    /// # Errors
    /// The error of opening it; `InvalidInput` when it is neither a file nor a block device.
    pub fn open(path: &Path, access: Access) -> io::Result<Self> {
        let write = access == Access::ReadWrite;
        let file_type = std::fs::metadata(path)?.file_type();
        if file_type.is_file() {
            let file = OpenOptions::new().read(true).write(write).open(path)?;
            let size = file.metadata()?.len();
            let around = if write { open_around(path)? } else { None };
            return Ok(Self { around, ..Self::new(file, size, None) });
        }
        if !file_type.is_block_device() {
            let message = format!("{} is neither a regular file nor a block device", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let mut file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let sector = u64::from(rustix::fs::ioctl_blksszget(&file)?);
        if !sector.is_power_of_two() || sector > 4096 || !size.is_multiple_of(sector) {
            let message = format!("{}: unsupported logical block size {sector}", path.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let device = Self::new(file, size, Some(sector));
        device.discards.store(device.queue_discards(), Ordering::Relaxed);
        Ok(device)
    }

    /// Opens a file or a block device for reading around the page cache, where the file system can do that.
    ///
    /// For metadata of which a large part is read once: it need not go through the page cache, nor push out what is
    /// there. A writer may be another process, or the kernel: what it wrote through the page cache and has finished
    /// writing is seen, because the kernel writes those pages out before it reads around them. A pool that is open in this
    /// process is read through its own device instead, so that there is one order of its reads and writes.
    ///
    /// # Errors
    /// As [`FileDevice::open`].
    pub fn open_direct(path: &Path) -> io::Result<Self> {
        let buffered = Self::open(path, Access::ReadOnly)?;
        if buffered.sector.is_some() || buffered.size_bytes() == 0 {
            return Ok(buffered);
        }
        let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
        let direct = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => Self { file, sector: Some(MEMORY_ALIGNMENT as u64), ..buffered },
            Err(error) if cannot_be_direct(&error) => return Ok(buffered),
            Err(error) => return Err(error),
        };
        // Some file systems refuse only when it comes to reading.
        match direct.read_at(0, &mut [0]) {
            Err(error) if cannot_be_direct(&error) => Self::open(path, Access::ReadOnly),
            // Any other failure is for whoever wants those bytes.
            _ => Ok(direct),
        }
    }

    /// Whether a block device takes discards, by the limits of its queue; yes where these cannot be read.
    fn queue_discards(&self) -> bool {
        let Ok(metadata) = self.file.metadata() else { return true };
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let device = format!("/sys/dev/block/{major}:{minor}");
        // A partition has those of the device that it is on.
        let limits =
            [format!("{device}/queue/discard_max_bytes"), format!("{device}/../queue/discard_max_bytes")];
        let limit = limits.iter().find_map(|path| std::fs::read_to_string(path).ok());
        limit.is_none_or(|limit| limit.trim() != "0")
    }

    /// The open file, for locks on it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    fn read_direct(&self, sector: u64, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let is_aligned = |number: u64| number.is_multiple_of(sector);
        if is_aligned(offset)
            && is_aligned(buf.len() as u64)
            && buf.as_ptr().align_offset(MEMORY_ALIGNMENT) == 0
        {
            return self.file.read_exact_at(buf, offset);
        }
        let mut bounce = AlignedBuffer::default();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (begin, span) = aligned_span(at, rest.len() as u64, sector);
            let bytes = bounce.bytes(usize::try_from(span).map_err(io::Error::other)?);
            let skip = usize::try_from(at - begin).map_err(io::Error::other)?;
            let take = rest.len().min(bytes.len() - skip);
            self.read_at_least(skip + take, bytes, begin)?;
            let (piece, tail) = rest.split_at_mut(take);
            piece.copy_from_slice(bytes.get(skip..skip + take).ok_or(io::ErrorKind::UnexpectedEof)?);
            rest = tail;
            at += take as u64;
        }
        Ok(())
    }

    /// Fills the first `needed` of `bytes`, and more where there is more: a file may end inside its last sector.
    fn read_at_least(&self, needed: usize, bytes: &mut [u8], begin: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < needed {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            match self.file.read_at(rest, begin + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_buffered(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let large = buf.len() >= LARGE_BYTES
            && offset.is_multiple_of(MEMORY_ALIGNMENT as u64)
            && buf.len().is_multiple_of(MEMORY_ALIGNMENT)
            && buf.as_ptr().align_offset(MEMORY_ALIGNMENT) == 0;
        if let Some(around) = self.around.as_ref().filter(|_| large) {
            match around.write_all_at(buf, offset) {
                // Some file systems refuse only when it comes to writing.
                Err(error) if cannot_be_direct(&error) => {}
                done => return done,
            }
        }
        self.file.write_all_at(buf, offset)
    }

    fn write_direct(&self, sector: u64, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut bounce = AlignedBuffer::default();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (begin, span) = aligned_span(at, rest.len() as u64, sector);
            let bytes = bounce.bytes(usize::try_from(span).map_err(io::Error::other)?);
            let skip = usize::try_from(at - begin).map_err(io::Error::other)?;
            let take = rest.len().min(bytes.len() - skip);
            let (piece, tail) = rest.split_at(take);
            let whole = skip == 0 && take == bytes.len();
            let _partial = if whole { None } else { Some(self.partial.lock()) };
            if !whole {
                self.file.read_exact_at(bytes, begin)?;
            }
            bytes.get_mut(skip..skip + take).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(piece);
            self.file.write_all_at(bytes, begin)?;
            rest = tail;
            at += take as u64;
        }
        Ok(())
    }
}

/// Opens a regular file for writing around the page cache; `None` where the file system cannot do that.
fn open_around(path: &Path) -> io::Result<Option<File>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    match OpenOptions::new().write(true).custom_flags(flags).open(path) {
        Ok(around) => Ok(Some(around)),
        Err(error) if cannot_be_direct(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a file system answers that knows no `O_DIRECT`, or not at this alignment.
fn cannot_be_direct(error: &io::Error) -> bool {
    matches!(
        rustix::io::Errno::from_io_error(error),
        Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP)
    )
}

/// Begin and length of one transfer of whole sectors that covers the first bytes of a range. A transfer that starts or ends
/// inside a sector covers that sector alone, so that only sectors written in part are read before.
fn aligned_span(offset: u64, len: u64, sector: u64) -> (u64, u64) {
    let begin = offset - offset % sector;
    if begin != offset || len < sector {
        return (begin, sector);
    }
    (begin, (len - len % sector).min(BOUNCE_BYTES))
}

/// Memory that can be used again and again, whose bytes start at an address to which any device can transfer.
#[derive(Debug, Default)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
}

impl AlignedBuffer {
    /// `len` bytes; what is in them is left from the use before.
    pub(crate) fn bytes(&mut self, len: usize) -> &mut [u8] {
        let needed = len + MEMORY_ALIGNMENT;
        if self.memory.len() < needed {
            self.memory = vec![0; needed];
        }
        let start = self.memory.as_ptr().align_offset(MEMORY_ALIGNMENT);
        // The offset is below the alignment for bytes, so that there are always enough.
        self.memory.get_mut(start..start.saturating_add(len)).unwrap_or_default()
    }
}

impl BlockDevice for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        checked_end(offset, buf.len() as u64, self.size_bytes())?;
        match self.sector {
            None => self.file.read_exact_at(buf, offset),
            Some(sector) => self.read_direct(sector, offset, buf),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        checked_end(offset, buf.len() as u64, self.size_bytes())?;
        match self.sector {
            None => self.write_buffered(offset, buf),
            Some(sector) => self.write_direct(sector, offset, buf),
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        checked_end(offset, len, self.size_bytes())?;
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            // A device or file system that cannot do it, or not at this alignment: a discard is a wish.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                self.discards.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(rustix::io::Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    fn can_discard(&self) -> bool {
        self.discards.load(Ordering::Relaxed)
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        if self.sector.is_some() {
            return false;
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data >= offset.saturating_add(len),
            // No data up to the end of the file.
            Err(error) => error == rustix::io::Errno::NXIO,
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        if self.sector.is_none() {
            self.file.set_len(size)?;
            self.size.store(size, Ordering::Release);
            return Ok(());
        }
        let actual = (&self.file).seek(SeekFrom::End(0))?;
        if size > actual {
            let message = format!("the device has {actual} bytes, {size} are wanted");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        self.size.store(actual, Ordering::Release);
        Ok(())
    }
}
