//! Lists among very many generations.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use thinbak_proto::v1::{ListVolumesRequest, StatsRequest};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    Settings,
    place::Place,
    report::{self, say},
    session::{Client, Volume},
};

/// Volumes that are backed up at a time.
const AT_A_TIME: usize = 16;
/// Of which the median is taken.
const RUNS: usize = 5;

/// What lists took.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) generations: u64,
    pub(crate) volumes: u64,
    /// Generations a second while they were made.
    pub(crate) rate: f64,
    pub(crate) catalogue_bytes: f64,
    pub(crate) open: Duration,
    pub(crate) one_volume: Duration,
    pub(crate) newest: Duration,
    pub(crate) everything: Duration,
    pub(crate) volumes_call: Duration,
    pub(crate) stats_call: Duration,
    pub(crate) nothing: Duration,
}

/// Commits the generations of small volumes through the service, and lists.
pub(crate) fn measure(runtime: &Runtime, place: &mut Place, settings: &Settings) -> Result<Listing> {
    let (volumes, each) = (settings.volumes, settings.generations.div_ceil(settings.volumes));
    let mut listing = Listing { generations: volumes * each, volumes, ..Listing::default() };
    place.settle()?;
    let before = place.sizes()?;
    place.open()?;
    let since = Instant::now();
    runtime.block_on(commit_all(place, volumes, each))?;
    listing.rate = listing.generations as f64 / since.elapsed().as_secs_f64();
    say(&format!(
        "  {} generations at {:.0} a second, load {}",
        listing.generations,
        listing.rate,
        report::load()
    ));
    place.settle()?;
    listing.catalogue_bytes = place.sizes()?.since(&before).catalogue as f64 / listing.generations as f64;
    listing.open = place.open_cold()?;

    let name = name_of(volumes / 2);
    listing.nothing = timed(place, &["--version"], 1)?;
    listing.one_volume = timed(place, &["generation", "list", &name], each)?;
    listing.newest = timed(place, &["generation", "list", "--limit", "1"], volumes)?;
    listing.everything = timed(place, &["generation", "list"], listing.generations)?;
    runtime.block_on(async {
        let mut client = Client::connect(place.url()?).await?.repository();
        let since = Instant::now();
        let (mut found, mut list) = (0, ListVolumesRequest::default());
        loop {
            let page = client.list_volumes(list).await?.into_inner();
            found += page.volumes.len();
            if page.next_page_token.is_empty() {
                break;
            }
            list = ListVolumesRequest { page_token: page.next_page_token, ..ListVolumesRequest::default() };
        }
        listing.volumes_call = since.elapsed();
        ensure!(found as u64 >= volumes, "{found} volumes");
        let since = Instant::now();
        let stats = client.stats(StatsRequest {}).await?.into_inner();
        listing.stats_call = since.elapsed();
        ensure!(stats.generations >= listing.generations, "{} generations", stats.generations);
        Ok(())
    })?;
    Ok(listing)
}

fn name_of(volume: u64) -> String {
    format!("bench/pool/v{volume:05}")
}

async fn commit_all(place: &Place, volumes: u64, each: u64) -> Result<()> {
    let client = Client::connect(place.url()?).await?;
    let mut tasks = JoinSet::new();
    for volume in 0..volumes {
        if tasks.len() >= AT_A_TIME
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let client = client.clone();
        tasks.spawn(async move {
            let mut volume = Volume::new(&name_of(volume));
            for _ in 0..each {
                client.grow(&mut volume, 0).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Median of a command that prints at least so many lines, from its start to its end.
fn timed(place: &Place, words: &[&str], lines: u64) -> Result<Duration> {
    let arguments = [&["--server", place.url()?], words].concat();
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let since = Instant::now();
        let outcome = place.thinbak.ok(&arguments)?;
        times.push(since.elapsed());
        let found = outcome.text().lines().count() as u64;
        ensure!(found >= lines, "{words:?} printed {found} lines instead of {lines}");
    }
    times.sort_unstable();
    Ok(times.get(RUNS / 2).copied().unwrap_or_default())
}
