//! Embedded pools over real files and over devices that lose power. `thin_check` is the judge of the metadata.

mod crash;
mod damage;
mod devices;
mod identity;
mod making;
mod model;
mod msnap;
mod origins;
mod power;
mod resize;
mod snapshots;
mod table;
mod trash;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::Command;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tempfile::TempDir;

use super::{CreateOptions, EmbeddedPool, Volume};
use crate::format::BlockSize;
use crate::metadata_view::{MetadataView, Roots};
use crate::pool::PoolTable;

const BLOCK: u64 = 64 << 10;

fn options() -> CreateOptions {
    CreateOptions {
        name: "p".into(),
        data_bytes: 256 * BLOCK,
        block_size: BlockSize::from_bytes(BLOCK).unwrap(),
        metadata_bytes: None,
        devices: None,
        table: PoolTable::without_waiting(),
    }
}

/// A pool in a directory of its own, which outlives it.
fn pool() -> (TempDir, EmbeddedPool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = EmbeddedPool::create(&dir.path().join("pool"), options()).unwrap();
    (dir, pool)
}

/// Closes the pool, has its metadata judged, and opens it again.
fn reopened(pool: EmbeddedPool) -> EmbeddedPool {
    let dir = pool.dir().to_owned();
    drop(pool);
    thin_check(&dir.join("metadata"));
    EmbeddedPool::open(&dir).unwrap()
}

/// What a killed process leaves: the files as they are now, in another directory.
fn killed(dir: &TempDir, pool: &EmbeddedPool) -> PathBuf {
    let copy = dir.path().join("copy");
    let _ = std::fs::remove_dir_all(&copy);
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(pool.dir()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn thin_check(metadata: &Path) {
    let output = Command::new("thin_check").arg(metadata).output().expect("thin_check is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "thin_check {}: {text}", metadata.display());
}

/// Content of a block that tells itself.
fn block(tag: u8) -> Vec<u8> {
    vec![tag; BLOCK as usize]
}

fn first_byte(pool: &EmbeddedPool, volume: &Volume, block: u64) -> u8 {
    let mut byte = [0];
    pool.read(volume, block * BLOCK, &mut byte).unwrap();
    byte[0]
}

fn names(pool: &EmbeddedPool) -> Vec<String> {
    let mut names: Vec<String> = pool.volumes().into_iter().map(|volume| volume.name).collect();
    names.sort();
    names
}

/// A view of the last commit.
fn view(pool: &EmbeddedPool) -> MetadataView {
    MetadataView::open(pool.pool().metadata_device().clone(), Roots::Live).unwrap()
}

/// A source of chance that can be had again.
fn chance() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
