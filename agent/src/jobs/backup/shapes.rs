//! What the pools of a backup look like.

use super::{Backup, PoolDues};
use crate::shape;

impl Backup<'_> {
    /// Stores what the pools look like. Where that cannot be, the volumes are backed up all the same, and it is told.
    pub(super) async fn store_shapes(&self, pools: &[PoolDues]) {
        for PoolDues { pool, .. } in pools {
            if let Err(failed) = shape::store(self.connection, &self.host, pool).await {
                let note = format!("what pool {} looks like was not stored: {failed}", pool.name());
                tracing::warn!(pool = pool.name(), error = %failed, "what the pool looks like was not stored");
                self.notes.lock().push(note);
            }
        }
    }
}
