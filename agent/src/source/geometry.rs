//! The sizes of a generation, as far as they can be believed.

use thinbak_proto::{Failed, FailureKind, chunk_count, levels_for, v1::Generation};

use super::map_walk::MapRun;

/// What a repository may be made with.
const CHUNK_BYTES: std::ops::RangeInclusive<u32> = 4 << 10..=1 << 20;
/// 1 EiB, as servers and pools have it.
const MAX_VOLUME_BYTES: u64 = 1 << 60;
const SECTOR_BYTES: u64 = 512;
/// A run of at least this many chunks can be cut at a block of any target.
pub(super) const CUT_CHUNKS: u64 = 16 * 1024;

/// Sizes in bytes, checked: no sum or product of chunks of the volume overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) chunk: u64,
}

impl Geometry {
    /// That of a generation as a server describes it.
    pub(super) fn of(generation: &Generation) -> Result<Self, Failed> {
        let &Generation { size_bytes: size, chunk_bytes: chunk, levels, .. } = generation;
        let damaged = |what: String| {
            let name = format!("{}:{}", generation.volume_name, generation.number);
            Err(Failed::new(FailureKind::Damaged, format!("{name} is described as having {what}")))
        };
        if !CHUNK_BYTES.contains(&chunk) || !chunk.is_power_of_two() {
            return damaged(format!("chunks of {chunk} bytes"));
        }
        if size == 0 || size > MAX_VOLUME_BYTES || !size.is_multiple_of(SECTOR_BYTES) {
            return damaged(format!("{size} bytes"));
        }
        if levels != levels_for(chunk_count(size, chunk)) {
            return damaged(format!("a map of {levels} levels for {size} bytes"));
        }
        Ok(Self { size, chunk: chunk.into() })
    }

    /// Chunks of the volume, the last one possibly short.
    pub(super) fn chunks(self) -> u64 {
        self.size.div_ceil(self.chunk)
    }

    pub(super) fn offset(self, run: &MapRun) -> u64 {
        run.chunk.saturating_mul(self.chunk)
    }

    /// Bytes of the run, the last chunk of the volume possibly short.
    pub(super) fn len(self, run: &MapRun) -> u64 {
        let end = run.chunk.saturating_add(run.count).saturating_mul(self.chunk).min(self.size);
        end.saturating_sub(self.offset(run))
    }

    /// How many of at most `limit` chunks of a run to take, so that what is left begins with a block.
    pub(super) fn cut(self, run: &MapRun, limit: u64, block: u64) -> u64 {
        let limit = limit.min(run.count);
        // Chunks are powers of two: what a block has in common with them is too.
        let common = 1 << block.trailing_zeros().min(self.chunk.trailing_zeros());
        let unit = (block / common).max(1);
        let aligned = (run.chunk + limit) / unit * unit;
        match aligned.checked_sub(run.chunk) {
            Some(count) if count > 0 || limit < CUT_CHUNKS => count,
            _ => limit,
        }
    }
}
