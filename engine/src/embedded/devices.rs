//! The thin pool as the registry sees it.

use crate::pool::{Operation, Pool, PoolError, PoolMode};
use crate::registry::Devices;

impl Devices for Pool {
    fn transaction_id(&self) -> u64 {
        self.transaction_id()
    }

    fn check_writable(&self) -> Result<(), PoolError> {
        let status = self.status();
        match status.mode {
            PoolMode::Write | PoolMode::OutOfDataSpace | PoolMode::OutOfMetadataSpace => Ok(()),
            PoolMode::ReadOnly => Err(PoolError::ReadOnlyMode { needs_check: status.needs_check }),
            PoolMode::Fail => Err(PoolError::Failed),
        }
    }

    fn apply(&self, operations: &[Operation]) -> Result<(), PoolError> {
        self.apply(operations)
    }
}
