//! Errors that are not the end of the process.

use super::doubles::Fuse;
use super::{Change, Plan, RegistryError, TransactError, create, fresh, id, names, reopen, volume};

#[test]
fn a_full_disk_changes_nothing_and_is_no_obstacle_later() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    for room in [0, 1, 30, 200] {
        log.fill(Some(room));
        let error = registry.transact(&pool, create(volume(1, "b"))).unwrap_err();
        assert!(matches!(error, TransactError::Registry(RegistryError::Io { attempt: "written", .. })));
        assert!(matches!(registry.record(vec![Change::Msnap(None)]), Err(RegistryError::Io { .. })));
        assert_eq!((names(&registry).len(), pool.devices()), (1, vec![0]));
        log.fill(None);
        assert_eq!(names(&reopen(&log, &pool).unwrap()), names(&registry));
    }
    registry.transact(&pool, create(volume(1, "b"))).unwrap();
    assert_eq!(names(&reopen(&log, &pool).unwrap()).len(), 2);
}

#[test]
fn a_refusal_of_the_pool_changes_nothing() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    pool.refuse(2);
    let both = Plan {
        create: vec![(id(1), Some(id(0))), (id(2), Some(id(0)))],
        changes: vec![Change::Put(volume(1, "b")), Change::Put(volume(2, "c"))],
    };
    assert!(matches!(registry.transact(&pool, both).unwrap_err(), TransactError::Pool { .. }));
    assert_eq!((names(&registry).len(), pool.devices()), (1, vec![0]));
    assert_eq!(registry.state().next_device, 3, "ids that were tried are not given again");
    registry.transact(&pool, create(volume(3, "d"))).unwrap();
    let reopened = reopen(&log, &pool).unwrap();
    assert_eq!(reopened.state(), registry.state());
    assert_eq!(pool.devices(), [0, 3]);
}

#[test]
fn after_a_failed_commit_nothing_more_is_changed_until_the_pool_is_opened_again() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    // Log, sync; dead at the commit.
    fuse.set(Some(3));
    assert!(registry.transact(&pool, create(volume(1, "b"))).is_err());
    fuse.set(None);
    assert!(registry.is_undecided());
    assert!(matches!(registry.record(vec![Change::Msnap(None)]), Err(RegistryError::Undecided)));
    let pool = pool.after_crash(&fuse);
    assert_eq!(names(&reopen(&log, &pool).unwrap()), [(0, "a".to_owned())]);
}

#[test]
fn a_pool_changed_behind_the_registry_is_refused() {
    let fuse = Fuse::whole();
    let (mut registry, pool, _) = fresh(&fuse);
    pool.move_transaction_id(9);
    assert!(matches!(
        registry.transact(&pool, create(volume(0, "a"))).unwrap_err(),
        TransactError::Registry(RegistryError::Transaction { expected: 0, found: 9, .. })
    ));
    assert!(pool.devices().is_empty());
}

#[test]
fn a_pool_that_does_not_write_is_not_asked_to() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    pool.make_read_only();
    let before = log.content();
    assert!(registry.transact(&pool, create(volume(0, "a"))).is_err());
    assert!(!registry.is_undecided());
    assert_eq!(log.content(), before);
}
