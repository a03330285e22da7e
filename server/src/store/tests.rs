//! Tests of the store as a whole. Those of damage work on files, those of crashes and failing operations
//! on a medium in memory that tears and refuses.

mod damage;
mod format_document;
mod model;
mod puts;
mod quarantine;
mod sweep;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

const REPOSITORY: Uuid = Uuid::from_u128(0x1234_5678_9abc_4def_8123_4567_89ab_cdef);

/// A seed from the environment, else a new one; printed either way.
fn seeded() -> StdRng {
    let seed =
        std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A record of `len` bytes that follow from `number`.
fn record(kind: Kind, number: u64, len: usize) -> NewRecord {
    let mut stored = vec![0; len];
    StdRng::seed_from_u64(number).fill(&mut stored[..]);
    let id = *blake3::Hasher::new()
        .update(&[kind.code()])
        .update(&number.to_le_bytes())
        .update(&stored)
        .finalize()
        .as_bytes();
    NewRecord {
        kind,
        id,
        codec: 0,
        plain_len: u32::try_from(len).unwrap(),
        stored: Bytes::from(stored),
        stored_hash: None,
    }
}

fn chunks(numbers: std::ops::Range<u64>, len: usize) -> Vec<NewRecord> {
    numbers.map(|number| record(Kind::Chunk, number, len)).collect()
}

fn is_same(new: &NewRecord, stored: &StoredRecord) -> bool {
    (new.kind, new.id, new.codec, new.plain_len, &new.stored)
        == (stored.kind, stored.id, stored.codec, stored.plain_len, &stored.stored)
}

async fn assert_all_there(store: &Store, records: &[NewRecord]) {
    let found = store.get_many(records.iter().map(|record| record.id).collect()).await.unwrap();
    for (record, found) in records.iter().zip(found) {
        assert!(is_same(record, &found.expect("an acknowledged record is found").unwrap()));
    }
}

struct Dir {
    dir: TempDir,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(PACKS_DIR)).unwrap();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn pack(&self, number: u32) -> std::path::PathBuf {
        self.path().join(PACKS_DIR).join(format::pack_path(number))
    }

    async fn open(&self) -> Store {
        let path = self.path().to_owned();
        spawn_blocking(move || Store::open(&path, REPOSITORY).unwrap()).await.unwrap()
    }

    async fn open_on(&self, medium: &Arc<memory_medium::MemoryMedium>) -> Result<Store, StoreError> {
        let path = self.path().to_owned();
        let environment = Environment { packs: Some(medium.clone()), ..Environment::system() };
        spawn_blocking(move || Store::open_in(&path, REPOSITORY, &environment, &[])).await.unwrap()
    }

    fn remove_index(&self) {
        fs::remove_dir_all(self.path().join(INDEX_DIR)).unwrap();
    }
}

/// Drops a store as a dying process does: without sealing. The drop waits for the writer, so it may block.
async fn kill(store: Store) {
    spawn_blocking(move || drop(store)).await.unwrap();
}
