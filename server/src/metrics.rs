//! Metrics in the text format of Prometheus, and the HTTP listener for them.
//!
//! Counters live as long as the process. Gauges are asked for when somebody scrapes: so they are never stale, and
//! cost nothing in between.

mod http;
#[cfg(test)]
mod tests;

use std::{fmt::Write as _, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

pub use http::serve_metrics;

use thinbak_proto::is_hidden;

use crate::{health::State, repository::Repository};

/// Volumes that get a time series each; the rest is counted in `thinbak_volumes` only.
const MAX_VOLUMES: u32 = 10_000;

/// A kind of work and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    job: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVolume {
    volume: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCause {
    cause: &'static str,
}

/// Work whose outcomes are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Job {
    Backup,
    Prune,
    Collect,
    Verify,
    CatalogueBackup,
}

impl Job {
    fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Prune => "prune",
            Self::Collect => "collect",
            Self::Verify => "verify",
            Self::CatalogueBackup => "catalogue_backup",
        }
    }
}

/// What a process has counted.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    jobs: Family<Ended, Counter>,
    received: Counter,
    stored: Counter,
    freed: Counter,
}

impl Metrics {
    /// Counts a piece of work that has ended.
    pub(crate) fn ended(&self, job: Job, good: bool) {
        let outcome = if good { "ok" } else { "failed" };
        self.jobs.get_or_create(&Ended { job: job.name(), outcome }).inc();
    }

    /// Counts what a committed backup brought, in bytes.
    pub(crate) fn backed_up(&self, changed: u64, stored: u64) {
        self.received.inc_by(changed);
        self.stored.inc_by(stored);
    }

    /// Counts what a collection gave back, in bytes.
    pub(crate) fn freed(&self, bytes: u64) {
        self.freed.inc_by(bytes);
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("jobs", "Work that has ended, by outcome", self.jobs.clone());
        let bytes = |registry: &mut Registry, name: &str, help: &str, counter: &Counter| {
            registry.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        bytes(registry, "backed_up", "Volume bytes that committed backups named as changed", &self.received);
        bytes(registry, "backup_stored", "Bytes that committed backups added to the packs", &self.stored);
        bytes(registry, "collected", "Bytes that collections gave back", &self.freed);
    }
}

type Number = Gauge<u64, AtomicU64>;

/// All metrics of a repository, as text. Never fails: what cannot be asked for is left out, and the health says why.
pub(crate) async fn text(repository: &Repository) -> String {
    let mut registry = Registry::with_prefix("thinbak");
    repository.metrics.register(&mut registry);
    health(repository, &mut registry).await;
    sizes(repository, &mut registry).await;
    volumes(repository, &mut registry).await;
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        text.clear();
        // A comment, which every reader of the format takes.
        let _ = writeln!(text, "# the metrics cannot be written: {error}");
    }
    text
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(value));
}

async fn health(repository: &Repository, registry: &mut Registry) {
    let health = repository.health().await;
    gauge(registry, "up", "1 unless nothing works", u64::from(health.state() != State::Down));
    gauge(registry, "degraded", "1 when something is wrong", u64::from(health.state() != State::Ok));
    let causes = Family::<OfCause, Number>::default();
    for (cause, _) in &health.causes {
        causes.get_or_create(&OfCause { cause: cause.name() }).set(1);
    }
    registry.register("degraded_cause", "1 for everything that is wrong now", causes);
}

async fn sizes(repository: &Repository, registry: &mut Registry) {
    let store = repository.store.stats();
    let sizes = Family::<OfKind, Number>::default();
    for (kind, bytes) in [
        ("packs", store.pack_bytes),
        ("chunks_plain", store.chunk_plain_bytes),
        ("chunks_stored", store.chunk_stored_bytes),
        ("map_nodes", store.map_node_bytes),
        ("index", store.index_bytes),
        ("catalogue", repository.catalogue.disk_bytes()),
    ] {
        sizes.get_or_create(&OfKind { kind }).set(bytes);
    }
    registry.register_with_unit("repository", "What the repository holds and takes", Unit::Bytes, sizes);
    gauge(registry, "packs", "Packs", store.packs);
    gauge(registry, "chunks", "Distinct chunks", store.chunks);
    verification(repository, registry).await;
    gauge(registry, "sessions", "Backups under way", repository.sessions.count());
    if let Some(bytes) = repository.store.available_bytes().await {
        let room = ConstGauge::new(bytes);
        registry.register_with_unit("free", "Room for new packs, without the reserve", Unit::Bytes, room);
    }
    if let Ok(totals) = repository.catalogue.totals().await {
        gauge(registry, "volumes", "Volumes with a generation", totals.volumes);
        gauge(registry, "generations", "Generations that can be restored", totals.generations);
        let logical = ConstGauge::new(totals.mapped_bytes);
        registry.register_with_unit(
            "logical",
            "Mapped bytes of all generations together",
            Unit::Bytes,
            logical,
        );
        let ratio = totals.mapped_bytes as f64 / store.chunk_stored_bytes.max(1) as f64;
        let help = "Mapped bytes of all generations for each byte of stored chunks";
        registry.register("dedup_ratio", help, ConstGauge::new(ratio));
    }
}

async fn verification(repository: &Repository, registry: &mut Registry) {
    if let Ok(unhealed) = repository.catalogue.unhealed().await {
        let help = "Damaged records that nothing has replaced yet";
        gauge(registry, "damaged_records", help, unhealed.records);
        if let Some(oldest) = unhealed.oldest_found_at_ms {
            let (help, oldest) = ("Unix time when the oldest of them was found", oldest as f64 / 1000.0);
            registry.register("oldest_damage_timestamp_seconds", help, ConstGauge::new(oldest));
        }
    }
    let store = repository.store.clone();
    let packs = tokio::task::spawn_blocking(move || store.pack_numbers()).await;
    let (Ok(Ok(packs)), Ok(verified)) = (packs, repository.catalogue.verifications().await) else { return };
    let never = packs.iter().filter(|pack| !verified.contains_key(pack)).count() as u64;
    gauge(registry, "packs_never_verified", "Packs that no verification has read whole", never);
    if let Some(oldest) = packs.iter().filter_map(|pack| verified.get(pack)).min() {
        let help = "Unix time of the verification that is the longest ago, of packs that had one";
        let oldest = ConstGauge::new(*oldest as f64 / 1000.0);
        registry.register("oldest_verification_timestamp_seconds", help, oldest);
    }
}

async fn volumes(repository: &Repository, registry: &mut Registry) {
    let Ok(volumes) = repository.catalogue.volumes("", MAX_VOLUMES).await else { return };
    let last = Family::<OfVolume, Gauge<f64, AtomicU64>>::default();
    // What a pool looks like is stored when that has changed: long ago is no failure.
    for volume in volumes.into_iter().filter(|volume| !is_hidden(&volume.name)) {
        let seconds = volume.latest_created_at_ms as f64 / 1000.0;
        last.get_or_create(&OfVolume { volume: volume.name }).set(seconds);
    }
    let help = "Unix time of the newest generation";
    registry.register("last_success_timestamp_seconds", help, last);
}
