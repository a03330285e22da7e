//! The process dies at every step of every operation, and again while the next one recovers.

use super::doubles::{Fuse, MemoryLog, MemoryPool};
use super::{Change, Entry, Plan, Registry, create, fresh, id, names, reopen, volume};
use crate::registry::{Role, TransactError};

type Operation = fn(&mut Registry, &MemoryPool) -> Result<(), TransactError>;

/// Device ids and volume names.
type Names = Vec<(u32, String)>;

/// Each with the names after it, from a registry that holds `a` (device 0) and `b` (device 1).
fn operations() -> Vec<(&'static str, Operation, Names)> {
    let list = |names: &[(u32, &str)]| names.iter().map(|&(id, name)| (id, name.to_owned())).collect();
    vec![
        ("create", |r, p| r.transact(p, create(volume(2, "c"))), list(&[(0, "a"), (1, "b"), (2, "c")])),
        (
            "remove two",
            |r, p| {
                let changes = vec![Change::Remove(id(0)), Change::Remove(id(1))];
                r.transact(p, Plan { create: vec![], changes })
            },
            list(&[]),
        ),
        (
            "make two and switch",
            |r, p| {
                let create = vec![(id(2), Some(id(0))), (id(3), None)];
                let changes =
                    vec![Change::Remove(id(0)), Change::Put(volume(2, "a")), Change::Put(volume(3, "c"))];
                r.transact(p, Plan { create, changes })
            },
            list(&[(1, "b"), (2, "a"), (3, "c")]),
        ),
        (
            "rename without the pool",
            |r, _| {
                let role = Role::Volume { name: "z".into() };
                Ok(r.record(vec![Change::Put(Entry { role, ..volume(1, "b") })])?)
            },
            list(&[(0, "a"), (1, "z")]),
        ),
        ("compact", |r, _| Ok(r.compact()?), list(&[(0, "a"), (1, "b")])),
    ]
}

/// What one crash left.
struct Wreck {
    pool: MemoryPool,
    log: MemoryLog,
}

/// Runs `operation` until it dies at step `steps`; None when it lives. Without `steps` it is killed afterwards.
fn run(operation: Operation, steps: Option<u64>, lands: bool) -> Option<Wreck> {
    let fuse = Fuse::whole();
    let (mut registry, pool, log) = fresh(&fuse);
    registry.transact(&pool, create(volume(0, "a"))).unwrap();
    registry.transact(&pool, create(volume(1, "b"))).unwrap();
    pool.let_last_commit_land(lands);
    fuse.set(steps);
    let finished = operation(&mut registry, &pool).is_ok();
    assert_eq!(finished, !fuse.is_burnt());
    (fuse.is_burnt() || steps.is_none()).then_some(Wreck { pool, log })
}

/// Opens what is left, dying again at every step of that, until it succeeds. Each death leaves half of what was not
/// durable.
fn recover(wreck: &Wreck, journal: &[u8]) -> (Registry, MemoryPool) {
    let fuse = Fuse::whole();
    let mut journal = journal.to_vec();
    let mut pool = wreck.pool.after_crash(&fuse);
    for steps in 1..100 {
        let log = MemoryLog::new(&fuse, &journal);
        fuse.set(Some(steps));
        let opened = reopen(&log, &pool);
        let alive = !fuse.is_burnt();
        fuse.set(None);
        match opened {
            Ok(registry) if alive => return (registry, pool),
            Err(error) if alive => panic!("does not open: {error:?}"),
            _ => {}
        }
        let images = log.crash_images();
        journal = images[images.len() / 2].clone();
        pool = pool.after_crash(&fuse);
    }
    panic!("never recovered");
}

#[test]
fn a_crash_at_any_step_leaves_all_of_an_operation_or_nothing() {
    let before = vec![(0, "a".to_owned()), (1, "b".to_owned())];
    for (name, operation, after) in operations() {
        let (mut undone, mut done) = (0, 0);
        for lands in [false, true] {
            for steps in 1.. {
                assert!(steps < 100, "{name} never ends");
                let Some(wreck) = run(operation, Some(steps), lands) else { break };
                for journal in wreck.log.crash_images() {
                    let (registry, pool) = recover(&wreck, &journal);
                    let found = names(&registry);
                    assert!(found == before || found == after, "{name}, step {steps}: {found:?}");
                    let ids: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
                    assert_eq!(pool.devices(), ids, "{name}, step {steps}: strays or losses");
                    if found == after { done += 1 } else { undone += 1 }
                }
            }
        }
        assert!(done > 0 && (undone > 0 || before == after), "{name}: {undone} undone, {done} done");
    }
}

#[test]
fn a_crash_after_an_operation_loses_nothing() {
    for (name, operation, after) in operations() {
        let wreck = run(operation, None, false).unwrap();
        for journal in wreck.log.crash_images() {
            let (registry, pool) = recover(&wreck, &journal);
            assert_eq!(names(&registry), after, "{name}");
            assert_eq!(pool.devices().len(), after.len(), "{name}");
        }
    }
}
