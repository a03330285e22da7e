//! How the pool behaves: recorded, loaded live, and obeyed.

use std::sync::Arc;
use std::time::Duration;

use super::{BLOCK, block, first_byte, options, pool, reopened};
use crate::embedded::{CreateOptions, EmbeddedError, EmbeddedPool, ErrorClass};
use crate::pool::{PoolError, PoolMode, PoolTable};

fn table(text: &str) -> PoolTable {
    text.parse().unwrap()
}

#[test]
fn a_table_is_loaded_at_once_and_is_there_after_a_reopen() {
    let (_dir, pool) = pool();
    assert_eq!(pool.table(), PoolTable::without_waiting());
    let wanted = PoolTable {
        no_space_timeout: Duration::from_secs(7),
        ..table("12 2 skip_block_zeroing no_discard_passdown")
    };
    pool.set_table(wanted).unwrap();
    assert_eq!(pool.pool().table(), wanted);
    let pool = reopened(pool);
    assert_eq!(pool.table(), wanted);
    assert_eq!(std::fs::read_dir(pool.dir()).unwrap().count(), 5, "something is left over");
}

#[test]
fn a_pool_is_made_with_its_table() {
    let dir = tempfile::tempdir().unwrap();
    let wanted = table("3 1 ignore_discard");
    let pool =
        EmbeddedPool::create(&dir.path().join("p"), CreateOptions { table: wanted, ..options() }).unwrap();
    assert_eq!(pool.table(), wanted);
    assert_eq!(reopened(pool).table(), wanted);
}

#[test]
fn ignoring_discards_is_changed_by_reopening_and_refused_while_the_pool_is_used() {
    let (_dir, pool) = pool();
    let wanted = table("0 2 ignore_discard error_if_no_space");
    let error = pool.set_table(wanted).unwrap_err();
    assert!(matches!(error, EmbeddedError::Pool { source: PoolError::DiscardsFixed, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let guard = pool.reserve_msnap().unwrap();
    let Err(pool) = pool.reopen_with(wanted) else { panic!("reopened under a guard") };
    drop(guard);
    assert_eq!(reopened_table(&pool), PoolTable::without_waiting());
    let pool = pool.reopen_with(wanted).unwrap().unwrap();
    assert_eq!(pool.table(), wanted);
    let error = pool.discard(&volume, 0, BLOCK).unwrap_err();
    assert!(matches!(error, EmbeddedError::Pool { source: PoolError::DiscardsIgnored, .. }), "{error}");
    assert_eq!(first_byte(&pool, &volume, 0), 1);
}

/// What the description says.
fn reopened_table(pool: &EmbeddedPool) -> PoolTable {
    crate::embedded::description::Description::read(pool.dir()).unwrap().table.0
}

#[test]
fn a_pool_that_is_made_read_only_refuses_changes_until_it_is_made_writable_again() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    pool.set_table(table("0 1 read_only")).unwrap();
    let pool = reopened(pool);
    assert_eq!(pool.pool().status().mode, PoolMode::ReadOnly);
    let error = pool.create_volume("w", BLOCK).unwrap_err();
    assert!(
        matches!(error, EmbeddedError::Pool { source: PoolError::ReadOnlyMode { needs_check: false }, .. }),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--permission rw"));
    assert_eq!(first_byte(&pool, &volume, 0), 1);
    pool.set_table(PoolTable::without_waiting()).unwrap();
    pool.create_volume("w", BLOCK).unwrap();
}

#[test]
fn a_full_pool_fails_a_write_at_once_or_queues_it_until_there_is_room() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 512 * BLOCK).unwrap();
    for number in 0..256 {
        pool.write(&volume, number * BLOCK, &[1; 512]).unwrap();
    }
    let error = pool.write(&volume, 300 * BLOCK, &[1; 512]).unwrap_err();
    assert!(matches!(error, EmbeddedError::Pool { source: PoolError::NoSpaceData { .. }, .. }), "{error}");
    assert!(error.hint().unwrap().contains("pool resize"));
    pool.set_table(PoolTable { no_space_timeout: Duration::ZERO, ..table("0 0") }).unwrap();
    let pool = Arc::new(pool);
    let events = pool.pool().events();
    let writer = {
        let (pool, volume) = (pool.clone(), volume.clone());
        std::thread::spawn(move || pool.write(&volume, 300 * BLOCK, &[2; 512]))
    };
    // It waits without a limit: the mode says that it has come so far.
    while pool.pool().status().mode != PoolMode::OutOfDataSpace {
        pool.pool().wait_event(events, None);
    }
    pool.grow(512 * BLOCK).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(first_byte(&pool, &volume, 300), 2);
}

#[test]
fn the_low_water_mark_raises_an_event_once() {
    let (_dir, pool) = pool();
    pool.set_table(table("250 0")).unwrap();
    let volume = pool.create_volume("v", 256 * BLOCK).unwrap();
    let before = pool.pool().events();
    for number in 0..5 {
        pool.write(&volume, number * BLOCK, &[1; 512]).unwrap();
    }
    assert_eq!(pool.pool().events(), before, "251 blocks are free");
    for number in 5..20 {
        pool.write(&volume, number * BLOCK, &[1; 512]).unwrap();
    }
    assert_eq!(pool.pool().events(), before + 1);
}
