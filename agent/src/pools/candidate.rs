//! Private snapshots that go when nobody wants them any more.

use std::sync::Arc;

use thinbak_engine::{Base, Volume};
use thinbak_proto::Failed;

use super::ThinPool;

/// A private snapshot, removed when this is dropped unless it has become the base: also when the job that
/// it was taken for has ended before it could be handed over.
pub(crate) struct Candidate {
    pool: Arc<dyn ThinPool>,
    volume: Volume,
    kept: bool,
}

impl Candidate {
    /// Takes care of a candidate that was just taken.
    pub(crate) fn new(pool: Arc<dyn ThinPool>, volume: Volume) -> Self {
        Self { pool, volume, kept: false }
    }

    /// The device in the pool.
    pub(crate) fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Makes it the base of the volume's next backup. Blocking.
    pub(crate) fn keep(mut self, base: Base) -> Result<(), Failed> {
        self.pool.keep_base(&self.volume, base)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // A failure is only logged: the next open of the pool removes what is left over.
        if let Err(error) = self.pool.drop_transient(&self.volume) {
            let device = self.volume.device;
            tracing::warn!(%device, %error, "a private snapshot is left until the pool is opened again");
        }
    }
}
