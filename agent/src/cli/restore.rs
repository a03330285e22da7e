//! `thinbak restore`.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        GetGenerationRequest, PoolRequest, PoolVolume, RepositoryAddress, RestoreJobRequest, VolumeName,
        restore_job_request::Target,
    },
};

use super::{
    Context,
    args::{Restore, RestoreTarget},
    grammar::{GenerationArg, VolumeArg},
    jobs,
    stop::Stop,
};
use crate::{
    client::{AgentChannel, agent_in_process, connect_agent},
    repository_client,
};

pub(super) async fn run(context: &Context, restore: Restore) -> Result<(), Stop> {
    let repository = context.settings.repository()?;
    // A file is written by this process, with its own rights.
    let agent = match &restore.target.to_file {
        Some(_) => agent_in_process(&context.settings),
        None => connect_agent(&context.settings).await?,
    };
    let outcome = start(context, &agent, repository, restore).await;
    agent.close().await;
    outcome
}

async fn start(
    context: &Context,
    agent: &AgentChannel,
    repository: RepositoryAddress,
    restore: Restore,
) -> Result<(), Stop> {
    let target = match restore.target {
        RestoreTarget { to: Some(volume), .. } => Target::NewVolume(pool_volume(volume)),
        RestoreTarget { to_file: Some(path), .. } => Target::File(path),
        RestoreTarget { in_place: Some(Some(volume)), .. } => Target::InPlace(pool_volume(volume)),
        RestoreTarget { .. } => Target::InPlace(origin(agent, &repository, &restore.generation).await?),
    };
    let request = RestoreJobRequest {
        repository: Some(repository),
        volume: Some(volume_name(&restore.generation.volume)),
        selector: Some(restore.generation.selector()),
        target: Some(target),
    };
    let events = agent.jobs().restore(request).await?.into_inner();
    jobs::follow(context, "restore", events).await
}

fn pool_volume(named: VolumeArg) -> PoolVolume {
    PoolVolume { pool: named.pool, volume: named.volume }
}

/// A volume's name as it is asked of a repository.
pub(super) fn volume_name(name: &str) -> VolumeName {
    VolumeName { name: name.to_owned(), host: super::host_name() }
}

/// The volume of this host that a generation was made of: it must have the same identity.
async fn origin(
    agent: &AgentChannel,
    repository: &RepositoryAddress,
    generation: &GenerationArg,
) -> Result<PoolVolume, Stop> {
    let connection = repository_client::connect(repository).await?;
    let request = GetGenerationRequest {
        volume: Some(volume_name(&generation.volume)),
        selector: Some(generation.selector()),
    };
    let found = connection.repository().get_generation(request).await;
    connection.close().await;
    let found = found?.into_inner();
    let refused = |why: &str| {
        Stop::from(
            Failed::new(FailureKind::Refused, format!("restore {} in place: {why}", found.volume_name))
                .with_hint("name the volume to replace: --in-place=POOL/VOLUME"),
        )
    };
    let local = found.volume_name.strip_prefix(&super::host_name()).and_then(|rest| rest.strip_prefix('/'));
    let (pool, volume) = local
        .and_then(|local| local.rsplit_once('/'))
        .ok_or_else(|| refused("it is a volume of another host"))?;
    let volumes =
        agent.pools().list_pool_volumes(PoolRequest { pool: pool.to_owned() }).await?.into_inner().volumes;
    match volumes.iter().find(|other| other.name == volume) {
        None => Err(refused("the volume is no longer there")),
        Some(other) if other.uuid != found.volume_uuid => {
            Err(refused("the volume of this name is another one than the one that was backed up"))
        }
        Some(_) => Ok(PoolVolume { pool: pool.to_owned(), volume: volume.to_owned() }),
    }
}
