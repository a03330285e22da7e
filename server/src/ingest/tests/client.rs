//! A client over the services in this process, and a model of what it backs up.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD, ChunkId, Failed, MapEntry, MapNode, NodeId, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, service::Routes};
use uuid::Uuid;
use v1::{
    backup_request::Message as Asked, backup_response::Message as Answer, content_client::ContentClient,
    ingest_client::IngestClient, map_item::Entry, repository_client::RepositoryClient,
};

use crate::{Environment, InitOptions, Repository, routes, store::memory_medium::MemoryMedium};

pub(crate) const CHUNK: u64 = 4096;

/// A repository with chunks of 4 KiB in a directory of its own.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) repository: Arc<Repository>,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK as u32 }).await.unwrap();
        Self::open(dir).await
    }

    pub(crate) async fn open(dir: tempfile::TempDir) -> Self {
        let repository = Repository::open(dir.path()).await.unwrap();
        Self { dir, repository }
    }

    /// The directory, with nothing in it open.
    pub(crate) async fn close(self) -> tempfile::TempDir {
        self.repository.close().await;
        self.dir
    }

    /// The same with packs in memory.
    pub(crate) async fn with_packs(packs: Arc<MemoryMedium>) -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK as u32 }).await.unwrap();
        let repository = Repository::open_in(dir.path(), Self::environment(packs)).await.unwrap();
        Self { dir, repository }
    }

    fn environment(packs: Arc<MemoryMedium>) -> Environment {
        let mut environment = Environment::system();
        environment.packs = Some(packs);
        environment
    }

    /// Everything in memory is lost but the packs that are given.
    pub(crate) async fn reopen_with(self, packs: Arc<MemoryMedium>) -> Self {
        let Self { dir, repository } = self;
        let after = copy_of(dir.path());
        drop(repository);
        let repository = Repository::open_in(after.path(), Self::environment(packs)).await.unwrap();
        Self { dir: after, repository }
    }

    /// Everything in memory is lost; what is on disk is opened again.
    pub(crate) async fn reopen(self) -> Self {
        let Self { dir, repository } = self;
        // The lock goes with the process; a copy of the directory stands for the disk after a kill.
        let after = copy_of(dir.path());
        drop(repository);
        Self::open(after).await
    }

    pub(crate) fn routes(&self) -> Routes {
        routes(Arc::clone(&self.repository))
    }

    pub(crate) fn generations(&self) -> RepositoryClient<Routes> {
        RepositoryClient::new(self.routes())
    }

    /// All volumes that have a generation.
    pub(crate) async fn volumes(&self) -> Vec<v1::Volume> {
        let request = v1::ListVolumesRequest::default();
        self.generations().list_volumes(request).await.unwrap().into_inner().volumes
    }

    pub(crate) async fn begin(&self, begin: v1::BackupBegin) -> Result<Backup, Failed> {
        Backup::begin(&self.repository, begin).await
    }

    /// One batch and a commit.
    pub(crate) async fn back_up(
        &self,
        begin: v1::BackupBegin,
        items: Vec<v1::MapItem>,
    ) -> Result<v1::Generation, Failed> {
        back_up(&self.repository, begin, items).await
    }

    /// What a restore would write, chunk by chunk, holes as `None`.
    pub(crate) async fn restore(&self, generation: &v1::Generation) -> Result<Vec<Option<Vec<u8>>>, Failed> {
        let mut content = ContentClient::new(self.routes());
        let chunks = generation.size_bytes.div_ceil(CHUNK) as usize;
        let mut row = vec![MapEntry::from(NodeId::try_from(generation.root.as_ref()).unwrap())];
        for _ in 0..generation.levels {
            let mut below = Vec::new();
            for entry in row {
                match entry.node() {
                    Some(id) => {
                        let ids = vec![id.to_bytes()];
                        let mut nodes = content.get_nodes(v1::GetNodesRequest { ids }).await?.into_inner();
                        let node = nodes.message().await?.unwrap();
                        assert_eq!(NodeId::of(&node.node), id);
                        below.extend_from_slice(MapNode::decode(&node.node).unwrap().slots());
                    }
                    None => below.extend([entry; 128]),
                }
            }
            row = below;
        }
        let mut restored = Vec::new();
        for (at, entry) in row.into_iter().take(chunks).enumerate() {
            let length = (generation.size_bytes - at as u64 * CHUNK).min(CHUNK) as usize;
            restored.push(match entry {
                MapEntry::Hole => None,
                MapEntry::Zero => Some(vec![0; length]),
                MapEntry::Id(id) => {
                    let ids = vec![Bytes::copy_from_slice(&id)];
                    let mut data = content.get_chunks(v1::GetChunksRequest { ids }).await?.into_inner();
                    let chunk = data.message().await?.unwrap();
                    let plain = match chunk.codec {
                        CODEC_PLAIN => chunk.stored.to_vec(),
                        _ => zstd::bulk::decompress(&chunk.stored, CHUNK as usize).unwrap(),
                    };
                    assert_eq!((ChunkId::of(&plain).as_bytes(), plain.len()), (&id, length));
                    Some(plain)
                }
            });
        }
        Ok(restored)
    }

    pub(crate) async fn verify(&self, sample: f64) -> (Vec<v1::VerifyDamage>, v1::VerifySummary) {
        use v1::verify_event::Event;
        let request = v1::VerifyRequest { sample, ..Default::default() };
        let mut events = self.generations().verify(request).await.unwrap().into_inner();
        let mut damage = Vec::new();
        loop {
            match events.message().await.unwrap().unwrap().event.unwrap() {
                Event::Progress(progress) => assert!(progress.done_bytes <= progress.total_bytes),
                Event::Damage(found) => damage.push(found),
                Event::Record(_) | Event::Pack(_) => {}
                Event::Summary(summary) => {
                    assert!(events.message().await.unwrap().is_none(), "the summary is last");
                    return (damage, summary);
                }
            }
        }
    }
}

/// One batch and a commit.
pub(crate) async fn back_up(
    repository: &Arc<Repository>,
    begin: v1::BackupBegin,
    items: Vec<v1::MapItem>,
) -> Result<v1::Generation, Failed> {
    let mut backup = Backup::begin(repository, begin).await?;
    backup.batch(items).await?;
    backup.commit().await
}

/// What a kill would leave of a directory now.
pub(crate) fn copy_of(dir: &Path) -> tempfile::TempDir {
    let after = tempfile::TempDir::new().unwrap();
    copy(dir, after.path());
    after
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A backup stream, as a client holds it.
pub(crate) struct Backup {
    requests: mpsc::Sender<v1::BackupRequest>,
    responses: Streaming<v1::BackupResponse>,
}

impl Backup {
    pub(crate) async fn open(repository: &Arc<Repository>) -> Result<Self, Failed> {
        let (requests, stream) = mpsc::channel(16);
        let mut client = IngestClient::new(routes(Arc::clone(repository)));
        let responses = client.backup(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn begin(repository: &Arc<Repository>, begin: v1::BackupBegin) -> Result<Self, Failed> {
        let mut backup = Self::open(repository).await?;
        backup.ask(Asked::Begin(begin)).await;
        match backup.answer().await? {
            Some(Answer::Session(session)) => {
                assert_eq!(u64::from(session.chunk_bytes), CHUNK);
                Ok(backup)
            }
            other => panic!("begin was answered by {other:?}"),
        }
    }

    pub(crate) async fn ask(&self, message: Asked) {
        self.requests.send(v1::BackupRequest { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn answer(&mut self) -> Result<Option<Answer>, Failed> {
        Ok(self.responses.message().await?.map(|response| response.message.unwrap()))
    }

    pub(crate) async fn batch(&mut self, items: Vec<v1::MapItem>) -> Result<v1::BackupAck, Failed> {
        self.ask(Asked::Batch(v1::BackupBatch { items })).await;
        match self.answer().await? {
            Some(Answer::Ack(ack)) => Ok(ack),
            other => panic!("a batch was answered by {other:?}"),
        }
    }

    pub(crate) async fn missing(&mut self, ids: Vec<ChunkId>) -> Result<Vec<bool>, Failed> {
        let ids = ids.iter().map(ChunkId::to_bytes).collect();
        self.ask(Asked::Query(v1::BackupQuery { ids })).await;
        match self.answer().await? {
            Some(Answer::Missing(missing)) => Ok(missing.missing),
            other => panic!("a query was answered by {other:?}"),
        }
    }

    pub(crate) async fn commit(mut self) -> Result<v1::Generation, Failed> {
        self.ask(Asked::Commit(v1::BackupCommit {})).await;
        let generation = match self.answer().await? {
            Some(Answer::Committed(generation)) => generation,
            other => panic!("a commit was answered by {other:?}"),
        };
        assert_eq!(self.answer().await?, None);
        Ok(generation)
    }
}

/// A full backup of `chunks` chunks.
pub(crate) fn full(volume: Uuid, name: &str, size_bytes: u64) -> v1::BackupBegin {
    v1::BackupBegin {
        volume_uuid: volume.to_string(),
        volume_name: name.into(),
        size_bytes,
        point: Some(v1::Point { identity: Uuid::nil().to_string(), device_id: 5, ..Default::default() }),
        ..Default::default()
    }
}

/// A backup on top of `parent`.
pub(crate) fn after(parent: &v1::Generation, size_bytes: u64) -> v1::BackupBegin {
    v1::BackupBegin {
        volume_uuid: parent.volume_uuid.clone(),
        volume_name: parent.volume_name.clone(),
        size_bytes,
        parent: parent.number,
        parent_root: parent.root.clone(),
        ..Default::default()
    }
}

/// Content of a chunk: never zero, half of it compressible.
pub(crate) fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut plain = vec![0xAB; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut plain[..length / 2]);
    plain
}

pub(crate) fn packed(chunk: u64, plain: &[u8], codec: u32) -> v1::MapItem {
    let stored = match codec {
        CODEC_ZSTD => zstd::bulk::compress(plain, 1).unwrap(),
        _ => plain.to_vec(),
    };
    let (id, plain_len) = (ChunkId::of(plain).to_bytes(), plain.len() as u32);
    v1::MapItem {
        chunk,
        entry: Some(Entry::New(v1::NewChunk { id, codec, plain_len, stored: stored.into() })),
    }
}

/// A new chunk; odd ones are compressed.
pub(crate) fn new(chunk: u64, seed: u64) -> v1::MapItem {
    packed(chunk, &content(seed, CHUNK as usize), (chunk % 2) as u32)
}

pub(crate) fn present(chunk: u64, seed: u64) -> v1::MapItem {
    v1::MapItem { chunk, entry: Some(Entry::Present(id(seed).to_bytes())) }
}

pub(crate) fn zero(chunk: u64, chunks: u64) -> v1::MapItem {
    v1::MapItem { chunk, entry: Some(Entry::Zero(chunks)) }
}

pub(crate) fn hole(chunk: u64, chunks: u64) -> v1::MapItem {
    v1::MapItem { chunk, entry: Some(Entry::Hole(chunks)) }
}

pub(crate) fn id(seed: u64) -> ChunkId {
    ChunkId::of(&content(seed, CHUNK as usize))
}

/// What [`Place::restore`] gives for a chunk of this content.
pub(crate) fn full_chunk(seed: u64) -> Option<Vec<u8>> {
    Some(content(seed, CHUNK as usize))
}

pub(crate) fn named(name: &str) -> Option<v1::VolumeName> {
    Some(v1::VolumeName { name: name.into(), host: "h".into() })
}

pub(crate) fn number(number: u64) -> Option<v1::GenerationSelector> {
    Some(v1::GenerationSelector { which: Some(v1::generation_selector::Which::Number(number)) })
}

pub(crate) fn latest() -> Option<v1::GenerationSelector> {
    Some(v1::GenerationSelector { which: Some(v1::generation_selector::Which::Latest(true)) })
}
