//! The content of a device of an embedded pool.

use std::sync::Arc;

use thinbak_engine::{EmbeddedError, EmbeddedPool, PoolError, VirtualBlock, Volume};
use thinbak_proto::Failed;

use crate::{
    pools::{failure::failed, pool::Content},
    volume::write_zeros,
};

/// A volume, a snapshot, or a private head.
pub(super) struct EmbeddedContent {
    pool: Arc<EmbeddedPool>,
    volume: Volume,
}

impl EmbeddedContent {
    pub(super) fn new(pool: Arc<EmbeddedPool>, volume: Volume) -> Self {
        Self { pool, volume }
    }

    /// Fills the blocks at the ends of a write with zeros, if it is about to map them and does not cover them. Beyond the
    /// end of the volume too: what is there comes back when it grows.
    fn zero_around(&self, offset: u64, len: u64) -> Result<(), Failed> {
        let (block, end) = (self.pool.pool().block_size().bytes(), offset.saturating_add(len));
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
                    failed(EmbeddedError::Pool { attempt, source })
                },
            )?;
        }
        Ok(())
    }
}

impl Content for EmbeddedContent {
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failed> {
        self.pool.read(&self.volume, offset, buf).map_err(failed)
    }

    /// Also in a pool that does not zero new blocks.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Failed> {
        if self.pool.table().features.skip_block_zeroing {
            self.zero_around(offset, data.len() as u64)?;
        }
        self.pool.write(&self.volume, offset, data).map_err(failed)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Failed> {
        let attempt = "the range could not be discarded";
        let discarded = self.pool.pool().discard(self.volume.device, offset, len);
        discarded.map_err(|source| failed(EmbeddedError::Pool { attempt, source }))
    }

    /// Not over an external origin, which it would reveal, and not in a pool that ignores discards.
    fn can_unmap(&self) -> bool {
        self.volume.origin.is_none() && !self.pool.table().features.ignore_discard
    }

    fn mapped_runs(&self, from: u64, to: u64, limit: usize) -> Result<Vec<(u64, u64)>, Failed> {
        let (from, to) = (VirtualBlock(from), VirtualBlock(to));
        let runs = self.pool.pool().mapped_runs(self.volume.device, from, to, limit).map_err(unreadable)?;
        Ok(runs.iter().map(|run| (run.begin.0, run.length)).collect())
    }

    fn flush(&self) -> Result<(), Failed> {
        self.pool.flush().map_err(failed)
    }
}

fn unreadable(source: PoolError) -> Failed {
    failed(EmbeddedError::Pool { attempt: "the volume's mappings could not be read", source })
}
