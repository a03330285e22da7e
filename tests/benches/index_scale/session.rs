//! The calls that an agent makes, with as much under way at a time as it has.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::channel::mpsc::{self as requests, UnboundedSender};
use thinbak_proto::{
    ChunkId,
    v1::{
        BackupBatch, BackupBegin, BackupCommit, BackupQuery, BackupRequest, BackupResponse, Generation,
        MapItem, Point, backup_request::Message as Asked, backup_response::Message as Answer,
        ingest_client::IngestClient, repository_client::RepositoryClient,
    },
};
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};
use uuid::Uuid;

use super::chunks::{self, CHUNK_BYTES};

/// Ids in one query and chunks in one batch.
const BATCH: usize = 4096;
/// Queries under way.
const QUERIES: usize = 4;
/// Batches that are not acknowledged yet.
const BATCHES: usize = 48;
/// Batches hashed ahead.
const PREPARED: usize = 8;

/// A volume, and its newest generation.
pub(crate) struct Volume {
    name: String,
    uuid: Uuid,
    pub(crate) chunks: u64,
    latest: Option<Generation>,
}

impl Volume {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), uuid: Uuid::new_v4(), chunks: 0, latest: None }
    }

    fn begin(&self, chunks: u64) -> BackupBegin {
        let (parent, parent_root) =
            self.latest.as_ref().map(|latest| (latest.number, latest.root.clone())).unwrap_or_default();
        let point = Point { identity: Uuid::new_v4().to_string(), device_id: 1, ..Point::default() };
        BackupBegin {
            volume_uuid: self.uuid.to_string(),
            volume_name: self.name.clone(),
            size_bytes: chunks.max(1) * CHUNK_BYTES as u64,
            parent,
            parent_root,
            point: Some(point),
            ..BackupBegin::default()
        }
    }
}

/// A connection to the server.
#[derive(Clone)]
pub(crate) struct Client(Channel);

impl Client {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        Ok(Self(tonic::transport::Endpoint::from_shared(url.to_owned())?.connect().await?))
    }

    pub(crate) fn repository(&self) -> RepositoryClient<Channel> {
        RepositoryClient::new(self.0.clone())
    }

    async fn begin(&self, begin: BackupBegin) -> Result<Session> {
        let (sender, queue) = requests::unbounded();
        let session = Session { requests: sender, answers: None };
        session.ask(Asked::Begin(begin))?;
        let mut answers = IngestClient::new(self.0.clone()).backup(queue).await?.into_inner();
        match next(&mut answers).await? {
            Answer::Session(info) => {
                ensure!(info.chunk_bytes as usize == CHUNK_BYTES, "chunks of another size")
            }
            other => bail!("begin was answered by {other:?}"),
        }
        Ok(Session { answers: Some(answers), ..session })
    }

    /// Commits a generation in which the volume has `chunks` chunks. Those that it has not yet come new.
    pub(crate) async fn grow(&self, volume: &mut Volume, chunks: u64) -> Result<()> {
        let mut session = self.begin(volume.begin(chunks)).await?;
        session.send_chunks(volume.chunks, chunks).await?;
        volume.latest = Some(session.commit().await?);
        volume.chunks = chunks;
        Ok(())
    }

    /// Asks which of `ids` are missing, all of which are, or none; how long it took.
    pub(crate) async fn look_up(&self, volume: &Volume, ids: &[ChunkId], missing: bool) -> Result<Duration> {
        let mut session = self.begin(volume.begin(volume.chunks)).await?;
        let since = Instant::now();
        let mut asked = VecDeque::new();
        let mut rest = ids.chunks(BATCH);
        loop {
            while asked.len() < QUERIES
                && let Some(some) = rest.next()
            {
                session
                    .ask(Asked::Query(BackupQuery { ids: some.iter().map(ChunkId::to_bytes).collect() }))?;
                asked.push_back(some.len());
            }
            let Some(count) = asked.pop_front() else { break };
            let answer = session.missing().await?;
            ensure!(answer.len() == count && answer.iter().all(|one| *one == missing), "a wrong answer");
        }
        let took = since.elapsed();
        session.end().await?;
        Ok(took)
    }
}

/// A backup that is under way.
struct Session {
    requests: UnboundedSender<BackupRequest>,
    answers: Option<Streaming<BackupResponse>>,
}

async fn next(answers: &mut Streaming<BackupResponse>) -> Result<Answer> {
    let answer = answers.message().await?.context("the server ended the session")?;
    answer.message.context("an empty answer")
}

impl Session {
    fn ask(&self, message: Asked) -> Result<()> {
        self.requests
            .unbounded_send(BackupRequest { message: Some(message) })
            .map_err(|_| anyhow::anyhow!("the session has ended"))
    }

    async fn answer(&mut self) -> Result<Answer> {
        next(self.answers.as_mut().context("no answers")?).await
    }

    async fn missing(&mut self) -> Result<Vec<bool>> {
        match self.answer().await? {
            Answer::Missing(answer) => Ok(answer.missing),
            other => bail!("a query was answered by {other:?}"),
        }
    }

    /// Sends the chunks from `first` to before `end`, none of which the server has.
    async fn send_chunks(&mut self, first: u64, end: u64) -> Result<()> {
        let mut prepared = prepare(first, end);
        let (mut asked, mut sent, mut acknowledged) = (VecDeque::new(), 0_u64, 0_u64);
        loop {
            while asked.len() < QUERIES
                && sent - acknowledged < BATCHES as u64
                && let Some(items) = prepared.recv().await
            {
                let ids = items.iter().filter_map(id_of).collect();
                self.ask(Asked::Query(BackupQuery { ids }))?;
                asked.push_back(items);
            }
            if asked.is_empty() && sent == acknowledged {
                return Ok(());
            }
            match self.answer().await? {
                Answer::Missing(answer) => {
                    let items = asked.pop_front().context("an answer to nothing")?;
                    ensure!(
                        answer.missing.len() == items.len() && answer.missing.iter().all(|one| *one),
                        "the server has chunks that nobody sent"
                    );
                    self.ask(Asked::Batch(BackupBatch { items }))?;
                    sent += 1;
                }
                Answer::Ack(ack) => acknowledged = ack.batches,
                other => bail!("a batch was answered by {other:?}"),
            }
        }
    }

    async fn commit(mut self) -> Result<Generation> {
        self.ask(Asked::Commit(BackupCommit {}))?;
        match self.answer().await? {
            Answer::Committed(generation) => {
                self.end().await?;
                Ok(generation)
            }
            other => bail!("a commit was answered by {other:?}"),
        }
    }

    /// Waits until the server has ended the session: until then it lets no other one of the volume begin.
    async fn end(self) -> Result<()> {
        drop(self.requests);
        let mut answers = self.answers.context("no answers")?;
        ensure!(answers.message().await?.is_none(), "an answer to nothing");
        Ok(())
    }
}

fn id_of(item: &MapItem) -> Option<bytes::Bytes> {
    use thinbak_proto::v1::map_item::Entry;
    match &item.entry {
        Some(Entry::New(new)) => Some(new.id.clone()),
        _ => None,
    }
}

/// Hashes chunks ahead, beside everything else.
fn prepare(first: u64, end: u64) -> mpsc::Receiver<Vec<MapItem>> {
    let (sender, receiver) = mpsc::channel(PREPARED);
    tokio::task::spawn_blocking(move || {
        let mut next = first;
        while next < end {
            let last = (next + BATCH as u64).min(end);
            let items = (next..last).map(|number| chunks::item(number, chunks::id(number))).collect();
            if sender.blocking_send(items).is_err() {
                return;
            }
            next = last;
        }
    });
    receiver
}
