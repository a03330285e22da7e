//! Private heads of restores: made, cut back, given up.

use std::sync::Arc;

use thinbak_engine::{
    EmbeddedError, EmbeddedPool, PoolError, VirtualBlock, Volume, embedded::check_volume_name,
};
use thinbak_proto::{Failed, FailureKind};

use super::super::events::blocking;
use crate::{
    pools::{self, PoolManager},
    volume::write_zeros,
};

pub(super) async fn open(manager: &Arc<PoolManager>, spec: &str) -> Result<Arc<EmbeddedPool>, Failed> {
    let (manager, spec) = (Arc::clone(manager), spec.to_owned());
    blocking(move || manager.open(&spec)).await
}

/// Refuses a name that cannot be given, before anything is written.
pub(super) fn check_new_name(pool: &EmbeddedPool, name: &str) -> Result<(), Failed> {
    check_volume_name(name).map_err(|error| Failed::new(FailureKind::Usage, format!("{name}: {error}")))?;
    match pool.volume(name) {
        Err(EmbeddedError::NoSuchVolume { .. }) => Ok(()),
        Err(error) => Err(pools::failed(error)),
        Ok(_) => {
            let failed = Failed::new(FailureKind::Refused, format!("{}/{name} already exists", pool.name()));
            Err(failed.with_hint("restore to another name, or in place with --in-place"))
        }
    }
}

/// Unmaps what a head has beyond its end from the device that it is a snapshot of, or from a longer generation before;
/// zeroes it where discards are ignored. It would come back when the restored volume is grown.
pub(super) fn forget_beyond(pool: &EmbeddedPool, head: &Volume) -> Result<(), Failed> {
    cut_back(pool, head).map_err(|source| {
        pools::failed(EmbeddedError::Pool {
            attempt: "what lies beyond the end could not be unmapped",
            source,
        })
    })
}

fn cut_back(pool: &EmbeddedPool, head: &Volume) -> Result<(), PoolError> {
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

/// Removes a private device that is of no use any more. A failure is only logged: the next open of the pool removes it.
pub(super) fn give_up(pool: &EmbeddedPool, private: &Volume) {
    if let Err(error) = pool.drop_transient(private) {
        let device = private.device;
        tracing::warn!(%device, %error, "a private device is left until the pool is opened again");
    }
}
