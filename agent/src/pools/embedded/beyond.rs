//! What a private head has beyond its end.

use thinbak_engine::{EmbeddedPool, PoolError, VirtualBlock, Volume};

use crate::volume::write_zeros;

/// Unmaps what a head has beyond its end from the device that it is a snapshot of, or from a longer generation before;
/// zeroes it where discards are ignored.
pub(super) fn cut_back(pool: &EmbeddedPool, head: &Volume) -> Result<(), PoolError> {
    let (engine, size) = (pool.pool(), head.size_bytes);
    let zero = |at, zeros: &[u8]| engine.write(head.device, at, zeros);
    let block = engine.block_size().bytes();
    let (cut, mut whole) = (size / block * block, size.next_multiple_of(block));
    if size < whole {
        let (first, end) = (VirtualBlock(cut / block), VirtualBlock(whole / block));
        // A block that is zero behind the end already stays shared with who else has it.
        if !engine.mapped_runs(head.device, first, end, 1)?.is_empty() && !is_zero(pool, head, size, whole)? {
            if is_zero(pool, head, cut, size)? {
                whole = cut;
            } else {
                write_zeros(size, whole, zero)?;
            }
        }
    }
    if !engine.table().features.ignore_discard {
        return engine.discard(head.device, whole, u64::MAX / 2);
    }
    let mut next = VirtualBlock(whole / block);
    while let Some(run) = engine.mapped_runs(head.device, next, VirtualBlock(u64::MAX), 1)?.first().copied() {
        next = VirtualBlock(run.begin.0 + run.length);
        write_zeros(run.begin.0 * block, next.0 * block, zero)?;
    }
    Ok(())
}

fn is_zero(pool: &EmbeddedPool, head: &Volume, from: u64, to: u64) -> Result<bool, PoolError> {
    let mut buffer = vec![0; 64 * 1024];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..len).unwrap_or_default();
        pool.pool().read(head.device, at, part)?;
        if part.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += len as u64;
    }
    Ok(true)
}
