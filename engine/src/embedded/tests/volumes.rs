//! Volumes, heads, and devices that the registry does not know.

use super::{BLOCK, block, first_byte, killed, names, pool, reopened};
use crate::embedded::{EmbeddedError, EmbeddedPool, ErrorClass, Kind};

#[test]
fn a_volume_keeps_name_size_identity_and_content() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 8 * BLOCK).unwrap();
    pool.write(&volume, BLOCK - 1, &[7, 8]).unwrap();
    let pool = reopened(pool);
    assert_eq!(pool.volume("v").unwrap(), volume);
    let mut bytes = [0; 4];
    pool.read(&volume, BLOCK - 2, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 7, 8, 0]);
}

#[test]
fn what_cannot_be_a_volume_is_refused() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    for name in ["", "a/b", "a:b", "a@b", "-a", ".a", "a\n"] {
        let error = pool.create_volume(name, BLOCK).unwrap_err();
        assert!(matches!(error, EmbeddedError::Name { .. }), "{name:?}: {error}");
        assert_eq!(error.class(), ErrorClass::Usage);
    }
    assert!(matches!(pool.create_volume("v", BLOCK), Err(EmbeddedError::Exists { .. })));
    for (size, next) in [(0, Some(BLOCK)), (BLOCK + 512, Some(2 * BLOCK)), (u64::MAX, None)] {
        let error = pool.create_volume("w", size).unwrap_err();
        assert!(matches!(error, EmbeddedError::Size { next: n, .. } if n == next), "{size}: {error}");
    }
    assert_eq!(names(&pool), ["v"]);
    assert_eq!(pool.pool().devices().unwrap().len(), 1);
}

#[test]
fn unknown_names_are_not_found() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let errors = [
        pool.volume("w").unwrap_err(),
        pool.snapshot("v", "s").unwrap_err(),
        pool.snapshot("w", "s").unwrap_err(),
        pool.remove_volume("w").unwrap_err(),
        pool.remove_snapshot("v", "s").unwrap_err(),
        pool.resize_volume("w", BLOCK).unwrap_err(),
        pool.take_snapshots(&[("v", "s"), ("w", "s")]).unwrap_err(),
        pool.take_candidates(&["w"]).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.class(), ErrorClass::NotFound, "{error}");
    }
    assert_eq!(names(&pool), ["v"]);
}

#[test]
fn accesses_end_with_the_volume() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 2 * BLOCK).unwrap();
    pool.write(&volume, 2 * BLOCK - 1, &[1]).unwrap();
    for (offset, length) in [(2 * BLOCK, 1), (2 * BLOCK - 1, 2), (u64::MAX, 1), (u64::MAX, 2)] {
        let mut buf = vec![0; length];
        assert!(matches!(pool.read(&volume, offset, &mut buf), Err(EmbeddedError::OutOfBounds { .. })));
        assert!(matches!(pool.write(&volume, offset, &buf), Err(EmbeddedError::OutOfBounds { .. })));
        let length = length as u64;
        assert!(matches!(pool.discard(&volume, offset, length), Err(EmbeddedError::OutOfBounds { .. })));
    }
}

#[test]
fn what_lies_past_a_smaller_end_comes_back_when_the_volume_grows() {
    let (_dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 3 * BLOCK, &block(9)).unwrap();
    pool.resize_volume("v", BLOCK).unwrap();
    let mut byte = [0];
    assert!(matches!(pool.read(&volume, 3 * BLOCK, &mut byte), Err(EmbeddedError::OutOfBounds { .. })));
    let pool = reopened(pool);
    assert_eq!(pool.volume("v").unwrap().size_bytes, BLOCK);
    pool.resize_volume("v", 8 * BLOCK).unwrap();
    assert_eq!(first_byte(&pool, &volume, 3), 9);
    assert!(matches!(pool.resize_volume("v", BLOCK + 1), Err(EmbeddedError::Size { .. })));
}

#[test]
fn a_removed_volume_is_gone_and_its_id_is_not_given_again() {
    let (_dir, pool) = pool();
    let first = pool.create_volume("v", BLOCK).unwrap();
    pool.remove_volume("v").unwrap();
    assert!(matches!(pool.read(&first, 0, &mut [0]), Err(EmbeddedError::Stale { .. })));
    let pool = reopened(pool);
    let second = pool.create_volume("v", BLOCK).unwrap();
    assert!(second.device > first.device);
    assert_ne!(second.uuid, first.uuid);
}

#[test]
fn a_head_becomes_a_volume_when_it_is_published() {
    let (_dir, pool) = pool();
    let head = pool.create_head(3 * BLOCK + 512, None).unwrap();
    assert_eq!((&head.kind, head.read_only), (&Kind::Head, false));
    assert!(pool.volume(&head.name).is_err());
    pool.write(&head, 3 * BLOCK, &[4; 512]).unwrap();
    let volume = pool.publish_head(&head, "v", &[]).unwrap();
    assert_eq!((volume.device, volume.size_bytes), (head.device, 3 * BLOCK + 512));
    assert!(matches!(pool.publish_head(&head, "w", &[]), Err(EmbeddedError::WrongKind { .. })));
    assert!(matches!(pool.drop_transient(&head), Err(EmbeddedError::WrongKind { .. })));
    let other = pool.create_head(BLOCK, None).unwrap();
    assert!(matches!(pool.publish_head(&other, "v", &[]), Err(EmbeddedError::Exists { .. })));
    let pool = reopened(pool);
    assert_eq!(first_byte(&pool, &volume, 3), 4);
    assert_eq!(names(&pool), ["v"]);
}

#[test]
fn moments_of_a_head_become_snapshots_of_the_volume_with_it() {
    let (dir, pool) = pool();
    let head = pool.create_head(2 * BLOCK, None).unwrap();
    pool.write(&head, 0, &block(1)).unwrap();
    let first = pool.snapshot_head(&head).unwrap();
    assert_eq!((&first.kind, first.read_only, first.size_bytes), (&Kind::Candidate, true, 2 * BLOCK));
    let head = pool.resize_head(&head, 3 * BLOCK).unwrap();
    pool.write(&head, 2 * BLOCK, &block(2)).unwrap();
    let second = pool.snapshot_head(&head).unwrap();
    let head = pool.resize_head(&head, BLOCK + 512).unwrap();
    assert!(matches!(pool.write(&head, 2 * BLOCK, &[3]), Err(EmbeddedError::OutOfBounds { .. })));
    pool.write(&head, 0, &block(3)).unwrap();
    let left = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert_eq!((names(&left).len(), left.pool().devices().unwrap().len()), (0, 0));
    let moments = [(first.clone(), "gen-1".to_owned()), (second, "gen-2".to_owned())];
    let volume = pool.publish_head(&head, "v", &moments).unwrap();
    assert!(matches!(pool.drop_transient(&first), Err(EmbeddedError::WrongKind { .. })));
    let pool = reopened(pool);
    assert_eq!(names(&pool), ["v", "v@gen-1", "v@gen-2"]);
    let sizes = ["gen-1", "gen-2"].map(|name| pool.snapshot("v", name).unwrap().size_bytes);
    assert_eq!((volume.size_bytes, sizes), (BLOCK + 512, [2 * BLOCK, 3 * BLOCK]));
    let read = |name: &str, number| first_byte(&pool, &pool.snapshot("v", name).unwrap(), number);
    assert_eq!((read("gen-1", 0), read("gen-2", 0), read("gen-2", 2)), (1, 1, 2));
    assert_eq!(first_byte(&pool, &pool.volume("v").unwrap(), 0), 3);
}

#[test]
fn moments_that_cannot_become_snapshots_leave_all_as_it_was() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let (head, other) = (pool.create_head(BLOCK, None).unwrap(), pool.create_head(BLOCK, None).unwrap());
    let (mine, others) = (pool.snapshot_head(&head).unwrap(), pool.snapshot_head(&other).unwrap());
    let of_a_volume = pool.take_candidates(&["v"]).unwrap().remove(0);
    let before = pool.volumes();
    let named = |volume: &crate::embedded::Volume, name: &str| (volume.clone(), name.to_owned());
    let publish = |snapshots: &[_]| pool.publish_head(&head, "w", snapshots).unwrap_err();
    for stranger in [&others, &of_a_volume, &head, &other] {
        let error = publish(&[named(&mine, "a"), named(stranger, "b")]);
        assert!(matches!(error, EmbeddedError::WrongKind { .. }), "{error}");
    }
    assert!(matches!(publish(&[named(&mine, "thinbak-a")]), EmbeddedError::Name { .. }));
    let again = pool.snapshot_head(&head).unwrap();
    assert!(matches!(publish(&[named(&mine, "a"), named(&again, "a")]), EmbeddedError::Exists { .. }));
    pool.drop_transient(&again).unwrap();
    assert!(matches!(publish(&[named(&again, "a")]), EmbeddedError::Stale { .. }));
    assert_eq!(pool.volumes(), before);
    let volume = pool.volume("v").unwrap();
    assert!(matches!(pool.snapshot_head(&volume), Err(EmbeddedError::WrongKind { .. })));
    assert!(matches!(pool.resize_head(&volume, BLOCK), Err(EmbeddedError::WrongKind { .. })));
    assert!(matches!(pool.resize_head(&head, 0), Err(EmbeddedError::Size { .. })));
}

#[test]
fn a_replaced_volume_keeps_name_identity_and_snapshots() {
    let (_dir, pool) = pool();
    let old = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&old, 0, &block(1)).unwrap();
    pool.write(&old, BLOCK, &block(2)).unwrap();
    pool.take_snapshots(&[("v", "s")]).unwrap();
    let head = pool.create_head(8 * BLOCK, Some(old.device)).unwrap();
    pool.write(&head, 0, &block(3)).unwrap();
    let new = pool.replace_volume("v", &head).unwrap();
    assert_eq!((&new.name, new.uuid, new.size_bytes), (&old.name, old.uuid, 8 * BLOCK));
    assert!(matches!(pool.read(&old, 0, &mut [0]), Err(EmbeddedError::Stale { .. })));
    let pool = reopened(pool);
    let (volume, snapshot) = (pool.volume("v").unwrap(), pool.snapshot("v", "s").unwrap());
    assert_eq!((first_byte(&pool, &volume, 0), first_byte(&pool, &volume, 1)), (3, 2));
    assert_eq!(first_byte(&pool, &snapshot, 0), 1);
    assert_eq!(pool.pool().devices().unwrap().len(), 2);
}

#[test]
fn private_devices_of_a_dead_process_go_at_the_next_open() {
    let (dir, pool) = pool();
    let volume = pool.create_volume("v", 4 * BLOCK).unwrap();
    pool.write(&volume, 0, &block(1)).unwrap();
    pool.create_head(BLOCK, Some(volume.device)).unwrap();
    pool.take_candidates(&["v"]).unwrap();
    assert_eq!(pool.pool().devices().unwrap().len(), 3);
    let copy = EmbeddedPool::open(&killed(&dir, &pool)).unwrap();
    assert_eq!(names(&copy), ["v"]);
    assert_eq!(copy.pool().devices().unwrap().len(), 1);
    let copy = reopened(copy);
    assert_eq!(first_byte(&copy, &copy.volume("v").unwrap(), 0), 1);
}

#[test]
fn a_device_that_the_registry_does_not_know_is_shown_by_its_id_and_left_alone() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    pool.message(&["create_thin", "1"]).unwrap();
    let second = pool.create_volume("w", BLOCK).unwrap();
    assert_eq!(second.device.get(), 2);
    let unknown = pool.unknown_devices().unwrap();
    assert_eq!((unknown.len(), unknown[0].name.as_str(), &unknown[0].kind), (1, "#1", &Kind::Unknown));
    let pool = reopened(pool);
    assert_eq!(pool.unknown_devices().unwrap().len(), 1);
    pool.message(&["delete", "1"]).unwrap();
    assert!(pool.unknown_devices().unwrap().is_empty());
}

#[test]
fn messages_that_belong_to_the_registry_are_refused() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    let refused: [&[&str]; 4] = [
        &["set_transaction_id", "1", "2"],
        &["SET_TRANSACTION_ID", "1", "2"],
        &["delete", "0"],
        &["Delete", "00"],
    ];
    for words in refused {
        let error = pool.message(words).unwrap_err();
        assert!(matches!(error, EmbeddedError::MessageRefused { .. }), "{words:?}: {error}");
        assert_eq!(error.class(), ErrorClass::Refused);
    }
    reopened(pool).volume("v").unwrap();
}

#[test]
fn all_other_messages_reach_the_pool_and_its_answers_carry_the_kernels_error() {
    let (_dir, pool) = pool();
    pool.create_volume("v", BLOCK).unwrap();
    for words in [&["create_thin", "7"][..], &["create_snap", "8", "0"], &["CREATE_SNAP", "9", "7"]] {
        pool.message(words).unwrap();
    }
    let unknown = |pool: &EmbeddedPool| -> Vec<String> {
        pool.unknown_devices().unwrap().into_iter().map(|volume| volume.name).collect()
    };
    assert_eq!(unknown(&pool), ["#7", "#8", "#9"]);
    let cases: [(&[&str], ErrorClass, &str); 9] = [
        (&["create_thin", "0"], ErrorClass::Refused, "(File exists)"),
        (&["create_snap", "8", "7"], ErrorClass::Refused, "(File exists)"),
        (&["create_snap", "10", "11"], ErrorClass::NotFound, "(No data available)"),
        (&["delete", "11"], ErrorClass::NotFound, "(No data available)"),
        (&["create_thin", "16777216"], ErrorClass::Usage, "(Invalid argument)"),
        (&["create_thin"], ErrorClass::Usage, "(Invalid argument)"),
        (&["set_transaction_id", "x", "2"], ErrorClass::Usage, "(Invalid argument)"),
        (&["nonsense"], ErrorClass::Usage, "(Invalid argument)"),
        (&["release_metadata_snap"], ErrorClass::NotFound, "(Invalid argument)"),
    ];
    for (words, class, text) in cases {
        let error = pool.message(words).unwrap_err();
        assert_eq!(error.class(), class, "{words:?}: {error}");
        assert!(error.to_string().ends_with(text), "{words:?}: {error}");
    }
    pool.message(&["reserve_metadata_snap"]).unwrap();
    let error = pool.message(&["reserve_metadata_snap"]).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Busy);
    assert!(error.to_string().ends_with("(Device or resource busy)"), "{error}");
    pool.message(&["release_metadata_snap"]).unwrap();
    for id in ["7", "8", "9"] {
        pool.message(&["delete", id]).unwrap();
    }
    let pool = reopened(pool);
    assert_eq!(unknown(&pool), [""; 0]);
    // An id that a message once used is not in the way of the registry.
    pool.message(&["create_thin", "1"]).unwrap();
    assert_eq!(pool.create_volume("w", BLOCK).unwrap().device.get(), 2);
}
