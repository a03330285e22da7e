//! `thinbak pool rebuild`: a pool that is gone is made anew, and its volumes are restored.
//!
//! The plan is made from the shape that the last backup stored and the generations that the repository has; no mapping of the
//! former pool is used. What is written is new volumes, each visible when it is whole: so a run that ended in the middle is
//! gone on with by `--resume`, which leaves alone what is there.

mod plan;

use std::collections::HashSet;

use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        CreatePoolRequest, GenerationSelector, PoolInfo, PoolRequest, PoolVolume, RepositoryAddress,
        RestoreJobRequest, VolumeInfo, VolumeName, generation_selector::Which, restore_job_request::Target,
    },
};

use self::plan::{Part, Plan};
use super::{
    Context,
    args::PoolRebuild,
    jobs,
    stop::{PARTIAL, Stop},
};
use crate::{
    client::{AgentChannel, connect_agent},
    repository_client,
};

pub(super) async fn run(context: &Context, rebuild: PoolRebuild) -> Result<(), Stop> {
    if rebuild.to.starts_with("lvm:") && rebuild.generations != 1 {
        let message = "several generations of a volume cannot be restored to a pool of LVM";
        return Err(Failed::new(FailureKind::Usage, message).with_hint("leave --generations out").into());
    }
    let repository = context.settings.repository()?;
    let connection = repository_client::connect(&repository).await?;
    let planned = Plan::make(&connection, &rebuild).await;
    connection.close().await;
    let plan = planned?;
    plan.show(context)?;
    if rebuild.dry_run {
        return Ok(());
    }
    let agent = connect_agent(&context.settings).await?;
    let outcome = carry_out(context, &agent, &repository, &plan, &rebuild).await;
    agent.close().await;
    outcome
}

async fn carry_out(
    context: &Context,
    agent: &AgentChannel,
    repository: &RepositoryAddress,
    plan: &Plan,
    rebuild: &PoolRebuild,
) -> Result<(), Stop> {
    let (info, is_new) = target(context, agent, plan, &rebuild.to).await?;
    let present = match is_new {
        true => HashSet::new(),
        false => present(agent, plan, rebuild).await?,
    };
    let missing: Vec<&Part> = plan
        .in_order()
        .into_iter()
        .filter(|part| !part.generations.is_empty() && !present.contains(&part.volume.name))
        .collect();
    check_room(&info, plan, &missing)?;
    let mut there = present.clone();
    let mut failed = 0_usize;
    for part in &missing {
        let like = plan.relative(part).filter(|like| there.contains(*like));
        let mut outcome = restore(context, agent, repository, part, &rebuild.to, like).await;
        if let (Some(like), Err(Stop::Failed(why))) = (like, &outcome)
            && why.kind == FailureKind::Refused
        {
            context.output.note(&format!("{} shares nothing with {like}: {}", part.volume.name, why.message));
            outcome = restore(context, agent, repository, part, &rebuild.to, None).await;
        }
        match outcome {
            Ok(()) => {
                there.insert(part.volume.name.clone());
            }
            Err(stop @ (Stop::PipeClosed | Stop::Exit(_))) => return Err(stop),
            Err(Stop::Failed(why)) => {
                let message = format!("restore {}: {}", part.volume.name, why.message);
                context.output.failure(&Failed { message, ..why });
                failed += 1;
            }
        }
    }
    let lost = plan.parts.iter().filter(|part| part.generations.is_empty()).count();
    context.output.note(&format!(
        "pool {}: {} restored, {} there before, {lost} not in the repository, {failed} failed",
        rebuild.to,
        missing.len() - failed,
        present.len(),
    ));
    if lost + failed > 0 { Err(Stop::Exit(PARTIAL)) } else { Ok(()) }
}

/// The pool to restore to, and whether it was made for it.
async fn target(
    context: &Context,
    agent: &AgentChannel,
    plan: &Plan,
    to: &str,
) -> Result<(PoolInfo, bool), Stop> {
    let was = &plan.shape.pool;
    match agent.pools().pool_status(PoolRequest { pool: to.to_owned() }).await.map_err(Failed::from) {
        Ok(info) => {
            let info = info.into_inner();
            if info.block_bytes != was.block_bytes {
                let (is, was) = (info.block_bytes, was.block_bytes);
                context
                    .output
                    .warning(&format!("pool {to} has blocks of {is} bytes; those of the former had {was}"));
            }
            Ok((info, false))
        }
        Err(failed) if failed.kind == FailureKind::NotFound && !is_of_kernel(to) => {
            let request = CreatePoolRequest {
                pool: to.to_owned(),
                size_bytes: was.data_bytes,
                block_bytes: was.block_bytes,
                settings: Some(was.settings()),
                ..CreatePoolRequest::default()
            };
            let made = agent.pools().create_pool(request).await?.into_inner();
            context.output.note(&format!("pool {to} is made"));
            Ok((made, true))
        }
        Err(failed) if failed.kind == FailureKind::NotFound => {
            Err(failed.with_hint(format!("make it first: {}", plan::command(was, to))).into())
        }
        Err(failed) => Err(failed.into()),
    }
}

fn is_of_kernel(pool: &str) -> bool {
    pool.starts_with("dm:") || pool.starts_with("lvm:")
}

/// Which of the volumes are there already. Others must not be.
async fn present(agent: &AgentChannel, plan: &Plan, rebuild: &PoolRebuild) -> Result<HashSet<String>, Stop> {
    let to = &rebuild.to;
    let request = PoolRequest { pool: to.clone() };
    let volumes = agent.pools().list_pool_volumes(request).await?.into_inner().volumes;
    let refused =
        |message: String, hint: &str| Stop::from(Failed::new(FailureKind::Refused, message).with_hint(hint));
    if !volumes.is_empty() && !rebuild.resume {
        let message = format!("pool {to} is not empty: it has {} volumes and snapshots", volumes.len());
        let hint = "name a new one, or go on with a rebuild that ended in the middle: --resume";
        return Err(refused(message, hint));
    }
    let part_of = |there: &VolumeInfo| plan.parts.iter().find(|part| part.volume.name == there.name);
    let mut present = HashSet::new();
    for there in volumes.iter().filter(|there| !there.name.contains('@')) {
        let size = part_of(there).and_then(|part| part.generations.last()).map(|last| last.size_bytes);
        match size {
            // LVM rounds up to whole extents.
            Some(size) if there.size_bytes >= size => present.insert(there.name.clone()),
            _ => {
                let message =
                    format!("pool {to} has a volume {} that no rebuild of this pool makes", there.name);
                return Err(refused(message, "name a new pool, or remove or rename that volume"));
            }
        };
    }
    Ok(present)
}

/// Refuses to begin what has no room to end.
fn check_room(info: &PoolInfo, plan: &Plan, missing: &[&Part]) -> Result<(), Stop> {
    let free = info.data_total_blocks.saturating_sub(info.data_used_blocks).saturating_mul(info.block_bytes);
    // Of what shares blocks with another volume nobody knows how many.
    let whole = missing.iter().filter(|part| plan.relative(part).is_none());
    let needed = whole.map(|part| part.mapped_bytes()).fold(0, u64::saturating_add);
    if needed <= free {
        return Ok(());
    }
    let message =
        format!("pool {} has {free} bytes free; what is restored takes {needed} or more", info.name);
    Err(Failed::new(FailureKind::Refused, message).with_hint("make the pool larger").into())
}

/// The newest of the generations becomes the volume, the others its snapshots. It begins as a snapshot of `like`.
async fn restore(
    context: &Context,
    agent: &AgentChannel,
    repository: &RepositoryAddress,
    part: &Part,
    to: &str,
    like: Option<&str>,
) -> Result<(), Stop> {
    let selectors = part
        .generations
        .iter()
        .map(|generation| GenerationSelector { which: Some(Which::Number(generation.number)) });
    let request = RestoreJobRequest {
        repository: Some(repository.clone()),
        volume: Some(VolumeName { name: part.server_name.clone(), host: String::new() }),
        selectors: selectors.collect(),
        ranges: Vec::new(),
        target: Some(Target::NewVolume(PoolVolume { pool: to.to_owned(), volume: part.volume.name.clone() })),
        like: like.unwrap_or_default().to_owned(),
    };
    let events = agent.jobs().restore(request).await?.into_inner();
    jobs::follow(context, "restore", events).await
}
