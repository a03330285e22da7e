//! What is told of a volume that was backed up.

use std::time::{Duration, Instant};

use thinbak_engine::Point;
use thinbak_proto::v1::{Generation, JobSummary};

use crate::jobs::plan::Due;

/// What was spent for all volumes of the pool together.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    /// Finding out what changed.
    pub(super) found: Duration,
    /// Holding metadata snapshots.
    pub(super) held: Duration,
}

/// What is told of a volume; the caller adds what it moved.
pub(super) fn summary_of(
    due: &Due,
    point: &Point,
    generation: &Generation,
    timing: Timing,
    started: Instant,
) -> JobSummary {
    JobSummary {
        volume: due.name.clone(),
        generation: generation.number,
        volume_bytes: point.size_bytes,
        mapped_bytes: point.mapped_blocks.saturating_mul(point.block_bytes),
        stored_bytes: generation.stored_bytes,
        msnap_held_seconds: timing.held.as_secs_f64(),
        seconds: (timing.found + started.elapsed()).as_secs_f64(),
        ..JobSummary::default()
    }
}
