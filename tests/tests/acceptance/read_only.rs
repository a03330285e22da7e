//! Pools that must not change their metadata: because the table says so, or because they need a check.

use std::{fs::File, os::unix::fs::FileExt as _, process::Command, sync::Arc};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{
    Access, BlockDevice, BlockSize, FaultDevice, FaultLog, FileDevice, MemoryDevice, Pool, PoolError,
    PoolMode, PoolTable,
};
use thinbak_tests::{Scratch, thin_check};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

const READ_ONLY: &str = "0 1 read_only";

/// A pool with one device of four mapped blocks, a snapshot of it, and a held metadata snapshot.
fn pool() -> Result<Place> {
    let place = Place::new(16)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..4, 1)?;
        pool.create_snap(id(1), id(0))?;
        pool.create_thin(id(2))?;
        stomp(pool, 2, 0..4, 2)?;
        Ok(message(pool, "reserve_metadata_snap")?)
    })?;
    Ok(place)
}

#[test]
fn a_read_only_pool_works_on_metadata_that_cannot_be_written() -> Result<()> {
    let place = pool()?;
    let metadata = Arc::new(FileDevice::open(&place.metadata(), Access::ReadOnly)?);
    let data = Arc::new(FileDevice::open(&place.data(), Access::ReadWrite)?);
    let pool = Pool::open_with(metadata, data, READ_ONLY.parse()?)?;
    ensure!(pool.status().mode == PoolMode::ReadOnly && !pool.status().needs_check);
    verify(&pool, 0, 0..4, 1)?;
    pool.commit()?;
    Ok(())
}

#[test]
fn a_read_only_pool_does_not_change_its_metadata() -> Result<()> {
    let place = pool()?;
    let before = std::fs::read(place.metadata())?;
    place.with(READ_ONLY, |pool| {
        for text in ["create_thin 9", "create_snap 9 0", "delete 1", "set_transaction_id 0 1"] {
            ensure!(refused(message(pool, text))? == Errno::OPNOTSUPP, "{text}");
        }
        for text in ["reserve_metadata_snap", "release_metadata_snap"] {
            ensure!(refused(message(pool, text))? == Errno::OPNOTSUPP, "{text}");
        }
        ensure!(pool.discard(id(0), 0, BLOCK).is_err() && pool.grow_metadata().is_err());
        Ok(())
    })?;
    ensure!(std::fs::read(place.metadata())? == before, "the metadata have changed");
    Ok(())
}

#[test]
fn nothing_is_formatted_read_only() -> Result<()> {
    let place = Place::new(16)?;
    ensure!(refused(place.open(READ_ONLY))? == Errno::PERM);
    ensure!(std::fs::read(place.metadata())?.iter().all(|byte| *byte == 0));
    Ok(())
}

#[test]
fn what_is_mapped_and_not_shared_is_written_in_a_read_only_pool() -> Result<()> {
    let place = pool()?;
    place.with(READ_ONLY, |pool| {
        stomp(pool, 2, 0..4, 3)?;
        verify(pool, 2, 0..4, 3)
    })
}

#[test]
fn what_is_shared_is_not_written_in_a_read_only_pool() -> Result<()> {
    let place = pool()?;
    place.with(READ_ONLY, |pool| {
        ensure!(matches!(stomp(pool, 0, 0..1, 3), Err(PoolError::ReadOnlyMode { needs_check: false })));
        verify(pool, 0, 0..4, 1)?;
        verify(pool, 1, 0..4, 1)
    })
}

#[test]
fn what_is_not_mapped_reads_as_zeroes_and_is_not_provisioned_in_a_read_only_pool() -> Result<()> {
    let place = pool()?;
    place.with(READ_ONLY, |pool| {
        verify(pool, 0, 4..10, 0)?;
        ensure!(matches!(stomp(pool, 0, 4..5, 3), Err(PoolError::ReadOnlyMode { needs_check: false })));
        verify(pool, 0, 4..5, 0)?;
        ensure!(pool.status().data_used == 8);
        Ok(())
    })
}

/// The data device and the metadata device fail on request.
fn faulty() -> Result<(Pool, Arc<MemoryDevice>, Arc<FaultLog>)> {
    let metadata = Arc::new(MemoryDevice::new(4 << 20));
    let (log, data) = (FaultLog::new(), Arc::new(MemoryDevice::new(32 * BLOCK)));
    let device = Arc::new(FaultDevice::new(Shared(Arc::clone(&metadata)), 0, Arc::clone(&log)));
    let table = PoolTable::without_waiting();
    let pool = Pool::format_with(device, data, BlockSize::from_bytes(BLOCK)?, table)?;
    Ok((pool, metadata, log))
}

/// A device that is looked at beside the pool.
#[derive(Debug)]
struct Shared(Arc<MemoryDevice>);

impl BlockDevice for Shared {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.0.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, buf)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.0.discard(offset, len)
    }
    fn resize(&self, size: u64) -> std::io::Result<()> {
        self.0.resize(size)
    }
}

#[test]
fn a_failed_commit_falls_back_to_read_only_at_the_last_commit() -> Result<()> {
    let (pool, metadata, log) = faulty()?;
    pool.create_thin(id(0))?;
    stomp(&pool, 0, 0..4, 1)?;
    pool.commit()?;
    stomp(&pool, 0, 4..8, 1)?;
    pool.create_thin(id(1))?;
    log.fail(0, u64::MAX);
    ensure!(pool.commit().is_err());
    ensure!(pool.status().mode == PoolMode::ReadOnly);
    verify(&pool, 0, 0..4, 1)?;
    verify(&pool, 0, 4..8, 0)?;
    ensure!(pool.devices()?.len() == 1 && pool.status().data_used == 4);
    checked(&metadata)
}

/// Debian's checker on metadata in memory.
fn checked(metadata: &MemoryDevice) -> Result<()> {
    let scratch = Scratch::new()?;
    let mut bytes = vec![0; usize::try_from(metadata.size_bytes())?];
    metadata.read_at(0, &mut bytes)?;
    std::fs::write(scratch.join("metadata"), bytes)?;
    thin_check(&scratch.join("metadata"))
}

#[test]
fn a_failed_commit_sets_needs_check_and_a_pool_that_needs_one_comes_up_read_only() -> Result<()> {
    let (pool, metadata, log) = faulty()?;
    pool.create_thin(id(0))?;
    pool.commit()?;
    pool.create_thin(id(1))?;
    log.fail(0, 1);
    ensure!(pool.commit().is_err());
    ensure!(pool.status().needs_check && pool.status().to_string().contains(" ro "));
    drop(pool);
    checked(&metadata)?;
    let again = Pool::open(metadata, Arc::new(MemoryDevice::new(32 * BLOCK)))?;
    ensure!(again.status().needs_check && again.status().mode == PoolMode::ReadOnly);
    ensure!(refused(message(&again, "create_thin 2"))? == Errno::OPNOTSUPP);
    ensure!(again.devices()?.len() == 1);
    Ok(())
}

/// Sets the flag, as a failed commit leaves it.
fn need_check(place: &Place) -> Result<()> {
    let file = File::options().read(true).write(true).open(place.metadata())?;
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, 0)?;
    let (checksum, rest) = block.split_at_mut(4);
    if let Some(flags) = rest.first_mut() {
        *flags |= 1;
    }
    let salt = 160_774;
    checksum.copy_from_slice(&(crc32c::crc32c(rest) ^ 0xFFFF_FFFF ^ salt).to_le_bytes());
    file.write_all_at(&block, 0)?;
    Ok(())
}

#[test]
fn a_pool_that_needs_a_check_does_not_grow() -> Result<()> {
    let place = pool()?;
    need_check(&place)?;
    place.open("0").map(|pool| -> Result<()> {
        ensure!(pool.status().needs_check);
        pool.metadata_device().resize(20 << 20)?;
        pool.data_device().resize(64 * BLOCK)?;
        let expected = Err::<(), _>(Errno::OPNOTSUPP);
        ensure!(pool.grow_data(64 * BLOCK).map_err(|error| error.errno()) == expected.map_err(Some));
        ensure!(matches!(pool.grow_metadata(), Err(PoolError::ReadOnlyMode { needs_check: true })));
        pool.reload("0".parse()?)?;
        ensure!(pool.status().needs_check && pool.status().data_total == 16);
        Ok(())
    })?
}

#[test]
fn a_pool_writes_again_when_its_check_was_made() -> Result<()> {
    let place = pool()?;
    need_check(&place)?;
    ensure!(place.open("0")?.status().mode == PoolMode::ReadOnly);
    let mut command = Command::new("thin_check");
    command.args(["-q", "--clear-needs-check-flag"]).arg(place.metadata());
    ensure!(thinbak_tests::spawn(&mut command)?.wait()?.success());
    place.on(|pool| {
        ensure!(pool.status().mode == PoolMode::Write);
        message(pool, "release_metadata_snap")?;
        stomp(pool, 0, 4..5, 1)?;
        Ok(())
    })
}
