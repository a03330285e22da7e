//! Discards.

use crate::format::{DeviceId, VirtualBlock};

use super::traffic::Purpose;
use super::{Pool, PoolError, Result};

/// Mappings that one step of a discard removes, so that others need not wait long.
const STEP_MAPPINGS: u64 = 4096;

impl Pool {
    /// Unmaps the blocks that lie in the range as a whole, in the open transaction; parts of blocks are left alone. Space of data
    /// blocks that nothing maps any more is given back after the next commit, unless the table says that discards are not
    /// passed down.
    ///
    /// Where the kernel lets a discard of a read-only pool succeed and do nothing, this is an error.
    ///
    /// # Errors
    /// [`PoolError::NoSuchDevice`], [`PoolError::DiscardsIgnored`], [`PoolError::ReadOnlyMode`], damaged metadata.
    pub fn discard(&self, id: DeviceId, offset: u64, len: u64) -> Result<()> {
        let bytes = self.block_size.bytes();
        let end = offset.checked_add(len).ok_or(PoolError::OutOfRange { offset, length: len })? / bytes;
        let first = offset.div_ceil(bytes);
        self.device(id)?.ok_or(PoolError::NoSuchDevice(id))?;
        if self.table().features.ignore_discard {
            return Err(PoolError::DiscardsIgnored);
        }
        let Some(last) = end.checked_sub(1).filter(|last| *last >= first) else { return Ok(()) };
        let _passage = self.traffic.enter(id, first..=last, Purpose::Exclusive);
        let (mut first, last) = (VirtualBlock(first), VirtualBlock(last));
        if self.mapped_runs(id, first, VirtualBlock(end), 1)?.is_empty() {
            return Ok(());
        }
        loop {
            let next = self.change(|state| {
                state.check_present(id)?;
                state.freeing(|metadata| metadata.remove_mappings(id, first, last, STEP_MAPPINGS))
            })?;
            self.commit_large()?;
            match next {
                Some(next) => first = next,
                None => return Ok(()),
            }
        }
    }
}
