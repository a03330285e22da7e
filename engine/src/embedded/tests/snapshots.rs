//! Snapshots, points, and the bases of backups.

use uuid::Uuid;

use super::{BLOCK, block, first_byte, killed, names, pool, reopened, view};
use crate::embedded::{Base, EmbeddedError, EmbeddedPool, ErrorClass, Kind, NotProven, Volume};

const REPOSITORY: Uuid = Uuid::from_u128(0x0123_abcd_0000_4000_8000_0000_0000_0001);

/// The base that a backup of the candidate would record.
fn base_of(pool: &EmbeddedPool, candidate: &Volume, volume: &Volume, generation: u64) -> Base {
    let point = pool.point(candidate, &view(pool)).unwrap();
    Base { repository: REPOSITORY, volume: volume.uuid, generation, root: [generation as u8; 32], point }
}

/// Backs the volume up, as far as the pool is concerned.
fn back_up(pool: &EmbeddedPool, name: &str, generation: u64) -> Base {
    let volume = pool.volume(name).unwrap();
    let candidate = pool.take_candidates(&[name]).unwrap().remove(0);
    let base = base_of(pool, &candidate, &volume, generation);
    pool.keep_base(&candidate, base.clone()).unwrap();
    base
}

#[test]
fn a_snapshot_keeps_what_the_volume_held() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let taken = pool.take_snapshots(&[("v", "s")]).unwrap();
    pool.write(&volume, 0, &block(2)).unwrap();
    pool.discard(&volume, 0, BLOCK).unwrap();
    let pool = reopened(pool);
    let snapshot = pool.snapshot("v", "s").unwrap();
    assert_eq!(taken.first(), Some(&snapshot));
    assert_eq!((snapshot.name.as_str(), &snapshot.kind), ("v@s", &Kind::Snapshot { of: "v".into() }));
    assert_eq!((first_byte(&pool, &snapshot, 0), first_byte(&pool, &volume, 0)), (1, 0));
    for error in [pool.write(&snapshot, 0, &[1]).unwrap_err(), pool.discard(&snapshot, 0, BLOCK).unwrap_err()]
    {
        assert!(matches!(error, EmbeddedError::ReadOnly { .. }), "{error}");
    }
}

#[test]
fn several_snapshots_are_one_transaction() {
    let (_dir, pool) = pool();
    pool.create_volume("a", BLOCK).unwrap();
    pool.create_volume("b", BLOCK).unwrap();
    let before = pool.pool().transaction_id();
    let taken = pool.take_snapshots(&[("a", "s"), ("b", "s"), ("a", "t")]).unwrap();
    assert_eq!(pool.pool().transaction_id(), before + 1);
    assert!(taken.iter().all(|snapshot| snapshot.created_at_ms == taken[0].created_at_ms));
    assert_eq!(names(&pool), ["a", "a@s", "a@t", "b", "b@s"]);
}

#[test]
fn of_several_snapshots_none_is_taken_when_one_cannot_be() {
    let (_dir, pool) = pool();
    pool.create_volume("a", BLOCK).unwrap();
    pool.take_snapshots(&[("a", "s")]).unwrap();
    let before = pool.pool().transaction_id();
    for snapshots in [
        &[("a", "t"), ("a", "s")][..],
        &[("a", "t"), ("a", "t")],
        &[("a", "t"), ("none", "t")],
        &[("a", "t"), ("a", "thinbak-base-x")],
    ] {
        pool.take_snapshots(snapshots).unwrap_err();
    }
    assert_eq!(names(&pool), ["a", "a@s"]);
    assert_eq!(pool.pool().transaction_id(), before);
    let error = pool.take_snapshots(&[("a", "thinbak-x")]).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Usage);
}

#[test]
fn a_volume_with_snapshots_is_not_removed() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    pool.take_snapshots(&[("v", "s"), ("v", "t")]).unwrap();
    let error = pool.remove_volume("v").unwrap_err();
    assert!(matches!(error, EmbeddedError::HasSnapshots { snapshots: 2, .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
    pool.remove_snapshot("v", "s").unwrap();
    pool.remove_snapshot("v", "t").unwrap();
    pool.remove_volume("v").unwrap();
    let pool = reopened(pool);
    assert!(names(&pool).is_empty() && pool.pool().devices().unwrap().is_empty());
}

#[test]
fn snapshots_end_where_the_clock_gets_short() {
    use crate::embedded::check_clock;
    check_clock(1 << 22, 1).unwrap();
    check_clock((1 << 23) - 2, 2).unwrap();
    let error = check_clock((1 << 23) - 2, 3).unwrap_err();
    assert!(matches!(error, EmbeddedError::ClockExhausted { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Refused);
}

#[test]
fn a_base_is_proven_while_nobody_writes_to_it() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 64 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let base = back_up(&pool, "v", 3);
    pool.write(&volume, 0, &block(2)).unwrap();
    pool.resize_volume("v", 8 * BLOCK).unwrap();
    let pool = reopened(pool);
    assert_eq!(pool.base(REPOSITORY, volume.uuid), Some(base.clone()));
    assert_eq!(pool.bases().first(), Some(&base));
    pool.prove(&base.point, &view(&pool)).unwrap();
    let snapshot = pool.snapshot("v", "thinbak-base-0123abcd-3").unwrap();
    assert_eq!((&snapshot.kind, snapshot.size_bytes), (&Kind::Base { of: "v".into() }, 64 * BLOCK));
    assert_eq!(first_byte(&pool, &snapshot, 0), 1);
}

#[test]
fn a_base_that_was_written_behind_the_registry_is_not_proven() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 64 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let base = back_up(&pool, "v", 3);
    pool.pool().write(base.point.device_id, 0, &block(6)).unwrap();
    pool.flush().unwrap();
    let error = pool.prove(&base.point, &view(&pool)).unwrap_err();
    assert!(matches!(error.reason, NotProven::Root { .. }), "{error}");
    assert_eq!(EmbeddedError::from(error).class(), ErrorClass::Refused);
}

#[test]
fn every_field_of_a_point_must_match() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 64 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    let point = back_up(&pool, "v", 3).point;
    let other_device = volume.device;
    type Spoil = Box<dyn Fn(&mut crate::embedded::Point)>;
    let spoils: Vec<Spoil> = vec![
        Box::new(|point| point.identity = Uuid::nil()),
        Box::new(|point| point.pool_uuid = Uuid::nil()),
        Box::new(move |point| point.device_id = other_device),
        Box::new(|point| point.transaction_id += 1),
        Box::new(|point| point.created_at_ms += 1),
        Box::new(|point| point.size_bytes += BLOCK),
        Box::new(|point| point.block_bytes *= 2),
        Box::new(|point| point.mapped_blocks += 1),
        Box::new(|point| point.root_block.0 += 1),
        Box::new(|point| point.root_checksum ^= 1),
    ];
    let view = view(&pool);
    pool.prove(&point, &view).unwrap();
    for (number, spoil) in spoils.iter().enumerate() {
        let mut spoilt = point.clone();
        spoil(&mut spoilt);
        assert!(pool.prove(&spoilt, &view).is_err(), "field {number}");
    }
    let volume_point = pool.point(&volume, &view).unwrap();
    let error = pool.prove(&volume_point, &view).unwrap_err();
    assert!(matches!(error.reason, NotProven::Writable), "{error}");
}

#[test]
fn a_new_base_takes_the_place_of_the_old_one_of_its_repository_only() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    let first = back_up(&pool, "v", 1);
    let candidate = pool.take_candidates(&["v"]).unwrap().remove(0);
    let elsewhere = Base { repository: Uuid::from_u128(9), ..base_of(&pool, &candidate, &volume, 1) };
    pool.keep_base(&candidate, elsewhere.clone()).unwrap();
    let second = back_up(&pool, "v", 2);
    assert!(pool.prove(&first.point, &view(&pool)).is_err());
    let pool = reopened(pool);
    assert_eq!(pool.base(REPOSITORY, volume.uuid), Some(second.clone()));
    assert_eq!(pool.base(Uuid::from_u128(9), volume.uuid), Some(elsewhere));
    assert_eq!(names(&pool), ["v", "v@thinbak-base-00000000-1", "v@thinbak-base-0123abcd-2"]);
    pool.forget_base(REPOSITORY, volume.uuid).unwrap();
    pool.forget_base(REPOSITORY, volume.uuid).unwrap();
    assert_eq!(pool.base(REPOSITORY, volume.uuid), None);
    assert_eq!(pool.pool().devices().unwrap().len(), 2);
    pool.remove_volume("v").unwrap();
    assert!(pool.bases().is_empty() && pool.pool().devices().unwrap().is_empty());
}

#[test]
fn an_unchanged_volume_gets_a_newer_generation_under_the_same_snapshot() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    let first = back_up(&pool, "v", 1);
    pool.update_base(Base { generation: 2, root: [2; 32], ..first.clone() }).unwrap();
    let pool = reopened(pool);
    let found = pool.base(REPOSITORY, volume.uuid).unwrap();
    assert_eq!((found.generation, found.root, &found.point), (2, [2; 32], &first.point));
    assert_eq!(names(&pool), ["v", "v@thinbak-base-0123abcd-2"]);
    let unknown = Base { volume: Uuid::nil(), ..first.clone() };
    assert!(matches!(pool.update_base(unknown), Err(EmbeddedError::NoSuchBase { .. })));
    let mut other = first;
    other.point.identity = Uuid::nil();
    assert!(matches!(pool.update_base(other), Err(EmbeddedError::OtherBase { .. })));
}

#[test]
fn only_a_candidate_with_its_own_point_becomes_a_base() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    let candidates = pool.take_candidates(&["v", "v"]).unwrap();
    let base = base_of(&pool, &candidates[0], &volume, 1);
    assert!(matches!(pool.keep_base(&candidates[1], base.clone()), Err(EmbeddedError::OtherBase { .. })));
    assert!(matches!(pool.keep_base(&volume, base.clone()), Err(EmbeddedError::WrongKind { .. })));
    pool.drop_transient(&candidates[0]).unwrap();
    assert!(matches!(pool.keep_base(&candidates[0], base), Err(EmbeddedError::Stale { .. })));
    assert!(pool.bases().is_empty());
}

#[test]
fn a_kept_base_survives_the_death_of_the_process_and_other_candidates_do_not() {
    let (dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    let base = back_up(&pool, "v", 1);
    pool.take_candidates(&["v"]).unwrap();
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert_eq!(copy.base(REPOSITORY, volume.uuid), Some(base.clone()));
    copy.prove(&base.point, &view(&copy)).unwrap();
    assert_eq!(copy.pool().devices().unwrap().len(), 2);
}

#[test]
fn a_base_that_a_user_removes_is_forgotten() {
    let (_dir, pool) = pool();
    pool.create_volume("v", 4 * BLOCK).unwrap();
    back_up(&pool, "v", 1);
    pool.remove_snapshot("v", "thinbak-base-0123abcd-1").unwrap();
    assert!(pool.bases().is_empty());
    assert_eq!(names(&reopened(pool)), ["v"]);
}
