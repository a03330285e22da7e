//! Metadata snapshots: one at a time, as they were, for other processes to read.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use rustix::io::Errno;
use thinbak_engine::{Pool, metadata_view::Roots};

use crate::{
    place::{BLOCK, Place, id, message, refused, stomp},
    tools::{delta, dump, tool},
};

const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

/// A thin and a snapshot of it that differ in 30 of 300 blocks: a tree of several nodes.
fn family(pool: &Pool) -> Result<()> {
    pool.create_thin(id(0))?;
    stomp(pool, 0, 0..300, 1)?;
    pool.create_snap(id(1), id(0))?;
    Ok(stomp(pool, 0, 100..130, 2)?)
}

/// Every metadata block that a metadata snapshot is made of, and what is in it.
fn held_blocks(metadata: &Path) -> Result<BTreeMap<u64, Vec<u8>>> {
    let file = File::open(metadata)?;
    let read = |number: u64| -> Result<Vec<u8>> {
        let mut block = vec![0; 4096];
        file.read_exact_at(&mut block, number * 4096)?;
        Ok(block)
    };
    let held = word(&read(0)?, 56)?;
    let copy = read(held)?;
    let mut found = BTreeMap::new();
    // The block, and how many trees are one in the other below it: devices, mappings.
    let mut open = vec![(word(&copy, 320)?, 1), (word(&copy, 328)?, 0)];
    found.insert(held, copy);
    while let Some((number, below)) = open.pop() {
        let block = read(number)?;
        let entries = word(&block, 16)? & 0xFFFF_FFFF;
        let capacity = word(&block, 16)? >> 32;
        let internal = word(&block, 0)? >> 32 == 1;
        if internal || below > 0 {
            for entry in 0..entries {
                let child = word(&block, usize::try_from(32 + 8 * capacity + 8 * entry)?)?;
                open.push((child, if internal { below } else { below - 1 }));
            }
        }
        found.insert(number, block);
    }
    Ok(found)
}

fn word(block: &[u8], at: usize) -> Result<u64> {
    let bytes = block.get(at..at + 8).context("beyond the block")?;
    Ok(u64::from_le_bytes(bytes.try_into()?))
}

#[test]
fn an_empty_pool_is_held_and_released_again_and_again() -> Result<()> {
    let place = Place::new(16)?;
    let empty = place.on(|pool| Ok(pool.status().metadata_used))?;
    for _ in 0..20 {
        place.on(|pool| Ok(message(pool, RESERVE)?))?;
        place.on(|pool| {
            ensure!(pool.status().held_root.is_some());
            Ok(message(pool, RELEASE)?)
        })?;
    }
    place.on(|pool| Ok(ensure!(pool.status().metadata_used == empty, "{}", pool.status())))
}

#[test]
fn nothing_is_held_twice() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        message(pool, RESERVE)?;
        let held = pool.status().held_root;
        ensure!(refused(message(pool, RESERVE))? == Errno::BUSY);
        ensure!(pool.status().held_root == held);
        Ok(())
    })
}

#[test]
fn nothing_is_released_twice() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        message(pool, RESERVE)?;
        message(pool, RELEASE)?;
        ensure!(refused(message(pool, RELEASE))? == Errno::INVAL);
        Ok(())
    })
}

#[test]
fn nothing_is_held_at_first() -> Result<()> {
    let place = Place::new(16)?;
    place.on(|pool| {
        ensure!(pool.status().held_root.is_none());
        ensure!(refused(message(pool, RELEASE))? == Errno::INVAL);
        Ok(())
    })
}

#[test]
fn what_is_held_differs_from_what_was_written_since() -> Result<()> {
    let place = Place::new(1000)?;
    place.on(|pool| {
        family(pool)?;
        message(pool, RESERVE)?;
        stomp(pool, 1, 0..300, 3)?;
        pool.discard(id(0), 0, 300 * BLOCK)?;
        Ok(message(pool, "delete 0")?)
    })?;
    let held = dump(&place.metadata(), Roots::MetadataSnap)?;
    let live = dump(&place.metadata(), Roots::Live)?;
    ensure!(held.contains("<device dev_id=\"0\" mapped_blocks=\"300\"") && !live.contains("dev_id=\"0\""));
    ensure!(held.contains("origin_begin=\"130\" data_begin=\"130\" length=\"170\" time=\"0\""), "{held}");
    Ok(())
}

#[test]
fn every_checker_is_content_with_a_held_metadata_snapshot() -> Result<()> {
    let place = Place::new(1000)?;
    place.on(|pool| {
        family(pool)?;
        Ok(message(pool, RESERVE)?)
    })?;
    tool(&["thin_check", "-m"], &place.metadata())?;
    place.on(|pool| Ok(stomp(pool, 0, 200..400, 4)?))?;
    tool(&["thin_check", "-m"], &place.metadata())?;
    Ok(())
}

#[test]
fn metadata_snapshots_come_and_go_with_the_pool_in_use() -> Result<()> {
    let place = Place::new(2000)?;
    place.on(family)?;
    for round in 3..13 {
        place.on(|pool| {
            message(pool, RESERVE)?;
            message(pool, &format!("create_snap {round} 0"))?;
            stomp(pool, 0, round * 7..round * 7 + 40, round)?;
            pool.discard(id(round), round * 20 * BLOCK, 10 * BLOCK)?;
            Ok(())
        })?;
        place.on(|pool| {
            message(pool, RELEASE)?;
            Ok(message(pool, &format!("delete {round}"))?)
        })?;
    }
    Ok(())
}

#[test]
fn its_blocks_stay_as_they_are_whatever_the_pool_does() -> Result<()> {
    let place = Place::new(2000)?;
    let pool = place.open("0 1 error_if_no_space")?;
    family(&pool)?;
    message(&pool, RESERVE)?;
    let before = held_blocks(&place.metadata())?;
    ensure!(before.len() >= 7, "a small tree: {} blocks", before.len());
    for round in 3..13 {
        stomp(&pool, 0, round * 20..round * 20 + 30, round)?;
        message(&pool, &format!("create_snap {round} 1"))?;
        pool.discard(id(1), round * 10 * BLOCK, 40 * BLOCK)?;
        message(&pool, &format!("set_transaction_id {} {round}", if round == 3 { 0 } else { round - 1 }))?;
        ensure!(held_blocks(&place.metadata())? == before, "round {round}: changed");
    }
    message(&pool, "delete 0")?;
    message(&pool, "delete 1")?;
    ensure!(held_blocks(&place.metadata())? == before, "changed by a deletion");
    message(&pool, RELEASE)?;
    drop(pool);
    place.check()
}

/// The tools are other processes, and this one writes meanwhile.
#[test]
fn tools_read_the_metadata_snapshot_of_a_pool_that_is_written() -> Result<()> {
    let place = Place::new(2000)?;
    let pool = place.open("0 1 error_if_no_space")?;
    family(&pool)?;
    message(&pool, RESERVE)?;
    let metadata = place.metadata();
    let listed = tool(&["thin_ls", "-m"], &metadata)?;
    let (dumped, differ) =
        (dump(&metadata, Roots::MetadataSnap)?, delta(&metadata, Roots::MetadataSnap, 0, 1)?);
    ensure!(differ.contains("<different begin=\"100\" length=\"30\"/>"), "{differ}");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> Result<u64> {
            let mut round = 3;
            while !stop.load(Ordering::Acquire) {
                stomp(&pool, round % 2, round % 50 * 5..round % 50 * 5 + 10, round)?;
                pool.discard(id(1 - round % 2), round % 30 * 9 * BLOCK, 5 * BLOCK)?;
                pool.commit()?;
                round += 1;
            }
            Ok(round)
        });
        let read = (0..8).try_for_each(|_| -> Result<()> {
            ensure!(tool(&["thin_ls", "-m"], &metadata)? == listed);
            ensure!(dump(&metadata, Roots::MetadataSnap)? == dumped);
            ensure!(delta(&metadata, Roots::MetadataSnap, 0, 1)? == differ);
            Ok(())
        });
        stop.store(true, Ordering::Release);
        let rounds = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        read?;
        ensure!(rounds > 5, "the pool was not written meanwhile");
        Ok(())
    })?;
    message(&pool, RELEASE)?;
    ensure!(tool(&["thin_dump", "-m"], &metadata).is_err());
    drop(pool);
    place.check()
}

#[test]
fn a_held_metadata_snapshot_outlives_the_pool_that_took_it() -> Result<()> {
    let place = Place::new(1000)?;
    place.on(|pool| {
        family(pool)?;
        Ok(message(pool, RESERVE)?)
    })?;
    let held = dump(&place.metadata(), Roots::MetadataSnap)?;
    place.on(|pool| {
        ensure!(pool.status().held_root.is_some());
        stomp(pool, 0, 0..100, 5)?;
        pool.data_device().resize(1100 * BLOCK)?;
        Ok(pool.grow_data(1100 * BLOCK)?)
    })?;
    ensure!(dump(&place.metadata(), Roots::MetadataSnap)? == held);
    // A dump does not have it, and neither has what is restored from one.
    ensure!(!held.contains("metadata_snap="));
    Ok(())
}
