//! `thinbak msnap`, `dump` and `delta`.

use std::io::Write as _;

use thinbak_proto::v1::{
    DeltaRequest, DumpRequest, MetadataSource, MsnapInfo, PoolRequest, ReleaseMsnapRequest, TextChunk,
    TextFormat, metadata_source::Source,
};
use tonic::Streaming;

use super::{
    Context,
    args::{Delta, Dump, Msnap},
    grammar::MetadataArg,
    stop::Stop,
};
use crate::{
    client::{AgentChannel, agent_in_process, connect_agent},
    output::json,
};

pub(super) async fn msnap(context: &Context, command: Msnap) -> Result<(), Stop> {
    let agent = connect_agent(&context.settings).await?;
    let mut pools = agent.pools();
    let answer = match command {
        Msnap::Reserve { pool } => pools.reserve_msnap(PoolRequest { pool }).await,
        Msnap::Release { pool, force } => pools.release_msnap(ReleaseMsnapRequest { pool, force }).await,
        Msnap::Show { pool } => pools.show_msnap(PoolRequest { pool }).await,
    };
    drop(pools);
    agent.close().await;
    show(context, &answer?.into_inner())
}

fn show(context: &Context, msnap: &MsnapInfo) -> Result<(), Stop> {
    if context.output.is_json() {
        return Ok(context.output.document(&json::msnap(msnap))?);
    }
    if msnap.held_root == 0 {
        return Ok(context.output.line(&format!("{}: no metadata snapshot", msnap.pool))?);
    }
    Ok(context.output.line(&format!(
        "{}: metadata snapshot at block {}, transaction id {}, time {}, {} devices, reserved by {}",
        msnap.pool,
        msnap.held_root,
        msnap.transaction_id,
        msnap.time,
        msnap.devices,
        if msnap.ours { "thinbak" } else { "somebody else" },
    ))?)
}

pub(super) async fn dump(context: &Context, dump: Dump) -> Result<(), Stop> {
    let (agent, source) = open(context, dump.source, dump.metadata_snap).await?;
    let request =
        DumpRequest { source: Some(source), device_id: dump.dev_id, format: format(context).into() };
    let outcome = match agent.pools().dump(request).await {
        Ok(text) => print(text.into_inner()).await,
        Err(status) => Err(status.into()),
    };
    agent.close().await;
    outcome
}

pub(super) async fn delta(context: &Context, delta: Delta) -> Result<(), Stop> {
    let (agent, source) = open(context, delta.source, delta.metadata_snap).await?;
    let request = DeltaRequest {
        source: Some(source),
        from: delta.from,
        to: delta.to,
        verbose: delta.blocks,
        format: format(context).into(),
        changes_only: delta.changes,
    };
    let outcome = match agent.pools().delta(request).await {
        Ok(text) => print(text.into_inner()).await,
        Err(status) => Err(status.into()),
    };
    agent.close().await;
    outcome
}

/// A file is read by this process, with its own rights.
async fn open(
    context: &Context,
    source: MetadataArg,
    metadata_snap: bool,
) -> Result<(AgentChannel, MetadataSource), Stop> {
    let (agent, source) = match source {
        MetadataArg::Pool(pool) => (connect_agent(&context.settings).await?, Source::Pool(pool)),
        MetadataArg::Path(path) => (agent_in_process(&context.settings), Source::MetadataPath(path)),
    };
    Ok((agent, MetadataSource { source: Some(source), metadata_snap }))
}

fn format(context: &Context) -> TextFormat {
    if context.output.is_json() { TextFormat::Json } else { TextFormat::Xml }
}

async fn print(mut chunks: Streaming<TextChunk>) -> Result<(), Stop> {
    let mut out = std::io::stdout();
    while let Some(chunk) = chunks.message().await? {
        out.write_all(&chunk.text)?;
    }
    Ok(out.flush()?)
}
