//! Pools whose data or metadata device grows.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{Pool, PoolError, PoolMode};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

const MIB: u64 = 1 << 20;

/// Makes the data device larger, which the pool does not see yet.
fn enlarge(pool: &Pool, blocks: u64) -> Result<()> {
    Ok(pool.data_device().resize(blocks * BLOCK)?)
}

#[test]
fn a_data_device_smaller_than_the_pool_is_refused() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| Ok(pool.create_thin(id(0))?))?;
    let before = std::fs::read(place.metadata())?;
    std::fs::OpenOptions::new().write(true).open(place.data())?.set_len(15 * BLOCK)?;
    let opened = place.open("0");
    ensure!(matches!(opened, Err(PoolError::DataTooSmall { expected: 16, found: 15 })));
    ensure!(refused(opened)? == Errno::INVAL);
    ensure!(std::fs::read(place.metadata())? == before, "something was written");
    Ok(())
}

#[test]
fn a_pool_does_not_shrink() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        ensure!(refused(pool.grow_data(8 * BLOCK))? == Errno::INVAL);
        ensure!(pool.status().data_total == 16);
        pool.create_thin(id(0))?;
        Ok(stomp(pool, 0, 0..16, 1)?)
    })
}

#[test]
fn more_of_the_data_device_is_used_only_when_asked_for() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        enlarge(pool, 32)?;
        ensure!(pool.status().data_total == 16);
        pool.create_thin(id(0))?;
        ensure!(refused(stomp(pool, 0, 0..17, 1))? == Errno::NOSPC);
        Ok(())
    })?;
    place.on(|pool| {
        ensure!(pool.status().data_total == 16);
        pool.grow_data(20 * BLOCK)?;
        ensure!(pool.status().data_total == 20);
        stomp(pool, 0, 16..20, 1)?;
        ensure!(refused(stomp(pool, 0, 20..21, 1))? == Errno::NOSPC);
        Ok(())
    })
}

#[test]
fn a_pool_grows_without_traffic() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        // Across the end of bitmaps.
        for blocks in [17, 16_320, 16_321, 100_000] {
            enlarge(pool, blocks)?;
            pool.grow_data(blocks * BLOCK)?;
            ensure!(pool.status().data_total == blocks);
        }
        Ok(())
    })
}

#[test]
fn a_pool_grows_under_traffic() -> Result<()> {
    let place = Place::new(64)?;
    place.with("0", |pool| {
        pool.create_thin(id(0))?;
        thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| stomp(pool, 0, 0..200, 1));
            for blocks in [80, 120, 160, 200] {
                enlarge(pool, blocks)?;
                pool.grow_data(blocks * BLOCK)?;
            }
            Ok(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??)
        })?;
        verify(pool, 0, 0..200, 1)
    })
}

#[test]
fn a_full_pool_grows_and_goes_on() -> Result<()> {
    let place = Place::new(8)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        ensure!(refused(stomp(pool, 0, 0..9, 1))? == Errno::NOSPC);
        enlarge(pool, 16)?;
        pool.grow_data(16 * BLOCK)?;
        ensure!(pool.status().mode == PoolMode::Write);
        stomp(pool, 0, 8..16, 1)?;
        verify(pool, 0, 0..16, 1)
    })
}

#[test]
fn metadata_grow_without_traffic() -> Result<()> {
    let place = Place::of_sizes(2 * MIB, BLOCK, 64 * BLOCK)?;
    place.on(|pool| {
        // Across the end of a bitmap too.
        for mib in [3, 4, 63, 64, 200] {
            pool.metadata_device().resize(mib * MIB)?;
            pool.reload("0 1 error_if_no_space".parse()?)?;
            ensure!(pool.status().metadata_total == mib * MIB / 4096);
        }
        Ok(())
    })?;
    place.on(|pool| {
        ensure!(pool.status().metadata_total == 200 * MIB / 4096);
        Ok(())
    })
}

#[test]
fn metadata_grow_under_traffic() -> Result<()> {
    let place = Place::of_sizes(2 * MIB, BLOCK, 600 * BLOCK)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| stomp(pool, 0, 0..600, 1));
            for mib in [3, 4, 5, 6] {
                pool.metadata_device().resize(mib * MIB)?;
                pool.grow_metadata()?;
            }
            Ok(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??)
        })?;
        verify(pool, 0, 0..600, 1)
    })
}

/// Makes devices until there is no room for one more.
fn exhaust(pool: &Pool) -> Result<u64> {
    let mut number = 0;
    loop {
        match message(pool, &format!("create_thin {number}")) {
            Ok(()) => number += 1,
            Err(error) => {
                let end = matches!(error, PoolError::OutOfMetadataMode | PoolError::NoSpaceMetadata { .. });
                ensure!(end, "{error}");
                return Ok(number);
            }
        }
    }
}

#[test]
fn exhausted_metadata_are_read_only_and_whole() -> Result<()> {
    let place = Place::of_sizes(MIB, BLOCK, 8 * BLOCK)?;
    let made = place.on(|pool| {
        let made = exhaust(pool)?;
        ensure!(pool.status().mode == PoolMode::OutOfMetadataSpace);
        ensure!(pool.status().to_string().contains(" ro ") && !pool.status().needs_check);
        ensure!(refused(message(pool, "delete 0"))? == Errno::OPNOTSUPP);
        ensure!(pool.write(id(0), 0, &[1]).is_err());
        Ok(made)
    })?;
    let pool = place.open("0")?;
    ensure!(pool.devices()?.len() as u64 == made && made > 100, "{made}");
    Ok(())
}

#[test]
fn exhausted_metadata_grow_and_the_pool_goes_on() -> Result<()> {
    let place = Place::of_sizes(MIB, BLOCK, 8 * BLOCK)?;
    place.on(|pool| {
        let made = exhaust(pool)?;
        pool.metadata_device().resize(2 * MIB)?;
        pool.reload("0 1 error_if_no_space".parse()?)?;
        ensure!(pool.status().mode == PoolMode::Write);
        message(pool, &format!("create_thin {made}"))?;
        message(pool, "delete 0")?;
        Ok(stomp(pool, 1, 0..8, 1)?)
    })?;
    place.on(|pool| verify(pool, 1, 0..8, 1))
}

#[test]
fn devices_are_deleted_after_the_metadata_have_grown() -> Result<()> {
    let place = Place::of_sizes(2 * MIB, BLOCK, 64 * BLOCK)?;
    place.on(|pool| {
        (0..100).try_for_each(|number| pool.create_thin(id(number)))?;
        pool.metadata_device().resize(5 * MIB)?;
        Ok(pool.grow_metadata()?)
    })?;
    place.on(|pool| {
        (0..100).try_for_each(|number| pool.delete(id(number)))?;
        ensure!(pool.devices()?.is_empty());
        Ok(())
    })
}

#[test]
fn waiting_writes_do_not_keep_the_metadata_from_growing() -> Result<()> {
    let place = Place::of_sizes(2 * MIB, BLOCK, 8 * BLOCK)?;
    place.with("0", |pool| {
        pool.create_thin(id(0))?;
        thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| stomp(pool, 0, 0..9, 1));
            let mut seen = 0;
            while pool.status().mode != PoolMode::OutOfDataSpace {
                seen = pool.wait_event(seen, std::time::Instant::now().checked_add(Duration::from_secs(1)));
            }
            pool.metadata_device().resize(4 * MIB)?;
            pool.grow_metadata()?;
            ensure!(pool.status().metadata_total == 1024);
            pool.discard(id(0), 0, BLOCK)?;
            pool.commit()?;
            Ok(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??)
        })
    })
}
