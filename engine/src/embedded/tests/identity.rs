//! Metadata of another pool, or of another time, are refused before anything is written.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use super::{BLOCK, block, first_byte, options, pool};
use crate::block_device::{Access, FileDevice};
use crate::embedded::{EmbeddedError, EmbeddedPool, ErrorClass};
use crate::format::{BlockKind, MetadataBlock, Superblock, seal};
use crate::persistent_data::write_superblock;

/// Two pools of the same history under different identities.
fn twins() -> (tempfile::TempDir, [std::path::PathBuf; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| {
        let path = dir.path().join(name);
        let pool = EmbeddedPool::create(&path, options()).unwrap();
        let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
        pool.write(&volume, 0, &block(name.len() as u8)).unwrap();
        pool.take_snapshots(&[("v", "s")]).unwrap();
        path
    });
    (dir, paths)
}

/// When each file of a pool was written last.
fn written(dir: &Path) -> Vec<(std::ffi::OsString, SystemTime)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let mut times: Vec<_> =
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap())).collect();
    times.sort();
    times
}

/// The error of opening a pool, which is one line and leaves every file alone.
fn refused(dir: &Path) -> EmbeddedError {
    let before = written(dir);
    let error = EmbeddedPool::open(dir).unwrap_err();
    assert_eq!(written(dir), before, "something was written: {error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(matches!(error.class(), ErrorClass::Damaged | ErrorClass::Refused), "{error}");
    error
}

fn uuid_of(metadata: &Path) -> [u8; 16] {
    let device = FileDevice::open(metadata, Access::ReadOnly).unwrap();
    Superblock::read(&device, MetadataBlock(0)).unwrap().uuid
}

fn set_uuid(metadata: &Path, uuid: [u8; 16]) {
    let device = FileDevice::open(metadata, Access::ReadWrite).unwrap();
    let superblock = Superblock::read(&device, MetadataBlock(0)).unwrap();
    write_superblock(&device, &Superblock { uuid, ..superblock }).unwrap();
}

#[test]
fn metadata_of_a_pool_with_the_same_history_are_told_apart() {
    let (_dir, [one, two]) = twins();
    fs::copy(two.join("metadata"), one.join("metadata")).unwrap();
    let error = refused(&one);
    assert!(matches!(error, EmbeddedError::OtherMetadata { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
}

#[test]
fn the_identity_stays_in_the_superblock_through_commits_and_no_tool_minds_it() {
    let (_dir, pool) = pool();
    let (uuid, dir, metadata) = (pool.uuid(), pool.dir().to_owned(), pool.metadata_path());
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let guard = pool.hold_msnap().unwrap();
    assert!(guard.get() > 0);
    drop(pool);
    assert_eq!(uuid_of(&metadata), uuid.into_bytes());
    super::thin_check(&metadata);
    let dump = |path: &Path| Command::new("thin_dump").arg(path).output().unwrap().stdout;
    let marked = dump(&metadata);
    let plain = dir.join("../plain");
    fs::copy(&metadata, &plain).unwrap();
    set_uuid(&plain, [0; 16]);
    assert_eq!(String::from_utf8(marked).unwrap(), String::from_utf8(dump(&plain)).unwrap());
}

#[test]
fn metadata_without_an_identity_are_taken_if_they_fit_and_get_it() {
    let (_dir, [one, _two]) = twins();
    let metadata = one.join("metadata");
    set_uuid(&metadata, [0; 16]);
    let pool = EmbeddedPool::open(&one).unwrap();
    assert_eq!(first_byte(&pool, &pool.volume("v").unwrap(), 0), 3);
    let uuid = pool.uuid().into_bytes();
    drop(pool);
    assert_eq!(uuid_of(&metadata), uuid);
}

#[test]
fn metadata_that_thin_repair_wrote_open_again() {
    let (_dir, [one, _two]) = twins();
    let (metadata, repaired) = (one.join("metadata"), one.join("../repaired"));
    fs::File::create(&repaired).unwrap().set_len(2 << 20).unwrap();
    let done = Command::new("thin_repair").arg("-i").arg(&metadata).arg("-o").arg(&repaired).output();
    assert!(done.unwrap().status.success());
    assert_eq!(uuid_of(&repaired), [0; 16]);
    fs::copy(&repaired, &metadata).unwrap();
    let pool = EmbeddedPool::open(&one).unwrap();
    assert_eq!(first_byte(&pool, &pool.snapshot("v", "s").unwrap(), 0), 3);
}

#[test]
fn metadata_without_an_identity_that_lack_a_device_are_refused() {
    let (_dir, [one, two]) = twins();
    // The same transaction id, other devices.
    let pool = EmbeddedPool::open(&two).unwrap();
    pool.remove_snapshot("v", "s").unwrap();
    drop(pool);
    let pool = EmbeddedPool::open(&one).unwrap();
    pool.create_volume("w", BLOCK).unwrap();
    drop(pool);
    fs::copy(two.join("metadata"), one.join("metadata")).unwrap();
    set_uuid(&one.join("metadata"), [0; 16]);
    let error = refused(&one);
    assert!(matches!(error, EmbeddedError::DeviceMissing { .. }), "{error}");
}

#[test]
fn a_wrong_byte_anywhere_in_the_superblock_is_refused_and_left_alone() {
    let (_dir, [one, _two]) = twins();
    let metadata = one.join("metadata");
    let whole = fs::read(&metadata).unwrap();
    // What is used of it, and some of what only the checksum covers.
    for offset in (0..368).chain((368..4096).step_by(61)) {
        let mut bytes = whole.clone();
        bytes[offset] ^= 0x41;
        fs::write(&metadata, &bytes).unwrap();
        let error = refused(&one);
        assert_eq!(error.class(), ErrorClass::Damaged, "byte {offset}: {error}");
    }
}

#[test]
fn a_future_version_or_feature_or_another_block_size_is_refused_though_the_checksum_is_right() {
    let (_dir, [one, _two]) = twins();
    let metadata = one.join("metadata");
    let whole = fs::read(&metadata).unwrap();
    // Version, block size, unknown features that forbid writing, unknown features that forbid reading.
    for (offset, value) in [(40, 3), (336, 256), (356, 1), (360, 1)] {
        let mut bytes = whole.clone();
        bytes[offset..offset + 4].copy_from_slice(&u32::to_le_bytes(value));
        seal(bytes.first_chunk_mut().unwrap(), MetadataBlock(0), BlockKind::Superblock);
        fs::write(&metadata, &bytes).unwrap();
        let error = refused(&one);
        assert_eq!(error.class(), ErrorClass::Damaged, "at {offset}: {error}");
    }
}

#[test]
fn metadata_that_need_a_check_are_not_touched_when_they_are_another_pools() {
    let (_dir, [one, two]) = twins();
    let metadata = two.join("metadata");
    let device = FileDevice::open(&metadata, Access::ReadWrite).unwrap();
    let superblock = Superblock::read(&device, MetadataBlock(0)).unwrap();
    write_superblock(&device, &Superblock { needs_check: true, ..superblock }).unwrap();
    fs::copy(&metadata, one.join("metadata")).unwrap();
    assert!(matches!(refused(&one), EmbeddedError::OtherMetadata { .. }));
}
