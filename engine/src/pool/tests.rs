//! The pool against `thin_check`, a naive model, and crashes.

mod bad_input;
mod concurrency;
mod crash;
mod failures;
mod faults;
mod full;
mod history;
mod kernel_images;
mod million;
mod model;
mod origin;
mod scenarios;
mod target;
mod waiting;

use std::io::Write;
use std::process::Command;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{BlockDevice, BlockSize, DeviceId, MemoryDevice, Pool};

const BLOCK: u64 = 65_536;

fn id(id: u64) -> DeviceId {
    DeviceId::new(id).unwrap()
}

struct Devices {
    metadata: Arc<MemoryDevice>,
    data: Arc<MemoryDevice>,
}

impl Devices {
    fn new(metadata_blocks: u64, data_blocks: u64) -> Self {
        let metadata = Arc::new(MemoryDevice::new(metadata_blocks * 4096));
        Self { metadata, data: Arc::new(MemoryDevice::new(data_blocks * BLOCK)) }
    }

    fn format(&self) -> Pool {
        let block_size = BlockSize::from_bytes(BLOCK).unwrap();
        Pool::format(self.metadata.clone(), self.data.clone(), block_size).unwrap()
    }

    fn open(&self) -> Pool {
        Pool::open(self.metadata.clone(), self.data.clone()).unwrap()
    }

    fn check(&self) {
        check_all(&self.metadata, true);
    }
}

/// Debian's `thin_check` finds nothing wrong, not even a leak.
#[track_caller]
fn thin_check(metadata: &MemoryDevice) {
    let mut bytes = vec![0; metadata.size_bytes() as usize];
    metadata.read_at(0, &mut bytes).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let output = Command::new("thin_check").arg(file.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let complaint = ["leak", "bad", "error", "mismatch", "expected"].iter().any(|word| said.contains(word));
    if !output.status.success() || complaint {
        let kept = file.into_temp_path().keep().unwrap();
        panic!("thin_check of {}: {said}", kept.display());
    }
}

/// The checker finds nothing wrong, and on request neither does `thin_check`, which takes a process.
#[track_caller]
fn check_all(metadata: &MemoryDevice, thoroughly: bool) {
    let report = crate::check::check(Arc::new(metadata.duplicate()), None).unwrap();
    let damage: Vec<_> =
        report.damage.iter().filter(|damage| !damage.description.contains("check")).collect();
    assert!(damage.is_empty(), "{damage:#?}");
    if thoroughly {
        thin_check(metadata);
    }
}

/// A generator whose seed is printed, or given by `THINBAK_SEED`.
fn seeded() -> StdRng {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| rand::rng().random());
    println!("THINBAK_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn read(pool: &Pool, device: DeviceId, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xEE; length];
    pool.read(device, offset, &mut bytes).unwrap();
    bytes
}
