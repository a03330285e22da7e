//! Crashes for tests: what may be on a device of which every operation was recorded.
//!
//! A device may have a volatile cache. What a flush covers is durable. Of everything else each 512-byte sector holds, on
//! its own, what it held at the last flush or after any of the writes since: so writes are lost, torn and reordered. A
//! sector never goes back from a later write to an earlier one, which no cache does for writes that were not in flight
//! together.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{BlockDevice, IoEvent, MemoryDevice};

/// Bytes that reach a device together or not at all.
const SECTOR_BYTES: u64 = 512;

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

/// For each event of a device whether a flush made it durable. One that a failed flush should have covered never is.
fn durable(events: &[IoEvent], device: usize) -> Vec<bool> {
    let mut durable = vec![false; events.len()];
    let mut settled = 0;
    for event in events.iter().filter(|event| event.device() == device) {
        let (covers, success) = match *event {
            IoEvent::Flush { covers, .. } => (covers, true),
            IoEvent::FailedFlush { covers, .. } => (covers, false),
            _ => continue,
        };
        durable.iter_mut().take(covers).skip(settled).for_each(|durable| *durable = success);
        settled = settled.max(covers);
    }
    durable
}

/// What device number `device` holds after a crash that came right after the last of `events`: `before` with everything
/// that a flush made durable, and with as much of the rest as `fate` says. Since a later write may be kept and an earlier
/// one lost, this also covers writes that were reordered. [`CrashReplay`] is for many crashes of one recording.
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
    let durable = durable(events, device);
    for (event, durable) in events.iter().zip(durable) {
        let fate = if durable { Fate::Kept } else { fate(event) };
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

/// What a sector held after one event.
#[derive(Clone, Debug)]
struct Version {
    event: usize,
    bytes: Arc<[u8; SECTOR_BYTES as usize]>,
    /// A flush that should have covered it failed.
    doomed: bool,
}

#[derive(Debug)]
struct Disk {
    /// What a crash cannot take away.
    durable: MemoryDevice,
    /// What the device holds as long as there is no crash.
    live: MemoryDevice,
    /// The versions of each sector that are not durable, oldest first.
    pending: BTreeMap<u64, Vec<Version>>,
    /// A new size that is not durable, and its event.
    resized: Option<(usize, u64)>,
}

/// A recording, passed through event by event; at each point any number of crashes can be had.
#[derive(Debug)]
pub struct CrashReplay<'a> {
    events: &'a [IoEvent],
    position: usize,
    disks: Vec<Disk>,
}

impl<'a> CrashReplay<'a> {
    /// At the beginning of a recording of devices 0, 1, 2... that held `before`.
    #[must_use]
    pub fn new(before: &[MemoryDevice], events: &'a [IoEvent]) -> Self {
        let disk = |before: &MemoryDevice| Disk {
            durable: before.duplicate(),
            live: before.duplicate(),
            pending: BTreeMap::new(),
            resized: None,
        };
        Self { events, position: 0, disks: before.iter().map(disk).collect() }
    }

    /// Events passed so far.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Whether a crash now can take anything from device number `device`.
    #[must_use]
    pub fn is_exposed(&self, device: usize) -> bool {
        self.disks.get(device).is_some_and(|disk| !disk.pending.is_empty() || disk.resized.is_some())
    }

    /// Passes one event; `false` at the end.
    ///
    /// # Errors
    /// An event that does not fit its device.
    pub fn advance(&mut self) -> io::Result<bool> {
        let Some(event) = self.events.get(self.position) else { return Ok(false) };
        if let Some(disk) = self.disks.get_mut(event.device()) {
            disk.apply(self.position, event)?;
        }
        self.position += 1;
        Ok(true)
    }

    /// The devices after a crash here. `keep` says how many of the versions of a sector that are not durable came into being:
    /// it is given the number of the device, of the sector and of the events that made them. A size that is not
    /// durable is asked for as sector [`u64::MAX`].
    ///
    /// # Errors
    /// None but those of memory devices.
    pub fn crash(
        &self,
        mut keep: impl FnMut(usize, u64, &[usize]) -> usize,
    ) -> io::Result<Vec<MemoryDevice>> {
        self.disks.iter().enumerate().map(|(number, disk)| disk.crash(|s, e| keep(number, s, e))).collect()
    }
}

impl Disk {
    fn apply(&mut self, number: usize, event: &IoEvent) -> io::Result<()> {
        match event {
            IoEvent::Write { offset, bytes, .. } => {
                self.live.write_at(*offset, bytes)?;
                self.add_versions(number, *offset, bytes.len() as u64)
            }
            IoEvent::Discard { offset, len, .. } => {
                self.live.discard(*offset, *len)?;
                self.add_versions(number, *offset, *len)
            }
            IoEvent::Resize { size, .. } => {
                self.live.resize(*size)?;
                self.resized = Some((number, *size));
                Ok(())
            }
            IoEvent::Flush { covers, .. } => self.settle(*covers),
            IoEvent::FailedFlush { covers, .. } => {
                let versions = self.pending.values_mut().flatten();
                versions.filter(|version| version.event < *covers).for_each(|version| version.doomed = true);
                Ok(())
            }
        }
    }

    fn add_versions(&mut self, event: usize, offset: u64, len: u64) -> io::Result<()> {
        let size = self.live.size_bytes();
        for sector in offset / SECTOR_BYTES..(offset + len).div_ceil(SECTOR_BYTES) {
            let at = sector * SECTOR_BYTES;
            let mut bytes = [0; SECTOR_BYTES as usize];
            let within = usize::try_from(size - at).unwrap_or(bytes.len()).min(bytes.len());
            self.live.read_at(at, bytes.split_at_mut(within).0)?;
            let version = Version { event, bytes: Arc::new(bytes), doomed: false };
            self.pending.entry(sector).or_default().push(version);
        }
        Ok(())
    }

    /// A flush has made everything durable that was done before it began.
    fn settle(&mut self, covers: usize) -> io::Result<()> {
        if let Some((_, size)) = self.resized.take_if(|(event, _)| *event < covers) {
            self.durable.resize(size)?;
        }
        for (sector, versions) in &mut self.pending {
            let settled = versions.iter().rposition(|version| version.event < covers && !version.doomed);
            if let Some(settled) = settled {
                let version = versions.drain(..=settled).next_back();
                version.map_or(Ok(()), |version| put_sector(&self.durable, *sector, &version))?;
            }
        }
        self.pending.retain(|_, versions| !versions.is_empty());
        Ok(())
    }

    fn crash(&self, mut keep: impl FnMut(u64, &[usize]) -> usize) -> io::Result<MemoryDevice> {
        let image = self.durable.duplicate();
        if let Some((event, size)) = self.resized
            && keep(u64::MAX, &[event]) > 0
        {
            image.resize(size)?;
        }
        let mut events = Vec::new();
        for (sector, versions) in &self.pending {
            events.clear();
            events.extend(versions.iter().map(|version| version.event));
            let kept = keep(*sector, &events).checked_sub(1).and_then(|last| versions.get(last));
            if let Some(version) = kept
                && sector * SECTOR_BYTES < image.size_bytes()
            {
                put_sector(&image, *sector, version)?;
            }
        }
        Ok(image)
    }
}

fn put_sector(device: &MemoryDevice, sector: u64, version: &Version) -> io::Result<()> {
    let at = sector * SECTOR_BYTES;
    let within = usize::try_from(device.size_bytes().saturating_sub(at)).unwrap_or(usize::MAX);
    device.write_at(at, version.bytes.split_at(within.min(version.bytes.len())).0)
}
