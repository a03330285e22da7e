//! Whose the metadata snapshot is.

use super::{BLOCK, killed, pool, reopened};
use crate::embedded::{EmbeddedError, EmbeddedPool, ErrorClass};
use crate::registry::{Change, HeldSnapshot};

fn is_held(pool: &EmbeddedPool) -> bool {
    pool.pool().status().held_root.is_some()
}

#[test]
fn a_guard_holds_it_until_it_is_released_or_dropped() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let guard = pool.reserve_msnap().unwrap();
    assert_eq!(Some(guard.root()), pool.pool().status().held_root);
    assert!(pool.msnap_is_ours().unwrap());
    let error = pool.reserve_msnap().err().unwrap();
    assert!(matches!(error, EmbeddedError::MsnapHeld { ours: true, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Busy);
    assert!(matches!(pool.release_msnap(false), Err(EmbeddedError::MsnapInUse { .. })));
    assert!(matches!(pool.message(&["release_metadata_snap"]), Err(EmbeddedError::MsnapInUse { .. })));
    guard.release().unwrap();
    assert!(!is_held(&pool));
    drop(pool.reserve_msnap().unwrap());
    assert!(!is_held(&pool));
    assert!(matches!(pool.release_msnap(true), Err(EmbeddedError::NoMsnap)));
    reopened(pool);
}

#[test]
fn that_of_a_dead_process_is_released_at_the_next_open() {
    let (dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let _guard = pool.reserve_msnap().unwrap();
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert!(!is_held(&copy));
    copy.reserve_msnap().unwrap();
}

#[test]
fn that_of_a_process_that_died_right_after_reserving_is_released_too() {
    let (dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    record_intent(&pool);
    pool.pool().reserve_metadata_snap().unwrap();
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert!(!is_held(&copy));
    assert_eq!(copy.inner.books.lock().registry.state().msnap, None);
}

/// As the first step of a reservation does.
fn record_intent(pool: &EmbeddedPool) {
    let superblock = pool.pool().superblock();
    let (transaction_id, time) = (superblock.transaction_id, superblock.time);
    let intent = HeldSnapshot::Intended { keep: false, transaction_id, time };
    pool.inner.books.lock().registry.record(vec![Change::Msnap(Some(intent))]).unwrap();
}

#[test]
fn an_intent_of_another_moment_claims_nothing() {
    let (dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    record_intent(&pool);
    pool.take_snapshots(&[("v", "s")]).unwrap();
    pool.pool().reserve_metadata_snap().unwrap();
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert!(is_held(&copy));
    assert!(!copy.msnap_is_ours().unwrap());
}

#[test]
fn a_strangers_is_only_released_by_force() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    pool.message(&["reserve_metadata_snap"]).unwrap();
    let pool = reopened(pool);
    assert!(is_held(&pool) && !pool.msnap_is_ours().unwrap());
    let errors = [pool.reserve_msnap().err().unwrap(), pool.release_msnap(false).unwrap_err()];
    for error in errors {
        assert!(matches!(error, EmbeddedError::MsnapHeld { ours: false, .. }), "{error}");
        assert!(error.hint().unwrap().contains("--force"));
    }
    pool.release_msnap(true).unwrap();
    assert!(!is_held(&pool));
}

#[test]
fn one_that_took_the_place_of_ours_is_a_strangers() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    pool.hold_msnap().unwrap();
    pool.pool().release_metadata_snap().unwrap();
    pool.create_volume("w", BLOCK).unwrap();
    pool.pool().reserve_metadata_snap().unwrap();
    assert!(!pool.msnap_is_ours().unwrap());
    let pool = reopened(pool);
    assert!(is_held(&pool));
    assert!(matches!(pool.release_msnap(false), Err(EmbeddedError::MsnapHeld { ours: false, .. })));
}

#[test]
fn one_that_a_user_holds_stays_until_it_is_released() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    pool.hold_msnap().unwrap();
    let pool = reopened(pool);
    assert!(is_held(&pool) && pool.msnap_is_ours().unwrap());
    pool.release_msnap(false).unwrap();
    assert!(!is_held(&pool));
    assert!(!pool.msnap_is_ours().unwrap());
}

#[test]
fn a_guard_whose_hold_was_taken_by_force_releases_nothing_else() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let first = pool.reserve_msnap().unwrap();
    pool.release_msnap(true).unwrap();
    let second = pool.reserve_msnap().unwrap();
    drop(first);
    assert!(is_held(&pool));
    drop(second);
    assert!(!is_held(&pool));
}
