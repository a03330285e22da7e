//! Damage of every kind: found, contained and named.

mod flips;
mod planted;

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::v1;
use uuid::Uuid;
use v1::{repository_client::RepositoryClient, verify_event::Event};

use crate::{InitOptions, Repository, ingest::tests::client, routes};

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

/// Backs up `chunks` (number and seed of the content) on top of `parent`.
async fn back_up(
    repository: &Arc<Repository>,
    parent: Option<&v1::Generation>,
    volume: Uuid,
    size_bytes: u64,
    chunks: &[(u64, u64)],
) -> v1::Generation {
    let begin = match parent {
        Some(parent) => client::after(parent, size_bytes),
        None => client::full(volume, &format!("h/p/{volume}"), size_bytes),
    };
    let len = |chunk: u64| (size_bytes - chunk * u64::from(CHUNK)).min(u64::from(CHUNK)) as usize;
    let item =
        |(chunk, seed): &(u64, u64)| client::packed(*chunk, &content(*seed, len(*chunk)), (chunk % 2) as u32);
    client::back_up(repository, begin, chunks.iter().map(item).collect()).await.unwrap()
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
        let dir = client::copy_of(self.dir.path());
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

fn everything() -> v1::VerifyRequest {
    v1::VerifyRequest::default()
}
