//! Source: a generation on a server, against what the target already holds.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use thinbak_proto::{
    BufferPool, CODEC_PLAIN, CODEC_ZSTD, ChunkId, Failed, FailureKind, MapEntry,
    v1::{ChunkData, Generation, GetChunksRequest, content_client::ContentClient},
};
use tokio::task::JoinHandle;
use zstd::bulk::Decompressor;

use super::{
    geometry::{CUT_CHUNKS, Geometry},
    map_walk::{MapRun, MapWalk, join},
};
use crate::{
    channel::BoxedChannel,
    stream::{BATCH_LEN, Batch, Content, Extent, Source},
    volume::PoolVolume,
};

/// Fetches under way at a time, of up to 4 MiB each.
const FETCHES: usize = 4;

/// Batches that wait for their next use: more are seldom under way.
const IDLE_BUFFERS: usize = 2 * FETCHES;

/// Chunks of the map looked at in one step, so that what was found to differ stays small in memory.
const COMPARED_CHUNKS: u64 = CUT_CHUNKS;

/// Bytes that a stored chunk may have more than the plain one.
const STORED_EXTRA: u64 = 1024;

/// What was moved to serve a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Bytes of the generation that are not holes.
    pub mapped_bytes: u64,
    /// Bytes of the target that were read for comparing.
    pub compared_bytes: u64,
    /// Bytes fetched from the server, as they were sent.
    pub received_bytes: u64,
}

/// Reads a generation, or where it differs from another one of its volume. Without a target it names everything, but no
/// holes where there is no other generation; against a target it reads that too and names only what differs there.
/// Each chunk's id is recomputed before it is passed on.
pub struct GenerationSource {
    walk: MapWalk,
    /// Holes are what is left out.
    from_nothing: bool,
    content: ContentClient<BoxedChannel>,
    geometry: Geometry,
    against: Option<PoolVolume>,
    /// Runs of the map not looked at yet.
    runs: VecDeque<MapRun>,
    /// What the stream must name, not fetched yet.
    wanted: VecDeque<MapRun>,
    fetches: VecDeque<JoinHandle<Result<(Batch, u64), Failed>>>,
    /// What batches are made in.
    buffers: BufferPool,
    stats: SourceStats,
}

impl GenerationSource {
    /// Everything that `generation` holds, or where it differs from `base`, an earlier or later one of its volume. Of
    /// that only what is different in `against`, if there is one.
    pub fn new(
        content: ContentClient<BoxedChannel>,
        base: Option<&Generation>,
        generation: &Generation,
        against: Option<PoolVolume>,
    ) -> Result<Self, Failed> {
        let walk = match base {
            Some(base) => MapWalk::difference(content.clone(), base, generation)?,
            None => MapWalk::new(content.clone(), generation)?,
        };
        Ok(Self {
            walk,
            from_nothing: base.is_none(),
            content,
            geometry: Geometry::of(generation)?,
            against,
            runs: VecDeque::new(),
            wanted: VecDeque::new(),
            fetches: VecDeque::new(),
            buffers: BufferPool::new(BATCH_LEN, IDLE_BUFFERS),
            stats: SourceStats::default(),
        })
    }

    /// What was moved so far.
    #[must_use]
    pub fn stats(&self) -> SourceStats {
        self.stats
    }

    /// Cuts the next batch of what must be named off the map; `None` at its end.
    async fn next_wanted(&mut self) -> Result<Option<Vec<MapRun>>, Failed> {
        let mut batch: Vec<MapRun> = Vec::new();
        let mut bytes = 0;
        loop {
            while let Some(run) = self.wanted.pop_front() {
                bytes += run.id().map_or(0, |_| self.geometry.len(&run));
                batch.push(run);
                if bytes >= BATCH_LEN as u64 || batch.len() >= 1024 {
                    return Ok(Some(batch));
                }
            }
            if !self.refill().await? {
                return Ok((!batch.is_empty()).then_some(batch));
            }
        }
    }

    /// Looks at the next runs of the map; `false` at its end.
    async fn refill(&mut self) -> Result<bool, Failed> {
        self.read_map().await?;
        let runs = self.take_runs();
        if runs.is_empty() {
            return Ok(false);
        }
        let mapped = runs.iter().filter(|run| run.entry != MapEntry::Hole);
        self.stats.mapped_bytes += mapped.map(|run| self.geometry.len(run)).sum::<u64>();
        match self.against.clone() {
            None => {
                let named = |run: &MapRun| run.entry != MapEntry::Hole || !self.from_nothing;
                self.wanted.extend(runs.into_iter().filter(named));
            }
            Some(target) => {
                let geometry = self.geometry;
                let compared = tokio::task::spawn_blocking(move || compare(&target, geometry, &runs)).await;
                let (different, read) = compared.map_err(|error| broken(&error))??;
                self.stats.compared_bytes += read;
                self.wanted.extend(different);
            }
        }
        Ok(true)
    }

    /// Reads the map until there is enough for one step. What reads as zero becomes one run across the
    /// nodes of the map: only then it is seen which blocks of the target lie wholly in it.
    async fn read_map(&mut self) -> Result<(), Failed> {
        let mut chunks: u64 = self.runs.iter().map(|run| run.count).sum();
        while chunks <= COMPARED_CHUNKS {
            let Some(runs) = self.walk.next().await? else { break };
            for run in runs {
                // The generation may be the shorter one of two.
                let count = run.count.min(self.geometry.chunks().saturating_sub(run.chunk));
                if count > 0 {
                    chunks = chunks.saturating_add(count);
                    let run = MapRun { count, ..run };
                    let rest = self.runs.back_mut().map_or(Some(run), |last| last.absorb(run));
                    self.runs.extend(rest);
                }
            }
        }
        Ok(())
    }

    /// Takes runs of up to `COMPARED_CHUNKS` chunks off the queue. A long one is cut where a block of the
    /// target ends.
    fn take_runs(&mut self) -> Vec<MapRun> {
        let block = self.against.as_ref().map_or(self.geometry.chunk, PoolVolume::block_bytes);
        let mut taken = Vec::new();
        let mut left = COMPARED_CHUNKS;
        while let Some(run) = self.runs.pop_front() {
            if run.count > left {
                let count = self.geometry.cut(&run, left, block);
                let rest = MapRun { chunk: run.chunk + count, count: run.count - count, ..run };
                self.runs.push_front(rest);
                if count > 0 {
                    taken.push(MapRun { count, ..run });
                }
                break;
            }
            left -= run.count;
            taken.push(run);
        }
        taken
    }
}

impl Source for GenerationSource {
    async fn next(&mut self) -> Result<Option<Batch>, Failed> {
        while self.fetches.len() < FETCHES {
            let Some(wanted) = self.next_wanted().await? else { break };
            let fetch = fetch(self.content.clone(), self.geometry, wanted, self.buffers.clone());
            self.fetches.push_back(tokio::spawn(fetch));
        }
        let Some(fetch) = self.fetches.pop_front() else { return Ok(None) };
        let (batch, received) = fetch.await.map_err(|error| broken(&error))??;
        self.stats.received_bytes += received;
        Ok(Some(batch))
    }
}

impl Drop for GenerationSource {
    fn drop(&mut self) {
        for fetch in &self.fetches {
            fetch.abort();
        }
    }
}

fn broken(error: &tokio::task::JoinError) -> Failed {
    Failed::new(FailureKind::Failed, format!("a task of the restore ended early: {error}"))
}

/// The runs in which `target` does not hold what they say, and how many bytes of it were read.
fn compare(target: &PoolVolume, geometry: Geometry, runs: &[MapRun]) -> Result<(Vec<MapRun>, u64), Failed> {
    let mut different = Vec::new();
    let mut read = 0;
    let mut buffer = vec![0; usize::try_from(geometry.chunk).unwrap_or(0)];
    for run in runs {
        let (offset, len) = (geometry.offset(run), geometry.len(run));
        match run.id() {
            Some(id) => {
                let part =
                    usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)).unwrap_or_default();
                target.read(offset, part)?;
                read += len;
                if ChunkId::of(part) != id {
                    different.push(*run);
                }
            }
            None => read += compare_gap(target, geometry, run, &mut buffer, &mut different)?,
        }
    }
    Ok((different, read))
}

/// The same for a run that reads as zero. Of a hole the target's blocks that lie wholly in it must go, where it can unmap
/// any; everything else, and a zero, may stay mapped or unmapped but must read as zero.
fn compare_gap(
    target: &PoolVolume,
    geometry: Geometry,
    run: &MapRun,
    buffer: &mut [u8],
    different: &mut Vec<MapRun>,
) -> Result<u64, Failed> {
    let (offset, len) = (geometry.offset(run), geometry.len(run));
    let block = target.block_bytes();
    let whole = match run.entry {
        MapEntry::Hole if target.can_unmap() => {
            offset.next_multiple_of(block)..(offset + len) / block * block
        }
        _ => 0..0,
    };
    let (mut read, mut next) = (0, run.chunk);
    for range in target.readable(offset, offset + len) {
        let range = range?;
        let must_go = range.begin.max(whole.start)..range.end.min(whole.end);
        for chunk in (range.begin / geometry.chunk).max(next)..range.end.div_ceil(geometry.chunk) {
            let one = MapRun { chunk, count: 1, entry: run.entry };
            let (begin, length) = (geometry.offset(&one), geometry.len(&one));
            if begin.max(must_go.start) >= (begin + length).min(must_go.end) {
                let part =
                    usize::try_from(length).ok().and_then(|len| buffer.get_mut(..len)).unwrap_or_default();
                target.read(begin, part)?;
                read += length;
                if part.iter().all(|byte| *byte == 0) {
                    continue;
                }
            }
            join(different, one);
            next = chunk + 1;
        }
    }
    Ok(read)
}

/// Turns runs into extents; chunks are fetched in one call, each id once.
async fn fetch(
    mut content: ContentClient<BoxedChannel>,
    geometry: Geometry,
    wanted: Vec<MapRun>,
    buffers: BufferPool,
) -> Result<(Batch, u64), Failed> {
    let mut lengths = HashMap::new();
    for run in &wanted {
        if let Some(id) = run.id() {
            lengths.insert(id, geometry.len(run));
        }
    }
    let answers = receive(&mut content, &lengths).await?;
    let received = answers.iter().map(|data| data.stored.len() as u64).sum();
    let batch = tokio::task::spawn_blocking(move || assemble(&answers, geometry, &wanted, &buffers));
    Ok((batch.await.map_err(|error| broken(&error))??, received))
}

/// What a server sends of the chunks of these plain lengths, in bounded memory.
async fn receive(
    content: &mut ContentClient<BoxedChannel>,
    lengths: &HashMap<ChunkId, u64>,
) -> Result<Vec<ChunkData>, Failed> {
    let mut answers = Vec::with_capacity(lengths.len());
    if lengths.is_empty() {
        return Ok(answers);
    }
    let ids = lengths.keys().map(ChunkId::to_bytes).collect();
    let mut stream = content.get_chunks(GetChunksRequest { ids }).await?.into_inner();
    while let Some(data) = stream.message().await? {
        let id = ChunkId::try_from(&*data.id).map_err(|error| damaged(&error.to_string()))?;
        let Some(&length) = lengths.get(&id) else {
            return Err(damaged(&format!("the server sent chunk {id}, which was not asked for")));
        };
        if data.stored.len() as u64 > length + STORED_EXTRA {
            return Err(damaged(&format!("the server sent {} bytes as chunk {id}", data.stored.len())));
        }
        answers.push(data);
        if answers.len() > lengths.len() {
            return Err(damaged("the server sent more chunks than were asked for"));
        }
    }
    Ok(answers)
}

/// Decompresses and proves what a server sent, into one piece of memory: chunks that lie beside each other in the volume
/// become one extent. Synchronous: it takes a processor for a while.
fn assemble(
    answers: &[ChunkData],
    geometry: Geometry,
    wanted: &[MapRun],
    buffers: &BufferPool,
) -> Result<Batch, Failed> {
    let mut by_id = HashMap::with_capacity(answers.len());
    for data in answers {
        let id = ChunkId::try_from(&*data.id).map_err(|error| damaged(&error.to_string()))?;
        by_id.insert(id, data);
    }
    let length = |run: &MapRun| usize::try_from(geometry.len(run)).unwrap_or(0);
    let data = wanted.iter().filter(|run| run.id().is_some());
    let mut buffer = buffers.take(data.clone().map(length).sum());
    let mut unpacker = Decompressor::new().map_err(|error| damaged(&error.to_string()))?;
    let mut rest = buffer.bytes_mut();
    for run in data {
        let (Some(id), Some((plain, after))) = (run.id(), rest.split_at_mut_checked(length(run))) else {
            break;
        };
        let data = by_id.get(&id).ok_or_else(|| damaged(&format!("the server did not send chunk {id}")))?;
        unpack(&mut unpacker, id, data, plain)?;
        rest = after;
    }
    Ok(extents(geometry, wanted, buffer.freeze()))
}

/// Fills `plain` with the chunk of this id, whose length is that of `plain`.
fn unpack(
    unpacker: &mut Decompressor<'_>,
    id: ChunkId,
    data: &ChunkData,
    plain: &mut [u8],
) -> Result<(), Failed> {
    let unlike = || damaged(&format!("chunk {id} is not what its id says"));
    match data.codec {
        CODEC_PLAIN if data.stored.len() == plain.len() => plain.copy_from_slice(&data.stored),
        CODEC_PLAIN => return Err(unlike()),
        CODEC_ZSTD => {
            let unpacked = unpacker.decompress_to_buffer(&data.stored, plain);
            let length =
                unpacked.map_err(|error| damaged(&format!("chunk {id} does not decompress: {error}")))?;
            if length != plain.len() {
                return Err(unlike());
            }
        }
        other => return Err(damaged(&format!("chunk {id} has codec {other}, which is not known"))),
    }
    if ChunkId::of(plain) == id { Ok(()) } else { Err(unlike()) }
}

/// The extents of runs whose data lies in `plain`, one after the other.
fn extents(geometry: Geometry, wanted: &[MapRun], mut plain: Bytes) -> Batch {
    let mut batch = Vec::new();
    let mut runs = wanted.iter().peekable();
    while let Some(run) = runs.next() {
        let (offset, mut len) = (geometry.offset(run), geometry.len(run));
        let content = match (run.entry, run.id()) {
            (_, Some(_)) => {
                while let Some(next) =
                    runs.next_if(|next| next.id().is_some() && geometry.offset(next) == offset + len)
                {
                    len += geometry.len(next);
                }
                Content::Data(plain.split_to(usize::try_from(len).unwrap_or(usize::MAX).min(plain.len())))
            }
            (MapEntry::Zero, None) => Content::Zero(len),
            _ => Content::Unmapped(len),
        };
        batch.push(Extent { offset, content });
    }
    batch
}

fn damaged(what: &str) -> Failed {
    Failed::new(FailureKind::Damaged, format!("reading a generation: {what}"))
}

#[cfg(test)]
mod tests;
