//! Pools that the kernel wrote, taken over by this one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{check_all, id};
use crate::{MemoryDevice, Pool, PoolMode};

fn images() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let dirs = std::fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().path());
    let mut images: Vec<_> =
        dirs.map(|dir| dir.join("metadata.img.zst")).filter(|image| image.exists()).collect();
    images.sort();
    images
}

#[test]
fn pools_of_the_kernel_open_and_go_on() {
    let images = images();
    assert!(images.len() >= 5, "{images:?}");
    let mut writable = 0;
    for image in images {
        println!("{}", image.display());
        let bytes = zstd::decode_all(std::fs::File::open(&image).unwrap()).unwrap();
        let metadata = Arc::new(MemoryDevice::from_bytes(&bytes));
        let data = Arc::new(MemoryDevice::new(1 << 50));
        let pool = Pool::open(metadata.clone(), data).unwrap();
        if pool.status().mode != PoolMode::Write {
            continue;
        }
        writable += 1;
        let bytes = pool.block_size().bytes();
        let devices = pool.devices().unwrap();
        for device in devices.iter().take(5) {
            let new = id(u64::from(device.id.get()) + 1_000_000);
            pool.create_snap(new, device.id).unwrap();
            // Without room for data the refusal is all that can be seen.
            let _ = pool.write(new, 3 * bytes + 10, &[1; 100]);
            let _ = pool.write(device.id, 2 * bytes, &[2; 100]);
            pool.discard(new, 0, 2 * bytes).unwrap();
            pool.commit().unwrap();
            check_all(&metadata, true);
        }
        if pool.status().held_root.is_some() {
            pool.release_metadata_snap().unwrap();
        }
        for device in pool.devices().unwrap() {
            pool.delete(device.id).unwrap();
        }
        pool.commit().unwrap();
        assert_eq!(pool.status().data_used, 0);
        check_all(&metadata, true);
    }
    assert!(writable >= 4);
}
