//! Pools on devices that were brought along.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{BLOCK, options, thin_check};
use crate::embedded::{CreateOptions, EmbeddedError, EmbeddedPool};

struct Place {
    dir: TempDir,
    data: PathBuf,
    metadata: PathBuf,
}

impl Place {
    fn new(data_bytes: u64, metadata_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, metadata) = (dir.path().join("d"), dir.path().join("m"));
        fs::File::create(&data).unwrap().set_len(data_bytes).unwrap();
        fs::File::create(&metadata).unwrap().set_len(metadata_bytes).unwrap();
        Self { dir, data, metadata }
    }

    fn options(&self, data_bytes: u64) -> CreateOptions {
        let devices = Some((self.data.clone(), self.metadata.clone()));
        CreateOptions { data_bytes, devices, ..options() }
    }

    fn pool(&self) -> PathBuf {
        self.dir.path().join("pool")
    }
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn a_pool_on_two_devices_keeps_its_content_there() {
    let place = Place::new(64 * BLOCK, 4 << 20);
    let pool = EmbeddedPool::create(&place.pool(), place.options(0)).unwrap();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 0, &super::block(7)).unwrap();
    assert_eq!(pool.pool().status().data_total, 64);
    drop(pool);
    thin_check(&place.metadata);
    let pool = EmbeddedPool::open(&place.pool()).unwrap();
    assert_eq!(super::first_byte(&pool, &pool.volume("v").unwrap(), 0), 7);
    pool.remove().unwrap();
    assert_eq!((length(&place.data), length(&place.metadata)), (64 * BLOCK, 4 << 20));
    assert!(!place.pool().exists());
}

#[test]
fn empty_files_are_brought_to_size() {
    let place = Place::new(0, 0);
    EmbeddedPool::create(&place.pool(), place.options(32 * BLOCK)).unwrap();
    assert_eq!((length(&place.data), length(&place.metadata)), (32 * BLOCK, 2 << 20));
}

#[test]
fn a_device_of_another_size_is_refused() {
    let place = Place::new(32 * BLOCK, 2 << 20);
    let error = EmbeddedPool::create(&place.pool(), place.options(64 * BLOCK)).unwrap_err();
    assert!(matches!(error, EmbeddedError::DeviceSize { wanted, .. } if wanted == 64 * BLOCK), "{error}");
    assert!(!place.pool().exists());
}

#[test]
fn metadata_that_is_not_blank_is_never_written_over() {
    let place = Place::new(32 * BLOCK, 2 << 20);
    let mut content = vec![0; 2 << 20];
    content[4095] = 1;
    fs::write(&place.metadata, &content).unwrap();
    let error = EmbeddedPool::create(&place.pool(), place.options(0)).unwrap_err();
    assert!(matches!(error, EmbeddedError::MetadataNotBlank { .. }), "{error}");
    assert!(error.hint().unwrap().contains("dd if=/dev/zero"));
    assert_eq!(fs::read(&place.metadata).unwrap(), content);
    assert!(!place.pool().exists());
}

#[test]
fn a_failed_creation_leaves_devices_as_they_were() {
    let place = Place::new(0, 4096);
    EmbeddedPool::create(&place.pool(), place.options(32 * BLOCK)).unwrap_err();
    assert_eq!((length(&place.data), length(&place.metadata)), (0, 4096));
    assert!(!place.pool().exists());
}

#[test]
fn one_file_cannot_be_both_devices() {
    let mut place = Place::new(32 * BLOCK, 2 << 20);
    place.metadata = place.data.clone();
    let error = EmbeddedPool::create(&place.pool(), place.options(0)).unwrap_err();
    assert!(matches!(error, EmbeddedError::SameDevice { .. }), "{error}");
}

#[test]
fn two_directories_that_name_one_device_do_not_share_it() {
    let place = Place::new(32 * BLOCK, 2 << 20);
    let pool = EmbeddedPool::create(&place.pool(), place.options(0)).unwrap();
    let twin = place.dir.path().join("twin");
    fs::create_dir(&twin).unwrap();
    for file in ["pool.json", "registry", "lock"] {
        fs::copy(place.pool().join(file), twin.join(file)).unwrap();
    }
    assert!(matches!(EmbeddedPool::open(&twin), Err(EmbeddedError::Busy { .. })));
    let other = fs::File::create(place.dir.path().join("m2")).unwrap();
    other.set_len(2 << 20).unwrap();
    let devices = Some((place.data.clone(), place.dir.path().join("m2")));
    let error = EmbeddedPool::create(
        &place.dir.path().join("third"),
        CreateOptions { data_bytes: 0, devices, ..options() },
    )
    .unwrap_err();
    assert!(matches!(error, EmbeddedError::Busy { .. }), "{error}");
    drop(pool);
    EmbeddedPool::open(&twin).unwrap();
}
