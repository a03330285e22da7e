//! Faults and crashes, for tests: a device that records what is done to it and fails on request.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BlockDevice, MemoryDevice};

/// One recorded operation on one of the devices that share a [`FaultLog`].
#[derive(Clone, Debug)]
pub enum IoEvent {
    /// Bytes written.
    Write {
        /// Number of the device.
        device: usize,
        /// Where.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// A completed flush.
    Flush {
        /// Number of the device.
        device: usize,
    },
    /// A discarded range.
    Discard {
        /// Number of the device.
        device: usize,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A new size.
    Resize {
        /// Number of the device.
        device: usize,
        /// Bytes.
        size: u64,
    },
}

#[derive(Debug, Default)]
struct State {
    events: Vec<IoEvent>,
    changes: u64,
    fail_from: Option<u64>,
    fail_until: u64,
}

/// The record of several devices, in one order, and the plan of what fails.
#[derive(Debug, Default)]
pub struct FaultLog {
    state: Mutex<State>,
}

impl FaultLog {
    /// An empty record without faults.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Lets `count` changing operations fail, after `after` further ones have succeeded.
    pub fn fail(&self, after: u64, count: u64) {
        let mut state = self.state.lock();
        let from = state.changes.saturating_add(after);
        state.fail_from = Some(from);
        state.fail_until = from.saturating_add(count);
    }

    /// No further faults.
    pub fn heal(&self) {
        self.state.lock().fail_from = None;
    }

    /// What has been done so far.
    #[must_use]
    pub fn events(&self) -> Vec<IoEvent> {
        self.state.lock().events.clone()
    }

    /// Number of operations recorded so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().events.len()
    }

    /// Whether nothing has been recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts an operation; an error when it is one of those to fail.
    fn admit(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        let number = state.changes;
        state.changes += 1;
        if state.fail_from.is_some_and(|from| (from..state.fail_until).contains(&number)) {
            return Err(io::Error::other("injected fault"));
        }
        Ok(())
    }

    fn record(&self, event: IoEvent) {
        self.state.lock().events.push(event);
    }
}

/// A device that records every change in a [`FaultLog`] and fails when the log says so.
#[derive(Debug)]
pub struct FaultDevice<D> {
    inner: D,
    device: usize,
    log: Arc<FaultLog>,
}

impl<D: BlockDevice> FaultDevice<D> {
    /// Wraps `inner` as device number `device` of `log`.
    pub fn new(inner: D, device: usize, log: Arc<FaultLog>) -> Self {
        Self { inner, device, log }
    }

    /// The device inside.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.log.admit()?;
        self.inner.write_at(offset, buf)?;
        self.log.record(IoEvent::Write { device: self.device, offset, bytes: buf.into() });
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.log.admit()?;
        self.inner.flush()?;
        self.log.record(IoEvent::Flush { device: self.device });
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.log.admit()?;
        self.inner.discard(offset, len)?;
        self.log.record(IoEvent::Discard { device: self.device, offset, len });
        Ok(())
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.log.admit()?;
        self.inner.resize(size)?;
        self.log.record(IoEvent::Resize { device: self.device, size });
        Ok(())
    }
}

/// What a crash makes of an operation that no flush has followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It reached the device.
    Kept,
    /// It did not.
    Lost,
    /// Only this many bytes from its beginning did.
    Torn(usize),
}

/// What device number `device` holds after a crash that came right after the last of `events`: `before` with everything
/// that a flush followed, and with as much of the rest as `fate` says. Since a later write may be kept and an earlier one
/// lost, this also covers writes that were reordered.
///
/// # Errors
/// An event that does not fit the device.
pub fn crash_image(
    before: &MemoryDevice,
    events: &[IoEvent],
    device: usize,
    mut fate: impl FnMut(&IoEvent) -> Fate,
) -> io::Result<MemoryDevice> {
    let image = before.duplicate();
    let is_flush =
        |event: &IoEvent| matches!(event, IoEvent::Flush { device: flushed } if *flushed == device);
    let durable = events.iter().rposition(is_flush).map_or(0, |last| last + 1);
    for (number, event) in events.iter().enumerate() {
        let fate = if number < durable { Fate::Kept } else { fate(event) };
        match event {
            IoEvent::Write { device: target, offset, bytes } if *target == device => {
                let kept = match fate {
                    Fate::Kept => bytes.len(),
                    Fate::Lost => 0,
                    Fate::Torn(kept) => kept.min(bytes.len()),
                };
                image.write_at(*offset, bytes.split_at(kept).0)?;
            }
            IoEvent::Discard { device: target, offset, len } if *target == device && fate != Fate::Lost => {
                image.discard(*offset, *len)?;
            }
            IoEvent::Resize { device: target, size } if *target == device => image.resize(*size)?,
            _ => {}
        }
    }
    Ok(image)
}
