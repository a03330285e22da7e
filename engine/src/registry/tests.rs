//! The registry against a pool and a log that live in memory and stop at any step.

mod crash;
mod damage;
mod doubles;
mod failures;

use uuid::Uuid;

use self::doubles::{Fuse, MemoryLog, MemoryPool};
use super::{Change, Entry, Plan, Registry, RegistryError, Role, TransactError};
use crate::format::DeviceId;

const POOL: Uuid = Uuid::from_u128(0x7e57);

fn id(number: u32) -> DeviceId {
    DeviceId::new(number.into()).unwrap()
}

fn volume(device: u32, name: &str) -> Entry {
    Entry {
        device: id(device),
        uuid: Uuid::from_u128(device.into()),
        size_bytes: 1 << 20,
        created_at_ms: 1,
        role: Role::Volume { name: name.into() },
        origin: None,
    }
}

fn create(entry: Entry) -> Plan {
    Plan { create: vec![(entry.device, None)], changes: vec![Change::Put(entry)] }
}

/// A new registry, its pool and its log.
fn fresh(fuse: &Fuse) -> (Registry, MemoryPool, MemoryLog) {
    let log = MemoryLog::new(fuse, &Registry::initial(POOL, 0).unwrap());
    let registry = Registry::load(Box::new(log.clone()), &log.content(), POOL).unwrap();
    (registry, MemoryPool::new(fuse), log)
}

/// Opens what is in log and pool now, as the next process would.
fn reopen(log: &MemoryLog, pool: &MemoryPool) -> Result<Registry, TransactError> {
    let mut registry = Registry::load(Box::new(log.clone()), &log.content(), POOL)?;
    registry.settle(super::Devices::transaction_id(pool))?;
    registry.record(vec![])?;
    Ok(registry)
}

/// Device ids and volume names.
fn names(registry: &Registry) -> Vec<(u32, String)> {
    let name = |entry: &Entry| match &entry.role {
        Role::Volume { name } => name.clone(),
        other => format!("{other:?}"),
    };
    registry.state().devices.values().map(|entry| (entry.device.get(), name(entry))).collect()
}

#[test]
fn changes_are_there_after_a_reopen() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    registry.transact(&pool, create(volume(1, "b"))).unwrap();
    registry.record(vec![Change::Put(Entry { size_bytes: 5, ..volume(1, "b") })]).unwrap();
    registry.transact(&pool, Plan { create: vec![], changes: vec![Change::Remove(id(0))] }).unwrap();
    drop(registry);

    let registry = reopen(&log, &pool).unwrap();
    assert_eq!(names(&registry), [(1, "b".to_owned())]);
    assert_eq!(registry.state().devices[&id(1)].size_bytes, 5);
    assert_eq!(registry.state().next_device, 2);
    assert_eq!(registry.state().transaction_id, 3);
    assert_eq!(pool.devices(), [1]);
}

#[test]
fn ids_of_removed_devices_are_not_given_again_after_compaction() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    registry.transact(&pool, Plan { create: vec![], changes: vec![Change::Remove(id(0))] }).unwrap();
    registry.compact().unwrap();
    assert_eq!(reopen(&log, &pool).unwrap().state().next_device, 1);
}

#[test]
fn the_journal_stays_short_however_many_changes_are_made() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    let mut longest = 0;
    for number in 0..2000 {
        registry.transact(&pool, create(volume(number, "a"))).unwrap();
        registry.transact(&pool, Plan { create: vec![], changes: vec![Change::Remove(id(number))] }).unwrap();
        longest = longest.max(log.content().len());
    }
    assert!(longest < 2 * super::COMPACT_BYTES as usize, "{longest}");
    assert_eq!(reopen(&log, &pool).unwrap().state(), registry.state());
}

#[test]
fn a_line_of_the_journal_is_as_long_with_many_devices_as_with_few() {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    let mut growth = Vec::new();
    for number in 0..150 {
        let before = log.content().len();
        registry.transact(&pool, create(volume(number, "a"))).unwrap();
        growth.push(log.content().len() - before);
    }
    assert!(growth[149] < growth[1] + 20, "{growth:?}");
}

#[test]
fn devices_are_found_by_what_they_are_now() {
    let fuse = Fuse::whole();
    let (mut registry, pool, _log) = fresh(&fuse);
    let snapshot = |device: u32, name: &str| Entry {
        role: Role::Snapshot { of: Uuid::from_u128(0), name: name.into() },
        ..volume(device, "")
    };
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    registry.transact(&pool, create(snapshot(1, "s"))).unwrap();
    registry.transact(&pool, create(snapshot(2, "t"))).unwrap();
    let found = |registry: &Registry, name: &str| {
        registry.state().snapshot(Uuid::from_u128(0), name).map(|entry| entry.device.get())
    };
    assert_eq!((found(&registry, "s"), found(&registry, "t")), (Some(1), Some(2)));
    registry.record(vec![Change::Put(volume(0, "b")), Change::Put(snapshot(2, "u"))]).unwrap();
    let state = registry.state();
    assert_eq!((state.volume("a"), state.volume("b").map(|entry| entry.device)), (None, Some(id(0))));
    assert_eq!((found(&registry, "t"), found(&registry, "u")), (None, Some(2)));
    // Another device takes the identity and the name over.
    registry.transact(&pool, create(Entry { role: Role::Head, ..volume(3, "") })).unwrap();
    let switch =
        vec![Change::Put(Entry { uuid: Uuid::from_u128(0), ..volume(3, "b") }), Change::Remove(id(0))];
    registry.transact(&pool, Plan { create: vec![], changes: switch }).unwrap();
    let state = registry.state();
    assert_eq!(state.volume("b").map(|entry| entry.device), Some(id(3)));
    assert_eq!(state.volume_by_uuid(Uuid::from_u128(0)).map(|entry| entry.device), Some(id(3)));
    assert_eq!((state.snapshot_count(Uuid::from_u128(0)), state.by_identity(Uuid::from_u128(3))), (2, None));
    let trashed = Change::Put(Entry { role: Role::Trash, ..volume(1, "") });
    registry.record(vec![trashed]).unwrap();
    assert_eq!((found(&registry, "s"), registry.state().snapshot_count(Uuid::from_u128(0))), (None, 1));
}
