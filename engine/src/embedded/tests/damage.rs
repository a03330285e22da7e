//! Pools that are not as they were left. Each gets its own error, and nothing is written.

use std::fs;
use std::path::Path;

use super::{BLOCK, block, pool, reopened};
use crate::block_device::{Access, FileDevice};
use crate::embedded::{EmbeddedError, EmbeddedPool, ErrorClass};
use crate::format::{MetadataBlock, Superblock};
use crate::persistent_data::write_superblock;
use crate::pool::PoolError;
use crate::registry::RegistryError;

/// A closed pool with a volume, and what `spoil` makes of its opening.
fn opening(spoil: impl FnOnce(&Path)) -> EmbeddedError {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    pool.take_snapshots(&[("v", "s")]).unwrap();
    pool.take_candidates(&["v"]).unwrap();
    let path = pool.dir().to_owned();
    drop(pool);
    spoil(&path);
    let before = content(&path);
    let error = EmbeddedPool::open(&path).unwrap_err();
    assert_eq!(content(&path), before, "something was written");
    assert!(!error.to_string().contains('\n'), "{error}");
    error
}

fn content(dir: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_missing_file_is_named() {
    for file in ["metadata", "data", "registry", "lock"] {
        let error = opening(|dir| fs::remove_file(dir.join(file)).unwrap());
        assert!(matches!(&error, EmbeddedError::Missing { path } if path.ends_with(file)), "{file}: {error}");
        assert_eq!(error.class(), ErrorClass::Damaged);
    }
}

#[test]
fn a_flipped_bit_of_the_superblock_is_damage() {
    let error = opening(|dir| flip(&dir.join("metadata"), 48));
    assert!(matches!(error, EmbeddedError::Pool { source: PoolError::Metadata(_), .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Damaged);
}

#[test]
fn truncated_metadata_is_an_error() {
    for length in [0, 100, 4096, 3 * 4096] {
        let error = opening(|dir| {
            fs::File::options().write(true).open(dir.join("metadata")).unwrap().set_len(length).unwrap();
        });
        assert!(matches!(error, EmbeddedError::Pool { .. }), "{length}: {error}");
    }
}

#[test]
fn truncated_data_is_an_error() {
    let error = opening(|dir| {
        fs::File::options().write(true).open(dir.join("data")).unwrap().set_len(BLOCK).unwrap();
    });
    assert!(matches!(error, EmbeddedError::Pool { source: PoolError::DataTooSmall { .. }, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Damaged);
}

#[test]
fn a_flipped_bit_of_the_registry_is_damage() {
    let error = opening(|dir| flip(&dir.join("registry"), 40));
    assert!(matches!(error, EmbeddedError::Registry(RegistryError::Damaged { line: 1, .. })), "{error}");
    assert_eq!(error.class(), ErrorClass::Damaged);
}

#[test]
fn an_empty_registry_is_damage() {
    let error = opening(|dir| fs::write(dir.join("registry"), "").unwrap());
    assert!(matches!(error, EmbeddedError::Registry(RegistryError::Damaged { .. })), "{error}");
}

#[test]
fn a_newer_description_is_refused_by_its_number() {
    let error = opening(|dir| fs::write(dir.join("pool.json"), r#"{"format":7}"#).unwrap());
    assert!(matches!(error, EmbeddedError::NewerFormat { found: 7, .. }), "{error}");
    assert!(error.hint().unwrap().contains("newer"));
}

#[test]
fn a_damaged_description_is_refused() {
    let error = opening(|dir| fs::write(dir.join("pool.json"), "{").unwrap());
    assert!(matches!(error, EmbeddedError::Description { .. }), "{error}");
}

#[test]
fn the_description_of_another_pool_is_refused() {
    let (_dir, other) = pool();
    let error = opening(|dir| {
        fs::copy(other.dir().join("pool.json"), dir.join("pool.json")).unwrap();
    });
    assert!(matches!(error, EmbeddedError::Registry(RegistryError::OtherPool { .. })), "{error}");
}

#[test]
fn another_block_size_is_refused() {
    let error = opening(|dir| {
        let text = fs::read_to_string(dir.join("pool.json")).unwrap();
        fs::write(dir.join("pool.json"), text.replace("65536", "131072")).unwrap();
    });
    assert!(matches!(error, EmbeddedError::OtherBlockSize { described: 131_072, found: 65_536 }), "{error}");
}

#[test]
fn an_older_pool_under_a_newer_registry_is_refused() {
    let (dir, pool) = pool();
    pool.create_volume("a", BLOCK).unwrap();
    let old = super::killed(&dir, &pool);
    pool.create_volume("b", BLOCK).unwrap();
    pool.create_volume("c", BLOCK).unwrap();
    for (file, expected, found) in [("metadata", 2, 1), ("registry", 0, 3)] {
        let new = dir.path().join("new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir(&new).unwrap();
        for name in ["pool.json", "lock", "data", "metadata", "registry"] {
            let from = if name == file { old.join(name) } else { pool.dir().join(name) };
            fs::copy(from, new.join(name)).unwrap();
        }
        let before = content(&new);
        let error = EmbeddedPool::open(&new).unwrap_err();
        assert!(
            matches!(&error, EmbeddedError::Registry(RegistryError::Transaction { expected: e, found: f, .. })
                if (*e, *f) == (expected, found)),
            "{file}: {error}"
        );
        assert_eq!(error.class(), ErrorClass::Damaged);
        assert_eq!(content(&new), before);
    }
}

/// Marks the metadata as in need of a check, as a failed write does.
fn mark(metadata: &Path) {
    let device = FileDevice::open(metadata, Access::ReadWrite).unwrap();
    let mut superblock = Superblock::read(&device, MetadataBlock(0)).unwrap();
    superblock.needs_check = true;
    write_superblock(&device, &superblock).unwrap();
}

#[test]
fn a_pool_that_needs_a_check_writes_again_if_nothing_is_wrong_with_it() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", BLOCK).unwrap();
    pool.write(&volume, 0, &[7; 512]).unwrap();
    let dir = pool.dir().to_owned();
    drop(pool);
    mark(&dir.join("metadata"));
    let pool = reopened(EmbeddedPool::open(&dir).unwrap());
    let volume = pool.volume("v").unwrap();
    let mut found = [0; 512];
    pool.read(&volume, 0, &mut found).unwrap();
    assert_eq!(found, [7; 512]);
    pool.write(&volume, 0, &[8; 512]).unwrap();
    pool.flush().unwrap();
}

#[test]
fn a_pool_that_needs_a_check_and_is_damaged_stays_read_only() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let metadata = pool.dir().join("metadata");
    let details = pool.pool().superblock().details_root.get();
    let dir = pool.dir().to_owned();
    drop(pool);
    mark(&metadata);
    let mut bytes = std::fs::read(&metadata).unwrap();
    let at = usize::try_from(details).unwrap() * 4096 + 100;
    bytes[at] ^= 1;
    std::fs::write(&metadata, &bytes).unwrap();
    if let Ok(pool) = EmbeddedPool::open(&dir) {
        assert!(pool.pool().status().needs_check);
        assert!(pool.create_volume("w", BLOCK).is_err());
    }
    let device = FileDevice::open(&metadata, Access::ReadWrite).unwrap();
    assert!(Superblock::read(&device, MetadataBlock(0)).unwrap().needs_check);
}

/// Opening such a pool clears up, takes the mark off and takes the larger metadata: a check alone does none of that.
#[test]
fn a_check_of_a_closed_pool_writes_nothing() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    pool.create_head(BLOCK, None).unwrap();
    let (dir, metadata) = (pool.dir().to_owned(), pool.metadata_path());
    assert!(matches!(EmbeddedPool::check(&dir), Err(EmbeddedError::Busy { .. })));
    drop(pool);
    let clean = content(&dir);
    let (report, wrong) = EmbeddedPool::check(&dir).unwrap();
    assert!(report.damage.is_empty() && wrong.is_none(), "{report:?} {wrong:?}");
    assert_eq!((report.devices, content(&dir) == clean), (2, true));
    mark(&metadata);
    let file = fs::OpenOptions::new().write(true).open(&metadata).unwrap();
    file.set_len(4 << 20).unwrap();
    let before = content(&dir);
    let (report, wrong) = EmbeddedPool::check(&dir).unwrap();
    assert!(report.is_sound() && report.damage.len() == 1 && wrong.is_none(), "{report:?} {wrong:?}");
    assert_eq!(content(&dir), before);
    fs::remove_file(dir.join("registry")).unwrap();
    let (report, wrong) = EmbeddedPool::check(&dir).unwrap();
    assert!(report.is_sound() && matches!(wrong, Some(EmbeddedError::Missing { .. })), "{wrong:?}");
}
