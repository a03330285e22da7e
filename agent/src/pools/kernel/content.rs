//! The content of devices of a kernel pool.

use std::{collections::HashSet, path::Path, sync::Arc};

use parking_lot::Mutex;
use thinbak_engine::{
    Access, BlockDevice, DeviceId, FileDevice, MetadataBlock, MetadataView, VirtualBlock, Volume,
    format::SECTOR_BYTES,
};
use thinbak_proto::{Failed, FailureKind};

use super::{Inner, lease, mapper, survey::is_that_of, volumes::stale};
use crate::pools::{Candidate, failure::of_view, pool::Content};

/// Mappings looked up at a time; reads mostly go on where the last one ended.
const WINDOW_MAPPINGS: usize = 16 * 1024;

/// A snapshot, read from the data device through its mappings.
pub(super) struct SnapshotContent {
    inner: Arc<Inner>,
    device: DeviceId,
    root: MetadataBlock,
    /// The root's checksum when it was found.
    checksum: u32,
    view: MetadataView,
    window: Mutex<Window>,
    /// The private snapshot that is read instead of a volume that is in use; it goes with this.
    _moment: Option<Candidate>,
}

/// All mappings of a range of virtual blocks, in runs: virtual block, data block, length.
#[derive(Default)]
struct Window {
    begin: u64,
    end: u64,
    runs: Vec<(u64, u64, u64)>,
}

impl SnapshotContent {
    /// Of a device that nobody writes. Its mappings are found by the root that was last seen, or by a look at the metadata.
    pub(super) fn open(
        inner: &Arc<Inner>,
        snapshot: &Volume,
        moment: Option<Candidate>,
    ) -> Result<Self, Failed> {
        let device = snapshot.device;
        let known = inner.roots.lock().get(&device).cloned();
        let (root, view) = match known {
            Some(known) => known,
            None => {
                let frozen = lease::reserve(inner)?;
                let found = frozen.view.device(device).map_err(of_view)?;
                let entry = inner.book.lock().contents().by_device(device).cloned();
                let found = found.filter(|info| entry.is_none_or(|entry| is_that_of(&entry, info)));
                let view = frozen.view.clone();
                frozen.release()?;
                (found.ok_or_else(|| stale(&snapshot.name))?.root, view)
            }
        };
        // The device may have grown since the pool was opened.
        inner.data.resize(0).map_err(|error| inner.io_failed("look at", &error))?;
        let checksum = view.root_checksum(root).map_err(of_view)?;
        let (inner, window) = (Arc::clone(inner), Mutex::default());
        Ok(Self { inner, device, root, checksum, view, window, _moment: moment })
    }

    /// Brings the window to a virtual block.
    fn look_at(&self, window: &mut Window, block: u64) -> Result<(), Failed> {
        if (window.begin..window.end).contains(&block) {
            return Ok(());
        }
        *window = Window { begin: block, end: u64::MAX, runs: Vec::new() };
        let mappings = self.view.mappings(self.root, VirtualBlock::new(block));
        for mapping in mappings.take(WINDOW_MAPPINGS) {
            let mapping = mapping.map_err(|error| {
                *window = Window::default();
                let failed = of_view(error);
                let message = format!("read the mappings of device {}: {}", self.device, failed.message);
                Failed { message, ..failed }
            })?;
            let (from, to) = (mapping.virtual_block.get(), mapping.data_block.get());
            match window.runs.last_mut() {
                Some((begin, data, length)) if *begin + *length == from && *data + *length == to => {
                    *length += 1
                }
                _ => window.runs.push((from, to, 1)),
            }
        }
        let count: u64 = window.runs.iter().map(|(.., length)| length).sum();
        if count >= WINDOW_MAPPINGS as u64 {
            window.end = window.runs.last().map_or(block, |(begin, _, length)| begin + length);
        }
        Ok(())
    }

    fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.inner.data.read_at(offset, buf).map_err(|error| self.inner.io_failed("read", &error))
    }
}

impl Content for SnapshotContent {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        let block = self.inner.block_bytes();
        let end = offset.saturating_add(buf.len() as u64);
        buf.fill(0);
        let mut window = self.window.lock();
        let mut at = offset;
        while at < end {
            self.look_at(&mut window, at / block)?;
            let stop = end.min(window.end.saturating_mul(block));
            let first = window.runs.partition_point(|(begin, _, length)| (begin + length) * block <= at);
            for &(begin, data, length) in window.runs.iter().skip(first) {
                let (from, to) = ((begin * block).max(at), ((begin + length) * block).min(stop));
                if from >= to {
                    break;
                }
                let bound = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                let part = buf.get_mut(bound(from)..bound(to)).unwrap_or_default();
                self.read_data(data * block + (from - begin * block), part)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), Failed> {
        let message = format!("write to device {}: it is read-only", self.device);
        Err(Failed::new(FailureKind::Refused, message))
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Failed> {
        self.write(offset, &[])
    }

    fn can_unmap(&self) -> bool {
        false
    }

    fn mapped_runs(&self, from: u64, to: u64, limit: usize) -> Result<Vec<(u64, u64)>, Failed> {
        let mut window = self.window.lock();
        let mut found: Vec<(u64, u64)> = Vec::new();
        let mut at = from;
        while at < to && found.len() < limit {
            self.look_at(&mut window, at)?;
            for &(begin, _, length) in &window.runs {
                let (begin, end) = (begin.max(at), (begin + length).min(to));
                if begin >= end {
                    continue;
                }
                let is_full = found.len() >= limit;
                match found.last_mut() {
                    Some((last, length)) if *last + *length == begin => *length += end - begin,
                    _ if is_full => return Ok(found),
                    _ => found.push((begin, end - begin)),
                }
            }
            at = window.end;
        }
        Ok(found)
    }

    fn flush(&self) -> Result<(), Failed> {
        Ok(())
    }

    /// The device is that of its entry still, and has the same mapping tree.
    fn confirm(&self) -> Result<(), Failed> {
        let inner = &self.inner;
        let entry = inner.book.lock().contents().by_device(self.device).cloned();
        let frozen = lease::reserve(inner)?;
        let found = frozen.view.device(self.device).map_err(of_view)?;
        let found = found.filter(|info| entry.is_none_or(|entry| is_that_of(&entry, info)));
        let now =
            found.map(|info| frozen.view.root_checksum(info.root).map(|checksum| (info.root, checksum)));
        let now = now.transpose().map_err(of_view)?;
        frozen.release()?;
        if now != Some((self.root, self.checksum)) {
            inner.roots.lock().remove(&self.device);
            let message =
                format!("device {} of pool {} was changed while it was read", self.device, inner.name);
            return Err(Failed::new(FailureKind::Refused, message)
                .with_hint("what was read is not to be used: run it again"));
        }
        Ok(())
    }
}

/// A private head, through a device of ours that goes with this, or through one that LVM has activated.
pub(super) struct HeadContent {
    inner: Arc<Inner>,
    name: String,
    /// Whether the device is removed with this.
    is_ours: bool,
    /// Absent only while it is closed.
    file: Option<FileDevice>,
    /// Where the pool does not zero new blocks: those that were written here. Nobody else writes the head.
    written: Option<Mutex<HashSet<u64>>>,
}

impl HeadContent {
    pub(super) fn open(inner: &Arc<Inner>, head: &Volume) -> Result<Self, Failed> {
        let name = inner.private_name(head.device);
        // Whole blocks: what lies behind the end of the volume comes back when it grows.
        let sectors = head.size_bytes.next_multiple_of(inner.block_bytes()) / SECTOR_BYTES;
        let target = (0, sectors, "thin".to_owned(), format!("{} {}", inner.found.number, head.device));
        let path = inner.mapper.activate(&name, &format!("THINBAK-{}", head.uuid.simple()), target)?;
        Self::through(inner, name, &path, true)
    }

    /// Through a device that is there and stays.
    pub(super) fn of_active(inner: &Arc<Inner>, name: &str) -> Result<Self, Failed> {
        let info = inner.mapper.info(name)?.ok_or_else(|| stale(name))?;
        let path = mapper::node(info.number);
        let path = path.map_err(|error| inner.io_failed(&format!("find {name} beside"), &error))?;
        Self::through(inner, name.to_owned(), &path, false)
    }

    fn through(inner: &Arc<Inner>, name: String, path: &Path, is_ours: bool) -> Result<Self, Failed> {
        let skips_zeroing = inner.found.line.table.features.skip_block_zeroing;
        let (inner, written) = (Arc::clone(inner), skips_zeroing.then(Mutex::default));
        let mut content = Self { inner, name, is_ours, file: None, written };
        let opened = FileDevice::open(path, Access::ReadWrite);
        content.file = Some(opened.map_err(|error| content.failed("open", &error))?);
        Ok(content)
    }

    fn failed(&self, attempt: &str, error: &std::io::Error) -> Failed {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => FailureKind::NoSpace,
            _ => FailureKind::Failed,
        };
        Failed::new(kind, format!("{attempt} device {} of pool {}: {error}", self.name, self.inner.name))
    }

    fn file(&self) -> Result<&FileDevice, Failed> {
        self.file.as_ref().ok_or_else(|| stale(&self.name))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        self.file()?.write_at(offset, data).map_err(|error| self.failed("write", &error))
    }

    /// Up to where something is mapped, in bytes; that may be behind the end.
    pub(super) fn mapped_end(&self) -> Result<u64, Failed> {
        let status = self.inner.mapper.status(&self.name)?;
        let line = status.first().map(|(.., line)| line.trim()).unwrap_or_default();
        // `MAPPED_SECTORS HIGHEST_MAPPED_SECTOR`, or `0 -`
        match line.split_once(' ') {
            Some((_, "-")) => Ok(0),
            Some((_, highest)) if highest.parse::<u64>().is_ok() => {
                Ok(highest.parse::<u64>().unwrap_or_default().saturating_add(1).saturating_mul(SECTOR_BYTES))
            }
            _ => {
                let message = format!("the status of device {} cannot be understood: {line}", self.name);
                Err(Failed::new(FailureKind::Failed, message))
            }
        }
    }

    /// Writes the blocks at the ends of a write as they read, zeros where nothing is mapped, if it does not cover them.
    fn zero_around(&self, written: &Mutex<HashSet<u64>>, offset: u64, len: u64) -> Result<(), Failed> {
        let (block, end) = (self.inner.block_bytes(), offset.saturating_add(len));
        for number in offset / block..end.div_ceil(block) {
            let (begin, stop) = (number * block, (number + 1) * block);
            if written.lock().insert(number) && (begin < offset || stop > end) {
                let mut whole = vec![0; usize::try_from(block).unwrap_or_default()];
                self.read(begin, &mut whole)?;
                self.write_at(begin, &whole)?;
            }
        }
        Ok(())
    }
}

impl Content for HeadContent {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.file()?.read_at(offset, buf).map_err(|error| self.failed("read", &error))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        if let Some(written) = &self.written {
            self.zero_around(written, offset, data.len() as u64)?;
        }
        self.write_at(offset, data)
    }

    fn discard(&self, offset: u64, _len: u64) -> Result<(), Failed> {
        let message =
            format!("discard at byte {offset} of {}: heads of kernel pools are not unmapped", self.name);
        Err(Failed::new(FailureKind::Failed, message))
    }

    /// Without a system call that tells a thin device to unmap, all is zeroed.
    fn can_unmap(&self) -> bool {
        false
    }

    fn mapped_runs(&self, from: u64, to: u64, _limit: usize) -> Result<Vec<(u64, u64)>, Failed> {
        Ok(if from < to { vec![(from, to - from)] } else { Vec::new() })
    }

    fn flush(&self) -> Result<(), Failed> {
        self.file()?.flush().map_err(|error| self.failed("flush", &error))
    }
}

impl Drop for HeadContent {
    fn drop(&mut self) {
        self.file = None;
        if self.is_ours
            && let Err(error) = self.inner.mapper.remove(&self.name)
        {
            tracing::warn!(device = self.name, %error, "a private device is left until the pool is opened again");
        }
    }
}

impl Inner {
    fn io_failed(&self, attempt: &str, error: &std::io::Error) -> Failed {
        let message = format!("{attempt} the data device of pool {}: {error}", self.name);
        Failed::new(FailureKind::Failed, message)
    }

    /// Removes the device by which a head was written, if it is still there.
    pub(super) fn deactivate(&self, device: DeviceId) -> Result<(), Failed> {
        let name = self.private_name(device);
        if self.mapper.info(&name)?.is_some() {
            self.mapper.remove(&name)?;
        }
        Ok(())
    }
}
