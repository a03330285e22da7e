//! Metrics of the agent in the text format of Prometheus, over HTTP on a listener of their own.
//!
//! Counters live as long as the process. Gauges are asked for when somebody scrapes.

use std::{
    fmt::Write as _,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
};

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Registry,
};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{BackupState, BackupStatusResponse, JobInfo, VolumeBackup},
};
use tokio::net::TcpListener;

use crate::schedule::{Keeper, State as Remembered, status};

/// Volumes that get time series of their own.
const MAX_VOLUMES: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfJob {
    job: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfVolume {
    job: String,
    volume: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    state: &'static str,
}

type Number = Gauge<f64, AtomicU64>;

/// Listens at an address.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener, Failed> {
    TcpListener::bind(address).await.map_err(|error| {
        Failed::new(FailureKind::Failed, format!("tell metrics at {address}: {error}"))
            .with_hint("another address can be given as `metrics` in agent.toml")
    })
}

/// Serves `/metrics` for ever.
pub(crate) async fn serve(keeper: Arc<Keeper>, listener: TcpListener) -> io::Result<()> {
    axum::serve(listener, Router::new().route("/metrics", get(metrics)).with_state(keeper)).await
}

async fn metrics(State(keeper): State<Arc<Keeper>>) -> Response {
    const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, FORMAT)], text(&keeper).await).into_response()
}

/// All metrics, as text. What cannot be asked for is left out, and `thinbak_agent_status_known` is 0.
async fn text(keeper: &Keeper) -> String {
    let mut registry = Registry::with_prefix("thinbak_agent");
    let counters = keeper.counters();
    registry.register("job_runs", "Runs that have ended, by outcome", counters.runs.clone());
    let help = "Backups of volumes in jobs that have ended, by outcome";
    registry.register("volume_backups", help, counters.volumes.clone());
    let known = status(keeper).await;
    let help = "1 when volumes and jobs could be looked at";
    registry.register("status_known", help, ConstGauge::new(u64::from(known.is_ok())));
    if let Ok(status) = &known {
        of_states(status, &mut registry);
        of_jobs(&status.jobs, &mut registry);
        let remembered = keeper.remembered().await.map(|(state, _)| state).unwrap_or_default();
        let covered = status.volumes.iter().filter(|volume| !volume.job.is_empty()).take(MAX_VOLUMES);
        of_volumes(covered, &remembered, &mut registry);
    }
    let mut text = String::new();
    if let Err(error) = encode(&mut text, &registry) {
        text.clear();
        // A comment, which every reader of the format takes.
        let _ = writeln!(text, "# the metrics cannot be written: {error}");
    }
    text
}

fn of_states(status: &BackupStatusResponse, registry: &mut Registry) {
    let counts = Family::<OfState, Gauge>::default();
    for (state, name) in [
        (BackupState::Ok, "ok"),
        (BackupState::Waiting, "waiting"),
        (BackupState::Overdue, "overdue"),
        (BackupState::Failed, "failed"),
        (BackupState::Uncovered, "uncovered"),
        (BackupState::LeftOut, "left_out"),
    ] {
        let count = status.volumes.iter().filter(|volume| volume.state() == state).count();
        counts.get_or_create(&OfState { state: name }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register(
        "volumes",
        "Volumes by how their backup is, once for each job that covers them",
        counts,
    );
    let problems = ConstGauge::new(status.problems.len() as u64);
    registry.register("problems", "What thinbak status calls wrong beside volumes", problems);
}

fn of_jobs(jobs: &[JobInfo], registry: &mut Registry) {
    let mut each = |name: &str, help: &str, value: fn(&JobInfo) -> Option<f64>| {
        let family = Family::<OfJob, Number>::default();
        for job in jobs {
            if let Some(value) = value(job) {
                family.get_or_create(&OfJob { job: job.name.clone() }).set(value);
            }
        }
        registry.register(name, help, family);
    };
    let help = "Unix time of the end of the last run in which all went well";
    each("job_last_success_timestamp_seconds", help, |job| seconds(job.last_success_ms));
    let help = "Unix time of the last run's beginning";
    each("job_last_start_timestamp_seconds", help, |job| seconds(job.last_start_ms));
    let help = "Unix time of the last failure";
    each("job_last_failure_timestamp_seconds", help, |job| seconds(job.last_failure_ms));
    each("job_next_run_timestamp_seconds", "Unix time of the next run", |job| seconds(job.next_run_ms));
    each("job_running", "1 while the job runs", |job| Some(f64::from(job.running_since_ms > 0)));
    each("job_last_duration_seconds", "How long the last run took", |job| {
        let ended = job.last_end_ms.checked_sub(job.last_start_ms).filter(|_| job.last_start_ms > 0);
        ended.map(|ms| ms as f64 / 1000.0)
    });
}

fn of_volumes<'a>(
    volumes: impl Iterator<Item = &'a VolumeBackup> + Clone,
    remembered: &Remembered,
    registry: &mut Registry,
) {
    let done =
        |volume: &VolumeBackup| remembered.jobs.get(&volume.job)?.volumes.get(&volume.uuid)?.done.clone();
    let mut each = |name: &str, help: &str, value: &dyn Fn(&VolumeBackup) -> Option<f64>| {
        let family = Family::<OfVolume, Number>::default();
        for volume in volumes.clone() {
            if let Some(value) = value(volume) {
                let label = format!("{}/{}", volume.pool, volume.volume);
                family.get_or_create(&OfVolume { job: volume.job.clone(), volume: label }).set(value);
            }
        }
        registry.register(name, help, family);
    };
    let help = "Unix time of the last backup that went well";
    each("volume_last_success_timestamp_seconds", help, &|volume| seconds(volume.last_success_ms));
    let help = "Unix time of the last backup that failed";
    each("volume_last_failure_timestamp_seconds", help, &|volume| seconds(volume.last_failure_ms));
    let help = "How long the last good backup took";
    each("volume_last_duration_seconds", help, &|volume| Some(done(volume)?.seconds));
    let help = "Bytes that the last good backup named as changed";
    each("volume_last_changed_bytes", help, &|volume| Some(done(volume)?.changed_bytes as f64));
    let help = "Bytes that it read of the volume";
    each("volume_last_read_bytes", help, &|volume| Some(done(volume)?.read_bytes as f64));
    let help = "Bytes of chunks that it sent";
    each("volume_last_sent_bytes", help, &|volume| Some(done(volume)?.sent_bytes as f64));
    let help = "How long it held the pool's metadata snapshot, with the others of the same call";
    each("volume_last_msnap_held_seconds", help, &|volume| Some(done(volume)?.msnap_held_seconds));
}

fn seconds(ms: u64) -> Option<f64> {
    (ms > 0).then_some(ms as f64 / 1000.0)
}
