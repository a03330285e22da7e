//! Private heads: made empty or as snapshots of a volume, written, and then a volume.

use std::collections::HashSet;

use thinbak_engine::{DeviceId, Kind, Role, Volume, embedded::check_snapshot_name, format::SECTOR_BYTES};
use thinbak_proto::{Failed, FailureKind};

use super::{
    KernelPool,
    book::{Contents, Entry},
    content::HeadContent,
    snapshots::Wanted,
    volumes::{check_new_name, refuse_taken, stale},
};
use crate::{pools::pool::Content, volume::write_zeros};

/// Read at a time when it is looked for what is not zero.
const PIECE_BYTES: usize = 256 * 1024;

impl KernelPool {
    pub(super) fn make_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, Failed> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let message = format!("{size_bytes} bytes is no size of a volume");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        let Some(origin) = like else {
            let entry = self.make_empty(size_bytes)?;
            return Ok(self.inner.book.lock().contents().to_volume(&entry));
        };
        let clock = self.inner.clock(1)?;
        let entry = self.inner.new_entry(size_bytes, Role::Head, clock.saturating_add(1))?;
        let mut taken = self.inner.take(&[Wanted { origin, entry }])?;
        taken.pop().ok_or_else(|| stale(&format!("#{origin}")))
    }

    pub(super) fn set_head_size(&self, head: &Volume, size_bytes: u64) -> Result<Volume, Failed> {
        if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
            let message = format!("{size_bytes} bytes is no size of a volume");
            return Err(Failed::new(FailureKind::Usage, message));
        }
        self.inner.book.lock().change(|book| {
            let entry = Entry { size_bytes, ..find_head(book, head)? };
            book.put(entry.clone());
            Ok(book.to_volume(&entry))
        })
    }

    /// A private snapshot of what a head is now.
    pub(super) fn keep_moment(&self, head: &Volume) -> Result<Volume, Failed> {
        let of = find_head(self.inner.book.lock().contents(), head)?;
        let of = Volume { size_bytes: of.size_bytes, uuid: of.uuid, ..head.clone() };
        self.take_of([&of].into_iter())?.pop().ok_or_else(|| stale(&head.name))
    }

    /// Zeroes what a head maps beyond its end. It stays mapped: nothing but a discard unmaps it.
    pub(super) fn zero_beyond(&self, head: &Volume) -> Result<(), Failed> {
        let end = HeadContent::open(&self.inner, head)?.mapped_end()?;
        if end <= head.size_bytes {
            return Ok(());
        }
        let whole = HeadContent::open(&self.inner, &Volume { size_bytes: end, ..head.clone() })?;
        let mut buffer = vec![0; PIECE_BYTES];
        let mut at = head.size_bytes;
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..len).unwrap_or_default();
            whole.read(at, part)?;
            let next = at + len as u64;
            // A block that is zero stays shared with who else has it.
            if part.iter().any(|byte| *byte != 0) {
                write_zeros(at, next, |at, zeros| whole.write(at, zeros))?;
            }
            at = next;
        }
        whole.flush()
    }

    /// Makes a head a volume, and snapshots of it the volume's, in one change of the registry.
    pub(super) fn publish_all(
        &self,
        head: &Volume,
        name: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, Failed> {
        check_new_name(name)?;
        let mut names = HashSet::new();
        for (_, snapshot) in snapshots {
            check_snapshot_name(snapshot).map_err(|error| {
                Failed::new(FailureKind::Usage, format!("`{snapshot}` is no name: {error}"))
            })?;
            if !names.insert(snapshot) {
                let message = format!("`{name}@{snapshot}` exists already");
                return Err(Failed::new(FailureKind::Refused, message));
            }
        }
        self.inner.book.lock().change(|book| {
            refuse_taken(book, name)?;
            let entry = find_head(book, head)?;
            for (snapshot, name) in snapshots {
                let taken = book.by_device(snapshot.device).cloned();
                let taken = taken.filter(|taken| taken.role == Role::Candidate { of: entry.uuid });
                let taken = taken.ok_or_else(|| stale(&snapshot.name))?;
                book.put(Entry { role: Role::Snapshot { of: entry.uuid, name: name.clone() }, ..taken });
            }
            let entry = Entry { role: Role::Volume { name: name.to_owned() }, ..entry };
            book.put(entry.clone());
            Ok(book.to_volume(&entry))
        })
    }
}

fn find_head(book: &Contents, head: &Volume) -> Result<Entry, Failed> {
    let entry = book.by_device(head.device).filter(|entry| entry.role == Role::Head).cloned();
    entry.filter(|_| head.kind == Kind::Head).ok_or_else(|| stale(&head.name))
}
