//! What is stored of pools beside their volumes. Where that cannot be, the volumes are backed up all the same, and it is told.

use std::sync::Arc;

use thinbak_proto::METADATA_VOLUME;

use super::{super::events::blocking, Backup, PoolDues};
use crate::{
    shape::{self, Dumps},
    stream::Progress,
};

impl Backup<'_> {
    /// Stores what the pools look like.
    pub(super) async fn store_shapes(&self, pools: &[PoolDues]) {
        for PoolDues { pool, .. } in pools {
            self.notes.lock().extend(Dumps::new(self.manager, pool, self.repository).last_failure());
            if let Err(failed) = shape::store(self.connection, &self.host, pool).await {
                let note = format!("what pool {} looks like was not stored: {failed}", pool.name());
                tracing::warn!(pool = pool.name(), error = %failed, "what the pool looks like was not stored");
                self.notes.lock().push(note);
            }
        }
    }

    /// Stores the metadata of the pools that the request names for it, where it is time.
    pub(super) async fn store_metadata(&self) {
        for spec in &self.request.metadata_pools {
            let (manager, of) = (Arc::clone(self.manager), spec.clone());
            let stored = match blocking(move || manager.open(&of)).await {
                Ok(pool) => {
                    let label = format!("{}/{}/{METADATA_VOLUME}", self.host, pool.name());
                    let dump = Dumps::new(self.manager, &pool, self.repository);
                    let storing = dump.store(self.connection, &self.host);
                    self.events.during(&label, "metadata", &Progress::default(), storing).await
                }
                Err(failed) => Err(failed),
            };
            match stored {
                Ok(false) => {}
                Ok(true) => tracing::info!(pool = spec, "the metadata of the pool are stored"),
                Err(failed) => {
                    tracing::warn!(pool = spec, error = %failed, "the metadata of the pool were not stored");
                }
            }
        }
    }
}
