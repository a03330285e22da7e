//! `thinbak volume`.

use thinbak_proto::v1::{
    CreateVolumeRequest, PoolRequest, RemoveVolumeRequest, ResizeVolumeRequest, SnapshotName,
    SnapshotVolumesRequest, VolumeInfo, pools_client::PoolsClient,
};

use super::{Context, args::Volume, grammar::VolumeArg, stop::Stop, transfer};
use crate::{
    channel::BoxedChannel,
    client::connect_agent,
    output::{Column, human, json},
};

pub(super) async fn run(context: &Context, command: Volume) -> Result<(), Stop> {
    let agent = connect_agent(&context.settings).await?;
    let outcome = call(context, agent.pools(), command).await;
    agent.close().await;
    outcome
}

async fn call(context: &Context, mut pools: PoolsClient<BoxedChannel>, command: Volume) -> Result<(), Stop> {
    match command {
        Volume::Create { volume: VolumeArg { pool, volume, .. }, size, external_origin } => {
            let external_origin = external_origin.unwrap_or_default();
            let request =
                CreateVolumeRequest { pool: pool.clone(), volume, size_bytes: size, external_origin };
            let made = pools.create_volume(request).await?.into_inner();
            tell(context, &pool, "is made", &[made])
        }
        Volume::Snapshot { snapshots } => {
            let pool = snapshots.first().map(|first| first.pool.clone()).unwrap_or_default();
            let snapshots = snapshots.into_iter().map(|named| SnapshotName {
                pool: named.pool,
                volume: named.volume,
                snapshot: named.snapshot.unwrap_or_default(),
            });
            let request = SnapshotVolumesRequest { snapshots: snapshots.collect() };
            let taken = pools.snapshot_volumes(request).await?.into_inner().snapshots;
            tell(context, &pool, "is taken", &taken)
        }
        Volume::List { pool } => {
            let volumes = pools.list_pool_volumes(PoolRequest { pool }).await?.into_inner().volumes;
            list(context, &volumes)
        }
        Volume::Resize { volume: VolumeArg { pool, volume, .. }, size } => {
            let request = ResizeVolumeRequest { pool: pool.clone(), volume, size_bytes: size };
            let resized = pools.resize_volume(request).await?.into_inner();
            tell(context, &pool, &format!("has {} now", human::bytes(size)), &[resized])
        }
        Volume::Remove { volume: VolumeArg { pool, volume, snapshot } } => {
            let snapshot = snapshot.unwrap_or_default();
            let request = RemoveVolumeRequest { pool: pool.clone(), volume, snapshot };
            let removed = pools.remove_volume(request).await?.into_inner();
            tell(context, &pool, "is removed", &[removed])
        }
        Volume::Import { volume, size } => transfer::import(context, pools, volume, size).await,
        Volume::Export { volume } => transfer::export(context, pools, volume).await,
    }
}

/// Says what became of volumes: in JSON a document, else a line of each.
pub(super) fn tell(context: &Context, pool: &str, what: &str, volumes: &[VolumeInfo]) -> Result<(), Stop> {
    if context.output.is_json() {
        let document = match volumes {
            [volume] => json::volume(volume),
            volumes => serde_json::json!({ "volumes": volumes.iter().map(json::volume).collect::<Vec<_>>() }),
        };
        return Ok(context.output.document(&document)?);
    }
    for volume in volumes {
        context.output.note(&format!("{pool}/{} {what}", volume.name));
    }
    Ok(())
}

fn list(context: &Context, volumes: &[VolumeInfo]) -> Result<(), Stop> {
    if context.output.is_json() {
        let volumes: Vec<_> = volumes.iter().map(json::volume).collect();
        return Ok(context.output.document(&serde_json::json!({ "volumes": volumes }))?);
    }
    let columns = [
        Column::Left("VOLUME"),
        Column::Left("KIND"),
        Column::Right("SIZE"),
        Column::Right("MAPPED"),
        Column::Right("DEVICE"),
        Column::Left("CREATED"),
        Column::Left("EXTERNAL ORIGIN"),
    ];
    let has_origins = volumes.iter().any(|volume| volume.origin.is_some());
    let columns = columns.get(..if has_origins { 7 } else { 6 }).unwrap_or_default();
    let rows = volumes.iter().map(|volume| {
        let created = match volume.created_at_ms {
            0 => String::new(),
            ms => human::time(ms),
        };
        let mut row = vec![
            volume.name.clone(),
            json::kind_name(volume.kind()).to_owned(),
            human::bytes(volume.size_bytes),
            human::bytes(volume.mapped_bytes),
            volume.device_id.to_string(),
            created,
        ];
        if has_origins {
            row.push(volume.origin.as_ref().map(|origin| origin.path.clone()).unwrap_or_default());
        }
        row
    });
    Ok(context.output.table(columns, rows.collect())?)
}
