//! The chunk index and the catalogue as they grow: what a chunk costs on disk, how fast chunks come in and are found,
//! what an unchanged volume costs, how long a list takes among very many generations.
//!
//! `cargo build --release -p thinbak-agent -p thinbak-server && cargo bench -p thinbak-tests --bench index_scale`, with
//! `THINBAK_SCALE_CHUNKS=1000000,10000000,50000000` (where it measures), `THINBAK_SCALE_STEP=1000000` (chunks that a
//! generation brings), `THINBAK_SCALE_LOOKUPS=409600`, `THINBAK_SCALE_GENERATIONS=100000` and
//! `THINBAK_SCALE_VOLUMES=100` (among which these are spread; one more has the chunks). About 320 bytes of scratch space
//! in TMPDIR for each chunk.
//!
//! Everything goes through a running `thinbak-server` and the calls that an agent makes: a query for each 4096 chunks,
//! then a batch with those that are missing. The chunks are the smallest that are allowed, each different, and compress
//! to 22 bytes, so that hardly anything but index, maps and packs' records is measured. Asserts nothing about speed; that every
//! answer is right is asserted.

#[path = "index_scale/chunks.rs"]
mod chunks;
#[path = "index_scale/generations.rs"]
mod generations;
#[path = "index_scale/place.rs"]
mod place;
#[path = "index_scale/report.rs"]
mod report;
#[path = "index_scale/session.rs"]
mod session;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use thinbak_proto::ChunkId;
use tokio::runtime::Runtime;

use self::{
    place::{Place, Sizes},
    report::{Mark, Rate, Report, say},
    session::{Client, Volume},
};

/// Unchanged generations that the mean cost is taken of.
const UNCHANGED: u64 = 100;

struct Settings {
    marks: Vec<u64>,
    step: u64,
    lookups: u64,
    generations: u64,
    volumes: u64,
}

fn main() -> Result<()> {
    let settings = Settings::read()?;
    let runtime = Runtime::new()?;
    let mut place = Place::new()?;
    let mut volume = Volume::new("bench/pool/scale");
    let mut report = Report::default();
    report::surroundings(place.dir())?;
    for mark in &settings.marks {
        let measured = grow(&settings, &runtime, &mut place, &mut volume, *mark)?;
        report.add(measured);
    }
    if settings.generations > 0 {
        report.listing = Some(generations::measure(&runtime, &mut place, &settings)?);
    }
    report.print();
    Ok(())
}

impl Settings {
    fn read() -> Result<Self> {
        let marks =
            std::env::var("THINBAK_SCALE_CHUNKS").unwrap_or_else(|_| "1000000,10000000,50000000".to_owned());
        let marks = marks.split(',').map(|text| text.trim().parse()).collect::<Result<Vec<u64>, _>>();
        Ok(Self {
            marks: marks.context("THINBAK_SCALE_CHUNKS is no list of numbers")?,
            step: setting("THINBAK_SCALE_STEP", 1_000_000)?.max(1),
            lookups: setting("THINBAK_SCALE_LOOKUPS", 409_600)?,
            generations: setting("THINBAK_SCALE_GENERATIONS", 100_000)?,
            volumes: setting("THINBAK_SCALE_VOLUMES", 100)?.max(1),
        })
    }
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(default),
    }
}

/// Brings the volume to `chunks` chunks and measures there.
fn grow(
    settings: &Settings,
    runtime: &Runtime,
    place: &mut Place,
    volume: &mut Volume,
    chunks: u64,
) -> Result<Mark> {
    let mut steps: Vec<Step> = Vec::new();
    while volume.chunks < chunks {
        let (first, since, cpu_before) = (volume.chunks, Instant::now(), place.cpu_time()?);
        let end = (first + settings.step).min(chunks);
        runtime.block_on(async { Client::connect(place.url()?).await?.grow(volume, end).await })?;
        let (took, cpu) = (since.elapsed(), place.cpu_time()?.saturating_sub(cpu_before));
        steps.push(Step { chunks: end - first, took, cpu });
        let rate = (end - first) as f64 / took.as_secs_f64();
        let peak = place.peak_rss().unwrap_or_default() as f64 / f64::from(1 << 20);
        say(&format!("  {end} chunks: {rate:.0} chunks/s, peak {peak:.0} MiB, load {}", report::load()));
    }
    let peak_rss = place.peak_rss().context("no peak of the server's memory")?;
    let mut mark = Mark { chunks, peak_rss, ..Mark::default() };
    mark.ingest = rate_of_last(&steps, chunks / 10);

    // What is merged behind those who write is part of what writing costs, not of what looking up does.
    place.quiet()?;
    look_up(settings, runtime, place, volume, &mut mark)?;
    mark.after_kill = place.kill_and_open()?;
    place.quiet()?;
    place.stop()?;
    mark.sizes = place.sizes()?;
    mark.cold_open = place.open_cold()?;
    let ids = chunks::known(chunks, settings.lookups / 8, 3);
    mark.cold_known = timed_look_up(runtime, place, volume, &ids, false)?;

    mark.unchanged_one = unchanged(runtime, place, volume, 1)?;
    mark.unchanged_mean = unchanged(runtime, place, volume, UNCHANGED)?;
    say(&format!("  measured at {chunks} chunks: {mark:?}"));
    Ok(mark)
}

/// A generation that brought chunks.
struct Step {
    chunks: u64,
    took: Duration,
    /// Of the server.
    cpu: Duration,
}

/// The last steps that brought at least `wanted` chunks, or the last one.
fn rate_of_last(steps: &[Step], wanted: u64) -> Rate {
    let (mut chunks, mut took, mut cpu) = (0, Duration::ZERO, Duration::ZERO);
    for step in steps.iter().rev() {
        if chunks > 0 && chunks + step.chunks > wanted {
            break;
        }
        chunks += step.chunks;
        took += step.took;
        cpu += step.cpu;
    }
    Rate::new(chunks, took, cpu)
}

fn look_up(
    settings: &Settings,
    runtime: &Runtime,
    place: &Place,
    volume: &Volume,
    mark: &mut Mark,
) -> Result<()> {
    let known = chunks::known(mark.chunks, settings.lookups, 1);
    let unknown = chunks::unknown(settings.lookups, 2);
    mark.known = timed_look_up(runtime, place, volume, &known, false)?;
    mark.unknown = timed_look_up(runtime, place, volume, &unknown, true)?;
    Ok(())
}

/// Asks about `ids`, all of which are missing, or none.
fn timed_look_up(
    runtime: &Runtime,
    place: &Place,
    volume: &Volume,
    ids: &[ChunkId],
    missing: bool,
) -> Result<Rate> {
    let before = place.cpu_time()?;
    let took = runtime
        .block_on(async { Client::connect(place.url()?).await?.look_up(volume, ids, missing).await })?;
    Ok(Rate::new(ids.len() as u64, took, place.cpu_time()?.saturating_sub(before)))
}

/// By how many bytes of disk a generation of the unchanged volume makes the repository grow, the mean of `count` such, from
/// one stop of the server to the next.
fn unchanged(runtime: &Runtime, place: &mut Place, volume: &mut Volume, count: u64) -> Result<Sizes> {
    place.settle()?;
    let before = place.sizes()?;
    place.open()?;
    for _ in 0..count {
        let chunks = volume.chunks;
        runtime.block_on(async { Client::connect(place.url()?).await?.grow(volume, chunks).await })?;
    }
    place.settle()?;
    let after = place.sizes()?;
    place.open()?;
    Ok(after.since(&before).each(count))
}
