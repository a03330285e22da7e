//! What was measured, beside what is wanted.

use std::{path::Path, time::Duration};

use anyhow::Result;

use super::{generations::Listing, place::Sizes};

/// Bytes of disk that index and catalogue may take for a chunk.
const CHUNK_COST: f64 = 100.0;
/// Bytes of disk that a generation of an unchanged volume must stay below.
const UNCHANGED_COST: i64 = 16 << 10;
/// Fastest and slowest of a curve.
const FLAT: f64 = 2.0;
/// Most memory of the server, in bytes, however much is stored.
const MEMORY: u64 = 512 << 20;
/// What nobody notices.
const INSTANT: Duration = Duration::from_millis(100);

/// How fast something went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    /// By the clock.
    pub(crate) a_second: f64,
    /// Microseconds of the server's processor time for each, what it did in the background included.
    pub(crate) cpu_us: f64,
}

impl Rate {
    pub(crate) fn new(count: u64, took: Duration, cpu: Duration) -> Self {
        let count = count as f64;
        Self {
            a_second: count / took.as_secs_f64().max(f64::MIN_POSITIVE),
            cpu_us: cpu.as_secs_f64() * 1e6 / count.max(1.0),
        }
    }

    fn text(self) -> String {
        format!("{:.0} | {:.1}", self.a_second, self.cpu_us)
    }
}

/// What was measured with so many chunks.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    pub(crate) chunks: u64,
    /// Of chunks, over the last tenth of them or the last generation.
    pub(crate) ingest: Rate,
    /// Of ids.
    pub(crate) known: Rate,
    pub(crate) unknown: Rate,
    /// With nothing in the page cache.
    pub(crate) cold_known: Rate,
    pub(crate) sizes: Sizes,
    pub(crate) peak_rss: u64,
    pub(crate) after_kill: Duration,
    pub(crate) cold_open: Duration,
    pub(crate) unchanged_one: Sizes,
    pub(crate) unchanged_mean: Sizes,
}

/// All of it.
#[derive(Default)]
pub(crate) struct Report {
    marks: Vec<Mark>,
    pub(crate) listing: Option<Listing>,
}

impl Report {
    pub(crate) fn add(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    /// Tables in Markdown, and what is met.
    pub(crate) fn print(&self) {
        self.print_table();
        if let Some(listing) = &self.listing {
            print_listing(listing);
        }
        say("\n| target | measured | |\n|---|---|---|");
        for mark in &self.marks {
            let cost = per_chunk(mark.sizes.index + mark.sizes.catalogue, mark.chunks);
            let target =
                format!("index and catalogue at {} chunks: at most {CHUNK_COST} bytes a chunk", mark.chunks);
            verdict(&target, &format!("{cost:.1}"), cost <= CHUNK_COST);
            let cost = mark.unchanged_one.all().max(mark.unchanged_mean.all());
            let target = format!("a generation of {} unchanged chunks: less than 16 KiB", mark.chunks);
            verdict(&target, &format!("{cost} bytes"), cost < UNCHANGED_COST);
        }
        self.flat("ingest", |mark| mark.ingest);
        self.flat("look-ups of known ids", |mark| mark.known);
        self.flat("look-ups of unknown ids", |mark| mark.unknown);
        let peak = self.marks.iter().map(|mark| mark.peak_rss).max().unwrap_or_default();
        let target = format!("bounded memory of the server: at most {} MiB", MEMORY >> 20);
        verdict(&target, &format!("{} MiB", peak >> 20), peak <= MEMORY);
        if let Some(listing) = &self.listing {
            for (what, took) in
                [("of one volume", listing.one_volume), ("of the newest of all volumes", listing.newest)]
            {
                let target = format!(
                    "generation list {what} among {} generations: at most {} ms",
                    listing.generations,
                    INSTANT.as_millis()
                );
                verdict(&target, &format!("{} ms", took.as_millis()), took <= INSTANT);
            }
        }
    }

    fn print_table(&self) {
        say(
            "\n| chunks | ingest chunks/s | CPU us | known ids/s | CPU us | unknown ids/s | CPU us | known ids/s, cold | CPU us | index bytes/chunk | catalogue bytes/chunk | packs bytes/chunk | peak MiB | opens after kill s | opens cold s | unchanged bytes, one | unchanged bytes, mean |",
        );
        say("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
        for mark in &self.marks {
            say(&format!(
                "| {} | {} | {} | {} | {} | {:.1} | {:.3} | {:.1} | {} | {:.3} | {:.3} | {} | {} |",
                mark.chunks,
                mark.ingest.text(),
                mark.known.text(),
                mark.unknown.text(),
                mark.cold_known.text(),
                per_chunk(mark.sizes.index, mark.chunks),
                per_chunk(mark.sizes.catalogue, mark.chunks),
                per_chunk(mark.sizes.packs, mark.chunks),
                mark.peak_rss >> 20,
                mark.after_kill.as_secs_f64(),
                mark.cold_open.as_secs_f64(),
                mark.unchanged_one.all(),
                mark.unchanged_mean.all(),
            ));
        }
    }

    fn flat(&self, what: &str, rate: impl Fn(&Mark) -> Rate) {
        let rates: Vec<Rate> = self.marks.iter().map(rate).collect();
        self.flat_in(&format!("{what} a second"), rates.iter().map(|rate| rate.a_second).collect());
        self.flat_in(
            &format!("{what}, processor time of each"),
            rates.iter().map(|rate| rate.cpu_us).collect(),
        );
    }

    fn flat_in(&self, what: &str, rates: Vec<f64>) {
        let (least, most) =
            rates.iter().fold((f64::MAX, 0.0_f64), |(low, high), rate| (low.min(*rate), high.max(*rate)));
        let ratio = most / least;
        verdict(&format!("{what}: flat within a factor of {FLAT}"), &format!("{ratio:.2}"), ratio <= FLAT);
    }
}

fn print_listing(listing: &Listing) {
    let ms = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1000.0);
    say(&format!(
        "\n{} generations of {} volumes, committed through the service at {:.0} a second; {:.0} bytes of catalogue each; the repository opens cold in {:.3} s\n",
        listing.generations,
        listing.volumes,
        listing.rate,
        listing.catalogue_bytes,
        listing.open.as_secs_f64()
    ));
    say("| command or call | ms |\n|---|---|");
    for (what, took) in [
        ("thinbak --version", listing.nothing),
        ("thinbak generation list VOLUME", listing.one_volume),
        ("thinbak generation list --limit 1", listing.newest),
        ("thinbak generation list", listing.everything),
        ("ListVolumes", listing.volumes_call),
        ("Stats", listing.stats_call),
    ] {
        say(&format!("| {what} | {} |", ms(took)));
    }
}

fn per_chunk(bytes: i64, chunks: u64) -> f64 {
    bytes as f64 / chunks.max(1) as f64
}

fn verdict(target: &str, measured: &str, met: bool) {
    say(&format!("| {target} | {measured} | {} |", if met { "met" } else { "NOT met" }));
}

/// The load of the last minutes.
pub(crate) fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Says what it all runs on.
pub(crate) fn surroundings(dir: &Path) -> Result<()> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!(
        "{} threads of {}, kernel {}, load {}, repository in {}",
        std::thread::available_parallelism()?,
        model.trim_start_matches([':', '\t', ' ']),
        kernel.trim(),
        load(),
        dir.display()
    ));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the report of a benchmark")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
