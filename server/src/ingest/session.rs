//! One backup stream.

use std::sync::Arc;

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use thinbak_proto::{ChunkId, Failed, FailureKind, ID_LEN, NodeId, v1};
use tokio::sync::watch;
use tonic::{Status, Streaming};
use uuid::Uuid;
use v1::{backup_request::Message as Asked, backup_response::Message as Answer, map_item::Entry};

use super::{
    batch::{Checked, Geometry, check_content, check_order, usage},
    begin::{check_begin, parent_of},
    commit::{self, Outcome},
};
use crate::{
    access::Caller,
    content::parse_id,
    map_tree::{EditError, Editor, FreshNode, NodeError, NodesAhead, Tree},
    metrics::Job,
    repository::{Pin, Repository, SessionGuard},
    store::{Claim, Kind, Location, NewRecord, PutOutcome, Store},
};

/// Stored bytes that a client may send ahead of the acknowledgements.
const WINDOW_BYTES: u64 = 32 << 20;
/// Batches of one session are checked and stored at one time until they weigh so much: enough for the processors to have
/// work while the disk syncs what went before. One more, of 3 MiB at most, may come on top.
const IN_FLIGHT_BYTES: u64 = 32 << 20;
/// What an entry of a batch weighs beside its stored bytes: about its size in memory.
const ITEM_BYTES: u64 = 128;
/// Ids in one query.
const MAX_QUERY_IDS: usize = 4096;
/// New map nodes are stored when this many wait.
const FRESH_NODES: usize = 256;

type Stored = Result<StoredBatch, Failed>;

/// A batch whose records are on stable storage.
struct StoredBatch {
    checked: Checked,
    put: PutOutcome,
    /// What it was counted as while it was in flight.
    weight: u64,
}

/// The stream as a state: what was asked so far, and what is under way.
pub(super) struct Session {
    repository: Arc<Repository>,
    caller: Caller,
    requests: Streaming<v1::BackupRequest>,
    stopping: watch::Receiver<bool>,
    backup: Option<Box<Backup>>,
    in_flight: FuturesOrdered<BoxFuture<'static, Stored>>,
    in_flight_bytes: u64,
    /// Known with the commit.
    healed_bytes: u64,
    /// Commit was asked for.
    closing: bool,
    done: bool,
}

enum Event {
    Asked(Result<Option<v1::BackupRequest>, Status>),
    Stored(Stored),
    Drained,
    Stopping,
}

/// What is to become a generation.
pub(super) struct Backup {
    pub(super) guard: SessionGuard,
    pub(super) begin: v1::BackupBegin,
    pub(super) volume: Uuid,
    pub(super) geometry: Geometry,
    /// The parent's tree, size and mapped bytes.
    pub(super) parent: Option<v1::Generation>,
    pub(super) parent_tree: Option<Tree>,
    /// Of the parent's tree: what this generation shares with it stays, though the parent be deleted.
    pub(super) pin: Option<Pin>,
    /// Of all that the session stores, or is told to be present.
    pub(super) claim: Claim,
    pub(super) editor: Editor<NodesAhead>,
    next_chunk: u64,
    batches: u64,
    acknowledged_bytes: u64,
    pub(super) totals: Totals,
    /// Chunks that were there when the client asked, and were found damaged since.
    pub(super) lacking: Vec<ChunkId>,
}

/// What the session brought.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Totals {
    pub(super) changed_bytes: u64,
    pub(super) new_bytes: u64,
    pub(super) stored_bytes: u64,
    /// Plain bytes of records that took the place of damaged ones.
    pub(super) healed_bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, put: PutOutcome) {
        self.new_bytes += put.new_plain_bytes;
        self.stored_bytes += put.new_stored_bytes;
        self.healed_bytes += put.healed_plain_bytes;
    }
}

pub(super) fn node_failed(error: &NodeError) -> Failed {
    Failed::new(FailureKind::Damaged, format!("the map of the parent generation: {error}"))
        .with_hint("`thinbak verify` tells what is damaged; a full backup does not need the parent")
}

impl Session {
    pub(super) fn new(
        repository: Arc<Repository>,
        by: Caller,
        requests: Streaming<v1::BackupRequest>,
    ) -> Self {
        let stopping = repository.stopping();
        let in_flight = FuturesOrdered::new();
        Self {
            repository,
            caller: by,
            requests,
            stopping,
            backup: None,
            in_flight,
            in_flight_bytes: 0,
            healed_bytes: 0,
            closing: false,
            done: false,
        }
    }

    /// The next response; `None` when the stream has ended.
    pub(super) async fn next(&mut self) -> Result<Option<v1::BackupResponse>, Failed> {
        while !self.done {
            let answer = match self.event().await {
                Event::Stopping => {
                    return Err(Failed::new(
                        FailureKind::Busy,
                        "the backup was ended: the server is stopping",
                    )
                    .with_hint("what was sent is kept; the next backup goes on from there"));
                }
                Event::Asked(Ok(Some(request))) => self.asked(request).await?,
                Event::Asked(Ok(None)) => {
                    self.done = true;
                    None
                }
                Event::Asked(Err(status)) => return Err(status.into()),
                Event::Stored(stored) => Some(self.stored(stored?).await?),
                Event::Drained => Some(self.commit().await?),
            };
            if answer.is_some() {
                let healed_bytes = self.healed_bytes;
                return Ok(answer.map(|message| v1::BackupResponse { message: Some(message), healed_bytes }));
            }
        }
        Ok(None)
    }

    /// Counts a backup that ended with an error.
    pub(super) fn failed(&self) {
        self.repository.metrics.ended(Job::Backup, false);
    }

    async fn event(&mut self) -> Event {
        if self.closing && self.in_flight.is_empty() {
            return Event::Drained;
        }
        let listening = !self.closing && self.in_flight_bytes < IN_FLIGHT_BYTES;
        tokio::select! {
            biased;
            _ = self.stopping.wait_for(|stopping| *stopping) => Event::Stopping,
            Some(stored) = self.in_flight.next(), if !self.in_flight.is_empty() => Event::Stored(stored),
            request = self.requests.message(), if listening => Event::Asked(request),
        }
    }

    async fn asked(&mut self, request: v1::BackupRequest) -> Result<Option<Answer>, Failed> {
        match (request.message, &mut self.backup) {
            (Some(Asked::Begin(begin)), None) => {
                self.caller.check_begin(&self.repository, &begin).await?;
                let backup = Backup::begin(&self.repository, begin, &self.caller).await?;
                let session = v1::BackupSession {
                    session_id: backup.guard.id,
                    chunk_bytes: self.repository.chunk_bytes(),
                    window_bytes: WINDOW_BYTES,
                };
                self.backup = Some(Box::new(backup));
                Ok(Some(Answer::Session(session)))
            }
            (Some(Asked::Begin(_)), Some(_)) => Err(usage("the backup was begun already")),
            (Some(_), None) => Err(usage("a backup begins with the message Begin")),
            (Some(Asked::Query(query)), Some(_)) => {
                Ok(Some(Answer::Missing(missing(&self.repository.store, query).await?)))
            }
            (Some(Asked::Batch(batch)), Some(backup)) => {
                backup.next_chunk = check_order(&batch, backup.geometry, backup.next_chunk)?;
                let (repository, geometry) = (Arc::clone(&self.repository), backup.geometry);
                let weight = weight_of(&batch);
                self.in_flight_bytes += weight;
                self.in_flight.push_back(Box::pin(check_and_store(repository, batch, geometry, weight)));
                Ok(None)
            }
            (Some(Asked::Commit(_)), Some(_)) => {
                self.closing = true;
                Ok(None)
            }
            (None, _) => Err(usage("a message of the backup stream says nothing that this server knows")),
        }
    }

    /// The oldest batch in flight is on stable storage: its entries go into the tree, and it is acknowledged.
    async fn stored(&mut self, batch: StoredBatch) -> Result<Answer, Failed> {
        let StoredBatch { checked, put, weight } = batch;
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(weight);
        let store = self.repository.store.clone();
        let Some(backup) = self.backup.as_mut() else { return Err(usage("a batch without a backup")) };
        // Asked only now, because the chunk may have come with an earlier batch.
        backup.check_present(&store, &checked.present).await?;
        backup.totals.add(put);
        backup.totals.changed_bytes += checked.changed_bytes;
        backup.editor.expect(&checked.edits).await;
        for (chunk, edit) in checked.edits {
            backup.editor.apply(chunk, edit).await.map_err(|error| match error {
                EditError::Node(error) => node_failed(&error),
                error => usage(error.to_string()),
            })?;
            if backup.editor.fresh_nodes() >= FRESH_NODES {
                let fresh = backup.editor.take_fresh();
                backup.totals.add(put_nodes(&store, fresh).await?);
            }
        }
        backup.batches += 1;
        backup.acknowledged_bytes += checked.stored_bytes;
        Ok(Answer::Ack(v1::BackupAck { batches: backup.batches, stored_bytes: backup.acknowledged_bytes }))
    }

    async fn commit(&mut self) -> Result<Answer, Failed> {
        self.done = true;
        let Some(backup) = self.backup.take() else { return Err(usage("a commit without a backup")) };
        let metrics = &self.repository.metrics;
        Ok(match commit::commit(&self.repository, *backup).await? {
            Outcome::Committed(generation, healed_bytes) => {
                self.healed_bytes = healed_bytes;
                metrics.ended(Job::Backup, true);
                metrics.backed_up(generation.changed_bytes, generation.stored_bytes);
                Answer::Committed(*generation)
            }
            Outcome::Incomplete(missing) => {
                metrics.ended(Job::Backup, false);
                let missing = missing.iter().map(thinbak_proto::ChunkId::to_bytes).collect();
                Answer::Incomplete(v1::BackupIncomplete { missing })
            }
        })
    }
}

impl Backup {
    /// Checks chunks that a batch named as present. What is there but cannot be had is noted: the client is told at the
    /// commit. What was never there, is no chunk or is of another length is the client's mistake.
    async fn check_present(&mut self, store: &Store, present: &[(u64, [u8; ID_LEN])]) -> Result<(), Failed> {
        let mut lacking = Vec::new();
        let found = store.touch(present.iter().map(|(_, id)| *id).collect()).await?;
        for ((chunk, id), location) in present.iter().zip(found) {
            match location {
                Some(location) => self.check_chunk(*chunk, *id, Some(location))?,
                None => lacking.push((*chunk, *id)),
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let known = store.indexed_at(lacking.iter().map(|(_, id)| *id).collect()).await?;
        for ((chunk, id), location) in lacking.into_iter().zip(known) {
            self.check_chunk(chunk, id, location)?;
            if self.lacking.len() < MAX_QUERY_IDS {
                self.lacking.push(ChunkId::from_bytes(id));
            }
        }
        Ok(())
    }

    /// Whether what the index knows of an id is a chunk that can stand at this place of the volume. The index says what
    /// the record's header says, and that was written of bytes whose id was recomputed.
    fn check_chunk(&self, chunk: u64, id: [u8; ID_LEN], known: Option<Location>) -> Result<(), Failed> {
        let Some(location) = known.filter(|location| location.kind == Kind::Chunk) else {
            let id = ChunkId::from_bytes(id);
            return Err(usage(format!(
                "chunk {id} was named as present, which the repository does not have"
            )));
        };
        self.geometry.check_length(chunk, location.plain_len, "named as present")
    }

    async fn begin(
        repository: &Arc<Repository>,
        begin: v1::BackupBegin,
        caller: &Caller,
    ) -> Result<Self, Failed> {
        let volume = check_begin(&begin)?;
        let guard = repository.sessions.enter(volume, &begin.volume_name)?;
        // Once more: now that it is locked nobody gives it another name.
        caller.check_begin(repository, &begin).await?;
        repository.catalogue.check_name(volume, &begin.volume_name, begin.adopt).await?;
        let geometry = Geometry { chunk_bytes: repository.chunk_bytes(), size_bytes: begin.size_bytes };
        let claim = repository.store.claim();
        let entrance = repository.pins.enter().await;
        let parent = parent_of(repository, volume, &begin).await?;
        let parent_tree = parent.as_ref().map(tree_of).transpose()?;
        let pin = parent_tree.map(|tree| entrance.pin(tree));
        drop(entrance);
        let editor = Editor::new(NodesAhead::new(repository.store.clone()), parent_tree, geometry.chunks());
        let editor = editor.await.map_err(|error| node_failed(&error))?;
        let (next_chunk, batches, acknowledged_bytes, totals) = (0, 0, 0, Totals::default());
        Ok(Self {
            guard,
            begin,
            volume,
            geometry,
            parent,
            parent_tree,
            pin,
            claim,
            editor,
            next_chunk,
            batches,
            acknowledged_bytes,
            totals,
            lacking: Vec::new(),
        })
    }
}

/// The map tree of a generation.
pub(crate) fn tree_of(generation: &v1::Generation) -> Result<Tree, Failed> {
    let root = NodeId::from_bytes(parse_id(&generation.root)?);
    Ok(Tree { root, chunks: thinbak_proto::chunk_count(generation.size_bytes, generation.chunk_bytes) })
}

async fn missing(store: &Store, query: v1::BackupQuery) -> Result<v1::BackupMissing, Failed> {
    if query.ids.len() > MAX_QUERY_IDS {
        return Err(usage(format!("a query of {} ids, where {MAX_QUERY_IDS} are allowed", query.ids.len())));
    }
    let ids = query.ids.iter().map(|id| parse_id(id)).collect::<Result<Vec<_>, _>>()?;
    let found = store.contains(ids).await?;
    Ok(v1::BackupMissing { missing: found.into_iter().map(|found| !found).collect() })
}

fn weight_of(batch: &v1::BackupBatch) -> u64 {
    let stored = |item: &v1::MapItem| match &item.entry {
        Some(Entry::New(new)) => new.stored.len() as u64,
        _ => 0,
    };
    batch.items.iter().map(|item| ITEM_BYTES + stored(item)).sum()
}

async fn check_and_store(
    repository: Arc<Repository>,
    batch: v1::BackupBatch,
    geometry: Geometry,
    weight: u64,
) -> Stored {
    let processor = Arc::clone(&repository.processors).acquire_owned().await;
    let checking = Arc::clone(&repository);
    let checked = tokio::task::spawn_blocking(move || {
        let _processor = processor;
        check_content(batch, geometry, &checking.unpackers)
    });
    let mut checked = checked
        .await
        .map_err(|error| Failed::new(FailureKind::Failed, format!("checking a batch: {error}")))??;
    let put = repository.store.put(std::mem::take(&mut checked.records)).await?;
    Ok(StoredBatch { checked, put, weight })
}

/// Stores map nodes.
pub(super) async fn put_nodes(store: &Store, nodes: Vec<FreshNode>) -> Result<PutOutcome, Failed> {
    let records = nodes.into_iter().map(|FreshNode { id, encoded }| NewRecord {
        kind: Kind::MapNode,
        id: *id.as_bytes(),
        codec: thinbak_proto::CODEC_PLAIN as u8,
        plain_len: u32::try_from(encoded.len()).unwrap_or(u32::MAX),
        stored: encoded.into(),
        stored_hash: None,
    });
    // The plain bytes of nodes are no content.
    Ok(PutOutcome { new_plain_bytes: 0, ..store.put(records.collect()).await? })
}
