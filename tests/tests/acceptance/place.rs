//! A pool in two sparse files, checked after everything that a test does to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use thinbak_engine::{
    Access, BlockDevice, BlockSize, DeviceId, FileDevice, Pool, PoolError, PoolTable,
    check::{Damage, check},
};
use thinbak_tests::{Scratch, thin_check};

/// Bytes of a data block, where a test says nothing else.
pub(crate) const BLOCK: u64 = 65_536;
/// Bytes of a metadata device, likewise.
pub(crate) const METADATA: u64 = 16 << 20;

/// Where the pool is.
pub(crate) struct Place {
    pub(crate) scratch: Scratch,
    block_bytes: u64,
}

impl Place {
    /// Room for so many blocks of 64 KiB.
    pub(crate) fn new(data_blocks: u64) -> Result<Self> {
        Self::of_sizes(METADATA, BLOCK, data_blocks * BLOCK)
    }

    /// Blank devices of these sizes, in bytes.
    pub(crate) fn of_sizes(metadata: u64, block_bytes: u64, data: u64) -> Result<Self> {
        let scratch = Scratch::new()?;
        FileDevice::create(&scratch.join("metadata"), metadata)?;
        FileDevice::create(&scratch.join("data"), data)?;
        Ok(Self { scratch, block_bytes })
    }

    /// The metadata device.
    pub(crate) fn metadata(&self) -> PathBuf {
        self.scratch.join("metadata")
    }

    /// The data device.
    pub(crate) fn data(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// Opens the pool with a table, or makes it. Unless the table says otherwise a write waits for a free block for ever.
    pub(crate) fn open(&self, table: &str) -> Result<Pool, PoolError> {
        let open = |path: PathBuf| {
            let opened = FileDevice::open(&path, Access::ReadWrite);
            opened.map(Arc::new).map_err(|error| PoolError::InvalidTable(error.to_string()))
        };
        let (metadata, data) = (open(self.metadata())?, open(self.data())?);
        let table = PoolTable { no_space_timeout: Duration::ZERO, ..table.parse()? };
        let mut first = [1; 4096];
        let blank = metadata.size_bytes() >= 4096
            && metadata.read_at(0, &mut first).is_ok()
            && first.iter().all(|byte| *byte == 0);
        if !blank {
            return Pool::open_with(metadata, data, table);
        }
        let block = BlockSize::from_bytes(self.block_bytes)
            .map_err(|error| PoolError::InvalidTable(error.to_string()))?;
        Pool::format_with(metadata, data, block, table)
    }

    /// Opens the pool, does something with it, commits, closes it, and has the metadata checked.
    pub(crate) fn with<T>(&self, table: &str, work: impl FnOnce(&Pool) -> Result<T>) -> Result<T> {
        let pool = self.open(table)?;
        let result = work(&pool)?;
        pool.commit()?;
        drop(pool);
        self.check()?;
        Ok(result)
    }

    /// [`with`](Self::with) the table that lets writes fail when there is no space.
    pub(crate) fn on<T>(&self, work: impl FnOnce(&Pool) -> Result<T>) -> Result<T> {
        self.with("0 1 error_if_no_space", work)
    }

    /// Debian's checker and ours have nothing to say.
    pub(crate) fn check(&self) -> Result<()> {
        let damage = self.damage()?;
        ensure!(damage.is_empty(), "{damage:?}");
        Ok(())
    }

    /// Debian's checker has nothing to say; what ours says.
    fn damage(&self) -> Result<Vec<Damage>> {
        thin_check(&self.metadata())?;
        let metadata = Arc::new(FileDevice::open(&self.metadata(), Access::ReadOnly)?);
        Ok(check(metadata, Some(std::fs::metadata(self.data())?.len()))?.damage)
    }

    /// As [`with`](Self::with), for metadata that `thin_restore` 0.9 has written: that gives the metadata space map's figures
    /// of free blocks less exactly than the kernel does.
    pub(crate) fn restored<T>(&self, table: &str, work: impl FnOnce(&Pool) -> Result<T>) -> Result<T> {
        let pool = self.open(table)?;
        let result = work(&pool)?;
        pool.commit()?;
        drop(pool);
        let damage = self.damage()?;
        let allowed = |damage: &Damage| {
            damage.invariant == "F12" && damage.description.contains("the metadata space map says")
        };
        ensure!(damage.iter().all(allowed), "{damage:?}");
        Ok(result)
    }
}

/// A device id that is one.
pub(crate) fn id(number: u64) -> DeviceId {
    DeviceId::new(number).unwrap_or_else(|error| panic!("{error}"))
}

/// Sends a message, as `dmsetup message` takes it.
pub(crate) fn message(pool: &Pool, text: &str) -> Result<(), PoolError> {
    pool.message(&text.split(' ').collect::<Vec<_>>())
}

/// The kernel's error number of a refusal.
pub(crate) fn refused<T>(result: Result<T, PoolError>) -> Result<rustix::io::Errno> {
    match result {
        Ok(_) => anyhow::bail!("not refused"),
        Err(error) => error.errno().ok_or_else(|| anyhow::anyhow!("no error number: {error}")),
    }
}

/// Fills blocks of a device with a pattern that tells device, round and block apart.
pub(crate) fn stomp(
    pool: &Pool,
    device: u64,
    blocks: std::ops::Range<u64>,
    round: u64,
) -> Result<(), PoolError> {
    let bytes = pool.block_size().bytes();
    blocks
        .into_iter()
        .try_for_each(|block| pool.write(id(device), block * bytes, &pattern(bytes, block, round)))
}

/// The pattern stands in these blocks.
pub(crate) fn verify(pool: &Pool, device: u64, blocks: std::ops::Range<u64>, round: u64) -> Result<()> {
    let bytes = pool.block_size().bytes();
    let mut found = vec![0; usize::try_from(bytes)?];
    for block in blocks {
        pool.read(id(device), block * bytes, &mut found)?;
        ensure!(
            found == pattern(bytes, block, round),
            "device {device}, block {block}: not of round {round}"
        );
    }
    Ok(())
}

/// Round 0 is zeroes, what a device reads that was never written.
fn pattern(bytes: u64, block: u64, round: u64) -> Vec<u8> {
    let word = if round == 0 { 0 } else { round.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ block };
    word.to_le_bytes().into_iter().cycle().take(usize::try_from(bytes).unwrap_or(0)).collect()
}
