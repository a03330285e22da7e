//! A volume in a pool as the ends of a change stream see it.

use std::sync::Arc;

use thinbak_engine::{EmbeddedError, EmbeddedPool, PoolError, VirtualBlock, Volume};
use thinbak_proto::Failed;

use crate::pools;

/// One thin device of an open pool: a volume, a snapshot, or a private head.
#[derive(Clone)]
pub struct PoolVolume {
    pool: Arc<EmbeddedPool>,
    volume: Volume,
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
    /// `volume` of `pool`.
    #[must_use]
    pub fn new(pool: Arc<EmbeddedPool>, volume: Volume) -> Self {
        Self { pool, volume }
    }

    /// Virtual size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.volume.size_bytes
    }

    /// Data block size of the pool in bytes.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.pool.pool().block_size().bytes()
    }

    /// The pool it lies in.
    #[must_use]
    pub fn pool(&self) -> &Arc<EmbeddedPool> {
        &self.pool
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
        self.volume.origin.is_none() && !self.pool.table().features.ignore_discard
    }

    /// Up to where unmapped blocks read an external origin, in bytes; 0 without one.
    #[must_use]
    pub fn origin_bytes(&self) -> u64 {
        self.volume.origin.as_ref().map_or(0, |origin| origin.size_bytes.min(self.size_bytes()))
    }

    /// Fills `buf` from `offset`; what is not mapped reads as the external origin or zero. Blocking.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.pool.read(&self.volume, offset, buf).map_err(pools::failed)
    }

    /// Writes `data` at `offset`; what else is in the blocks stays as it reads, also in a pool that does not zero new
    /// blocks. Blocking; durable after [`flush`](Self::flush).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        if self.pool.table().features.skip_block_zeroing {
            self.zero_around(offset, data.len() as u64)?;
        }
        self.pool.write(&self.volume, offset, data).map_err(pools::failed)
    }

    /// Fills the blocks at the ends of a write with zeros, if it is about to map them and does not cover them. Beyond the
    /// end of the volume too: what is there comes back when it grows.
    fn zero_around(&self, offset: u64, len: u64) -> Result<(), Failed> {
        let (block, end) = (self.block_bytes(), offset.saturating_add(len));
        let mut partial = vec![offset / block, end.saturating_sub(1) / block];
        partial.dedup();
        partial.retain(|number| number * block < offset || (number + 1) * block > end);
        for number in partial {
            let (engine, device) = (self.pool.pool(), self.volume.device);
            let mapped = engine.mapped_runs(device, VirtualBlock(number), VirtualBlock(number + 1), 1);
            if !mapped.map_err(unreadable)?.is_empty() {
                continue;
            }
            // The external origin goes in with the data: only what lies behind its end is left to be filled.
            let origin = self.volume.origin.as_ref().map_or(0, |origin| origin.size_bytes);
            let from = (number * block).max(origin.min((number + 1) * block));
            write_zeros(from, (number + 1) * block, |at, zeros| engine.write(device, at, zeros)).map_err(
                |source| {
                    let attempt = "the volume could not be written";
                    pools::failed(EmbeddedError::Pool { attempt, source })
                },
            )?;
        }
        Ok(())
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
        let discarded = self.pool.pool().discard(self.volume.device, from, to - from);
        discarded.map_err(|source| {
            pools::failed(EmbeddedError::Pool { attempt: "the range could not be discarded", source })
        })?;
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
                let found = self.pool.pool().mapped_runs(
                    self.volume.device,
                    VirtualBlock(next),
                    VirtualBlock(stop),
                    RUNS_AT_A_TIME,
                );
                let found = match found {
                    Ok(found) => found,
                    Err(error) => {
                        next = stop;
                        return Some(Err(unreadable(error)));
                    }
                };
                next = match found.last() {
                    Some(last) if found.len() >= RUNS_AT_A_TIME => last.begin.0 + last.length,
                    _ => stop,
                };
                let clipped: Vec<_> = found
                    .iter()
                    .map(|run| MappedRange {
                        begin: (run.begin.0 * block).max(from),
                        end: ((run.begin.0 + run.length) * block).min(to),
                    })
                    .filter(|range| range.begin < range.end)
                    .collect();
                runs = clipped.into_iter();
            }
        })
    }

    /// Puts everything written so far on stable storage. Blocking.
    pub fn flush(&self) -> Result<(), Failed> {
        self.pool.flush().map_err(pools::failed)
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

fn unreadable(source: PoolError) -> Failed {
    pools::failed(EmbeddedError::Pool { attempt: "the volume's mappings could not be read", source })
}
