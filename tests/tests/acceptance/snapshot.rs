//! Snapshots: what they share, and what each side sees.

use std::thread;

use anyhow::{Result, ensure};
use thinbak_engine::PoolError;

use crate::place::{BLOCK, Place, id, stomp, verify};

#[test]
fn a_snapshot_takes_no_data_until_it_is_written() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..100, 1)?;
        ensure!(pool.status().data_used == 100);
        pool.create_snap(id(1), id(0))?;
        ensure!(pool.status().data_used == 100);
        stomp(pool, 1, 0..100, 2)?;
        ensure!(pool.status().data_used == 200);
        Ok(())
    })
}

#[test]
fn writing_to_a_snapshot_leaves_its_origin_alone() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..80, 1)?;
        pool.create_snap(id(1), id(0))?;
        stomp(pool, 1, 20..60, 2)?;
        verify(pool, 0, 0..80, 1)?;
        verify(pool, 1, 0..20, 1)?;
        verify(pool, 1, 20..60, 2)?;
        verify(pool, 1, 60..80, 1)
    })
}

#[test]
fn writing_to_an_origin_leaves_its_snapshot_alone() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..80, 1)?;
        pool.create_snap(id(1), id(0))?;
        stomp(pool, 0, 20..100, 2)?;
        verify(pool, 1, 0..80, 1)?;
        verify(pool, 1, 80..100, 0)?;
        verify(pool, 0, 0..20, 1)?;
        verify(pool, 0, 20..100, 2)
    })
}

#[test]
fn of_999_snapshots_of_one_volume_each_keeps_its_moment() -> Result<()> {
    let place = Place::new(1100)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..10, 1)?;
        for number in 1..1000 {
            pool.create_snap(id(number), id(0))?;
            // One block differs from snapshot to snapshot.
            stomp(pool, 0, number % 10..number % 10 + 1, number + 1)?;
        }
        verify(pool, 1, 0..10, 1)?;
        for number in [2, 9, 10, 500, 999] {
            let last = number - 1;
            verify(pool, number, last % 10..last % 10 + 1, last + 1)?;
        }
        verify(pool, 0, 9..10, 1000)
    })
}

#[test]
fn six_devices_that_share_all_blocks_are_written_in_parallel() -> Result<()> {
    let place = Place::new(7 * 50)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..50, 1)?;
        (1..6).try_for_each(|number| pool.create_snap(id(number), id(0)))?;
        thread::scope(|scope| {
            let writers: Vec<_> =
                (0..6).map(|number| scope.spawn(move || stomp(pool, number, 0..50, number + 2))).collect();
            writers.into_iter().try_for_each(|writer| {
                writer.join().unwrap_or_else(|_| Err(PoolError::InvalidMessage("a writer panicked".into())))
            })
        })?;
        ensure!(pool.status().data_used == 300, "{}", pool.status());
        (0..6).try_for_each(|number| verify(pool, number, 0..50, number + 2))
    })
}

#[test]
fn blocks_that_five_snapshots_share_are_counted_up_and_down() -> Result<()> {
    let place = Place::new(6 * 300)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..300, 1)?;
        (1..6).try_for_each(|number| pool.create_snap(id(number), id(0)))?;
        Ok(())
    })?;
    // Between any two of them the counts are compared with the trees.
    for number in 1..6 {
        place.on(|pool| Ok(stomp(pool, number, 0..300, number + 1)?))?;
    }
    place.on(|pool| {
        ensure!(pool.status().data_used == 1800);
        (0..6).try_for_each(|number| verify(pool, number, 0..300, number + 1))
    })?;
    for number in 0..6 {
        place.on(|pool| Ok(pool.delete(id(number))?))?;
    }
    place.on(|pool| {
        ensure!(pool.status().data_used == 0);
        Ok(())
    })
}

#[test]
fn a_thin_and_its_snapshot_grow_apart_and_become_the_same_again() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..50, 1)?;
        pool.create_snap(id(1), id(0))?;
        for round in 2..6 {
            stomp(pool, 0, 0..50, round)?;
            stomp(pool, 1, 0..50, round)?;
        }
        // Nothing is shared, whatever the content.
        ensure!(pool.status().data_used == 100);
        verify(pool, 0, 0..50, 5)?;
        verify(pool, 1, 0..50, 5)
    })
}

#[test]
fn sharing_is_broken_once_for_each_block() -> Result<()> {
    let place = Place::new(200)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..50, 1)?;
        pool.create_snap(id(1), id(0))?;
        for round in 2..5 {
            stomp(pool, 1, 0..20, round)?;
            ensure!(pool.status().data_used == 70);
        }
        pool.write(id(1), 30 * BLOCK + 5, &[1])?;
        ensure!(pool.status().data_used == 71);
        Ok(())
    })
}
