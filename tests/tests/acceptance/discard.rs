//! Discards: what they unmap, and what of it is passed down.

use std::{fs::File, path::Path};

use anyhow::{Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{Pool, PoolError, PoolMode, VirtualBlock};

use crate::place::{BLOCK, Place, id, message, refused, stomp, verify};

/// Whether blocks of the data device are holes of its file.
fn is_hole(data: &Path, blocks: std::ops::Range<u64>) -> Result<bool> {
    let file = File::open(data)?;
    match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(blocks.start * BLOCK)) {
        Ok(next) => Ok(next >= blocks.end * BLOCK),
        Err(Errno::NXIO) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The mapped blocks of device 0.
fn mapped(pool: &Pool) -> Result<Vec<u64>> {
    let runs = pool.mapped_runs(id(0), VirtualBlock::new(0), VirtualBlock::new(1 << 30), usize::MAX)?;
    Ok(runs.iter().flat_map(|run| run.begin.get()..run.begin.get() + run.length).collect())
}

/// A pool with device 0, of which the first blocks are mapped, in order, to the first of the data device.
fn provisioned(table: &str, blocks: u64) -> Result<Place> {
    let place = Place::new(2 * blocks)?;
    place.with(table, |pool| {
        pool.create_thin(id(0))?;
        Ok(stomp(pool, 0, 0..blocks, 1)?)
    })?;
    Ok(place)
}

#[test]
fn a_discard_unmaps_and_is_passed_down() -> Result<()> {
    let place = provisioned("0", 20)?;
    place.with("0", |pool| {
        pool.discard(id(0), 5 * BLOCK, 10 * BLOCK)?;
        ensure!(pool.status().data_used == 10);
        verify(pool, 0, 5..15, 0)?;
        // Not before the commit: the last commit still maps them.
        ensure!(!is_hole(&place.data(), 5..15)?);
        Ok(())
    })?;
    ensure!(is_hole(&place.data(), 5..15)? && !is_hole(&place.data(), 15..16)?);
    place.with("0", |pool| verify(pool, 0, 15..20, 1))
}

#[test]
fn without_passdown_a_discard_only_unmaps() -> Result<()> {
    let table = "0 1 no_discard_passdown";
    let place = provisioned(table, 20)?;
    place.with(table, |pool| {
        pool.discard(id(0), 0, 20 * BLOCK)?;
        ensure!(pool.status().data_used == 0);
        verify(pool, 0, 0..20, 0)
    })?;
    ensure!(!is_hole(&place.data(), 0..1)? && !is_hole(&place.data(), 19..20)?);
    Ok(())
}

#[test]
fn a_pool_that_ignores_discards_never_unmaps() -> Result<()> {
    let table = "0 1 ignore_discard";
    let place = provisioned(table, 4)?;
    place.with(table, |pool| {
        ensure!(refused(pool.discard(id(0), 0, 4 * BLOCK))? == Errno::OPNOTSUPP);
        ensure!(pool.status().data_used == 4);
        verify(pool, 0, 0..4, 1)
    })
}

#[test]
fn discarding_an_empty_device_does_nothing() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        pool.discard(id(0), 0, 1 << 40)?;
        ensure!(pool.device_status(id(0))? == "0 -");
        Ok(())
    })
}

#[test]
fn a_full_device_is_discarded_as_a_whole() -> Result<()> {
    let place = provisioned("0", 300)?;
    place.with("0", |pool| {
        pool.discard(id(0), 0, 300 * BLOCK)?;
        ensure!(pool.status().data_used == 0 && mapped(pool)?.is_empty());
        Ok(())
    })?;
    ensure!(is_hole(&place.data(), 0..300)?);
    Ok(())
}

#[test]
fn a_fragmented_device_is_discarded_as_a_whole() -> Result<()> {
    let place = Place::new(600)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        (0..300).try_for_each(|number| stomp(pool, 0, number * 7..number * 7 + 1, 1))?;
        pool.discard(id(0), 0, 300 * 7 * BLOCK)?;
        ensure!(pool.status().data_used == 0);
        Ok(())
    })
}

#[test]
fn a_single_block_is_discarded() -> Result<()> {
    let place = provisioned("0", 10)?;
    place.with("0", |pool| {
        pool.discard(id(0), 4 * BLOCK, BLOCK)?;
        ensure!(mapped(pool)? == [0, 1, 2, 3, 5, 6, 7, 8, 9]);
        Ok(())
    })
}

#[test]
fn parts_of_blocks_are_not_discarded() -> Result<()> {
    let place = provisioned("0", 10)?;
    place.with("0", |pool| {
        for (offset, length) in [
            (4 * BLOCK, BLOCK - 512),
            (4 * BLOCK + 512, BLOCK - 512),
            (4 * BLOCK + 512, BLOCK),
            (4 * BLOCK + 512, 2 * BLOCK - 1024),
            (4 * BLOCK, 1),
            (4 * BLOCK, 0),
        ] {
            pool.discard(id(0), offset, length)?;
            ensure!(mapped(pool)?.len() == 10, "{offset}, {length}");
        }
        pool.discard(id(0), 4 * BLOCK + 512, 3 * BLOCK - 1024)?;
        ensure!(mapped(pool)? == [0, 1, 2, 3, 4, 6, 7, 8, 9]);
        verify(pool, 0, 4..5, 1)
    })
}

#[test]
fn every_other_block_is_discarded() -> Result<()> {
    let place = provisioned("0", 300)?;
    place.with("0", |pool| {
        (0..300).step_by(2).try_for_each(|block| pool.discard(id(0), block * BLOCK, BLOCK))?;
        ensure!(mapped(pool)?.into_iter().eq((1..300).step_by(2)) && pool.status().data_used == 150);
        Ok(())
    })
}

#[test]
fn blocks_are_discarded_in_any_order() -> Result<()> {
    let place = provisioned("0", 101)?;
    place.with("0", |pool| {
        // 37 generates all of them.
        let order: Vec<u64> = (0..60).map(|number| number * 37 % 101).collect();
        order.iter().try_for_each(|block| pool.discard(id(0), block * BLOCK, BLOCK))?;
        ensure!(mapped(pool)?.into_iter().eq((0..101).filter(|block| !order.contains(block))));
        Ok(())
    })
}

/// The shapes of the suites: what is mapped at the lower and the upper end of a discard, and whether it reaches into it.
#[test]
fn discards_over_every_kind_of_boundary_leave_what_is_beyond_them() -> Result<()> {
    for lower in [0, 3] {
        for upper in [0, 3] {
            for reach in [0, 1] {
                let place = Place::new(32)?;
                place.on(|pool| {
                    pool.create_thin(id(0))?;
                    stomp(pool, 0, 5 - lower..5, 1)?;
                    stomp(pool, 0, 10..10 + upper, 1)?;
                    pool.discard(id(0), (5 - reach) * BLOCK, (5 + 2 * reach) * BLOCK)?;
                    let gone = 5 - reach..10 + reach;
                    let kept = (5 - lower..5).chain(10..10 + upper).filter(|block| !gone.contains(block));
                    ensure!(mapped(pool)?.into_iter().eq(kept), "{lower}, {upper}, {reach}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_shared_block_is_not_passed_down() -> Result<()> {
    let place = provisioned("0", 8)?;
    place.with("0", |pool| {
        pool.create_snap(id(1), id(0))?;
        pool.discard(id(0), 0, 8 * BLOCK)?;
        ensure!(pool.status().data_used == 8);
        Ok(())
    })?;
    ensure!(!is_hole(&place.data(), 0..1)? && !is_hole(&place.data(), 7..8)?);
    place.with("0", |pool| verify(pool, 1, 0..8, 1))
}

#[test]
fn a_block_that_is_no_longer_shared_is_passed_down() -> Result<()> {
    let place = provisioned("0", 8)?;
    place.with("0", |pool| {
        pool.create_snap(id(1), id(0))?;
        pool.discard(id(0), 0, 8 * BLOCK)?;
        Ok(pool.discard(id(1), 0, 8 * BLOCK)?)
    })?;
    ensure!(is_hole(&place.data(), 0..8)?);
    place.with("0", |pool| Ok(ensure!(pool.status().data_used == 0)))
}

#[test]
fn discarding_an_origin_does_not_touch_its_snapshot() -> Result<()> {
    let place = provisioned("0", 8)?;
    place.with("0", |pool| {
        pool.create_snap(id(1), id(0))?;
        pool.discard(id(0), 0, 8 * BLOCK)?;
        verify(pool, 0, 0..8, 0)?;
        verify(pool, 1, 0..8, 1)
    })
}

#[test]
fn a_discard_beyond_the_end_of_a_device_fails() -> Result<()> {
    let place = provisioned("0", 4)?;
    place.with("0", |pool| {
        let thin = pool.open_thin(id(0), 4 * BLOCK, None)?;
        for (offset, length) in [(4 * BLOCK, 1), (0, 4 * BLOCK + 1), (u64::MAX, 2)] {
            let discarded = thin.discard(offset, length);
            ensure!(matches!(discarded, Err(PoolError::OutOfRange { .. })), "{offset}, {length}");
        }
        verify(pool, 0, 0..4, 1)
    })
}

#[test]
fn a_flush_makes_a_discard_durable() -> Result<()> {
    let place = provisioned("0", 4)?;
    let pool = place.open("0")?;
    pool.open_thin(id(0), 4 * BLOCK, None)?.discard(0, BLOCK)?;
    ensure!(place.open("0")?.status().data_used == 4);
    pool.open_thin(id(0), 4 * BLOCK, None)?.flush()?;
    ensure!(place.open("0")?.status().data_used == 3);
    drop(pool);
    place.check()
}

#[test]
fn a_discard_ends_the_want_of_space() -> Result<()> {
    let place = Place::new(8)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        ensure!(refused(stomp(pool, 0, 0..9, 1))? == Errno::NOSPC);
        pool.discard(id(0), 0, 3 * BLOCK)?;
        pool.commit()?;
        ensure!(pool.status().mode == PoolMode::Write && pool.status().data_used == 5);
        stomp(pool, 0, 8..11, 2)?;
        verify(pool, 0, 8..11, 2)
    })
}

#[test]
fn whether_discards_are_ignored_is_not_changed_by_a_reload() -> Result<()> {
    let place = Place::new(8)?;
    place.with("0", |pool| {
        ensure!(refused(pool.reload("0 1 ignore_discard".parse()?))? == Errno::INVAL);
        Ok(())
    })?;
    place.with("0 1 ignore_discard", |pool| {
        ensure!(refused(pool.reload("0".parse()?))? == Errno::INVAL);
        Ok(())
    })
}

#[test]
fn passdown_is_switched_by_a_reload() -> Result<()> {
    let place = provisioned("0 1 no_discard_passdown", 8)?;
    place.with("0 1 no_discard_passdown", |pool| {
        ensure!(pool.status().to_string().contains(" no_discard_passdown "));
        pool.discard(id(0), 0, 2 * BLOCK)?;
        pool.reload("0".parse()?)?;
        ensure!(pool.status().to_string().contains(" discard_passdown "));
        pool.discard(id(0), 2 * BLOCK, 2 * BLOCK)?;
        pool.reload("0 1 no_discard_passdown".parse()?)?;
        Ok(pool.discard(id(0), 4 * BLOCK, 2 * BLOCK)?)
    })?;
    ensure!(
        !is_hole(&place.data(), 0..1)? && is_hole(&place.data(), 2..4)? && !is_hole(&place.data(), 4..5)?
    );
    Ok(())
}

#[test]
fn a_metadata_snapshot_keeps_discarded_blocks_allocated() -> Result<()> {
    let place = provisioned("0", 8)?;
    place.with("0", |pool| {
        message(pool, "reserve_metadata_snap")?;
        pool.discard(id(0), 0, 8 * BLOCK)?;
        pool.commit()?;
        ensure!(pool.status().data_used == 8);
        message(pool, "release_metadata_snap")?;
        ensure!(pool.status().data_used == 0);
        Ok(())
    })
}
