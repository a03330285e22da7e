//! A device under a pool that a test resizes and breaks, as the guest's scripts do with device-mapper tables.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use thinbak_engine::{BlockDevice, FileDevice};

/// What does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// Writes beyond the first 4 KiB: commits fail, and the need of a check can be recorded.
    Writes,
    /// Everything.
    All,
}

/// The first bytes of a file.
pub(crate) struct Breakable {
    file: FileDevice,
    size: AtomicU64,
    broken: Mutex<Broken>,
}

impl Breakable {
    pub(crate) fn new(file: FileDevice, size: u64) -> Self {
        Self { file, size: AtomicU64::new(size), broken: Mutex::new(Broken::Nothing) }
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    pub(crate) fn set_broken(&self, broken: Broken) {
        *self.broken.lock() = broken;
    }

    fn admit(&self, end: u64, write: bool) -> io::Result<()> {
        let broken = *self.broken.lock();
        if broken == Broken::All || broken == Broken::Writes && write && end > 4096 {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        if end > self.size_bytes() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

impl BlockDevice for Breakable {
    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.admit(offset + buf.len() as u64, false)?;
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.admit(offset + buf.len() as u64, true)?;
        self.file.write_at(offset, buf)
    }

    fn flush(&self) -> io::Result<()> {
        self.admit(0, true)?;
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.admit(offset + len, true)?;
        self.file.discard(offset, len)
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.admit(size, true)
    }
}
