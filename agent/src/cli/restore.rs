//! `thinbak restore`.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        GenerationRange, GenerationSelector, GetGenerationRequest, ListPoolsRequest, PoolRequest, PoolVolume,
        RepositoryAddress, RestoreJobRequest, VolumeName, restore_job_request::Target,
    },
};

use super::{
    Context,
    args::{Restore, RestoreTarget},
    grammar::{Generations, GenerationsArg, VolumeArg},
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
    let chosen = Chosen::of(&restore.generations)?;
    let target = match restore.target {
        RestoreTarget { to: Some(volume), .. } => Target::NewVolume(pool_volume(volume)),
        RestoreTarget { to_file: Some(path), .. } => {
            chosen.only("to a file")?;
            Target::File(path)
        }
        RestoreTarget { in_place: Some(Some(volume)), .. } => {
            chosen.only("in place")?;
            Target::InPlace(pool_volume(volume))
        }
        RestoreTarget { .. } => {
            let selector = chosen.only("in place")?;
            Target::InPlace(origin(agent, &repository, chosen.volume, selector).await?)
        }
    };
    let request = RestoreJobRequest {
        repository: Some(repository),
        volume: Some(volume_name(chosen.volume)),
        selectors: chosen.selectors,
        ranges: chosen.ranges,
        target: Some(target),
        like: String::new(),
    };
    let events = agent.jobs().restore(request).await?.into_inner();
    jobs::follow(context, "restore", events).await
}

/// The generations that were named, all of one volume.
struct Chosen<'a> {
    volume: &'a str,
    selectors: Vec<GenerationSelector>,
    ranges: Vec<GenerationRange>,
}

impl<'a> Chosen<'a> {
    fn of(named: &'a [GenerationsArg]) -> Result<Self, Failed> {
        let volume = named.first().map_or("", |first| first.volume.as_str());
        if let Some(other) = named.iter().find(|other| other.volume != volume) {
            let message = format!("{volume} and {} cannot be restored to one volume", other.volume);
            return Err(Failed::new(FailureKind::Usage, message)
                .with_hint("name generations of one volume, always by the same name"));
        }
        let mut chosen = Self { volume, selectors: Vec::new(), ranges: Vec::new() };
        for GenerationsArg { which, .. } in named {
            match *which {
                Generations::One(which) => {
                    chosen.selectors.push(GenerationSelector { which: Some(which) });
                }
                Generations::Range(first, last) => chosen.ranges.push(GenerationRange { first, last }),
            }
        }
        Ok(chosen)
    }

    /// The one that was named, if it is one.
    fn only(&self, how: &str) -> Result<GenerationSelector, Failed> {
        match (self.selectors.as_slice(), self.ranges.as_slice()) {
            ([selector], []) => Ok(*selector),
            _ => {
                let message = format!("several generations of {} cannot be restored {how}", self.volume);
                Err(Failed::new(FailureKind::Usage, message).with_hint(
                    "name one of them, or restore all to a new volume with snapshots: --to POOL/VOLUME",
                ))
            }
        }
    }
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
    volume: &str,
    selector: GenerationSelector,
) -> Result<PoolVolume, Stop> {
    let connection = repository_client::connect(repository).await?;
    let request = GetGenerationRequest { volume: Some(volume_name(volume)), selector: Some(selector) };
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
    let mut is_other = false;
    for pool in pools_named(agent, pool).await? {
        let request = PoolRequest { pool: pool.clone() };
        let volumes = agent.pools().list_pool_volumes(request).await?.into_inner().volumes;
        match volumes.iter().find(|other| other.name == volume) {
            Some(it) if it.uuid == found.volume_uuid => {
                return Ok(PoolVolume { pool, volume: volume.to_owned() });
            }
            Some(_) => is_other = true,
            None => {}
        }
    }
    Err(refused(if is_other {
        "the volume of this name is another one than the one that was backed up"
    } else {
        "the volume is no longer there"
    }))
}

/// The pools that backups call by this name; the name itself where none is known.
async fn pools_named(agent: &AgentChannel, name: &str) -> Result<Vec<String>, Stop> {
    let pools = agent.pools().list_pools(ListPoolsRequest {}).await?.into_inner().pools;
    let named = pools.into_iter().filter(|pool| pool.name == name);
    let mut specs: Vec<String> = named
        .map(|pool| match pool.kind.as_str() {
            "dir" => pool.name,
            kind => format!("{kind}:{}", pool.place),
        })
        .collect();
    if specs.is_empty() {
        specs.push(name.to_owned());
    }
    Ok(specs)
}
