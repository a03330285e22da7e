//! Sink: a new generation on a server.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use thinbak_proto::{
    ChunkId, Failed, FailureKind, MAX_PAYLOAD_LEN,
    v1::{BackupBatch, BackupBegin, MapItem, ingest_client::IngestClient},
};
use tokio::task::JoinHandle;

use super::{
    compress::Compressors,
    pack_chunks::{Packed, Piece, PieceContent, compression, cut, pack},
    session::{Commit, Session},
};
use crate::{
    channel::BoxedChannel,
    stream::{Batch, Rate, Sink},
};

/// Batches being hashed, asked about or compressed at a time.
const PREPARED: usize = 4;
/// Chunks remembered as sent in this session; then the server's own deduplication has to do.
const REMEMBERED: usize = 64 * 1024;
/// Items of one message at most.
const ITEMS: usize = 4096;

/// What a backup moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GenerationStats {
    /// Chunk data sent to the server, compressed, in bytes.
    pub sent_bytes: u64,
    /// Plain bytes of the chunks that did not have to be sent.
    pub deduplicated_bytes: u64,
}

/// Streams a volume's changes to a server: batches are hashed and compressed a few at a time, sent in
/// order, and at most the server's window is under way unacknowledged.
pub struct GenerationSink {
    session: Arc<Session>,
    size: u64,
    preparing: VecDeque<JoinHandle<Result<Vec<Packed>, Failed>>>,
    compressors: Arc<Compressors>,
    sent: HashSet<ChunkId>,
    stats: GenerationStats,
    rate: Rate,
}

impl GenerationSink {
    /// Opens a session for a volume as `begin` says.
    pub async fn begin(client: IngestClient<BoxedChannel>, begin: BackupBegin) -> Result<Self, Failed> {
        let size = begin.size_bytes;
        let session = Arc::new(Session::begin(client, begin).await?);
        let compressors = Arc::new(Compressors::new(session.chunk_bytes()));
        let (preparing, sent) = (VecDeque::new(), HashSet::new());
        let (stats, rate) = (GenerationStats::default(), Rate::default());
        Ok(Self { session, size, preparing, compressors, sent, stats, rate })
    }

    /// Sends no more bytes of chunks in a second than this; 0: no limit.
    #[must_use]
    pub fn with_rate(mut self, bytes_per_second: u64) -> Self {
        self.rate = Rate::new(bytes_per_second);
        self
    }

    /// What was moved so far.
    #[must_use]
    pub fn stats(&self) -> GenerationStats {
        self.stats
    }

    /// Makes the generation visible; it is durable when this returns that it is done. Call after `finish`.
    pub async fn commit(&self) -> Result<Commit, Failed> {
        self.session.commit().await
    }

    /// Sends the oldest prepared batch.
    async fn send_next(&mut self) -> Result<(), Failed> {
        let Some(prepared) = self.preparing.pop_front() else { return Ok(()) };
        let packed = prepared.await.map_err(|error| broken(&error))??;
        let mut items: Vec<MapItem> = Vec::new();
        let mut stored = 0;
        for one in packed {
            let one = self.count(one);
            if !items.is_empty() && (stored + one.stored_len() > MAX_PAYLOAD_LEN || items.len() >= ITEMS) {
                let full = std::mem::take(&mut items);
                let full_len = std::mem::take(&mut stored);
                self.session.batch(BackupBatch { items: full }, full_len).await?;
                self.rate.spend(full_len as u64).await;
            }
            stored += one.stored_len();
            items.push(one.item);
        }
        if !items.is_empty() {
            self.session.batch(BackupBatch { items }, stored).await?;
            self.rate.spend(stored as u64).await;
        }
        Ok(())
    }

    /// Leaves out the data of what went before in this session, and keeps the sums.
    fn count(&mut self, packed: Packed) -> Packed {
        let Some((id, plain_len)) = packed.chunk else { return packed };
        if packed.stored_len() > 0 && self.sent.contains(&id) {
            self.stats.deduplicated_bytes += plain_len;
            return packed.into_present();
        }
        if packed.stored_len() > 0 {
            self.stats.sent_bytes += packed.stored_len() as u64;
            if self.sent.len() >= REMEMBERED {
                self.sent.clear();
            }
            self.sent.insert(id);
        } else {
            self.stats.deduplicated_bytes += plain_len;
        }
        packed
    }
}

impl Sink for GenerationSink {
    async fn apply(&mut self, batch: Batch) -> Result<(), Failed> {
        while self.preparing.len() >= PREPARED {
            self.send_next().await?;
        }
        let prepared = prepare(Arc::clone(&self.session), Arc::clone(&self.compressors), batch, self.size);
        self.preparing.push_back(tokio::spawn(prepared));
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Failed> {
        while !self.preparing.is_empty() {
            self.send_next().await?;
        }
        Ok(())
    }
}

impl Drop for GenerationSink {
    fn drop(&mut self) {
        for task in &self.preparing {
            task.abort();
        }
    }
}

async fn prepare(
    session: Arc<Session>,
    compressors: Arc<Compressors>,
    batch: Batch,
    size: u64,
) -> Result<Vec<Packed>, Failed> {
    let chunk_bytes = session.chunk_bytes();
    let cut = tokio::task::spawn_blocking(move || cut(batch, chunk_bytes, size));
    let pieces = cut.await.map_err(|error| broken(&error))??;
    let ids = distinct_ids(&pieces);
    let missing = if ids.is_empty() {
        HashSet::new()
    } else {
        let answer = session.missing(ids.iter().map(ChunkId::to_bytes).collect()).await?;
        ids.into_iter().zip(answer).filter_map(|(id, missing)| missing.then_some(id)).collect()
    };
    let packed = tokio::task::spawn_blocking(move || {
        let packed = compressors.with(|compressor| pack(pieces, missing, compressor));
        packed.map_err(|error| compression(&error))?
    });
    packed.await.map_err(|error| broken(&error))?
}

fn distinct_ids(pieces: &[Piece]) -> Vec<ChunkId> {
    let mut seen = HashSet::new();
    let ids = pieces.iter().filter_map(|piece| match &piece.content {
        PieceContent::Data { id, .. } => Some(*id),
        PieceContent::Zero(_) | PieceContent::Hole(_) => None,
    });
    ids.filter(|id| seen.insert(*id)).collect()
}

fn broken(error: &tokio::task::JoinError) -> Failed {
    Failed::new(FailureKind::Failed, format!("a task of the backup ended early: {error}"))
}
