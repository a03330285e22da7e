//! Damage of every kind: found, contained and named.

mod flips;
mod planted;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::{CODEC_PLAIN, CODEC_ZSTD, ChunkId, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;
use v1::{
    backup_request::Message as Asked, backup_response::Message as Answer, ingest_client::IngestClient,
    map_item::Entry, repository_client::RepositoryClient, verify_event::Event,
};

use crate::{InitOptions, Repository, routes};

const CHUNK: u32 = 4096;

fn seeded() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// What a run found.
#[derive(Debug, Default)]
struct Found {
    records: Vec<v1::VerifyRecord>,
    packs: Vec<v1::VerifyPack>,
    /// Damaged chunks by generation.
    places: BTreeMap<u64, Vec<u64>>,
    reasons: Vec<String>,
    summary: v1::VerifySummary,
}

impl Found {
    fn is_clean(&self) -> bool {
        self.summary.damaged == 0
    }
}

async fn verify(repository: &Arc<Repository>, request: v1::VerifyRequest) -> Found {
    let mut client = RepositoryClient::new(routes(Arc::clone(repository)));
    let mut events = client.verify(request).await.unwrap().into_inner();
    let mut found = Found::default();
    while let Some(event) = events.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Progress(_) => {}
            Event::Record(record) => found.records.push(record),
            Event::Pack(pack) => found.packs.push(pack),
            Event::Damage(damage) => {
                let chunk = u64::from(CHUNK);
                let first = damage.offset_bytes / chunk;
                let end = (damage.offset_bytes + damage.length_bytes).div_ceil(chunk);
                found.places.entry(damage.generation).or_default().extend(first..end);
                found.reasons.push(damage.reason);
            }
            Event::Summary(summary) => found.summary = summary,
        }
    }
    let summary = &found.summary;
    assert_eq!(summary.damaged_records, found.records.len() as u64);
    assert_eq!(summary.damaged_packs, found.packs.len() as u64);
    assert_eq!(summary.damaged_generations, found.places.len() as u64, "{found:?}");
    let any = !found.records.is_empty() || !found.packs.is_empty() || !found.places.is_empty();
    assert_eq!(summary.damaged > 0, any);
    found
}

fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut plain = vec![0xab; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut plain[..len / 8]);
    plain
}

fn new(chunk: u64, plain: &[u8]) -> v1::MapItem {
    let (codec, stored) = match chunk % 2 {
        0 => (CODEC_PLAIN, plain.to_vec()),
        _ => (CODEC_ZSTD, zstd::bulk::compress(plain, 1).unwrap()),
    };
    let (id, plain_len) = (ChunkId::of(plain).to_bytes(), u32::try_from(plain.len()).unwrap());
    let new = v1::NewChunk { id, codec, plain_len, stored: stored.into() };
    v1::MapItem { chunk, entry: Some(Entry::New(new)) }
}

/// Backs up `chunks` (number and seed of the content) on top of `parent`.
async fn back_up(
    repository: &Arc<Repository>,
    parent: Option<&v1::Generation>,
    volume: Uuid,
    size_bytes: u64,
    chunks: &[(u64, u64)],
) -> v1::Generation {
    let begin = v1::BackupBegin {
        volume_uuid: volume.to_string(),
        volume_name: format!("h/p/{volume}"),
        size_bytes,
        parent: parent.map_or(0, |parent| parent.number),
        parent_root: parent.map(|parent| parent.root.clone()).unwrap_or_default(),
        ..Default::default()
    };
    let len = |chunk: u64| (size_bytes - chunk * u64::from(CHUNK)).min(u64::from(CHUNK)) as usize;
    let items = chunks.iter().map(|(chunk, seed)| new(*chunk, &content(*seed, len(*chunk)))).collect();
    let (requests, stream) = mpsc::channel(8);
    let mut client = IngestClient::new(routes(Arc::clone(repository)));
    let mut responses = client.backup(ReceiverStream::new(stream)).await.unwrap().into_inner();
    for message in
        [Asked::Begin(begin), Asked::Batch(v1::BackupBatch { items }), Asked::Commit(v1::BackupCommit {})]
    {
        requests.send(v1::BackupRequest { message: Some(message) }).await.unwrap();
    }
    loop {
        match responses.message().await.unwrap().unwrap().message.unwrap() {
            Answer::Committed(generation) => return generation,
            Answer::Session(_) | Answer::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A closed repository and what is in it: for each generation, the seed of each chunk.
struct Sample {
    dir: tempfile::TempDir,
    volume: Uuid,
    generations: Vec<(v1::Generation, BTreeMap<u64, u64>)>,
}

impl Sample {
    /// Generations of one volume, each with some chunks changed. The volume is not a whole number of chunks long.
    async fn new(random: &mut StdRng, generations: usize, chunks: u64, changes: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Repository::init(dir.path(), InitOptions { chunk_bytes: CHUNK }).await.unwrap();
        let repository = Repository::open(dir.path()).await.unwrap();
        let volume = Uuid::new_v4();
        let mut all: Vec<(v1::Generation, BTreeMap<u64, u64>)> = Vec::new();
        for _ in 0..generations {
            let mut model = all.last().map(|(_, model)| model.clone()).unwrap_or_default();
            let mut fresh: BTreeMap<u64, u64> = BTreeMap::new();
            for _ in 0..changes {
                fresh.insert(random.random_range(0..chunks), random.random_range(0..1 << 40));
            }
            fresh.insert(chunks - 1, random.random_range(0..1 << 40));
            model.extend(&fresh);
            let fresh: Vec<_> = fresh.into_iter().collect();
            let size = chunks * u64::from(CHUNK) - 512;
            let parent = all.last().map(|(generation, _)| generation);
            let generation = back_up(&repository, parent, volume, size, &fresh).await;
            all.push((generation, model));
        }
        repository.close().await;
        Self { dir, volume, generations: all }
    }

    fn packs(&self) -> Vec<PathBuf> {
        let mut packs = Vec::new();
        for folder in fs::read_dir(self.dir.path().join("packs")).unwrap() {
            packs.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|entry| entry.unwrap().path()));
        }
        packs.sort();
        packs
    }

    /// A copy whose packs may be damaged.
    fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(self.dir.path(), dir.path());
        Self { dir, volume: self.volume, generations: self.generations.clone() }
    }

    async fn open(&self) -> Arc<Repository> {
        Repository::open(self.dir.path()).await.unwrap()
    }

    /// Which chunks of which generations cannot be read, one by one.
    async fn unreadable(&self, repository: &Arc<Repository>) -> BTreeMap<u64, Vec<u64>> {
        let mut found: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut checker = super::content::Checker::new(CHUNK).unwrap();
        for (generation, model) in &self.generations {
            let tree = crate::ingest::tree_of(generation).unwrap();
            for chunk in 0..tree.chunks {
                let entry = crate::map_tree::entry_at(&repository.store, tree, chunk).await;
                let good = match (entry, model.get(&chunk)) {
                    (Err(_), _) => false,
                    (Ok(entry), None) => {
                        assert!(entry.chunk().is_none());
                        true
                    }
                    (Ok(entry), Some(_)) => {
                        let id = *entry.chunk().unwrap().as_bytes();
                        let record = repository.store.get(id).await;
                        record.is_ok_and(|record| record.is_some_and(|record| checker.check(&record).is_ok()))
                    }
                };
                if !good {
                    found.entry(generation.number).or_default().push(chunk);
                }
            }
        }
        found
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn everything() -> v1::VerifyRequest {
    v1::VerifyRequest::default()
}
