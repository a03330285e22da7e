//! A volume in a pool as the ends of a change stream see it.

use std::sync::Arc;

use thinbak_engine::Volume;
use thinbak_proto::Failed;

use crate::pools::{Content, ThinPool};

/// One thin device of an open pool: a volume, a snapshot, or a private head.
#[derive(Clone)]
pub struct PoolVolume {
    pool: Arc<dyn ThinPool>,
    volume: Volume,
    content: Arc<dyn Content>,
}

/// A piece of a volume that has data blocks behind it. Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRange {
    /// Where it begins.
    pub begin: u64,
    /// The first byte after it.
    pub end: u64,
}

/// Runs asked of the pool at a time.
const RUNS_AT_A_TIME: usize = 1024;

impl PoolVolume {
    /// Opens `volume` of `pool`. Blocking.
    pub fn open(pool: Arc<dyn ThinPool>, volume: Volume) -> Result<Self, Failed> {
        let content = Arc::from(Arc::clone(&pool).content(&volume)?);
        Ok(Self { pool, volume, content })
    }

    /// Virtual size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes
    }

    /// Data block size of the pool in bytes.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.pool.block_bytes()
    }

    /// The device in the pool.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Whether unmapping a block makes it read as zero: not over an external origin, which it would reveal, and not in a
    /// pool that ignores discards.
    #[must_use]
    pub fn can_unmap(&self) -> bool {
        self.content.can_unmap()
    }

    /// Up to where unmapped blocks read an external origin, in bytes; 0 without one.
    #[must_use]
    pub fn origin_bytes(&self) -> u64 {
        self.volume.origin.as_ref().map_or(0, |origin| origin.size_bytes.min(self.size_bytes()))
    }

    /// Fills `buf` from `offset`; what is not mapped reads as the external origin or zero. Blocking.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.content.read(offset, buf)
    }

    /// Fails if what was read so far may have been the content of something else. Blocking.
    pub fn confirm(&self) -> Result<(), Failed> {
        self.content.confirm()
    }

    /// Writes `data` at `offset`; what else is in the blocks stays as it reads, also in a pool that does not zero new
    /// blocks. Blocking; durable after [`flush`](Self::flush).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        self.content.write(offset, data)
    }

    /// Makes `offset .. offset + len` read as zero and take as little space as possible: blocks that read as zero then
    /// are unmapped, the others are zeroed where they are mapped. What the last block has behind the end of the volume
    /// goes with it. Where blocks [cannot be unmapped](Self::can_unmap) all is zeroed. Blocking.
    pub fn unmap(&self, offset: u64, len: u64) -> Result<(), Failed> {
        if !self.can_unmap() {
            return self.zero(offset, len);
        }
        let (block, size) = (self.block_bytes(), self.size_bytes());
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return Ok(());
        }
        // The blocks at both ends are taken in if the rest of them is zero already.
        let (mut from, mut to) = (offset / block * block, end.next_multiple_of(block));
        if !self.is_zero(from, offset)? {
            from += block;
        }
        if !self.is_zero(end, to)? {
            to -= block;
        }
        if from >= to {
            return self.zero_readable(offset, end);
        }
        self.zero_readable(offset, from)?;
        self.content.discard(from, to - from)?;
        self.zero_readable(to, end)
    }

    /// Whether all of `from .. to` reads as zero, as far as it lies in the volume. Blocking.
    fn is_zero(&self, from: u64, to: u64) -> Result<bool, Failed> {
        let mut is_zero = true;
        self.nonzero(from, to, |_, _| {
            is_zero = false;
            Ok(false)
        })?;
        Ok(is_zero)
    }

    /// Makes `offset .. offset + len` read as zero without unmapping anything. Blocking.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), Failed> {
        self.zero_readable(offset, offset.saturating_add(len).min(self.size_bytes()))
    }

    /// Writes zeros to what reads as something else in `from .. to`. What is zero already is left alone: a block that is
    /// written is no longer shared with the snapshots of the device.
    fn zero_readable(&self, from: u64, to: u64) -> Result<(), Failed> {
        self.nonzero(from, to, |begin, end| {
            write_zeros(begin, end, |at, zeros| self.write(at, zeros))?;
            Ok(true)
        })
    }

    /// Calls `found` for pieces of `from .. to` that do not read as zero, until it returns `false`.
    fn nonzero(
        &self,
        from: u64,
        to: u64,
        mut found: impl FnMut(u64, u64) -> Result<bool, Failed>,
    ) -> Result<(), Failed> {
        let mut buffer = vec![0; 64 * 1024];
        for range in self.readable(from, to) {
            let MappedRange { mut begin, end } = range?;
            while begin < end {
                let len = usize::try_from(end - begin).unwrap_or(usize::MAX).min(buffer.len());
                let part = buffer.get_mut(..len).unwrap_or_default();
                self.read(begin, part)?;
                let next = begin + len as u64;
                if part.iter().any(|byte| *byte != 0) && !found(begin, next)? {
                    return Ok(());
                }
                begin = next;
            }
        }
        Ok(())
    }

    /// The pieces of `from .. to` that may read as anything but zero, ascending: what lies over the external origin,
    /// and what is mapped. Blocking.
    pub fn readable(
        &self,
        from: u64,
        to: u64,
    ) -> impl Iterator<Item = Result<MappedRange, Failed>> + use<'_> {
        let over = MappedRange { begin: from, end: to.min(self.origin_bytes()) };
        let behind = self.mapped(from.max(self.origin_bytes()), to);
        Some(over).filter(|over| over.begin < over.end).map(Ok).into_iter().chain(behind)
    }

    /// The mapped pieces of `from .. to`, ascending, clipped to that and to the volume. Blocking.
    pub fn mapped(&self, from: u64, to: u64) -> impl Iterator<Item = Result<MappedRange, Failed>> + use<'_> {
        let block = self.block_bytes();
        let to = to.min(self.size_bytes());
        let mut next = from / block;
        let stop = to.div_ceil(block);
        let mut runs = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(range) = runs.next() {
                    return Some(Ok(range));
                }
                if next >= stop {
                    return None;
                }
                let found = match self.content.mapped_runs(next, stop, RUNS_AT_A_TIME) {
                    Ok(found) => found,
                    Err(error) => {
                        next = stop;
                        return Some(Err(error));
                    }
                };
                next = match found.last() {
                    Some((begin, length)) if found.len() >= RUNS_AT_A_TIME => begin + length,
                    _ => stop,
                };
                let clipped: Vec<_> = found
                    .iter()
                    .map(|(begin, length)| MappedRange {
                        begin: (begin * block).max(from),
                        end: ((begin + length) * block).min(to),
                    })
                    .filter(|range| range.begin < range.end)
                    .collect();
                runs = clipped.into_iter();
            }
        })
    }

    /// Puts everything written so far on stable storage. Blocking.
    pub fn flush(&self) -> Result<(), Failed> {
        self.content.flush()
    }
}

/// Covers `from .. to` with zeros, piece by piece.
pub(crate) fn write_zeros<E>(
    from: u64,
    to: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let zeros = vec![0; 256 * 1024];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
        write(at, zeros.get(..len).unwrap_or(&zeros))?;
        at += len as u64;
    }
    Ok(())
}
