//! `thinbak backup`.

use thinbak_proto::v1::{BackupJobRequest, PoolVolume};

use super::{Context, args::Backup, jobs, stop::Stop};
use crate::client::connect_agent;

pub(super) async fn run(context: &Context, backup: Backup) -> Result<(), Stop> {
    let volumes =
        backup.volumes.into_iter().map(|named| PoolVolume { pool: named.pool, volume: named.volume });
    let request = BackupJobRequest {
        volumes: volumes.collect(),
        repository: Some(context.settings.repository()?),
        group: backup.group,
        adopt: backup.adopt,
        writers_paused: false,
        metadata_pools: Vec::new(),
        host: backup.host.unwrap_or_else(super::host_name),
        read_bytes_per_second: backup.read_rate.unwrap_or_default(),
        sent_bytes_per_second: backup.bandwidth.unwrap_or_default(),
    };
    let agent = connect_agent(&context.settings).await?;
    let outcome = match agent.jobs().backup(request).await {
        Ok(events) => jobs::follow(context, "backup", events.into_inner()).await,
        Err(status) => Err(status.into()),
    };
    agent.close().await;
    outcome
}
