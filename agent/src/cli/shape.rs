//! `thinbak pool shape`: what a pool looked like when it was backed up.

use thinbak_proto::v1::{GenerationSelector, generation_selector::Which};

use super::{Context, grammar::VolumeOrGeneration, stop::Stop};
use crate::{
    output::{Column, human},
    repository_client,
    shape::{self, Shape, VolumeShape},
};

/// The shape that is meant where none is named.
pub(super) fn selector(named: &VolumeOrGeneration) -> GenerationSelector {
    GenerationSelector { which: Some(named.which.unwrap_or(Which::Latest(true))) }
}

pub(super) async fn run(context: &Context, pool: &VolumeOrGeneration, group: bool) -> Result<(), Stop> {
    let connection = repository_client::connect(&context.settings.repository()?).await?;
    let fetched = shape::fetch(&connection, &pool.volume, super::host_name(), selector(pool)).await;
    connection.close().await;
    let (shape, generation) = fetched?;
    if group {
        return Ok(context.output.line(shape.volume_group.trim_end())?);
    }
    if context.output.is_json() {
        let document = serde_json::json!({
            "generation": generation.number,
            "created_at_ms": generation.created_at_ms,
            "shape": shape,
        });
        return Ok(context.output.document(&document)?);
    }
    show(context, &shape, generation.created_at_ms)
}

fn show(context: &Context, shape: &Shape, stored_ms: u64) -> Result<(), Stop> {
    let pool = &shape.pool;
    for (name, value) in [
        ("pool", format!("{}/{}", shape.host, pool.name)),
        ("place", format!("{}:{}", pool.kind, pool.place)),
        ("stored", human::time(stored_ms)),
        ("uuid", pool.uuid.to_string()),
        ("block size", human::bytes(pool.block_bytes)),
        ("data", human::bytes(pool.data_bytes)),
        ("metadata", human::bytes(pool.metadata_bytes)),
    ] {
        context.output.line(&format!("{:<12} {value}", format!("{name}:")))?;
    }
    let columns = [
        Column::Left("VOLUME"),
        Column::Right("DEVICE"),
        Column::Right("SIZE"),
        Column::Left("CREATED"),
        Column::Left("IS"),
    ];
    let rows = shape.volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            volume.device.to_string(),
            human::bytes(volume.size_bytes),
            human::time(volume.created_at_ms),
            words(volume),
        ]
    });
    Ok(context.output.table(&columns, rows.collect())?)
}

/// What is particular about a volume.
fn words(volume: &VolumeShape) -> String {
    let mut words = Vec::new();
    if volume.read_only {
        words.push("read-only".to_owned());
    }
    if let Some(of) = &volume.snapshot_of {
        words.push(format!("snapshot of {of}"));
    }
    if let Some(origin) = &volume.external_origin {
        words.push(format!("over {origin}"));
    }
    words.join(", ")
}
