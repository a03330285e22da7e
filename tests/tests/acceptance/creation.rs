//! Creation of devices and pools.

use std::sync::Arc;

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{BlockSize, DeviceId, MemoryDevice, Pool, PoolError, PoolTable};

use crate::place::{Place, id, message, refused};

const SECTOR: u64 = 512;

#[test]
fn a_thousand_empty_thins_are_created() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        (0..1000).try_for_each(|number| pool.create_thin(id(number)))?;
        ensure!(pool.devices()?.len() == 1000 && pool.status().data_used == 0);
        Ok(())
    })
}

#[test]
fn a_thin_has_999_empty_snapshots() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        (1..1000).try_for_each(|number| pool.create_snap(id(number), id(0)))?;
        ensure!(pool.devices()?.len() == 1000);
        Ok(())
    })
}

#[test]
fn each_of_999_snapshots_is_one_of_the_snapshot_before() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        pool.write(id(0), 0, &[1])?;
        (1..1000).try_for_each(|number| pool.create_snap(id(number), id(number - 1)))?;
        let last = pool.devices()?.pop().map(|device| device.details);
        ensure!(last.is_some_and(|last| last.creation_time == 999 && last.mapped_blocks == 1), "{last:?}");
        Ok(())
    })
}

#[test]
fn every_block_of_a_4_gib_thin_of_256_mib_blocks_is_provisioned() -> Result<()> {
    let block = 524_288 * SECTOR;
    let place = Place::of_sizes(4 << 20, block, 4 << 30)?;
    place.with("0 2 skip_block_zeroing error_if_no_space", |pool| {
        pool.create_thin(id(0))?;
        for number in 0..16 {
            pool.write(id(0), number * block + block - 4096, &[7; 4096])?;
        }
        ensure!(pool.status().data_used == 16 && pool.status().data_total == 16);
        ensure!(pool.device_status(id(0))? == "8388608 8388607");
        let full = pool.write(id(0), 16 * block, &[7; 4096]);
        ensure!(matches!(full, Err(PoolError::NoSpaceData { .. })));
        Ok(())
    })
}

#[test]
fn block_sizes_that_the_kernel_refuses_are_refused() {
    for sectors in [0, 1, 64, 100, 127, 185, 192, 1000, (1 << 21) + 1, (1 << 21) + 128, u32::MAX] {
        assert!(BlockSize::from_sectors(sectors).is_err(), "{sectors}");
    }
}

#[test]
fn the_largest_block_size_is_1_gib() -> Result<()> {
    let place = Place::of_sizes(4 << 20, (1 << 21) * SECTOR, 3 << 30)?;
    place.with("0 1 skip_block_zeroing", |pool| {
        pool.create_thin(id(0))?;
        pool.write(id(0), (1 << 30) - 1, &[1, 2])?;
        ensure!(pool.status().data_used == 2 && pool.status().data_total == 3, "{}", pool.status());
        Ok(())
    })
}

#[test]
fn multiples_of_64_kib_need_not_be_powers_of_two() -> Result<()> {
    let place = Place::of_sizes(4 << 20, 3 * 65_536, 10 << 20)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        pool.write(id(0), 3 * 65_536 - 1, &[1, 2])?;
        ensure!(pool.status().data_used == 2 && pool.status().data_total == 53, "{}", pool.status());
        Ok(())
    })
}

#[test]
fn ids_above_24_bits_are_refused() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        for text in ["create_thin 16777216", "create_snap 16777216 0", "create_snap 0 16777216"] {
            ensure!(refused(message(pool, text))? == Errno::INVAL, "{text}");
        }
        ensure!(DeviceId::new(1 << 24).is_err() && pool.devices()?.is_empty());
        Ok(())
    })
}

#[test]
fn the_largest_id_is_taken() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        message(pool, "create_thin 16777215")?;
        ensure!(refused(message(pool, "create_thin 16777215"))? == Errno::EXIST);
        pool.write(id(16_777_215), 0, &[1])?;
        Ok(())
    })
}

#[test]
fn a_metadata_device_of_16_kib_is_too_small() -> Result<()> {
    let place = Place::of_sizes(16 << 10, 65_536, 1 << 20)?;
    let made = place.open("0");
    ensure!(matches!(made, Err(PoolError::MetadataTooSmall { bytes: 16_384, .. })));
    ensure!(std::fs::read(place.metadata())?.iter().all(|byte| *byte == 0), "something was written");
    Ok(())
}

#[test]
fn a_data_device_without_room_for_a_block_makes_no_pool() {
    let (metadata, data) = (Arc::new(MemoryDevice::new(1 << 20)), Arc::new(MemoryDevice::new(65_535)));
    let block = BlockSize::from_bytes(65_536).map(|block| Pool::format(metadata, data, block));
    assert!(matches!(block, Ok(Err(PoolError::NoDataBlock(_)))));
}

#[test]
fn more_features_than_the_kernel_takes_are_refused() {
    let five = "0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space";
    assert!(five.parse::<PoolTable>().is_err());
    assert!("0 1 discard".parse::<PoolTable>().is_err());
}
