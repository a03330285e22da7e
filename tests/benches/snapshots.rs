//! What a snapshot costs as they become many, and as they become deep. Prints a curve; asserts nothing about time.
//!
//! `THINBAK_BENCH_SNAPSHOTS` (10000) is how many there are in the end, `THINBAK_BENCH_DEPTH` (1000) how deep.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use thinbak_engine::{BlockSize, CreateOptions, EmbeddedPool, PoolTable};

const BLOCK: u64 = 64 * 1024;
/// Operations that a point of a curve is the mean of, where there are as many.
const WINDOW: u64 = 100;

fn main() -> Result<()> {
    let count = setting("THINBAK_BENCH_SNAPSHOTS", 10_000)?;
    let depth = setting("THINBAK_BENCH_DEPTH", 1_000)?;
    many(count)?;
    deep(depth)
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is no number")),
        Err(_) => Ok(default),
    }
}

fn pool(dir: &std::path::Path) -> Result<EmbeddedPool> {
    let options = CreateOptions {
        name: "bench".to_owned(),
        data_bytes: 16 << 30,
        block_size: BlockSize::from_bytes(BLOCK)?,
        metadata_bytes: Some(1 << 30),
        devices: None,
        table: PoolTable::without_waiting(),
    };
    Ok(EmbeddedPool::create(dir, options)?)
}

/// Times of operations, by what they were.
#[derive(Default)]
struct Times([Duration; 4]);

impl Times {
    fn time<T>(&mut self, which: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let since = Instant::now();
        let result = work()?;
        if let Some(sum) = self.0.get_mut(which) {
            *sum += since.elapsed();
        }
        Ok(result)
    }

    fn print(&self, at: u64, operations: u64) {
        let mean = |sum: &Duration| sum.as_secs_f64() * 1000.0 / operations as f64;
        let means: Vec<String> = self.0.iter().map(|sum| format!("{:>12.3}", mean(sum))).collect();
        say(&format!("{at:>10} {}", means.join(" ")));
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
fn say(text: &str) {
    println!("{text}");
}

/// Ends of the windows: 1, 10, 100, ... and the last.
fn is_point(at: u64, last: u64) -> bool {
    at == last || (at > 0 && at == 10_u64.pow(at.ilog10()))
}

/// Snapshots of one volume, which is written in between.
fn many(count: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pool = pool(&dir.path().join("p"))?;
    let volume = pool.create_volume("v", 1 << 30)?;
    for block in 0..1024 {
        pool.write(&volume, block * BLOCK, &[1; 4096])?;
    }
    pool.flush()?;
    say("many snapshots of one volume: mean ms of the last operations");
    say("        at     snapshot   write+sync      look up         read");
    let (mut times, mut since) = (Times::default(), 0);
    for number in 1..=count {
        let name = format!("s{number}");
        times.time(0, || Ok(pool.take_snapshots(&[("v", &name)])?))?;
        times.time(1, || {
            pool.write(&volume, number * 7 % 1024 * BLOCK, &[2; 4096])?;
            Ok(pool.flush()?)
        })?;
        let early = times.time(2, || Ok(pool.snapshot("v", &format!("s{}", number.div_ceil(2)))?))?;
        times.time(3, || Ok(pool.read(&early, 500 * BLOCK, &mut [0; 4096])?))?;
        since += 1;
        if is_point(number, count) {
            times.print(number, since);
        }
        if is_point(number, count) || since == WINDOW {
            (times, since) = (Times::default(), 0);
        }
    }
    let began = Instant::now();
    let devices = pool.volumes().len();
    say(&format!("list of {devices} devices: {:.3} ms", began.elapsed().as_secs_f64() * 1000.0));
    let path = pool.dir().to_owned();
    drop(pool);
    let began = Instant::now();
    let pool = EmbeddedPool::open(&path)?;
    say(&format!("open: {:.3} ms", began.elapsed().as_secs_f64() * 1000.0));
    let began = Instant::now();
    for number in 1..=WINDOW.min(count) {
        pool.remove_snapshot("v", &format!("s{number}"))?;
    }
    let mean = began.elapsed().as_secs_f64() * 1000.0 / WINDOW.min(count) as f64;
    say(&format!("remove a snapshot of them: {mean:.3} ms"));
    Ok(())
}

/// Snapshots of snapshots of snapshots, each written.
fn deep(depth: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let pool = pool(&dir.path().join("p"))?;
    let mut top = pool.create_volume("v0", 1 << 30)?;
    for block in 0..1024 {
        pool.write(&top, block * BLOCK, &[1; 4096])?;
    }
    pool.flush()?;
    say("snapshots of snapshots: mean ms of the last operations");
    say("  at depth     snapshot   write+sync      look up         read");
    let (mut times, mut since) = (Times::default(), 0);
    for level in 1..=depth {
        let name = format!("v{level}");
        top = times.time(0, || {
            let head = pool.create_head(top.size_bytes, Some(top.device))?;
            Ok(pool.publish_head(&head, &name, &[])?)
        })?;
        times.time(1, || {
            pool.write(&top, level * 7 % 1024 * BLOCK, &[2; 4096])?;
            Ok(pool.flush()?)
        })?;
        times.time(2, || Ok(pool.volume(&name)?))?;
        times.time(3, || Ok(pool.read(&top, 500 * BLOCK, &mut [0; 4096])?))?;
        since += 1;
        if is_point(level, depth) {
            times.print(level, since);
        }
        if is_point(level, depth) || since == WINDOW {
            (times, since) = (Times::default(), 0);
        }
    }
    Ok(())
}
