//! The walk over one generation.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_proto::{ChunkId, Failed, FailureKind, v1};

use super::{End, Run};
use crate::{
    content::{Unpacker, read_group},
    ingest::{Geometry, tree_of},
    map_tree::{Tree, TreeDiff},
    repository::Repository,
    store::{Kind, StoreError, StoredRecord},
};

pub(super) struct Walk<'a> {
    repository: &'a Repository,
    sample: f64,
    random: StdRng,
    /// The generation walked before, if it was one of the same volume.
    before: Option<(String, Tree)>,
}

/// A chunk that is to be read, and where it lies.
#[derive(Clone, Copy)]
struct Wanted {
    chunk: u64,
    id: ChunkId,
}

/// A chunk's number, and its length or what is wrong with it.
type Outcome = (u64, Result<u64, String>);
type Fetched = Option<Result<StoredRecord, StoreError>>;

impl<'a> Walk<'a> {
    pub(super) fn new(repository: &'a Repository, sample: f64, seed: u64) -> Self {
        Self { repository, sample, random: StdRng::seed_from_u64(seed), before: None }
    }

    pub(super) async fn generation(&mut self, generation: &v1::Generation, run: &mut Run) -> Result<(), End> {
        let tree = tree_of(generation)?;
        let before = self.before.take().filter(|(volume, _)| *volume == generation.volume_uuid);
        let before = before.map(|(_, tree)| tree);
        let mut differences = TreeDiff::new(self.repository.store.clone(), before, tree).tolerant();
        let group = read_group(generation.chunk_bytes);
        let mut wanted = Vec::with_capacity(group);
        while let Some(difference) = differences.next().await {
            let difference = match difference {
                Ok(difference) => difference,
                Err(unreadable) => {
                    let reason = unreadable.source.to_string();
                    run.damage(damage(generation, unreadable.first, unreadable.chunks, reason)).await?;
                    continue;
                }
            };
            let Some(id) = difference.new.chunk() else { continue };
            if self.sample < 1.0 && !self.random.random_bool(self.sample) {
                run.summary.chunks_skipped += 1;
                run.advance(u64::from(generation.chunk_bytes)).await?;
                continue;
            }
            wanted.push(Wanted { chunk: difference.first, id });
            if wanted.len() >= group {
                self.check(generation, &mut wanted, run).await?;
            }
        }
        self.check(generation, &mut wanted, run).await?;
        run.summary.map_nodes_checked += differences.nodes_read();
        self.before = Some((generation.volume_uuid.clone(), tree));
        Ok(())
    }

    async fn check(
        &self,
        generation: &v1::Generation,
        wanted: &mut Vec<Wanted>,
        run: &mut Run,
    ) -> Result<(), End> {
        let wanted = std::mem::take(wanted);
        if wanted.is_empty() {
            return Ok(());
        }
        let ids = wanted.iter().map(|wanted| *wanted.id.as_bytes()).collect();
        let fetched = self.repository.store.get_many(ids).await.map_err(Failed::from)?;
        let geometry = geometry_of(generation);
        let checks = tokio::task::spawn_blocking(move || check_all(wanted, fetched, geometry));
        let checks = checks
            .await
            .map_err(|error| Failed::new(FailureKind::Failed, format!("verifying: {error}")))??;
        for (chunk, outcome) in checks {
            run.summary.chunks_checked += 1;
            match outcome {
                Ok(bytes) => run.summary.bytes_checked += bytes,
                Err(reason) => run.damage(damage(generation, chunk, 1, reason)).await?,
            }
            run.advance(geometry.bytes_of(chunk, 1)).await?;
        }
        Ok(())
    }
}

fn geometry_of(generation: &v1::Generation) -> Geometry {
    Geometry { chunk_bytes: generation.chunk_bytes, size_bytes: generation.size_bytes }
}

/// Checks the content of chunks that were fetched. Takes a processor for a while.
fn check_all(wanted: Vec<Wanted>, fetched: Vec<Fetched>, geometry: Geometry) -> Result<Vec<Outcome>, Failed> {
    let mut unpacker = Unpacker::new(geometry.chunk_bytes).map_err(|error| {
        Failed::new(FailureKind::Failed, format!("cannot prepare to decompress: {error}"))
    })?;
    Ok(wanted
        .into_iter()
        .zip(fetched)
        .map(|(Wanted { chunk, id }, fetched)| {
            (chunk, check_one(chunk, id, fetched, geometry, &mut unpacker))
        })
        .collect())
}

fn check_one(
    chunk: u64,
    id: ChunkId,
    fetched: Fetched,
    geometry: Geometry,
    unpacker: &mut Unpacker,
) -> Result<u64, String> {
    let record = match fetched {
        Some(Ok(record)) if record.kind == Kind::Chunk => record,
        Some(Ok(_)) | None => return Err(format!("chunk {id} is not in the repository")),
        Some(Err(error)) => return Err(format!("chunk {id}: {error}")),
    };
    let plain = unpacker
        .check(id, u32::from(record.codec), record.plain_len, &record.stored)
        .map_err(|error| format!("chunk {id}: {error}"))?;
    let (found, expected) = (plain.len() as u64, geometry.bytes_of(chunk, 1));
    if found == expected { Ok(found) } else { Err(format!("chunk {id} has {found} bytes, not {expected}")) }
}

fn damage(generation: &v1::Generation, first: u64, chunks: u64, reason: String) -> v1::VerifyDamage {
    v1::VerifyDamage {
        volume_name: generation.volume_name.clone(),
        generation: generation.number,
        offset_bytes: first.saturating_mul(u64::from(generation.chunk_bytes)),
        length_bytes: geometry_of(generation).bytes_of(first, chunks),
        reason,
    }
}
