//! Transaction ids, flushes, reloads, and the end of a pool.

use std::thread;

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{Operation, PoolMode};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

#[test]
fn the_transaction_id_is_zero_at_first() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| Ok(ensure!(pool.transaction_id() == 0)))
}

#[test]
fn the_transaction_id_is_set() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| Ok(message(pool, "set_transaction_id 0 1234")?))?;
    place.on(|pool| Ok(ensure!(pool.transaction_id() == 1234)))
}

#[test]
fn the_transaction_id_is_set_only_by_who_knows_it() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        ensure!(refused(message(pool, "set_transaction_id 500 1234"))? == Errno::INVAL);
        ensure!(pool.transaction_id() == 0);
        Ok(())
    })
}

#[test]
fn a_pool_that_is_only_looked_at_writes_nothing() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| Ok(pool.create_thin(id(0))?))?;
    let before = std::fs::read(place.metadata())?;
    place.on(|pool| {
        verify(pool, 0, 0..16, 0)?;
        ensure!(pool.status().data_used == 0);
        Ok(pool.commit()?)
    })?;
    ensure!(std::fs::read(place.metadata())? == before);
    Ok(())
}

#[test]
fn a_flush_commits_what_was_changed_and_nothing_else_writes() -> Result<()> {
    let place = Place::new(16)?;
    let pool = place.open("0")?;
    pool.create_thin(id(0))?;
    let thin = pool.open_thin(id(0), 16 * BLOCK, None)?;
    thin.write(0, &[1; 512])?;
    thin.flush()?;
    let before = std::fs::read(place.metadata())?;
    // In place: no metadata change.
    thin.write(0, &[2; 512])?;
    thin.flush()?;
    ensure!(std::fs::read(place.metadata())? == before);
    thin.write(BLOCK, &[2; 512])?;
    thin.flush()?;
    ensure!(std::fs::read(place.metadata())? != before);
    drop(thin);
    drop(pool);
    place.check()
}

#[test]
fn the_usage_is_that_of_the_blocks_written() -> Result<()> {
    let place = Place::new(64)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        for blocks in 1..=64 {
            stomp(pool, 0, blocks - 1..blocks, 1)?;
            ensure!(pool.status().data_used == blocks);
        }
        ensure!(pool.device_status(id(0))? == format!("{} {}", 64 * 128, 64 * 128 - 1));
        Ok(())
    })
}

#[test]
fn a_pool_that_is_dropped_without_a_commit_is_as_at_the_last_one() -> Result<()> {
    let place = Place::new(64)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        Ok(stomp(pool, 0, 0..8, 1)?)
    })?;
    let pool = place.open("0")?;
    stomp(&pool, 0, 8..16, 1)?;
    pool.delete(id(0))?;
    pool.create_thin(id(1))?;
    drop(pool);
    place.check()?;
    place.on(|pool| {
        ensure!(pool.devices()?.len() == 1 && pool.status().data_used == 8);
        verify(pool, 0, 0..8, 1)
    })
}

#[test]
fn a_fresh_pool_that_is_dropped_is_an_empty_pool() -> Result<()> {
    let place = Place::new(64)?;
    drop(place.open("0")?);
    place.check()?;
    place.on(|pool| Ok(ensure!(pool.devices()?.is_empty())))
}

#[test]
fn tables_are_reloaded_under_readers_and_writers() -> Result<()> {
    let place = Place::new(64)?;
    place.with("0", |pool| {
        pool.create_thin(id(0))?;
        pool.create_thin(id(1))?;
        thread::scope(|scope| -> Result<()> {
            let writers = [0, 1]
                .map(|device| scope.spawn(move || (1..20).try_for_each(|n| stomp(pool, device, 0..30, n))));
            for table in ["5", "0 1 error_if_no_space", "0 1 skip_block_zeroing", "0"].iter().cycle().take(20)
            {
                pool.reload(table.parse()?)?;
            }
            for writer in writers {
                writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
            }
            Ok(())
        })?;
        verify(pool, 0, 0..30, 19)?;
        verify(pool, 1, 0..30, 19)
    })
}

#[test]
fn several_reloads_at_once_are_one_after_the_other() -> Result<()> {
    let place = Place::new(64)?;
    place.with("0", |pool| {
        thread::scope(|scope| -> Result<()> {
            let loaders = [1, 2, 3, 4].map(|mark| {
                scope.spawn(move || -> Result<()> {
                    (0..10).try_for_each(|_| Ok(pool.reload(format!("{mark}").parse()?)?))
                })
            });
            for loader in loaders {
                loader.join().map_err(|_| anyhow::anyhow!("a loader panicked"))??;
            }
            Ok(())
        })?;
        ensure!((1..=4).contains(&pool.table().low_water_blocks) && pool.status().mode == PoolMode::Write);
        Ok(())
    })
}

#[test]
fn a_group_of_operations_on_active_devices_is_done_as_one() -> Result<()> {
    let place = Place::new(64)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        let _active = pool.open_thin(id(0), BLOCK, None)?;
        let both = [Operation::CreateSnap { new: id(1), origin: id(0) }, Operation::Delete(id(0))];
        ensure!(refused(pool.apply(&both))? == Errno::BUSY);
        ensure!(pool.devices()?.len() == 1);
        Ok(())
    })
}

#[test]
fn the_rest_of_a_new_block_is_zeroed() -> Result<()> {
    let place = Place::new(2)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..2, 1)?;
        message(pool, "delete 0")?;
        pool.create_thin(id(1))?;
        pool.write(id(1), 1000, &[7])?;
        let mut found = vec![1; usize::try_from(BLOCK)?];
        pool.read(id(1), 0, &mut found)?;
        ensure!(found.iter().enumerate().all(|(at, byte)| *byte == if at == 1000 { 7 } else { 0 }));
        Ok(())
    })
}
