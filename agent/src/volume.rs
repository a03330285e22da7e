//! A volume in a pool as the ends of a change stream see it.

use std::sync::Arc;

use thinbak_engine::{EmbeddedError, EmbeddedPool, VirtualBlock, Volume};
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

    /// Fills `buf` from `offset`; what is not mapped reads as zero. Blocking.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.pool.read(&self.volume, offset, buf).map_err(pools::failed)
    }

    /// Writes `data` at `offset`. Blocking; durable after [`flush`](Self::flush).
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        self.pool.write(&self.volume, offset, data).map_err(pools::failed)
    }

    /// Makes `offset .. offset + len` read as zero and take as little space as possible: whole blocks are
    /// unmapped, the rest is zeroed where it is mapped. Blocking.
    pub fn unmap(&self, offset: u64, len: u64) -> Result<(), Failed> {
        let block = self.block_bytes();
        let end = offset.saturating_add(len).min(self.size_bytes());
        let first = offset.next_multiple_of(block);
        // The last block may be cut by the end of the volume: then all of it is ours.
        let last = if end == self.size_bytes() { end } else { end / block * block };
        if first < last {
            self.zero_mapped(offset, first)?;
            self.pool.discard(&self.volume, first, last - first).map_err(pools::failed)?;
            // A block that the end of the volume cuts is not whole: the pool leaves it alone.
            self.zero_mapped(last / block * block, end)
        } else {
            self.zero_mapped(offset, end)
        }
    }

    /// Makes `offset .. offset + len` read as zero without unmapping anything. Blocking.
    pub fn zero(&self, offset: u64, len: u64) -> Result<(), Failed> {
        self.zero_mapped(offset, offset.saturating_add(len).min(self.size_bytes()))
    }

    /// Writes zeros to what is mapped in `from .. to`.
    fn zero_mapped(&self, from: u64, to: u64) -> Result<(), Failed> {
        let zeros = vec![0; 256 * 1024];
        for range in self.mapped(from, to) {
            let MappedRange { mut begin, end } = range?;
            while begin < end {
                let len = usize::try_from(end - begin).unwrap_or(usize::MAX).min(zeros.len());
                self.write(begin, zeros.get(..len).unwrap_or(&zeros))?;
                begin += len as u64;
            }
        }
        Ok(())
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
                        let attempt = "the volume's mappings could not be read";
                        return Some(Err(pools::failed(EmbeddedError::Pool { attempt, source: error })));
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
