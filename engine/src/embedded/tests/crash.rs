//! Power is lost after every single operation on any device of every operation of the pool, and again while the next
//! open recovers.

use std::collections::BTreeMap;

use rand::Rng as _;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::power::{Disks, JOURNAL};
use super::{BLOCK, block, chance, first_byte, view};
use crate::block_device::{Fate, IoEvent};
use crate::embedded::{Base, EmbeddedPool};

const REPOSITORY: Uuid = Uuid::from_u128(77);

/// What can be seen: for each name the size and the first byte of each block, and the generations of the bases.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    volumes: BTreeMap<String, (u64, Vec<u8>)>,
    generations: Vec<u64>,
}

fn seen(pool: &EmbeddedPool) -> Seen {
    let content = |volume: &crate::embedded::Volume| {
        (0..volume.size_bytes / BLOCK).map(|number| first_byte(pool, volume, number)).collect()
    };
    let named = pool.volumes().into_iter().filter(|volume| !volume.name.starts_with('#'));
    let volumes = named.filter(|volume| !volume.name.contains("@thinbak-candidate"));
    Seen {
        volumes: volumes.map(|volume| (volume.name.clone(), (volume.size_bytes, content(&volume)))).collect(),
        generations: pool.bases().iter().map(|base| base.generation).collect(),
    }
}

type Step = (&'static str, fn(&EmbeddedPool));

fn back_up(pool: &EmbeddedPool, generation: u64) {
    let volume = pool.volume("a").unwrap();
    let candidate = pool.take_candidates(&["a"]).unwrap().remove(0);
    let guard = pool.reserve_msnap().unwrap();
    let point = pool.point(&candidate, &view(pool)).unwrap();
    guard.release().unwrap();
    let base = Base { repository: REPOSITORY, volume: volume.uuid, generation, root: [1; 32], point };
    pool.keep_base(&candidate, base).unwrap();
}

fn fill(pool: &EmbeddedPool, name: &str, tag: u8) {
    let volume = pool.volume(name).unwrap();
    for number in [0, 2] {
        pool.write(&volume, number * BLOCK, &block(tag)).unwrap();
    }
    pool.flush().unwrap();
}

/// Every operation there is. Each shows either all of itself or nothing, but for `fill`, whose blocks come one by one.
fn steps() -> Vec<Step> {
    vec![
        ("create a", |pool| drop(pool.create_volume("a", 4 * BLOCK).unwrap())),
        ("create b", |pool| drop(pool.create_volume("b", 2 * BLOCK).unwrap())),
        ("fill a", |pool| fill(pool, "a", 1)),
        ("snapshots", |pool| drop(pool.take_snapshots(&[("a", "s"), ("b", "s")]).unwrap())),
        ("fill a", |pool| fill(pool, "a", 2)),
        ("first base", |pool| back_up(pool, 1)),
        ("fill a", |pool| fill(pool, "a", 3)),
        ("second base", |pool| back_up(pool, 2)),
        ("newer generation", |pool| {
            let base = pool.bases().remove(0);
            pool.update_base(Base { generation: 3, ..base }).unwrap();
        }),
        ("resize", |pool| drop(pool.resize_volume("b", 6 * BLOCK).unwrap())),
        ("publish", |pool| {
            let head = pool.create_head(3 * BLOCK, None).unwrap();
            pool.write(&head, BLOCK, &block(5)).unwrap();
            pool.publish_head(&head, "c", &[]).unwrap();
        }),
        ("publish with moments", |pool| {
            let head = pool.create_head(2 * BLOCK, None).unwrap();
            pool.write(&head, BLOCK, &block(7)).unwrap();
            let first = pool.snapshot_head(&head).unwrap();
            let head = pool.resize_head(&head, 4 * BLOCK).unwrap();
            pool.write(&head, 3 * BLOCK, &block(8)).unwrap();
            let second = pool.snapshot_head(&head).unwrap();
            let head = pool.resize_head(&head, BLOCK).unwrap();
            pool.discard(&head, 0, BLOCK).unwrap();
            pool.publish_head(&head, "d", &[(first, "1".into()), (second, "2".into())]).unwrap();
        }),
        ("give up a head with a moment", |pool| {
            let head = pool.create_head(BLOCK, None).unwrap();
            pool.write(&head, 0, &block(9)).unwrap();
            let moment = pool.snapshot_head(&head).unwrap();
            pool.drop_transient(&head).unwrap();
            pool.drop_transient(&moment).unwrap();
        }),
        ("replace", |pool| {
            let head = pool.create_head(4 * BLOCK, Some(pool.volume("a").unwrap().device)).unwrap();
            pool.write(&head, 0, &block(6)).unwrap();
            pool.replace_volume("a", &head).unwrap();
        }),
        ("give up a head", |pool| {
            let head = pool.create_head(BLOCK, None).unwrap();
            pool.drop_transient(&head).unwrap();
        }),
        ("compact", |pool| pool.inner.books.lock().registry.compact().unwrap()),
        ("remove a snapshot", |pool| drop(pool.remove_snapshot("b", "s").unwrap())),
        ("remove b", |pool| drop(pool.remove_volume("b").unwrap())),
        ("forget", |pool| pool.forget_base(REPOSITORY, pool.volume("a").unwrap().uuid).unwrap()),
    ]
}

/// One run without a crash: what it did to the devices, and what could be seen after each step.
struct Run {
    disks: Disks,
    events: Vec<IoEvent>,
    /// Name of the step, number of events at its end, what can be seen then.
    history: Vec<(&'static str, usize, Seen)>,
}

fn run() -> Run {
    let disks = Disks::format(64);
    let (pool, record) = disks.open();
    let pool = pool.unwrap();
    let mut history = vec![("nothing", 0, seen(&pool))];
    for (name, step) in steps() {
        step(&pool);
        history.push((name, record.len(), seen(&pool)));
    }
    Run { disks, events: record.events(), history }
}

impl Run {
    /// Fails unless `found` is what a crash after `events` operations may leave.
    fn judge(&self, found: &Seen, events: usize) {
        let next =
            self.history.iter().position(|(_, end, _)| *end > events).unwrap_or(self.history.len() - 1);
        let (name, _, after) = &self.history[next];
        let (_, _, before) = &self.history[next.saturating_sub(1)];
        if found == before || found == after {
            return;
        }
        assert_eq!(*name, "fill a", "event {events}: {found:?}\nneither {before:?}\nnor {after:?}");
        assert_eq!(found.generations, before.generations, "event {events}");
        for (name, (size, content)) in &found.volumes {
            let ((size_before, old), (_, new)) = (&before.volumes[name], &after.volumes[name]);
            assert_eq!(size, size_before, "event {events}");
            let mut blocks = content.iter().zip(old.iter().zip(new));
            assert!(blocks.all(|(found, (old, new))| found == old || found == new), "event {events}: {name}");
        }
        assert_eq!(found.volumes.len(), before.volumes.len(), "event {events}");
    }

    /// Opens what a crash left, and checks all that can be checked.
    fn recover(&self, disks: &Disks, events: usize) -> Vec<IoEvent> {
        let (pool, record) = disks.open();
        let pool = pool.unwrap_or_else(|error| panic!("event {events}: {error}"));
        let found = seen(&pool);
        self.judge(&found, events);
        assert_eq!(pool.pool().status().held_root, None, "event {events}: a metadata snapshot is left");
        let known = pool.volumes().len();
        assert!(
            pool.volumes()
                .iter()
                .all(|volume| !volume.name.contains("candidate") && !volume.name.starts_with('#')),
            "event {events}: a private device is left"
        );
        assert_eq!(pool.pool().devices().unwrap().len(), known, "event {events}: strays or losses");
        for base in pool.bases() {
            pool.prove(&base.point, &view(&pool)).unwrap();
        }
        pool.flush().unwrap();
        let events = record.events();
        disks.after(&events, |_| Fate::Kept).check();
        events
    }
}

fn random_fate(chance: &mut StdRng) -> impl FnMut(&IoEvent) -> Fate {
    move |event| match (chance.random_range(0..4), event) {
        (0, _) => Fate::Kept,
        (1, IoEvent::Write { bytes, .. }) => {
            // Sectors are written whole, but the journal's file may end anywhere.
            let sectors = bytes.len() / 512;
            Fate::Torn(chance.random_range(0..=sectors) * 512)
        }
        _ => Fate::Lost,
    }
}

#[test]
fn a_crash_at_any_moment_leaves_all_of_an_operation_or_nothing() {
    let mut chance = chance();
    let run = run();
    assert!(run.events.len() > 100);
    for count in 0..=run.events.len() {
        let events = &run.events[..count];
        let kept = run.disks.after(events, |_| Fate::Kept);
        run.recover(&kept, count);
        run.recover(&run.disks.after(events, |_| Fate::Lost), count);
        run.recover(&run.disks.after(events, random_fate(&mut chance)), count);
        if count % 20 == 0 {
            kept.thin_check();
        }
    }
}

#[test]
fn a_second_crash_during_recovery_changes_nothing() {
    let mut chance = chance();
    let run = run();
    for count in (0..=run.events.len()).step_by(3) {
        let crashed = run.disks.after(&run.events[..count], random_fate(&mut chance));
        let recovery = run.recover(&crashed, count);
        for second in 0..=recovery.len() {
            let again = crashed.after(&recovery[..second], random_fate(&mut chance));
            run.recover(&again, count);
        }
    }
}

#[test]
fn a_line_of_the_registry_may_be_torn_anywhere() {
    // Every seventh byte, from another one on in each line. The registry's own tests take every byte.
    let run = run();
    for (count, event) in run.events.iter().enumerate() {
        let IoEvent::Write { device: JOURNAL, bytes, .. } = event else { continue };
        if bytes.len() > 4096 {
            continue;
        }
        for length in (count % 7..=bytes.len()).step_by(7) {
            // Every line is flushed before the next one is written, so this is the only one that can be torn.
            let torn = run.disks.after(&run.events[..=count], |event| match event {
                IoEvent::Write { device: JOURNAL, .. } => Fate::Torn(length),
                _ => Fate::Kept,
            });
            run.recover(&torn, count + 1);
        }
    }
}
