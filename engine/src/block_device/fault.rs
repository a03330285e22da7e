//! Faults for tests: a device that records what is done to it and fails on request.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::BlockDevice;

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
        /// How many events had been recorded when it began: later ones need not be durable by it.
        covers: usize,
    },
    /// A flush that failed. What it should have made durable may be lost in a crash even if a later flush succeeds, as the
    /// kernel's page cache has it.
    FailedFlush {
        /// Number of the device.
        device: usize,
        /// How many events had been recorded when it began.
        covers: usize,
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

impl IoEvent {
    /// Number of the device.
    #[must_use]
    pub fn device(&self) -> usize {
        match *self {
            Self::Write { device, .. }
            | Self::Flush { device, .. }
            | Self::FailedFlush { device, .. }
            | Self::Discard { device, .. }
            | Self::Resize { device, .. } => device,
        }
    }
}

/// What can be asked of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// [`BlockDevice::read_at`]
    Read,
    /// [`BlockDevice::write_at`]
    Write,
    /// [`BlockDevice::flush`]
    Flush,
    /// [`BlockDevice::discard`]
    Discard,
    /// [`BlockDevice::resize`]
    Resize,
}

/// What a failing write leaves on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remains {
    /// Nothing of it.
    #[default]
    Nothing,
    /// The first half of its sectors, rounded up.
    Half,
    /// All of it: only the report failed.
    Everything,
}

/// Operations that fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which ones.
    pub kinds: &'static [IoKind],
    /// Of which device only.
    pub device: Option<usize>,
    /// How many such operations succeed first.
    pub after: u64,
    /// How many fail then.
    pub count: u64,
    /// The error.
    pub error: io::ErrorKind,
    /// What failing writes leave.
    pub remains: Remains,
}

impl Fault {
    /// Everything that changes a device.
    pub const CHANGES: &'static [IoKind] = &[IoKind::Write, IoKind::Flush, IoKind::Discard, IoKind::Resize];

    /// `count` operations of these kinds fail once `after` of them have succeeded. Nothing of a failing write remains.
    #[must_use]
    pub fn new(kinds: &'static [IoKind], after: u64, count: u64) -> Self {
        Self { kinds, device: None, after, count, error: io::ErrorKind::Other, remains: Remains::Nothing }
    }

    fn strikes(&mut self, kind: IoKind, device: usize) -> bool {
        if !self.kinds.contains(&kind) || self.device.is_some_and(|only| only != device) {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        let strikes = self.count > 0;
        self.count = self.count.saturating_sub(1);
        strikes
    }
}

#[derive(Debug, Default)]
struct State {
    events: Vec<IoEvent>,
    faults: Vec<Fault>,
    paused: bool,
    strikes: u64,
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

    /// Lets `count` changing operations fail, after `after` further ones have succeeded; earlier plans are dropped.
    pub fn fail(&self, after: u64, count: u64) {
        self.state.lock().faults = vec![Fault::new(Fault::CHANGES, after, count)];
    }

    /// Adds a fault to the plan.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    /// No further faults.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// While the plan is paused nothing fails, and nothing is counted.
    pub fn pause(&self, paused: bool) {
        self.state.lock().paused = paused;
    }

    /// How many operations have failed by plan.
    #[must_use]
    pub fn strikes(&self) -> u64 {
        self.state.lock().strikes
    }

    /// What has been done so far.
    #[must_use]
    pub fn events(&self) -> Vec<IoEvent> {
        self.state.lock().events.clone()
    }

    /// What has been done after the first `skip` operations.
    #[must_use]
    pub fn events_after(&self, skip: usize) -> Vec<IoEvent> {
        self.state.lock().events.iter().skip(skip).cloned().collect()
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

    /// Counts an operation; what a write leaves and the error, when it is one of those to fail.
    fn admit(&self, kind: IoKind, device: usize) -> Result<(), (Remains, io::Error)> {
        let mut state = self.state.lock();
        if state.paused {
            return Ok(());
        }
        // Every fault counts, also when another one strikes first.
        let mut struck = None;
        for fault in &mut state.faults {
            if fault.strikes(kind, device) {
                struck.get_or_insert((fault.remains, fault.error));
            }
        }
        match struck {
            None => Ok(()),
            Some((remains, error)) => {
                state.strikes += 1;
                Err((remains, io::Error::new(error, "injected fault")))
            }
        }
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

    fn admit(&self, kind: IoKind) -> io::Result<()> {
        self.log.admit(kind, self.device).map_err(|(_, error)| error)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_at(offset, bytes)?;
        self.log.record(IoEvent::Write { device: self.device, offset, bytes: bytes.into() });
        Ok(())
    }
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.admit(IoKind::Read)?;
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let Err((remains, error)) = self.log.admit(IoKind::Write, self.device) else {
            return self.write(offset, buf);
        };
        let sectors = buf.len().div_ceil(512);
        let length = match remains {
            Remains::Nothing => return Err(error),
            Remains::Half => (sectors.div_ceil(2) * 512).min(buf.len()),
            Remains::Everything => buf.len(),
        };
        self.write(offset, buf.split_at(length).0)?;
        Err(error)
    }

    fn flush(&self) -> io::Result<()> {
        let (device, covers) = (self.device, self.log.len());
        let flushed = self.admit(IoKind::Flush).and_then(|()| self.inner.flush());
        self.log.record(match flushed {
            Ok(()) => IoEvent::Flush { device, covers },
            Err(_) => IoEvent::FailedFlush { device, covers },
        });
        flushed
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.admit(IoKind::Discard)?;
        self.inner.discard(offset, len)?;
        self.log.record(IoEvent::Discard { device: self.device, offset, len });
        Ok(())
    }

    fn is_hole(&self, offset: u64, len: u64) -> bool {
        self.inner.is_hole(offset, len)
    }

    fn can_discard(&self) -> bool {
        self.inner.can_discard()
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.admit(IoKind::Resize)?;
        self.inner.resize(size)?;
        self.log.record(IoEvent::Resize { device: self.device, size });
        Ok(())
    }
}
