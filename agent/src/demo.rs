//! The main job from start to end on an embedded pool and an embedded repository: back up, change a
//! little, back up the difference, restore both generations, prove them bit-identical.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
use thinbak_engine::Volume;
use thinbak_proto::{
    Failed, FailureKind,
    v1::{
        BackupJobRequest, CreatePoolRequest, Extent, GenerationSelector, ImportRequest, ImportTarget,
        JobEvent, JobSummary, PoolVolume as VolumeRef, RepositoryAddress, RestoreJobRequest, SnapshotName,
        SnapshotVolumesRequest, VolumeName, extent::Content, generation_selector::Which, import_request,
        job_event::Event, jobs_client::JobsClient, pools_client::PoolsClient, repository_address::Address,
        restore_job_request::Target,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    channel::{BoxedChannel, in_process},
    daemon::agent_routes,
    pools::PoolManager,
    volume::PoolVolume,
};

const POOL: &str = "demo";
const VOLUME: &str = "data";
const HOST: &str = "demo-host";
const BLOCK: u64 = 64 * 1024;

/// What to do the demonstration with.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Where pool and repository are made; the folder must be empty or absent.
    pub folder: PathBuf,
    /// Virtual size of the volume in bytes, a multiple of 1 MiB. Five eighths of it get content.
    pub size_bytes: u64,
}

/// What happens while it runs.
#[derive(Debug)]
pub enum DemoEvent {
    /// The next step begins.
    Step(String),
    /// Something a backup or restore says.
    Job(Box<JobEvent>),
}

/// One line of the closing table.
#[derive(Debug, Clone)]
pub struct DemoRow {
    /// What was done.
    pub step: String,
    /// What the job says of itself.
    pub summary: JobSummary,
}

/// What was shown.
#[derive(Debug, Clone)]
pub struct DemoReport {
    /// The jobs in order.
    pub rows: Vec<DemoRow>,
    /// BLAKE3 of the volume as it was at each generation, equal to what was restored.
    pub proofs: Vec<Proof>,
    /// Bytes of the whole repository on disk.
    pub repository_bytes: u64,
}

/// One restored generation beside its source.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The snapshot that was backed up.
    pub source: String,
    /// The restored volume.
    pub restored: String,
    /// BLAKE3 of both, holes read as zeros.
    pub hash: String,
    /// Mapped bytes of both.
    pub mapped_bytes: u64,
}

/// Runs the demonstration. A restored volume that differs in one bit or one hole is an error.
pub async fn run(
    options: &DemoOptions,
    tell: &mut (dyn FnMut(DemoEvent) + Send),
) -> Result<DemoReport, Failed> {
    let manager = PoolManager::new(options.folder.join("state"));
    let channel = in_process(agent_routes(Arc::clone(&manager)));
    let repository = options.folder.join("repository");
    let mut demo = Demo {
        pools: PoolsClient::new(channel.clone()),
        jobs: JobsClient::new(channel),
        manager,
        repository: RepositoryAddress { address: Some(Address::Directory(repository.display().to_string())) },
        size: options.size_bytes,
        rows: Vec::new(),
        tell,
    };
    thinbak_server::Repository::init(&repository, thinbak_server::InitOptions::default())
        .await
        .map_err(Failed::from)?;
    demo.make_pool(&options.folder.join("pool")).await?;
    demo.fill().await?;
    demo.snapshot("first").await?;
    demo.backup("first backup").await?;
    demo.change().await?;
    demo.snapshot("second").await?;
    demo.backup("backup of the 1 % that changed").await?;
    demo.backup("backup with nothing changed").await?;
    let proofs = vec![demo.restore(1, "first").await?, demo.restore(2, "second").await?];
    let rows = std::mem::take(&mut demo.rows);
    Ok(DemoReport { rows, proofs, repository_bytes: folder_bytes(&repository) })
}

struct Demo<'a> {
    pools: PoolsClient<BoxedChannel>,
    jobs: JobsClient<BoxedChannel>,
    manager: Arc<PoolManager>,
    repository: RepositoryAddress,
    size: u64,
    rows: Vec<DemoRow>,
    tell: &'a mut (dyn FnMut(DemoEvent) + Send),
}

impl Demo<'_> {
    fn step(&mut self, what: String) {
        (self.tell)(DemoEvent::Step(what));
    }

    async fn make_pool(&mut self, folder: &Path) -> Result<(), Failed> {
        self.step("making an embedded pool in the kernel's own dm-thin format".to_owned());
        let request = CreatePoolRequest {
            pool: POOL.to_owned(),
            size_bytes: self.size * 4,
            block_bytes: BLOCK,
            dir: folder.display().to_string(),
            ..CreatePoolRequest::default()
        };
        self.pools.create_pool(request).await?;
        Ok(())
    }

    /// Imports content that can be recognised: every block of text says which block it is.
    async fn fill(&mut self) -> Result<(), Failed> {
        let size = self.size;
        self.step(format!("importing a volume of {} MiB, five eighths of it with content", size >> 20));
        let (sender, receiver) = mpsc::channel(4);
        let target = ImportTarget { pool: POOL.to_owned(), volume: VOLUME.to_owned(), size_bytes: size };
        let sending = async move {
            let first = import_request::Message::Target(target);
            let _ = sender.send(ImportRequest { message: Some(first) }).await;
            let mut random = StdRng::seed_from_u64(7);
            for offset in (0..size).step_by(BLOCK as usize).filter(|offset| has_content(*offset)) {
                let data = block(&mut random, offset, "as imported");
                let extent = Extent { offset_bytes: offset, content: Some(Content::Data(data)) };
                let message = Some(import_request::Message::Extent(extent));
                if sender.send(ImportRequest { message }).await.is_err() {
                    break;
                }
            }
        };
        let (answer, ()) = tokio::join!(self.pools.import_volume(ReceiverStream::new(receiver)), sending);
        answer?;
        Ok(())
    }

    async fn snapshot(&mut self, name: &str) -> Result<(), Failed> {
        let snapshot =
            SnapshotName { pool: POOL.to_owned(), volume: VOLUME.to_owned(), snapshot: name.to_owned() };
        self.pools.snapshot_volumes(SnapshotVolumesRequest { snapshots: vec![snapshot] }).await?;
        Ok(())
    }

    /// Rewrites 1 % of the blocks with content, scattered.
    async fn change(&mut self) -> Result<(), Failed> {
        self.step("changing 1 % of the volume's blocks".to_owned());
        let (manager, size) = (Arc::clone(&self.manager), self.size);
        blocking(move || {
            let pool = manager.open(POOL)?;
            let volume = PoolVolume::open(Arc::clone(&pool), pool.volume(VOLUME)?)?;
            let mut random = StdRng::seed_from_u64(8);
            for _ in 0..(size / BLOCK / 100).max(1) {
                let offset = loop {
                    let offset = random.random_range(0..size / BLOCK) * BLOCK;
                    if has_content(offset) {
                        break offset;
                    }
                };
                let data = block(&mut random, offset, "changed");
                volume.write(offset, &data)?;
            }
            volume.flush()
        })
        .await
    }

    async fn backup(&mut self, step: &str) -> Result<(), Failed> {
        self.step(step.to_owned());
        let request = BackupJobRequest {
            volumes: vec![VolumeRef { pool: POOL.to_owned(), volume: VOLUME.to_owned() }],
            repository: Some(self.repository.clone()),
            host: HOST.to_owned(),
            ..BackupJobRequest::default()
        };
        let events = self.jobs.backup(request).await?.into_inner();
        self.follow(step, events).await
    }

    async fn restore(&mut self, number: u64, snapshot: &str) -> Result<Proof, Failed> {
        let restored = format!("restored-{number}");
        let step = format!("restore of generation {number}");
        self.step(step.clone());
        let request = RestoreJobRequest {
            like: String::new(),
            repository: Some(self.repository.clone()),
            volume: Some(VolumeName { name: format!("{HOST}/{POOL}/{VOLUME}"), host: String::new() }),
            selectors: vec![GenerationSelector { which: Some(Which::Number(number)) }],
            ranges: Vec::new(),
            target: Some(Target::NewVolume(VolumeRef { pool: POOL.to_owned(), volume: restored.clone() })),
        };
        let events = self.jobs.restore(request).await?.into_inner();
        self.follow(&step, events).await?;
        self.step(format!("comparing {VOLUME}@{snapshot} with {restored}, bit by bit"));
        let (manager, snapshot) = (Arc::clone(&self.manager), snapshot.to_owned());
        blocking(move || {
            let pool = manager.open(POOL)?;
            let source = pool.snapshot(VOLUME, &snapshot)?;
            let copy = pool.volume(&restored)?;
            let (expected, mapped) = fingerprint(&PoolVolume::open(Arc::clone(&pool), source.clone())?)?;
            let found = fingerprint(&PoolVolume::open(Arc::clone(&pool), copy.clone())?)?;
            if found != (expected, mapped) {
                return Err(different(&source, &copy));
            }
            Ok(Proof {
                source: format!("{VOLUME}@{snapshot}"),
                restored,
                hash: expected.to_string(),
                mapped_bytes: mapped,
            })
        })
        .await
    }

    /// Passes a job's events on and keeps its summary.
    async fn follow(&mut self, step: &str, mut events: tonic::Streaming<JobEvent>) -> Result<(), Failed> {
        while let Some(event) = events.message().await? {
            match &event.event {
                Some(Event::Summary(summary)) => {
                    self.rows.push(DemoRow { step: step.to_owned(), summary: summary.clone() });
                }
                Some(Event::Error(error)) => {
                    let failure = error.failure.clone().unwrap_or_default();
                    return Err(failure.into());
                }
                Some(Event::Status(_)) | None => {}
            }
            (self.tell)(DemoEvent::Job(Box::new(event)));
        }
        Ok(())
    }
}

fn different(source: &Volume, copy: &Volume) -> Failed {
    Failed::new(FailureKind::Damaged, format!("{} restored to {} is not the same", source.name, copy.name))
}

/// Five of every eight mebibytes.
fn has_content(offset: u64) -> bool {
    (offset >> 20) % 8 < 5
}

/// A block that says what it is; every other mebibyte does not compress.
fn block(random: &mut StdRng, offset: u64, state: &str) -> Bytes {
    let mut bytes = Vec::with_capacity(BLOCK as usize);
    if (offset >> 20).is_multiple_of(2) {
        let mut line = 0;
        while bytes.len() < BLOCK as usize {
            let text = format!(
                "thinbak demo: byte {offset} of the volume, {state}, line {line}, {:08x}\n",
                random.next_u32()
            );
            bytes.extend_from_slice(text.as_bytes());
            line += 1;
        }
        bytes.truncate(BLOCK as usize);
    } else {
        bytes.resize(BLOCK as usize, 0);
        random.fill_bytes(&mut bytes);
    }
    Bytes::from(bytes)
}

/// BLAKE3 of the whole device and its mapped bytes. Blocking.
fn fingerprint(volume: &PoolVolume) -> Result<(blake3::Hash, u64), Failed> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < volume.size_bytes() {
        let len = usize::try_from(volume.size_bytes() - offset).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..len).unwrap_or_default();
        volume.read(offset, part)?;
        hasher.update(part);
        offset += len as u64;
    }
    let mut mapped = 0;
    for range in volume.mapped(0, volume.size_bytes()) {
        let range = range?;
        mapped += range.end - range.begin;
    }
    Ok((hasher.finalize(), mapped))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Failed::new(FailureKind::Failed, format!("a task ended early: {error}"))))
}

/// What a folder takes on disk.
fn folder_bytes(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
