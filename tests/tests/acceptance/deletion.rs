//! Deletion of devices.

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{PoolError, PoolMode};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

#[test]
fn a_device_is_created_and_deleted_a_thousand_times() -> Result<()> {
    let place = Place::new(16)?;
    let empty = place.on(|pool| Ok(pool.status().metadata_used))?;
    place.on(|pool| {
        for round in 0..1000 {
            pool.create_thin(id(0))?;
            if round % 10 == 0 {
                pool.commit()?;
            }
            pool.delete(id(0))?;
        }
        Ok(())
    })?;
    place.on(|pool| {
        ensure!(pool.status().metadata_used == empty, "{}", pool.status());
        Ok(())
    })
}

#[test]
fn a_thousand_devices_are_created_and_then_deleted() -> Result<()> {
    let place = Place::new(16)?;
    let empty = place.on(|pool| Ok(pool.status().metadata_used))?;
    place.on(|pool| Ok((0..1000).try_for_each(|number| pool.create_thin(id(number)))?))?;
    place.on(|pool| Ok((0..1000).try_for_each(|number| pool.delete(id(number)))?))?;
    place.on(|pool| {
        ensure!(pool.status().metadata_used == empty && pool.devices()?.is_empty());
        Ok(())
    })
}

#[test]
fn each_of_a_thousand_devices_is_deleted_and_created_again() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        (0..1000).try_for_each(|number| pool.create_thin(id(number)))?;
        for number in 0..1000 {
            pool.delete(id(number))?;
            pool.create_thin(id(number))?;
        }
        ensure!(pool.devices()?.len() == 1000);
        Ok(())
    })
}

#[test]
fn the_blocks_of_a_deleted_thin_are_free() -> Result<()> {
    let place = Place::new(64)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..64, 1)?;
        ensure!(pool.status().data_used == 64);
        message(pool, "delete 0")?;
        ensure!(pool.status().data_used == 0);
        Ok(())
    })
}

#[test]
fn an_unknown_device_is_not_deleted() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        ensure!(refused(message(pool, "delete 0"))? == Errno::NODATA);
        Ok(())
    })
}

#[test]
fn an_active_device_is_not_deleted() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        let thin = pool.open_thin(id(0), BLOCK, None)?;
        let again = pool.open_thin(id(0), BLOCK, None)?;
        ensure!(refused(message(pool, "delete 0"))? == Errno::BUSY);
        drop(thin);
        ensure!(refused(message(pool, "delete 0"))? == Errno::BUSY);
        drop(again);
        Ok(message(pool, "delete 0")?)
    })
}

#[test]
fn a_full_pool_writes_again_after_a_deletion() -> Result<()> {
    let place = Place::new(32)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        let filled = stomp(pool, 0, 0..33, 1);
        ensure!(matches!(filled, Err(PoolError::NoSpaceData { used: 32, total: 32 })));
        ensure!(pool.status().mode == PoolMode::OutOfDataSpace);
        message(pool, "delete 0")?;
        ensure!(pool.status().mode == PoolMode::Write && pool.status().data_used == 0);
        pool.create_thin(id(1))?;
        stomp(pool, 1, 0..32, 2)?;
        verify(pool, 1, 0..32, 2)
    })
}

#[test]
fn discarding_a_device_and_deleting_it_gives_everything_back() -> Result<()> {
    let place = Place::new(64)?;
    let empty = place.on(|pool| Ok(pool.status().metadata_used))?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..64, 1)?;
        pool.discard(id(0), 0, 64 * BLOCK)?;
        Ok(message(pool, "delete 0")?)
    })?;
    place.on(|pool| {
        ensure!(pool.status().metadata_used == empty && pool.status().data_used == 0);
        Ok(())
    })
}
