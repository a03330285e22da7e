//! Growing, and metadata devices larger than the format can use.

use std::fs;
use std::os::fd::AsFd as _;

use rustix::fs::{SeekFrom, seek};

use super::{BLOCK, block, first_byte, options, pool, reopened};
use crate::embedded::{CreateOptions, EmbeddedError, EmbeddedPool, ErrorClass};
use crate::format::MAX_METADATA_BLOCKS;
use crate::pool::PoolTable;

#[test]
fn metadata_grow_and_do_not_shrink() {
    let (_dir, pool) = pool();
    assert_eq!(pool.pool().status().metadata_total, 512);
    pool.grow_metadata(8 << 20).unwrap();
    assert_eq!(pool.pool().status().metadata_total, 2048);
    assert!(matches!(pool.grow_metadata(4 << 20), Err(EmbeddedError::PoolShrink { .. })));
    assert!(matches!(pool.grow_metadata((8 << 20) + 1), Err(EmbeddedError::Size { .. })));
    let pool = reopened(pool);
    assert_eq!(pool.pool().status().metadata_total, 2048);
    pool.create_volume("v", BLOCK).unwrap();
}

#[test]
fn a_metadata_file_that_was_made_larger_is_taken_into_use_by_the_next_open() {
    let (_dir, pool) = pool();
    let (dir, metadata) = (pool.dir().to_owned(), pool.metadata_path());
    drop(pool);
    fs::File::options().write(true).open(metadata).unwrap().set_len(4 << 20).unwrap();
    let pool = EmbeddedPool::open(&dir).unwrap();
    assert_eq!(pool.pool().status().metadata_total, 1024);
    assert_eq!(reopened(pool).pool().status().metadata_total, 1024);
}

#[test]
fn a_read_only_pool_neither_grows_nor_touches_its_files() {
    let (_dir, pool) = pool();
    let mut table = PoolTable::without_waiting();
    table.features.read_only = true;
    pool.set_table(table).unwrap();
    let (dir, metadata) = (pool.dir().to_owned(), pool.metadata_path());
    assert_eq!(pool.grow_metadata(4 << 20).unwrap_err().class(), ErrorClass::Failed);
    assert_eq!(fs::metadata(&metadata).unwrap().len(), 2 << 20);
    drop(pool);
    fs::File::options().write(true).open(&metadata).unwrap().set_len(4 << 20).unwrap();
    let before = fs::read(&metadata).unwrap();
    let pool = EmbeddedPool::open(&dir).unwrap();
    assert_eq!(pool.pool().status().metadata_total, 512);
    drop(pool);
    assert!(fs::read(&metadata).unwrap() == before);
}

#[test]
fn of_a_metadata_file_beyond_the_formats_limit_only_what_can_be_used_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions { metadata_bytes: Some(17 << 30), ..options() };
    let pool = EmbeddedPool::create(&dir.path().join("p"), options).unwrap();
    assert_eq!(pool.pool().status().metadata_total, MAX_METADATA_BLOCKS);
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(5)).unwrap();
    pool.take_snapshots(&[("v", "s")]).unwrap();
    pool.grow_metadata(18 << 30).unwrap();
    let (path, metadata) = (pool.dir().to_owned(), pool.metadata_path());
    drop(pool);
    let pool = EmbeddedPool::open(&path).unwrap();
    assert_eq!(first_byte(&pool, &volume, 0), 5);
    let report = crate::check::check(pool.pool().metadata_device().clone(), None).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let file = fs::File::open(&metadata).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 18 << 30);
    let beyond = seek(file.as_fd(), SeekFrom::Data(MAX_METADATA_BLOCKS * 4096));
    assert_eq!(beyond, Err(rustix::io::Errno::NXIO), "written beyond the limit");
}
