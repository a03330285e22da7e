//! The metadata of the job's pools, once a day: after `after`, so that nobody waits for it paused.

use thinbak_proto::{Failed, v1::BackupJobRequest};

use super::Run;

impl Run<'_> {
    /// Where that fails, the log says so now and the summaries of the next backup do.
    pub(super) async fn store_metadata(&self) {
        if let Err(failed) = self.ask_for_metadata().await {
            tracing::warn!(job = self.job().name, error = %failed, "the metadata of pools were not stored");
        }
    }

    async fn ask_for_metadata(&self) -> Result<(), Failed> {
        let request = BackupJobRequest {
            repository: Some(self.address.clone()),
            host: self.job().host.clone().unwrap_or_default(),
            metadata_pools: self.pools.clone(),
            ..BackupJobRequest::default()
        };
        let mut events = self.keeper.jobs().backup(request).await?.into_inner();
        let (keeper, told) = (self.keeper, self.told.clone());
        let end = Self::to_end(keeper, told.as_ref());
        tokio::pin!(end);
        loop {
            tokio::select! {
                event = events.message() => if event?.is_none() {
                    return Ok(());
                },
                () = &mut end => return Ok(()),
            }
        }
    }
}
