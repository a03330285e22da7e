//! Making, removing and opening pools.

use std::fs;
use std::path::Path;

use super::{BLOCK, options, pool, thin_check};
use crate::embedded::{CreateOptions, EmbeddedError, EmbeddedPool, ErrorClass, default_metadata_bytes};
use crate::format::BlockSize;

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_pool_is_the_five_files_and_passes_thin_check() {
    let (_dir, pool) = pool();
    assert_eq!(entries(pool.dir()), ["data", "lock", "metadata", "pool.json", "registry"]);
    assert_eq!(fs::metadata(pool.data_path()).unwrap().len(), 256 * BLOCK);
    assert_eq!(fs::metadata(pool.metadata_path()).unwrap().len(), 2 << 20);
    let (path, uuid) = (pool.dir().to_owned(), pool.uuid());
    drop(pool);
    thin_check(&path.join("metadata"));
    let pool = EmbeddedPool::open(&path).unwrap();
    assert_eq!((pool.name(), pool.uuid()), ("p", uuid));
}

#[test]
fn metadata_is_sized_by_the_rule_of_thumb() {
    let size = |bytes| BlockSize::from_bytes(bytes).unwrap();
    assert_eq!(default_metadata_bytes(1 << 30, size(64 << 10)), 2 << 20);
    assert_eq!(default_metadata_bytes(1 << 40, size(64 << 10)), 768 << 20);
    assert_eq!(default_metadata_bytes((1 << 40) + 1, size(192 << 10)), 268_439_552);
    assert_eq!(default_metadata_bytes(1 << 60, size(64 << 10)), 4_161_600 * 4096);
}

#[test]
fn a_directory_that_holds_a_pool_is_refused_and_the_pool_stays() {
    let (_dir, pool) = pool();
    let error = EmbeddedPool::create(pool.dir(), options()).unwrap_err();
    assert!(matches!(error, EmbeddedError::PoolExists { .. }), "{error}");
    let path = pool.dir().to_owned();
    drop(pool);
    let error = EmbeddedPool::create(&path, options()).unwrap_err();
    assert!(matches!(error, EmbeddedError::PoolExists { .. }), "{error}");
    EmbeddedPool::open(&path).unwrap();
}

#[test]
fn a_directory_with_foreign_files_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for foreign in ["letter.txt", "data", "registry"] {
        fs::write(dir.path().join(foreign), "mine").unwrap();
        let error = EmbeddedPool::create(dir.path(), options()).unwrap_err();
        assert!(matches!(&error, EmbeddedError::NotEmpty { entry, .. } if entry == foreign), "{error}");
        assert_eq!(error.class(), ErrorClass::Refused);
        assert_eq!(entries(dir.path()), [foreign]);
        fs::remove_file(dir.path().join(foreign)).unwrap();
    }
}

#[test]
fn nothing_is_left_behind_when_a_pool_cannot_be_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let cases = [
        CreateOptions { data_bytes: 0, ..options() },
        CreateOptions { data_bytes: BLOCK + 1, ..options() },
        CreateOptions { metadata_bytes: Some(4096), ..options() },
        CreateOptions { data_bytes: 1 << 60, metadata_bytes: Some(2 << 20), ..options() },
        CreateOptions { devices: Some(("/nonexistent/d".into(), "/nonexistent/m".into())), ..options() },
    ];
    for options in cases {
        let shown = format!("{options:?}");
        EmbeddedPool::create(&path, options).expect_err(&shown);
        assert_eq!(entries(dir.path()), [""; 0], "{shown}");
        fs::create_dir_all(&path).unwrap();
        EmbeddedPool::create(&path, super::CreateOptions { metadata_bytes: Some(1), ..super::options() })
            .expect_err(&shown);
        assert_eq!(entries(&path), [""; 0], "{shown}");
        fs::remove_dir_all(dir.path().join("a")).unwrap();
    }
}

#[test]
fn a_size_that_is_no_multiple_names_the_next_that_is() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = CreateOptions { data_bytes: BLOCK + 1, ..options() };
    let error = EmbeddedPool::create(&dir.path().join("p"), wrong).unwrap_err();
    assert!(matches!(error, EmbeddedError::Size { next: Some(next), .. } if next == 2 * BLOCK), "{error}");
    assert_eq!(error.class(), ErrorClass::Usage);
    assert_eq!(error.hint().unwrap(), "131072 bytes would do");
}

#[test]
fn an_interrupted_creation_is_no_pool_and_is_cleared_away_by_the_next() {
    let (_dir, pool) = pool();
    let path = pool.dir().to_owned();
    drop(pool);
    fs::rename(path.join("pool.json"), path.join("pool.json.new")).unwrap();
    let before = entries(&path);
    assert!(matches!(EmbeddedPool::open(&path), Err(EmbeddedError::NoPool { .. })));
    assert_eq!(entries(&path), before);
    let pool = EmbeddedPool::create(&path, options()).unwrap();
    assert!(pool.volumes().is_empty());
    assert_eq!(entries(&path), ["data", "lock", "metadata", "pool.json", "registry"]);
}

#[test]
fn an_interrupted_creation_with_a_foreign_file_is_not_cleared_away() {
    let (_dir, pool) = pool();
    let path = pool.dir().to_owned();
    drop(pool);
    fs::rename(path.join("pool.json"), path.join("pool.json.new")).unwrap();
    fs::write(path.join("letter.txt"), "mine").unwrap();
    let before = entries(&path);
    assert!(matches!(EmbeddedPool::create(&path, options()), Err(EmbeddedError::NotEmpty { .. })));
    assert_eq!(entries(&path), before);
}

#[test]
fn a_removed_pool_takes_its_files_and_its_empty_directory_with_it() {
    let (_dir, pool) = pool();
    let path = pool.dir().to_owned();
    pool.remove().unwrap();
    assert!(!path.exists());
    assert!(matches!(EmbeddedPool::open(&path), Err(EmbeddedError::NoPool { .. })));
}

#[test]
fn a_removed_pool_leaves_what_is_not_its_own() {
    let (_dir, pool) = pool();
    let path = pool.dir().to_owned();
    fs::write(path.join("letter.txt"), "mine").unwrap();
    pool.remove().unwrap();
    assert_eq!(entries(&path), ["letter.txt"]);
}

#[test]
fn a_directory_that_does_not_exist_or_is_a_file_holds_no_pool() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for name in ["none", "file", "."] {
        let error = EmbeddedPool::open(&dir.path().join(name)).unwrap_err();
        assert!(matches!(error, EmbeddedError::NoPool { .. }), "{name}: {error}");
        assert_eq!(error.class(), ErrorClass::NotFound);
    }
}

#[test]
fn a_pool_is_open_once_until_it_is_closed() {
    let (_dir, pool) = pool();
    let path = pool.dir().to_owned();
    let error = EmbeddedPool::open(&path).unwrap_err();
    assert!(matches!(error, EmbeddedError::Busy { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Busy);
    drop(pool);
    EmbeddedPool::open(&path).unwrap();
}

#[test]
fn a_pool_grows_and_does_not_shrink() {
    let (_dir, pool) = pool();
    pool.grow(512 * BLOCK).unwrap();
    assert_eq!(pool.pool().status().data_total, 512);
    assert!(matches!(pool.grow(256 * BLOCK), Err(EmbeddedError::PoolShrink { .. })));
    assert!(matches!(pool.grow(512 * BLOCK + 1), Err(EmbeddedError::Size { .. })));
    let pool = super::reopened(pool);
    assert_eq!(pool.pool().status().data_total, 512);
}
