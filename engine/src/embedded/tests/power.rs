//! A pool and its registry on devices of which every operation is recorded in one order, so that the moment after each
//! can be had again as a crash would leave it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::BLOCK;
use crate::block_device::{BlockDevice, Fate, FaultDevice, FaultLog, IoEvent, MemoryDevice, crash_image};
use crate::check::check;
use crate::embedded::description::Description;
use crate::embedded::{EmbeddedError, EmbeddedPool};
use crate::format::BlockSize;
use crate::pool::Pool;
use crate::registry::{Log, Registry, ReplaceError};

/// Number of the metadata device in the record.
pub(super) const METADATA: usize = 0;
/// Number of the data device in the record.
pub(super) const DATA: usize = 1;
/// Number of the device that holds both places of the journal.
pub(super) const JOURNAL: usize = 2;
/// Number of the device that says which place is the journal's.
const PLACE: usize = 3;
const PLACE_BYTES: u64 = 1 << 20;

/// All that a pool is stored on.
pub(super) struct Disks([MemoryDevice; 4]);

impl Disks {
    /// A new pool.
    pub(super) fn format(blocks: u64) -> Self {
        let (metadata, data) =
            (Arc::new(MemoryDevice::new(2 << 20)), Arc::new(MemoryDevice::new(blocks * BLOCK)));
        let pool =
            Pool::format(metadata.clone(), data.clone(), BlockSize::from_bytes(BLOCK).unwrap()).unwrap();
        pool.commit().unwrap();
        let journal = MemoryDevice::new(2 * PLACE_BYTES);
        journal.write_at(0, &Registry::initial(identity(), 0).unwrap()).unwrap();
        Self([metadata.duplicate(), data.duplicate(), journal, MemoryDevice::new(1)])
    }

    /// Opens the pool, recording from the first operation on. The disks themselves stay as they are.
    pub(super) fn open(&self) -> (Result<EmbeddedPool, EmbeddedError>, Arc<FaultLog>) {
        let record = FaultLog::new();
        let device = |number: usize| {
            let copy = self.0[number].duplicate();
            Arc::new(FaultDevice::new(copy, number, record.clone()))
        };
        let mut log = DeviceLog { journal: device(JOURNAL), place: device(PLACE), length: 0 };
        let content = log.content();
        log.length = content.len() as u64;
        let opened = Registry::load(Box::new(log), &content, identity())
            .map_err(EmbeddedError::from)
            .and_then(|registry| {
                let pool = Pool::open(device(METADATA), device(DATA)).map_err(EmbeddedError::pool("open"))?;
                let description = Description::new("p", identity(), pool.block_size());
                EmbeddedPool::assemble(description, Path::new("/memory"), pool, registry, Vec::new())
            });
        (opened, record)
    }

    /// What a crash leaves right after the last of `events`.
    pub(super) fn after(&self, events: &[IoEvent], mut fate: impl FnMut(&IoEvent) -> Fate) -> Self {
        Self(std::array::from_fn(|number| crash_image(&self.0[number], events, number, &mut fate).unwrap()))
    }

    /// Asks our own checker about the metadata.
    pub(super) fn check(&self) {
        let report = check(Arc::new(self.0[METADATA].duplicate()), None).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    }

    /// Asks the independent judge about the metadata.
    pub(super) fn thin_check(&self) {
        let metadata = &self.0[METADATA];
        let mut bytes = vec![0; metadata.size_bytes() as usize];
        metadata.read_at(0, &mut bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("metadata"), bytes).unwrap();
        super::thin_check(&dir.path().join("metadata"));
    }
}

fn identity() -> Uuid {
    Uuid::from_u128(0x000d_15c5)
}

/// A journal on devices: one of two places, as a one-byte device says. What follows it in its place is zero.
struct DeviceLog {
    journal: Arc<FaultDevice<MemoryDevice>>,
    place: Arc<FaultDevice<MemoryDevice>>,
    length: u64,
}

impl DeviceLog {
    fn start(&self) -> u64 {
        let mut place = [0];
        self.place.read_at(0, &mut place).unwrap();
        u64::from(place[0]) * PLACE_BYTES
    }

    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; PLACE_BYTES as usize];
        self.journal.read_at(self.start(), &mut bytes).unwrap();
        let length = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(length);
        bytes
    }
}

impl Log for DeviceLog {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.journal.write_at(self.start() + self.length, bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.journal.flush()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let zeroes = vec![0; (self.length - length) as usize];
        self.journal.write_at(self.start() + length, &zeroes)?;
        self.length = length;
        Ok(())
    }

    fn replace(&mut self, content: &[u8]) -> Result<(), ReplaceError> {
        let other = PLACE_BYTES - self.start();
        let mut bytes = content.to_vec();
        bytes.resize(PLACE_BYTES as usize, 0);
        self.journal.write_at(other, &bytes).map_err(ReplaceError::Unchanged)?;
        self.journal.flush().map_err(ReplaceError::Unchanged)?;
        let place = u8::try_from(other / PLACE_BYTES).unwrap();
        self.place.write_at(0, &[place]).map_err(ReplaceError::Unknown)?;
        self.place.flush().map_err(ReplaceError::Unknown)?;
        self.length = content.len() as u64;
        Ok(())
    }
}
