//! Dumps, and pools that `thin_restore` and `thin_repair` make of them.

use anyhow::{Result, ensure};
use thinbak_engine::metadata_view::Roots;

use crate::{
    place::{BLOCK, METADATA, Place, id, message, stomp, verify},
    tools::{dump, tool},
};

/// A pool with a thin, a snapshot, single blocks and runs, and a hole.
fn linear() -> Result<Place> {
    let place = Place::new(1000)?;
    place.on(|pool| {
        pool.create_thin(id(0))?;
        stomp(pool, 0, 0..300, 1)?;
        message(pool, "create_snap 7 0")?;
        pool.discard(id(0), 50 * BLOCK, 20 * BLOCK)?;
        message(pool, "set_transaction_id 0 99")?;
        Ok(())
    })?;
    Ok(place)
}

/// A pool whose blocks lie in no order.
fn random() -> Result<Place> {
    let place = Place::new(1000)?;
    place.on(|pool| {
        (0..3).try_for_each(|number| pool.create_thin(id(number)))?;
        for step in 0..300 {
            let block = step * 389 % 601;
            stomp(pool, step % 3, block..block + 1, 1)?;
        }
        Ok(())
    })?;
    Ok(place)
}

/// Writes the pool's dump, made by the engine, back with a tool.
fn restored(place: &Place) -> Result<String> {
    let text = dump(&place.metadata(), Roots::Live)?;
    let xml = place.scratch.join("dump.xml");
    std::fs::write(&xml, &text)?;
    let target = place.scratch.join("restored");
    std::fs::File::create(&target)?.set_len(METADATA)?;
    let xml = xml.to_string_lossy().into_owned();
    tool(&["thin_restore", "-i", &xml, "-o"], &target)?;
    Ok(text)
}

/// Puts the restored metadata in the place of the pool's.
fn replace(place: &Place) -> Result<()> {
    Ok(std::fs::rename(place.scratch.join("restored"), place.metadata())?)
}

#[test]
fn a_dump_is_the_same_every_time() -> Result<()> {
    let place = linear()?;
    let first = dump(&place.metadata(), Roots::Live)?;
    place.with("0 1 read_only", |_| Ok(()))?;
    ensure!(first == dump(&place.metadata(), Roots::Live)? && first.contains("transaction=\"99\""));
    Ok(())
}

#[test]
fn dump_and_restore_and_dump_give_the_same() -> Result<()> {
    for place in [linear()?, random()?] {
        let before = restored(&place)?;
        ensure!(dump(&place.scratch.join("restored"), Roots::Live)? == before);
        replace(&place)?;
        place.restored("0 1 read_only", |_| Ok(()))?;
    }
    Ok(())
}

#[test]
fn the_engine_is_happy_with_a_restored_linear_pool() -> Result<()> {
    let place = linear()?;
    let before = restored(&place)?;
    replace(&place)?;
    place.restored("0 1 read_only", |pool| {
        ensure!(pool.transaction_id() == 99);
        verify(pool, 0, 0..50, 1)?;
        verify(pool, 0, 50..70, 0)?;
        verify(pool, 7, 0..300, 1)
    })?;
    ensure!(dump(&place.metadata(), Roots::Live)? == before);
    Ok(())
}

#[test]
fn the_engine_is_happy_with_a_restored_random_pool() -> Result<()> {
    let place = random()?;
    restored(&place)?;
    replace(&place)?;
    place.restored("0 1 error_if_no_space", |pool| {
        (0..300).try_for_each(|step| {
            let block = step * 389 % 601;
            verify(pool, step % 3, block..block + 1, 1)
        })
    })
}

#[test]
fn a_restored_pool_is_used_on() -> Result<()> {
    let place = linear()?;
    restored(&place)?;
    replace(&place)?;
    place.restored("0 1 error_if_no_space", |pool| {
        message(pool, "create_snap 8 0")?;
        stomp(pool, 0, 0..100, 2)?;
        pool.delete(id(7))?;
        message(pool, "reserve_metadata_snap")?;
        stomp(pool, 8, 290..400, 3)?;
        Ok(message(pool, "release_metadata_snap")?)
    })?;
    place.restored("0 1 error_if_no_space", |pool| {
        verify(pool, 0, 0..100, 2)?;
        verify(pool, 8, 0..50, 1)?;
        verify(pool, 8, 290..400, 3)
    })
}

#[test]
fn a_repaired_pool_is_the_same_every_time() -> Result<()> {
    let place = random()?;
    let before = dump(&place.metadata(), Roots::Live)?;
    for _ in 0..2 {
        let input = place.metadata().to_string_lossy().into_owned();
        let target = place.scratch.join("restored");
        std::fs::File::create(&target)?.set_len(METADATA)?;
        tool(&["thin_repair", "-i", &input, "-o"], &target)?;
        ensure!(dump(&target, Roots::Live)? == before);
        replace(&place)?;
        place.restored("0 1 read_only", |_| Ok(()))?;
    }
    Ok(())
}

#[test]
fn devices_are_listed_as_thin_ls_does() -> Result<()> {
    let place = linear()?;
    let fields = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,TRANSACTION,CREATE_TIME,SNAP_TIME";
    let listed = tool(&["thin_ls", "--no-headers", "-o", fields], &place.metadata())?;
    let rows: Vec<Vec<u64>> = listed
        .lines()
        .map(|line| line.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>())
        .collect::<std::result::Result<_, _>>()?;
    ensure!(rows == [vec![0, 280, 0, 280, 0, 0, 1], vec![7, 300, 20, 280, 0, 1, 1]], "{listed}");
    place.on(|pool| {
        for (row, device) in rows.iter().zip(pool.devices()?) {
            let details = device.details;
            ensure!(row.first() == Some(&device.id.key()) && row.get(1) == Some(&details.mapped_blocks));
            ensure!(row.get(5) == Some(&details.creation_time.into()));
            ensure!(row.get(6) == Some(&details.snapshotted_time.into()));
        }
        Ok(())
    })
}
