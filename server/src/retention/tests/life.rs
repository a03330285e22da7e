//! Generations that are deleted, brought back, protected and forgotten: what the catalogue says, and what the
//! packs would say without it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::tz::TimeZone;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use thinbak_proto::{Failed, Pattern, v1};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::plans::ms;
use crate::{
    InitOptions, Policy, Repository, RetentionRule,
    catalogue::{Filter, GenerationKey, Position, Selector},
    environment::{Clock, Environment, Random},
    manifest::{Manifest, Tombstone, next_revision},
    retention::{
        Kept, delete, forget_expired, protect,
        prune::{self, Prune},
        prune_hidden, undelete,
    },
    store::Kind,
};

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

struct Place {
    _dir: TempDir,
    repository: Arc<Repository>,
    now_ms: Arc<AtomicU64>,
}

impl Place {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        Repository::init(dir.path(), InitOptions::default()).await.unwrap();
        let now_ms = Arc::new(AtomicU64::new(ms("2026-11-24T12:00:00Z")));
        let hand = Arc::clone(&now_ms);
        let environment =
            Environment::new(Clock::new(move || hand.load(Ordering::Relaxed)), Random::new(|| 4));
        let repository = Repository::open_in(dir.path(), environment).await.unwrap();
        Self { _dir: dir, repository, now_ms }
    }

    fn now(&self) -> u64 {
        self.repository.now_ms()
    }

    fn pass(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// A generation of that moment, as a commit would leave it, but without content.
    async fn commit(&self, volume: Uuid, name: &str, created_at_ms: u64, group: &str) -> GenerationKey {
        let number = self.repository.catalogue.next(volume).await.unwrap().number;
        let generation = v1::Generation {
            volume_uuid: volume.to_string(),
            volume_name: name.into(),
            number,
            created_at_ms,
            size_bytes: 4096,
            chunk_bytes: 65536,
            levels: 1,
            root: vec![7; 32].into(),
            group: group.into(),
            ..Default::default()
        };
        let (manifest, record) = Manifest::new(&generation, 1).record();
        self.repository.store.put(vec![record]).await.unwrap();
        self.repository.catalogue.add_generation(&generation, manifest, false).await.unwrap();
        GenerationKey { volume, number }
    }

    /// `count` generations, the newest of now, each an hour younger than the one before.
    async fn hourly(&self, volume: Uuid, name: &str, count: u64) {
        for back in (0..count).rev() {
            self.commit(volume, name, self.now() - back * HOUR, "").await;
        }
    }

    async fn visible(&self, volume: Uuid) -> Vec<u64> {
        let candidates = self.repository.catalogue.candidates(volume).await.unwrap();
        candidates.into_iter().map(|candidate| candidate.number).collect()
    }

    async fn plan(&self, request: v1::PruneRequest) -> Result<Prune, Failed> {
        Prune::of(&self.repository, request, self.now(), TimeZone::UTC).await
    }

    /// Runs to the end; a line a generation, and the summary.
    async fn prune(&self, request: v1::PruneRequest) -> (Vec<String>, v1::PruneSummary) {
        use v1::prune_event::Event;
        let plan = self.plan(request).await.unwrap();
        let mut events = prune::start(Arc::clone(&self.repository), plan);
        let (mut lines, mut summary) = (Vec::new(), None);
        while let Some(event) = events.recv().await {
            assert_eq!(summary, None, "the summary is last");
            match event.unwrap().event.unwrap() {
                Event::Decision(decision) => lines.push(format!(
                    "{}:{} {}{}",
                    decision.volume_name,
                    decision.number,
                    if decision.remove { "- " } else { "" },
                    decision.reasons.join(", ")
                )),
                Event::Summary(found) => summary = Some(found),
            }
        }
        (lines, summary.unwrap())
    }
}

fn request(volume: &str, policy: v1::RetentionPolicy) -> v1::PruneRequest {
    let volume = Some(v1::VolumeName { name: volume.into(), host: "h".into() });
    v1::PruneRequest { volume, policy: Some(policy), ..Default::default() }
}

fn name(text: &str) -> v1::VolumeName {
    v1::VolumeName { name: text.into(), host: String::new() }
}

fn last(last: u32) -> v1::RetentionPolicy {
    v1::RetentionPolicy { last, ..Default::default() }
}

#[tokio::test]
async fn a_dry_run_says_what_a_run_does_and_changes_nothing() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    place.hourly(volume, "h/p/v", 5).await;
    let dry = v1::PruneRequest { dry_run: true, ..request("p/v", last(2)) };
    let (told, summary) = place.prune(dry).await;
    let expected = [
        "h/p/v:1 - no rule keeps it",
        "h/p/v:2 - no rule keeps it",
        "h/p/v:3 - no rule keeps it",
        "h/p/v:4 last 2",
        "h/p/v:5 newest, last 1",
    ];
    assert_eq!(told, expected);
    assert_eq!((summary.volumes, summary.kept, summary.removed), (1, 2, 3));
    assert_eq!(place.visible(volume).await, [1, 2, 3, 4, 5]);
    assert_eq!(place.repository.store.records(Kind::Tombstone).unwrap().count(), 0);
    let (done, again) = place.prune(request("p/v", last(2))).await;
    assert_eq!((done, again.removed, again.grace_seconds), (told, 3, 7 * 86_400));
    assert_eq!(place.visible(volume).await, [4, 5]);
    assert_eq!(place.prune(request("p/v", last(2))).await.1.removed, 0, "the second run has nothing to do");
}

#[tokio::test]
async fn a_run_that_nobody_listens_to_ends_between_two_steps_and_the_next_goes_on() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    place.hourly(volume, "h/p/v", 300).await;
    let plan = place.plan(request("p/v", last(1))).await.unwrap();
    let (sender, mut events) = mpsc::channel(1);
    let run = tokio::spawn(prune::run(Arc::clone(&place.repository), plan, sender));
    events.recv().await.unwrap().unwrap();
    drop(events);
    run.await.unwrap();
    assert_eq!(place.visible(volume).await.len(), 300 - 64);
    place.prune(request("p/v", last(1))).await;
    assert_eq!(place.visible(volume).await, [300]);
}

#[tokio::test]
async fn a_group_over_midnight_is_kept_whole_within_one_call() {
    let place = Place::new().await;
    let (one, two, lone) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let group = Uuid::new_v4().to_string();
    let midnight = ms("2026-11-22T00:00:00Z");
    for (volume, name, made) in [(one, "h/p/a", midnight - 1), (two, "h/p/b", midnight + 1)] {
        place.commit(volume, name, midnight - HOUR, "").await;
        place.commit(volume, name, made, &group).await;
        place.commit(volume, name, midnight + HOUR, "").await;
    }
    place.commit(lone, "other", midnight, "").await;
    let daily = v1::RetentionPolicy { daily: 2, ..Default::default() };
    let told = place.prune(v1::PruneRequest { dry_run: true, ..request("p/?", daily) }).await.0;
    assert_eq!(
        told,
        [
            "h/p/a:1 - no rule keeps it",
            "h/p/a:2 daily 2026-11-21",
            "h/p/a:3 newest, daily 2026-11-22",
            "h/p/b:1 daily 2026-11-21",
            "h/p/b:2 its group is kept",
            "h/p/b:3 newest, daily 2026-11-22",
        ]
    );
    let alone = place.prune(v1::PruneRequest { dry_run: true, ..request("p/b", daily) }).await.0;
    assert_eq!(alone[1], "h/p/b:2 - no rule keeps it");
}

#[tokio::test]
async fn of_the_stored_policies_the_first_that_matches_counts() {
    let place = Place::new().await;
    let volumes = ["h/p/db", "h/p/web", "x/p/web"].map(|name| (Uuid::new_v4(), name));
    for (volume, name) in volumes {
        place.hourly(volume, name, 4).await;
    }
    let stored = v1::PruneRequest { stored_policies: true, ..Default::default() };
    assert_eq!(place.plan(stored.clone()).await.err().unwrap().exit_code(), 2, "none are there");
    let rule = |pattern, count| RetentionRule {
        volumes: Pattern::new(pattern).unwrap(),
        policy: Policy::new(&last(count)).unwrap(),
    };
    place.repository.set_retention(vec![rule("*/db", 3), rule("h/*", 1)]);
    assert_eq!(place.prune(stored).await.1.volumes, 2);
    let mut left = Vec::new();
    for (volume, _) in volumes {
        left.push(place.visible(volume).await);
    }
    assert_eq!(left, [vec![2, 3, 4], vec![4], vec![1, 2, 3, 4]]);
}

#[tokio::test]
async fn several_volumes_of_one_call_are_each_pruned_once() {
    let place = Place::new().await;
    let volumes = ["h/p/a", "h/p/b", "h/p/c"].map(|name| (Uuid::new_v4(), name));
    for (volume, name) in volumes {
        place.hourly(volume, name, 3).await;
    }
    let others = vec![name("h/p/b"), name("h/p/a")];
    let summary = place.prune(v1::PruneRequest { others, ..request("h/p/a", last(1)) }).await.1;
    assert_eq!((summary.volumes, summary.kept, summary.removed), (2, 2, 4));
    assert_eq!(place.visible(volumes[2].0).await, [1, 2, 3]);
}

#[tokio::test]
async fn a_volume_that_is_called_as_a_pattern_is_meant_alone() {
    let place = Place::new().await;
    let volumes = ["h/p/*", "h/p/v", "pro?/p/v", "prod/p/v"].map(|name| (Uuid::new_v4(), name));
    for (volume, name) in volumes {
        place.hourly(volume, name, 3).await;
    }
    for (request, pruned) in [("h/p/*", "h/p/*"), ("pro?/p/v", "pro?/p/v"), ("p/*", "h/p/*")] {
        let (lines, summary) = place.prune(self::request(request, last(1))).await;
        assert_eq!(summary.volumes, 1, "{request}: {lines:?}");
        assert!(lines.iter().all(|line| line.starts_with(&format!("{pruned}:"))), "{lines:?}");
    }
    for untouched in [1, 3] {
        assert_eq!(place.visible(volumes[untouched].0).await, [1, 2, 3]);
    }
    // One that is not there is no pattern either where names are given.
    let gone =
        v1::PruneRequest { names_only: true, others: vec![name("prod/p/?")], ..request("h/p/v", last(1)) };
    assert_eq!(place.plan(gone).await.err().unwrap().exit_code(), 10);
    assert_eq!(place.visible(volumes[1].0).await, [1, 2, 3]);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let place = Place::new().await;
    place.hourly(Uuid::new_v4(), "h/p/v", 2).await;
    let both = v1::PruneRequest { stored_policies: true, ..request("p/v", last(1)) };
    let neither = v1::PruneRequest::default();
    for (request, code) in [
        (request("p/v", last(0)), 2),
        (request("", last(1)), 2),
        (request(&"*".repeat(2000), last(1)), 2),
        (both, 2),
        (neither, 2),
        (request("p/none", last(1)), 10),
        (request("x*", last(1)), 10),
        (v1::PruneRequest { others: vec![name("p/none")], ..request("p/v", last(1)) }, 10),
    ] {
        let failed = place.plan(request.clone()).await.err().unwrap();
        assert_eq!(failed.exit_code(), code, "{request:?}: {failed}");
    }
}

#[tokio::test]
async fn what_is_protected_or_newest_gets_no_tombstone() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    place.hourly(volume, "h/p/v", 3).await;
    let keys = [1, 2, 3, 9].map(|number| GenerationKey { volume, number });
    protect(&place.repository, keys[0], true, place.now()).await.unwrap().unwrap();
    let outcomes = delete(&place.repository, &keys, place.now()).await.unwrap();
    let outcomes: Vec<_> = outcomes.into_iter().map(|(_, outcome)| outcome.map(|gone| gone.number)).collect();
    assert_eq!(outcomes, [Err(Kept::Protected), Ok(2), Err(Kept::Newest), Err(Kept::Gone)]);
    assert_eq!(place.repository.store.records(Kind::Tombstone).unwrap().count(), 1);
}

#[tokio::test]
async fn a_deletion_can_be_undone_until_its_grace_is_over_or_it_is_forgotten() {
    let place = Place::new().await;
    let volume = Uuid::new_v4();
    place.hourly(volume, "h/p/v", 4).await;
    let key = |number| GenerationKey { volume, number };
    let undelete = async |number| undelete(&place.repository, key(number), "v", place.now()).await;
    delete(&place.repository, &[key(1), key(2)], place.now()).await.unwrap();
    assert_eq!(undelete(3).await.unwrap_err().exit_code(), 5, "it is not deleted");
    for never in [0, 5, i64::MAX as u64] {
        assert_eq!(undelete(never).await.unwrap_err().exit_code(), 10, "{never}");
    }
    place.pass(7 * DAY - 1);
    assert_eq!(undelete(1).await.unwrap().number, 1);
    assert_eq!(forget_expired(&place.repository, place.now(), None).await.unwrap(), 0);
    place.pass(1);
    assert_eq!(undelete(2).await.unwrap_err().exit_code(), 5, "its grace is over");
    place.repository.set_grace(std::time::Duration::from_secs(8 * 86_400)).await.unwrap();
    assert_eq!(
        forget_expired(&place.repository, place.now(), None).await.unwrap(),
        0,
        "the grace is longer now"
    );
    place.pass(DAY);
    assert_eq!(forget_expired(&place.repository, place.now(), None).await.unwrap(), 1);
    let forgotten = undelete(2).await.unwrap_err();
    assert_eq!(forgotten.exit_code(), 5);
    assert_eq!(place.visible(volume).await, [1, 3, 4]);
    assert_eq!(place.repository.catalogue.next(volume).await.unwrap().number, 5);
}

/// A manifest as FORMAT.md has it.
#[derive(Clone, PartialEq, prost::Message)]
struct ManifestRecord {
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, required, tag = "3")]
    generation: v1::Generation,
}

/// A tombstone as FORMAT.md has it.
#[derive(Clone, PartialEq, prost::Message)]
struct TombstoneRecord {
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(uint64, tag = "4")]
    revision: u64,
}

fn records<M: prost::Message + Default>(repository: &Repository, kind: Kind) -> Vec<M> {
    let records = repository.store.records(kind).unwrap();
    records.map(|record| M::decode(record.unwrap().stored).unwrap()).collect()
}

/// What a catalogue made from the packs alone would show: protection by visible generation.
fn said_by_the_packs(repository: &Repository) -> BTreeMap<u64, bool> {
    let mut newest: BTreeMap<u64, (u64, Option<bool>)> = BTreeMap::new();
    let mut take = |number, revision, state: Option<bool>| {
        let best = newest.entry(number).or_insert((0, None));
        // A tombstone ends its own revision as well.
        if revision > best.0 || (revision == best.0 && state.is_none()) {
            *best = (revision, state);
        }
    };
    for manifest in records::<ManifestRecord>(repository, Kind::Manifest) {
        take(manifest.generation.number, manifest.revision, Some(manifest.generation.protected));
    }
    for tombstone in records::<TombstoneRecord>(repository, Kind::Tombstone) {
        take(tombstone.number, tombstone.revision, None);
    }
    newest.into_iter().filter_map(|(number, (_, state))| Some((number, state?))).collect()
}

/// Deletions, undeletions, protection and forgetting in any order, each now and then broken off by a crash
/// between record and catalogue. Whatever was done to a generation last counts, for the catalogue and for the packs.
#[tokio::test]
async fn the_packs_agree_with_the_catalogue_also_after_crashes() {
    let seed = std::env::var("THINBAK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("THINBAK_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let place = Place::new().await;
    let (repository, volume) = (&place.repository, Uuid::new_v4());
    place.hourly(volume, "h/p/v", 9).await;
    for _ in 0..300 {
        place.pass(random.random_range(1..DAY));
        let key = GenerationKey { volume, number: random.random_range(1..9) };
        match random.random_range(0..6) {
            0 => drop(delete(repository, &[key], place.now()).await.unwrap()),
            1 => drop(undelete(repository, key, "v", place.now()).await),
            2 => drop(protect(repository, key, random.random(), place.now()).await.unwrap()),
            3 => drop(forget_expired(repository, place.now(), None).await.unwrap()),
            _ => crash(&place, key, random.random()).await,
        }
    }
    // One more thing happens to each generation, so that no crash is the last.
    for number in 1..9 {
        let key = GenerationKey { volume, number };
        place.pass(1);
        if let Some(entry) = repository.catalogue.generation(volume, Selector::Number(number)).await.unwrap()
        {
            let protected = !entry.generation.protected;
            protect(repository, key, protected, place.now()).await.unwrap().unwrap();
        }
    }
    place.pass(8 * DAY);
    forget_expired(repository, place.now(), None).await.unwrap();
    let candidates = repository.catalogue.candidates(volume).await.unwrap();
    let visible: BTreeMap<_, _> =
        candidates.into_iter().map(|candidate| (candidate.number, candidate.protected)).collect();
    assert_eq!(said_by_the_packs(repository), visible);
    let all = Filter { deleted_after_ms: Some(0), ..Filter::default() };
    assert_eq!(repository.catalogue.page(all, &Position::default(), 9).await.unwrap(), []);
}

/// The record of a change is stored, and the catalogue never hears of it.
async fn crash(place: &Place, key: GenerationKey, protected: bool) {
    let catalogue = &place.repository.catalogue;
    let record = match catalogue.generation(key.volume, Selector::Number(key.number)).await.unwrap() {
        Some(entry) if protected => {
            let revision = next_revision(entry.revision, place.now());
            let generation = v1::Generation { protected, ..entry.generation };
            Manifest::new(&generation, revision).record().1
        }
        Some(entry) => {
            Tombstone::new(key, next_revision(entry.revision, place.now()), place.now()).record().1
        }
        None => match catalogue.deleted(key).await.unwrap() {
            Some(deleted) => {
                let revision = next_revision(deleted.entry.revision, place.now());
                Manifest::new(&deleted.entry.generation, revision).record().1
            }
            None => return,
        },
    };
    place.repository.store.put(vec![record]).await.unwrap();
}

#[tokio::test]
async fn shapes_of_pools_are_kept_by_their_own_rule_and_many_new_ones_do_not_push_out_those_of_other_days() {
    let place = Place::new().await;
    let volume = Uuid::from_u128(9);
    place.hourly(volume, "h/p/.shape", 100).await;
    prune_hidden(&place.repository, volume).await.unwrap();
    let kept = place.visible(volume).await;
    assert!(kept.len() < 40 && kept.first().is_some_and(|oldest| *oldest < 30), "{kept:?}");
    assert_eq!(kept.last(), Some(&100));
    // Nobody's pattern means them.
    let all = request("*", v1::RetentionPolicy { last: 1, ..Default::default() });
    assert_eq!(place.plan(all).await.err().unwrap().exit_code(), 10);
    assert_eq!(place.visible(volume).await, kept);
}
