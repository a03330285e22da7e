//! Pools that are full of data.

use std::{sync::mpsc, thread, time::Duration};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{Pool, PoolError, PoolMode, PoolTable};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

/// Waits until the pool has run out of data blocks.
fn await_full(pool: &Pool) {
    let mut seen = 0;
    while pool.status().mode != PoolMode::OutOfDataSpace {
        seen = pool.wait_event(seen, None);
    }
}

/// Begins to write one block more than there is, does something, and returns what became of the write.
fn waiting(
    pool: &Pool,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<std::result::Result<(), PoolError>> {
    let blocks = pool.status().data_total;
    pool.create_thin(id(0))?;
    stomp(pool, 0, 0..blocks, 1)?;
    thread::scope(|scope| {
        let (done, ended) = mpsc::channel();
        scope.spawn(move || drop(done.send(stomp(pool, 0, blocks..blocks + 1, 2))));
        await_full(pool);
        meanwhile()?;
        Ok(ended.recv()?)
    })
}

#[test]
fn a_full_pool_refuses_writes_at_once_where_that_was_asked_for() -> Result<()> {
    let place = Place::new(8)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        ensure!(refused(stomp(pool, 0, 0..9, 1))? == Errno::NOSPC);
        ensure!(pool.status().mode == PoolMode::OutOfDataSpace);
        verify(pool, 0, 0..8, 1)
    })
}

#[test]
fn a_thin_larger_than_the_pool_is_written_until_the_pool_is_full() -> Result<()> {
    let place = Place::new(8)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        let thin = pool.open_thin(id(0), 100 * BLOCK, None)?;
        ensure!(refused(thin.write(0, &[1; 20 * BLOCK as usize]))? == Errno::NOSPC);
        ensure!(pool.status().data_used <= 8);
        Ok(())
    })
}

#[test]
fn blocks_that_are_provisioned_are_written_in_a_full_pool() -> Result<()> {
    let place = Place::new(8)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        ensure!(refused(stomp(pool, 0, 0..9, 1))? == Errno::NOSPC);
        stomp(pool, 0, 0..8, 2)?;
        verify(pool, 0, 0..8, 2)?;
        ensure!(pool.status().mode == PoolMode::OutOfDataSpace);
        Ok(())
    })
}

#[test]
fn writes_wait_until_the_pool_grows() -> Result<()> {
    let place = Place::new(8)?;
    place.with("0", |pool| {
        let written = waiting(pool, || {
            pool.data_device().resize(16 * BLOCK)?;
            Ok(pool.grow_data(16 * BLOCK)?)
        })?;
        written?;
        ensure!(pool.status().mode == PoolMode::Write && pool.status().data_used == 9);
        verify(pool, 0, 8..9, 2)
    })
}

#[test]
fn writes_wait_until_something_is_deleted() -> Result<()> {
    let place = Place::new(8)?;
    place.with("0", |pool| {
        pool.create_thin(id(1))?;
        stomp(pool, 1, 0..4, 1)?;
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..4, 1)?;
        thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| stomp(pool, 0, 4..8, 2));
            await_full(pool);
            message(pool, "delete 1")?;
            Ok(writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??)
        })?;
        verify(pool, 0, 4..8, 2)
    })
}

#[test]
fn writes_that_waited_too_long_fail() -> Result<()> {
    let place = Place::new(8)?;
    place.with("0", |pool| {
        pool.reload(PoolTable { no_space_timeout: Duration::from_millis(300), ..PoolTable::default() })?;
        ensure!(refused(waiting(pool, || Ok(()))?)? == Errno::NOSPC);
        ensure!(pool.status().error_if_no_space);
        // Later ones do not wait again, until there was space.
        ensure!(refused(stomp(pool, 0, 9..10, 2))? == Errno::NOSPC);
        pool.discard(id(0), 0, BLOCK)?;
        pool.commit()?;
        ensure!(!pool.status().error_if_no_space);
        Ok(stomp(pool, 0, 9..10, 2)?)
    })
}

#[test]
fn a_reload_that_asks_for_errors_ends_the_wait() -> Result<()> {
    let place = Place::new(8)?;
    place.with("0", |pool| {
        let ended = waiting(pool, || Ok(pool.reload("0 1 error_if_no_space".parse()?)?))?;
        ensure!(refused(ended)? == Errno::NOSPC);
        Ok(())
    })
}

#[test]
fn the_low_water_mark_is_an_event_once() -> Result<()> {
    let place = Place::new(16)?;
    place.with("4 1 error_if_no_space", |pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..12, 1)?;
        ensure!(pool.events() == 0);
        stomp(pool, 0, 12..13, 1)?;
        ensure!(pool.events() == 1);
        stomp(pool, 0, 13..16, 1)?;
        ensure!(pool.events() == 1);
        pool.discard(id(0), 0, 16 * BLOCK)?;
        pool.commit()?;
        stomp(pool, 0, 0..14, 1)?;
        ensure!(pool.events() == 1);
        // And again for a table that is loaded.
        pool.reload("4 1 error_if_no_space".parse()?)?;
        stomp(pool, 0, 14..15, 1)?;
        ensure!(pool.events() == 2);
        Ok(())
    })
}
