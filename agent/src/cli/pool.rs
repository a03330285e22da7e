//! `thinbak pool`.

use thinbak_proto::v1::{
    CheckPoolRequest, CreatePoolRequest, ListPoolsRequest, PoolDiscards, PoolInfo, PoolMessageRequest,
    PoolRequest, PoolSettings, ResizePoolRequest, SetPoolRequest, check_pool_request::Source,
    pools_client::PoolsClient,
};

use super::{
    Context,
    args::{Discards, Permission, Pool, PoolCreate, PoolFeatures, YesNo},
    grammar::MetadataArg,
    rebuild, shape,
    stop::{DAMAGED, Stop},
};
use crate::{
    channel::BoxedChannel,
    client::{agent_in_process, connect_agent},
    output::{Column, human, json},
};

type Client = PoolsClient<BoxedChannel>;

pub(super) async fn run(context: &Context, command: Pool) -> Result<(), Stop> {
    let agent = match &command {
        // A file is read by this process, with its own rights.
        Pool::Check { source: MetadataArg::Path(_) } => agent_in_process(&context.settings),
        _ => connect_agent(&context.settings).await?,
    };
    let outcome = call(context, agent.pools(), command).await;
    agent.close().await;
    outcome
}

async fn call(context: &Context, mut pools: Client, command: Pool) -> Result<(), Stop> {
    let output = context.output;
    match command {
        Pool::Create(create) => {
            let made = pools.create_pool(create_request(create)).await?.into_inner();
            show(context, &made)
        }
        Pool::List => list(context, pools).await,
        Pool::Shape { pool, volume_group } => shape::run(context, &pool, volume_group).await,
        Pool::Rebuild(rebuild) => rebuild::run(context, rebuild).await,
        Pool::Status { pool } => {
            let info = pools.pool_status(PoolRequest { pool }).await?.into_inner();
            show(context, &info)
        }
        Pool::Check { source } => check(context, pools, source).await,
        Pool::Resize { pool, size, metadata_size } => {
            let request = ResizePoolRequest {
                pool,
                size_bytes: size.unwrap_or_default(),
                metadata_bytes: metadata_size.unwrap_or_default(),
            };
            let info = pools.resize_pool(request).await?.into_inner();
            show(context, &info)
        }
        Pool::Set(set) => {
            let read_only = set.permission.map(|permission| permission == Permission::R);
            let settings = PoolSettings { read_only, ..settings(&set.features) };
            let request = SetPoolRequest { pool: set.pool, settings: Some(settings) };
            let info = pools.set_pool(request).await?.into_inner();
            show(context, &info)
        }
        Pool::Remove { pool } => {
            pools.remove_pool(PoolRequest { pool: pool.clone() }).await?;
            if output.is_json() {
                return Ok(output.document(&serde_json::json!({ "removed": pool }))?);
            }
            output.note(&format!("pool {pool} is removed"));
            Ok(())
        }
        Pool::Message { pool, words } => {
            pools.message(PoolMessageRequest { pool: pool.clone(), words: words.clone() }).await?;
            if output.is_json() {
                let document = serde_json::json!({ "pool": pool, "message": words.join(" ") });
                return Ok(output.document(&document)?);
            }
            Ok(())
        }
    }
}

fn create_request(create: PoolCreate) -> CreatePoolRequest {
    CreatePoolRequest {
        pool: create.pool,
        size_bytes: create.size.unwrap_or_default(),
        block_bytes: create.block_size,
        metadata_bytes: create.metadata_size.unwrap_or_default(),
        dir: create.dir.unwrap_or_default(),
        data_device: create.data.unwrap_or_default(),
        metadata_device: create.metadata.unwrap_or_default(),
        settings: Some(settings(&create.features)),
    }
}

/// What was given of them.
fn settings(features: &PoolFeatures) -> PoolSettings {
    let is_yes = |answer: YesNo| answer == YesNo::Y;
    PoolSettings {
        zero: features.zero.map(is_yes),
        discards: features.discards.map(|discards| {
            let discards = match discards {
                Discards::Passdown => PoolDiscards::Passdown,
                Discards::Nopassdown => PoolDiscards::Nopassdown,
                Discards::Ignore => PoolDiscards::Ignore,
            };
            discards.into()
        }),
        error_when_full: features.errorwhenfull.map(is_yes),
        low_water_bytes: features.low_water,
        no_space_timeout_seconds: features.no_space_timeout,
        read_only: None,
    }
}

async fn list(context: &Context, mut pools: Client) -> Result<(), Stop> {
    let listed = pools.list_pools(ListPoolsRequest {}).await?.into_inner().pools;
    if context.output.is_json() {
        let listed: Vec<_> = listed.iter().map(json::pool).collect();
        return Ok(context.output.document(&serde_json::json!({ "pools": listed }))?);
    }
    let columns = [
        Column::Left("POOL"),
        Column::Left("MODE"),
        Column::Right("SIZE"),
        Column::Right("USED"),
        Column::Right("VOLUMES"),
        Column::Right("SNAPSHOTS"),
        Column::Left("PLACE"),
    ];
    let rows = listed.iter().map(|pool| {
        let place = format!("{}:{}", pool.kind, pool.place);
        if !pool.error.is_empty() {
            let nothing = String::new;
            return vec![
                pool.name.clone(),
                "?".to_owned(),
                nothing(),
                nothing(),
                nothing(),
                nothing(),
                place,
            ];
        }
        vec![
            pool.name.clone(),
            pool.mode.clone(),
            human::bytes(pool.data_total_blocks.saturating_mul(pool.block_bytes)),
            human::bytes(pool.data_used_blocks.saturating_mul(pool.block_bytes)),
            pool.volumes.to_string(),
            pool.snapshots.to_string(),
            place,
        ]
    });
    context.output.table(&columns, rows.collect())?;
    for pool in listed.iter().filter(|pool| !pool.error.is_empty()) {
        context.output.warning(&pool.error);
    }
    Ok(())
}

fn show(context: &Context, pool: &PoolInfo) -> Result<(), Stop> {
    for warning in &pool.warnings {
        context.output.warning(&format!("pool {}: {warning}", pool.name));
    }
    if context.output.is_json() {
        return Ok(context.output.document(&json::pool(pool))?);
    }
    let held = match pool.held_root {
        0 => "none".to_owned(),
        root => format!("held, at metadata block {root}"),
    };
    let settings = pool.settings.unwrap_or_default();
    let timeout = match settings.no_space_timeout_seconds() {
        0 => "without limit".to_owned(),
        seconds => format!("for {seconds} s"),
    };
    let when_full = match settings.error_when_full() {
        true => "fail".to_owned(),
        false => format!("are queued {timeout}"),
    };
    let yes_no = |yes| if yes { "yes" } else { "no" };
    for (name, value) in [
        ("pool", pool.name.clone()),
        ("place", format!("{}:{}", pool.kind, pool.place)),
        ("uuid", pool.uuid.clone()),
        ("mode", pool.mode.clone()),
        ("block size", human::bytes(pool.block_bytes)),
        ("data blocks", human::used(pool.data_used_blocks, pool.data_total_blocks)),
        ("metadata blocks", human::used(pool.metadata_used_blocks, pool.metadata_total_blocks)),
        ("transaction id", pool.transaction_id.to_string()),
        ("metadata snapshot", held),
        ("volumes", pool.volumes.to_string()),
        ("snapshots", pool.snapshots.to_string()),
        ("zeroing", yes_no(settings.zero()).to_owned()),
        ("discards", json::discards_name(settings.discards()).to_owned()),
        ("writes when full", when_full),
        ("permission", if settings.read_only() { "r" } else { "rw" }.to_owned()),
        ("low water mark", human::bytes(settings.low_water_bytes())),
        ("events", pool.events.to_string()),
        ("status", pool.status_line.clone()),
        ("table", pool.table_line.clone()),
    ] {
        context.output.line(&format!("{:<18} {value}", format!("{name}:")))?;
    }
    Ok(())
}

async fn check(context: &Context, mut pools: Client, source: MetadataArg) -> Result<(), Stop> {
    let (MetadataArg::Pool(pool) | MetadataArg::Path(pool)) = source.clone();
    let source = match source {
        MetadataArg::Pool(pool) => Source::Pool(pool),
        MetadataArg::Path(path) => Source::MetadataPath(path),
    };
    let report = pools.check_pool(CheckPoolRequest { source: Some(source) }).await?.into_inner();
    if context.output.is_json() {
        context.output.document(&json::check(&pool, &report))?;
    } else {
        for damage in &report.damage {
            let weight = if damage.fatal { "damage" } else { "minor" };
            context.output.line(&format!("{weight}: {}: {}", damage.invariant, damage.description))?;
        }
        let verdict = match report.damage.len() {
            0 => "no damage".to_owned(),
            1 => "1 thing is wrong".to_owned(),
            count => format!("{count} things are wrong"),
        };
        context.output.line(&format!(
            "{pool}: {verdict}; {} devices, {} mappings, {} metadata blocks checked",
            report.devices, report.mappings, report.metadata_blocks_checked
        ))?;
    }
    if report.damage.is_empty() { Ok(()) } else { Err(Stop::Exit(DAMAGED)) }
}
