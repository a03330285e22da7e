//! Backup: a snapshot of a pool volume, against the volume's base, to a new generation.

mod found;
mod shapes;
mod summary;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use thinbak_engine::{Base, Point};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        BackupBegin, BackupJobRequest, GenerationSelector, GetGenerationRequest, InfoRequest, JobSummary,
        ListVolumesRequest, PoolVolume as VolumeRef, VolumeName, generation_selector::Which,
    },
};
use uuid::Uuid;

use self::{
    found::Found,
    summary::{Timing, summary_of},
};
use super::{
    events::{Events, blocking},
    healing::{self, Halt},
    plan::{Due, Transfer},
    point::{root_of, to_wire},
    sample,
};
use crate::{
    pools::{Candidate, PoolManager, ThinPool, VolumeLock, with_notes},
    repository_client::{RepositoryConnection, connect},
    sink::GenerationSink,
    source::{ChangeList, PoolSource},
    stream::{Paced, Progress, pump},
    volume::PoolVolume,
};

/// Times that a volume is tried when damage comes to light while it is backed up.
const ATTEMPTS: usize = 3;

/// Backs up every volume of the request. What fails of one volume is told as an event and does not stop
/// the others.
pub(super) async fn run(
    manager: &Arc<PoolManager>,
    request: BackupJobRequest,
    events: &Events,
) -> Result<(), Failed> {
    let address = request.repository.clone().unwrap_or_default();
    let connection = connect(&address).await?;
    let outcome = Backup::new(manager, &connection, &request, events).await;
    let outcome = match outcome {
        Ok(backup) => backup.run(&request.volumes).await,
        Err(failed) => Err(failed),
    };
    connection.close().await;
    outcome
}

/// One call of the job.
struct Backup<'a> {
    manager: &'a Arc<PoolManager>,
    connection: &'a RepositoryConnection,
    events: &'a Events,
    host: String,
    repository: Uuid,
    chunk_bytes: u32,
    request: &'a BackupJobRequest,
    /// The uuid of a group backup; else empty.
    group: String,
    /// Names of the volumes that the server knows, by uuid.
    known: HashMap<String, String>,
    /// What the next summary tells beside its volume.
    notes: Mutex<Vec<String>>,
}

/// The volumes of one pool, with the locks that keep other jobs away from them.
struct PoolDues {
    /// As the request names it.
    spec: String,
    pool: Arc<dyn ThinPool>,
    dues: Vec<Due>,
    _locks: Vec<VolumeLock>,
}

impl<'a> Backup<'a> {
    async fn new(
        manager: &'a Arc<PoolManager>,
        connection: &'a RepositoryConnection,
        request: &'a BackupJobRequest,
        events: &'a Events,
    ) -> Result<Self, Failed> {
        let mut client = connection.repository();
        let info = client.info(InfoRequest {}).await?.into_inner();
        let repository = Uuid::parse_str(&info.repository_uuid).map_err(|error| {
            Failed::new(FailureKind::Failed, format!("the repository's uuid is not one: {error}"))
        })?;
        let mut known = HashMap::new();
        let mut list = ListVolumesRequest::default();
        loop {
            let page = client.list_volumes(list.clone()).await?.into_inner();
            known.extend(page.volumes.into_iter().map(|volume| (volume.uuid, volume.name)));
            if page.next_page_token.is_empty() {
                break;
            }
            list.page_token = page.next_page_token;
        }
        let host = match request.host.as_str() {
            "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            host => host.to_owned(),
        };
        Ok(Self {
            manager,
            connection,
            events,
            host,
            repository,
            chunk_bytes: info.chunk_bytes,
            request,
            group: if request.group { Uuid::new_v4().to_string() } else { String::new() },
            known,
            notes: Mutex::default(),
        })
    }

    /// Damage that the server finds while a volume is backed up is known when the volume is backed up again, and is
    /// then gone round or healed.
    async fn run(&self, volumes: &[VolumeRef]) -> Result<(), Failed> {
        let mut volumes = volumes.to_vec();
        for attempt in 1..=ATTEMPTS {
            let pools = self.open_pools(&volumes).await?;
            if !self.group.is_empty() && pools.len() > 1 {
                let message = "a group must be of one pool to be of one moment";
                return Err(Failed::new(FailureKind::Refused, message));
            }
            let any_moments = self.group.is_empty() || self.request.writers_paused;
            pools.iter().try_for_each(|pool| pool.pool.check_group(pool.dues.len(), any_moments))?;
            if attempt == 1 {
                self.store_shapes(&pools).await;
            }
            // The volumes of a group are of one moment: none is repeated alone.
            let last = attempt == ATTEMPTS || !self.group.is_empty();
            volumes = Vec::new();
            for pool in pools {
                volumes.append(&mut self.pool(pool, last).await);
            }
            if volumes.is_empty() {
                break;
            }
        }
        self.store_metadata().await;
        Ok(())
    }

    /// Opens what the request names. A group with a volume that cannot be had is refused as a whole.
    async fn open_pools(&self, volumes: &[VolumeRef]) -> Result<Vec<PoolDues>, Failed> {
        let mut pools: Vec<PoolDues> = Vec::new();
        let mut seen = HashSet::new();
        for named in volumes {
            let label = format!("{}/{}", named.pool, named.volume);
            match self.open(named, &mut pools).await {
                Ok(uuid) if !seen.insert(uuid) => {
                    return Err(Failed::new(FailureKind::Usage, format!("{label} is named twice")));
                }
                Ok(_) => {}
                Err(failed) if !self.group.is_empty() => return Err(failed),
                Err(failed) => self.events.failure(&label, failed).await,
            }
        }
        Ok(pools)
    }

    async fn open(&self, named: &VolumeRef, pools: &mut Vec<PoolDues>) -> Result<Uuid, Failed> {
        let (manager, spec, name) = (Arc::clone(self.manager), named.pool.clone(), named.volume.clone());
        let (pool, volume) = blocking(move || {
            let pool = manager.open(&spec)?;
            let volume = pool.volume(&name)?;
            Ok((pool, volume))
        })
        .await?;
        let uuid = volume.uuid;
        if pools.iter().flat_map(|pool| &pool.dues).any(|due| due.volume.uuid == uuid) {
            return Ok(uuid);
        }
        let lock = self.manager.lock_volume(pool.uuid(), &volume.name)?;
        let server_name = format!("{}/{}/{}", self.host, pool.name(), volume.name);
        let mut due = Due {
            base: pool.base(self.repository, uuid),
            volume,
            name: server_name,
            reason: String::new(),
            damaged: Vec::new(),
        };
        self.check_base(&mut due).await?;
        healing::ask(self.connection, self.known.get(&uuid.to_string()), &mut due).await?;
        match pools.iter_mut().find(|other| other.pool.uuid() == pool.uuid()) {
            Some(other) => {
                other.dues.push(due);
                other._locks.push(lock);
            }
            None => {
                let spec = named.pool.clone();
                pools.push(PoolDues { spec, pool, dues: vec![due], _locks: vec![lock] });
            }
        }
        Ok(uuid)
    }

    /// Gives up a base whose generation the server no longer has.
    async fn check_base(&self, due: &mut Due) -> Result<(), Failed> {
        let known = self.known.get(&due.volume.uuid.to_string());
        let Some(base) = &due.base else {
            if known.is_some() {
                due.reason = "the pool holds no base of this volume for this repository".to_owned();
            }
            return Ok(());
        };
        let found = match known {
            None => None,
            Some(name) => {
                let request = GetGenerationRequest {
                    volume: Some(VolumeName { name: name.clone(), host: String::new() }),
                    selector: Some(GenerationSelector { which: Some(Which::Number(base.generation)) }),
                };
                match self.connection.repository().get_generation(request).await.map_err(Failed::from) {
                    Ok(generation) => Some(generation.into_inner()),
                    Err(failed) if failed.kind == FailureKind::NotFound => None,
                    Err(failed) => return Err(failed),
                }
            }
        };
        if found.is_none_or(|generation| *generation.root != base.root[..]) {
            due.reason = format!("the server no longer has generation {} as it was", base.generation);
            due.base = None;
        }
        Ok(())
    }

    /// Backs up the due volumes of one pool. Returns those that are worth another attempt, unless this is the last.
    async fn pool(&self, pool: PoolDues, last: bool) -> Vec<VolumeRef> {
        let mut again = Vec::new();
        let names: Vec<String> = pool.dues.iter().map(|due| due.name.clone()).collect();
        let started = Instant::now();
        let (engine, dues) = (Arc::clone(&pool.pool), pool.dues);
        let lease = self.manager.lease(engine.uuid()).await;
        let label = names.join(", ");
        let (manager, grouped) = (Arc::clone(self.manager), !self.group.is_empty());
        let (repository, chunk_bytes) = (self.repository, self.chunk_bytes);
        let progress = Progress::default();
        let found = self.events.during(
            &label,
            "compare",
            &progress,
            blocking(move || {
                // Held to the end of the work, which goes on for a while when the job was interrupted.
                let _lease = lease;
                Found::find(&manager, &engine, dues, repository, grouped, chunk_bytes)
            }),
        );
        let Found { unchanged, changed, held } = match found.await {
            Ok(found) => found,
            Err(failed) => {
                for name in names {
                    self.events.failure(&name, failed.clone()).await;
                }
                return again;
            }
        };
        let timing = Timing { found: started.elapsed(), held };
        let named = |due: &Due| VolumeRef { pool: pool.spec.clone(), volume: due.volume.name.clone() };
        for due in unchanged {
            let (name, named) = (due.name.clone(), named(&due));
            let outcome = self.unchanged(&pool.pool, due, timing).await;
            again.extend(self.report(&name, outcome, last).await.then_some(named));
        }
        let (transfers, mut notes) = match changed {
            Ok(changed) => changed,
            Err((names, failed)) => {
                for name in names {
                    self.events.failure(&name, failed.clone()).await;
                }
                return again;
            }
        };
        for transfer in transfers {
            let (name, named) = (transfer.due.name.clone(), named(&transfer.due));
            let outcome = self.transfer(&pool.pool, transfer, timing).await;
            // They are told once.
            let outcome = match outcome {
                Ok(mut summary) => {
                    summary.notes.append(&mut notes);
                    Ok(summary)
                }
                Err(Halt::Failed(failed)) => {
                    Err(Halt::Failed(with_notes(failed, &std::mem::take(&mut notes))))
                }
                Err(damage) => Err(damage),
            };
            again.extend(self.report(&name, outcome, last).await.then_some(named));
        }
        again
    }

    /// Tells how a volume's backup ended. True: not told, it is to be tried again.
    async fn report(&self, name: &str, outcome: Result<JobSummary, Halt>, last: bool) -> bool {
        match outcome {
            Ok(mut summary) => {
                summary.notes.append(&mut std::mem::take(&mut *self.notes.lock()));
                self.events.summary(summary).await;
            }
            Err(Halt::Damage(failed)) if !last => {
                tracing::warn!(
                    volume = name,
                    reason = failed.message,
                    "damage was found; the volume is tried again"
                );
                return true;
            }
            Err(Halt::Damage(failed) | Halt::Failed(failed)) => self.events.failure(name, failed).await,
        }
        false
    }

    fn begin(&self, due: &Due, point: &Point) -> BackupBegin {
        BackupBegin {
            volume_uuid: due.volume.uuid.to_string(),
            volume_name: due.name.clone(),
            adopt: self.request.adopt,
            size_bytes: point.size_bytes,
            parent: due.base.as_ref().map_or(0, |base| base.generation),
            parent_root: due.base.as_ref().map(|base| base.root.to_vec()).unwrap_or_default().into(),
            point: Some(to_wire(point)),
            group: self.group.clone(),
        }
    }

    /// Records a generation that is its parent over again: nothing is snapshotted, read or sent.
    async fn unchanged(
        &self,
        pool: &Arc<dyn ThinPool>,
        due: Due,
        timing: Timing,
    ) -> Result<JobSummary, Halt> {
        let started = Instant::now();
        let Some(base) = due.base.clone() else {
            return Err(
                Failed::new(FailureKind::Failed, "a volume without a base cannot be unchanged").into()
            );
        };
        let point = base.point.clone();
        let sink = GenerationSink::begin(self.connection.ingest(), self.begin(&due, &point)).await;
        let sink = sink.map_err(Halt::of_server)?;
        let (generation, _) = healing::done(sink.commit().await.map_err(Halt::of_server)?)?;
        let (pool, number, root) = (Arc::clone(pool), generation.number, root_of(&generation)?);
        blocking(move || pool.update_base(Base { generation: number, root, ..base })).await?;
        Ok(JobSummary {
            mode: "unchanged".to_owned(),
            ..summary_of(&due, &point, &generation, timing, started)
        })
    }

    /// Sends what changed, commits, and makes the snapshot the new base. On failure the snapshot is removed.
    async fn transfer(
        &self,
        pool: &Arc<dyn ThinPool>,
        transfer: Transfer,
        timing: Timing,
    ) -> Result<JobSummary, Halt> {
        let Transfer { due, candidate, point, changes } = transfer;
        let changes = (point, changes);
        match self.send(pool, &due, &candidate, changes, timing).await {
            Ok((summary, base)) => {
                blocking(move || candidate.keep(base)).await?;
                Ok(summary)
            }
            Err(failed) => {
                blocking(move || {
                    drop(candidate);
                    Ok(())
                })
                .await?;
                Err(failed)
            }
        }
    }

    async fn send(
        &self,
        pool: &Arc<dyn ThinPool>,
        due: &Due,
        candidate: &Candidate,
        (point, changes): (Point, ChangeList),
        timing: Timing,
    ) -> Result<(JobSummary, Base), Halt> {
        let started = Instant::now();
        let changed_bytes = changes.bytes();
        let progress = Progress::new(changed_bytes);
        if let Some(base) = &due.base {
            let sampled = sample::check(self.connection.content(), pool, base, self.chunk_bytes, &due.name);
            let sampled = self.events.during(&due.name, "compare", &progress, sampled).await?;
            tracing::debug!(volume = due.name, sampled, "unchanged chunks are as the server has them");
        }
        let sink = GenerationSink::begin(self.connection.ingest(), self.begin(due, &point)).await;
        let mut sink = sink.map_err(Halt::of_server)?.with_rate(self.request.sent_bytes_per_second);
        let (engine, snapshot) = (Arc::clone(pool), candidate.volume().clone());
        let volume = blocking(move || PoolVolume::open(engine, snapshot)).await?;
        let source = PoolSource::start(volume, changes, u64::from(self.chunk_bytes));
        let mut source = Paced::new(source, self.request.read_bytes_per_second);
        let moved = pump(&mut source, &mut sink, &progress);
        self.events.during(&due.name, "transfer", &progress, moved).await.map_err(Halt::of_server)?;
        let (engine, sent) = (Arc::clone(pool), point.clone());
        blocking(move || engine.confirm(&sent)).await?;
        let committed = self.events.during(&due.name, "commit", &progress, sink.commit()).await;
        let (generation, healed_bytes) = healing::done(committed.map_err(Halt::of_server)?)?;
        let base = Base {
            repository: self.repository,
            volume: due.volume.uuid,
            generation: generation.number,
            root: root_of(&generation)?,
            point: point.clone(),
        };
        let over_origin = candidate.volume().origin.is_some();
        let (mode, reason) = match (&due.base, due.reason.as_str()) {
            (Some(_), _) if over_origin => ("compared", "an external origin may have changed"),
            (Some(_), _) => ("incremental", ""),
            (None, "") => ("full", ""),
            (None, reason) => ("compared", reason),
        };
        let summary = JobSummary {
            mode: mode.to_owned(),
            reason: reason.to_owned(),
            changed_bytes,
            read_bytes: source.source().read_bytes(),
            sent_bytes: sink.stats().sent_bytes,
            deduplicated_bytes: sink.stats().deduplicated_bytes,
            healed_bytes,
            ..summary_of(due, &point, &generation, timing, started)
        };
        Ok((summary, base))
    }
}
