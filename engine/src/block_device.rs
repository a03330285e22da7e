//! The bottom of the engine: a byte-addressed device.
//!
//! Everything above works on [`BlockDevice`]; nothing else in the engine opens, reads or writes a file of a pool.

mod crash;
mod fault;
mod file;
mod memory;

use std::io;

pub use self::crash::{CrashReplay, Fate, crash_image};
pub use self::fault::{Fault, FaultDevice, FaultLog, IoEvent, IoKind, Remains};
pub(crate) use self::file::AlignedBuffer;
pub use self::file::{Access, FileDevice};
pub use self::memory::MemoryDevice;

/// A fixed-size, byte-addressed device that several threads may use at once.
///
/// The contract every implementation keeps, and every user relies on:
///
/// * Offsets and lengths are in bytes and need no alignment. A transfer is complete or it is an error; one that
///   reaches beyond [`size_bytes`](BlockDevice::size_bytes) is an error of kind `UnexpectedEof` and transfers nothing
///   beyond the end.
/// * A write may be lost or torn by a crash until a later [`flush`](BlockDevice::flush) has returned. Writes between
///   two flushes may become durable in any order.
/// * Two transfers of different bytes never disturb each other, even when they share a sector.
pub trait BlockDevice: Send + Sync {
    /// The size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// The device's error, or `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at `offset`.
    ///
    /// # Errors
    /// The device's error, or `UnexpectedEof` beyond the end.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes every completed write durable (`fdatasync`).
    ///
    /// # Errors
    /// The device's error. What was written since the last flush may then be lost.
    fn flush(&self) -> io::Result<()>;

    /// Gives the space of a range back. The range reads as zeroes afterwards on files, as anything on devices. A device
    /// that cannot discard ignores the request.
    ///
    /// # Errors
    /// The device's error, or `UnexpectedEof` beyond the end.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether a range certainly takes no space and reads as zeroes: it was never written, or discarded. False where that
    /// cannot be told.
    fn is_hole(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Whether [`discard`](BlockDevice::discard) gives space back, as far as is known.
    fn can_discard(&self) -> bool {
        true
    }

    /// Changes the size. A file grows by zeroes; a device takes the request as a check that it is large enough.
    ///
    /// # Errors
    /// The device's error, or `InvalidInput` when a device is too small.
    fn resize(&self, size: u64) -> io::Result<()>;
}

/// The end of a transfer, when it lies inside a device of `size` bytes.
fn checked_end(offset: u64, len: u64, size: u64) -> io::Result<u64> {
    offset.checked_add(len).filter(|&end| end <= size).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{len} bytes at offset {offset} reach beyond the device of {size} bytes"),
        )
    })
}

#[cfg(test)]
mod tests;
