//! Random writes of 4 KiB through the engine, called directly, beside qcow2 through `qemu-img bench`: on the same file
//! system, in the same order, with a flush after the same number of writes, one at a time.
//!
//! `cargo bench -p thinbak-tests --bench pool_writes` (THINBAK_BENCH_WRITES=20000, THINBAK_BENCH_RUNS=3, scratch space of
//! some GiB in TMPDIR). Both have blocks of 64 KiB and a volume of 1 GiB, and go through the page cache. The two take
//! turns. Nothing is asserted about speed; that what was written is read is.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use thinbak_engine::{Access, BlockSize, DeviceId, FileDevice, Pool};
use thinbak_tests::Scratch;

const VOLUME_BYTES: u64 = 1 << 30;
const BLOCK_BYTES: u64 = 64 << 10;
const WRITE_BYTES: u64 = 4 << 10;
/// Goes through a volume as `qemu-img bench -S` does: all over it, and to another block each time.
const STEP_BYTES: u64 = 40_503 * WRITE_BYTES;

struct Setting {
    writes: u64,
    /// Writes between two flushes; 0 means none before the end.
    flush_every: u64,
}

fn main() -> Result<()> {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (writes, runs) = (number("THINBAK_BENCH_WRITES", 20_000), number("THINBAK_BENCH_RUNS", 3));
    let scratch = Scratch::new()?;
    say(&format!(
        "{writes} writes of 4 KiB to a volume of 1 GiB in blocks of 64 KiB, depth 1, buffered; median of {runs} runs\n\
         in {}; {}",
        scratch.path().display(),
        qemu_version()?
    ));
    say(&format!("{:<46} {:>10} {:>10} {:>7}", "microseconds a write", "thinbak", "qcow2", "ratio"));
    for flush_every in [0, 64, 1] {
        let setting = Setting { writes: if flush_every == 1 { writes / 10 } else { writes }, flush_every };
        for provisioned in [false, true] {
            compare(&scratch, &setting, provisioned, runs)?;
        }
    }
    say("\nOverwrites after each of a chain of snapshots, a flush every 64 writes, 2,000 writes each");
    say(&format!("{:<46} {:>10} {:>10}", "microseconds a write, after snapshot", "thinbak", "qcow2"));
    deepening(&scratch)
}

fn compare(scratch: &Scratch, setting: &Setting, provisioned: bool, runs: u64) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let dir = scratch.join(&format!("run-{run}"));
        std::fs::create_dir(&dir)?;
        let volume = Volume::new(&dir, provisioned)?;
        ours.push(volume.write(0, setting)?);
        volume.verify(setting)?;
        drop(volume);
        let image = qcow2(&dir, provisioned)?;
        theirs.push(qemu_bench(&image, 0, setting)?);
        std::fs::remove_dir_all(&dir)?;
    }
    let flushes = match setting.flush_every {
        0 => "flush at the end".to_owned(),
        every => format!("flush every {every}"),
    };
    let name = format!("{}, {flushes}", if provisioned { "overwrite" } else { "provision" });
    let (ours, theirs) = (per_write(median(ours), setting), per_write(median(theirs), setting));
    say(&format!("{name:<46} {ours:>10.1} {theirs:>10.1} {:>7.2}", ours / theirs));
    Ok(())
}

fn deepening(scratch: &Scratch) -> Result<()> {
    let setting = Setting { writes: 2_000, flush_every: 64 };
    let dir = scratch.join("deep");
    std::fs::create_dir(&dir)?;
    let volume = Volume::new(&dir, true)?;
    let image = qcow2(&dir, true)?;
    let shown = [1, 2, 10, 100, 1_000];
    let few = Setting { writes: 64, flush_every: 64 };
    for depth in 1..=1_000_u32 {
        volume.snapshot(depth)?;
        // A snapshot of qcow2 takes seconds when there are many.
        let theirs_too = depth <= 100;
        if theirs_too {
            run(Command::new("qemu-img").args(["snapshot", "-c", &format!("s{depth}")]).arg(&image))?;
        }
        if shown.contains(&depth) {
            let ours = per_write(volume.write(depth, &setting)?, &setting);
            let theirs = match theirs_too {
                true => format!("{:.1}", per_write(qemu_bench(&image, depth, &setting)?, &setting)),
                false => "-".to_owned(),
            };
            say(&format!("{depth:<46} {ours:>10.1} {theirs:>10}"));
        } else {
            volume.write(depth, &few)?;
            if theirs_too {
                qemu_bench(&image, depth, &few)?;
            }
        }
    }
    Ok(())
}

/// A volume in a pool on two files.
struct Volume {
    pool: Pool,
}

impl Volume {
    fn new(dir: &Path, provisioned: bool) -> Result<Self> {
        let device = |name: &str, bytes| FileDevice::create(&dir.join(name), bytes).map(Arc::new);
        let block_size = BlockSize::from_bytes(BLOCK_BYTES)?;
        let pool = Pool::format(device("metadata", 512 << 20)?, device("data", 8 << 30)?, block_size)?;
        pool.create_thin(DeviceId::new(0)?)?;
        let volume = Self { pool };
        if provisioned {
            let piece = vec![1; 1 << 20];
            for at in (0..VOLUME_BYTES).step_by(1 << 20) {
                volume.pool.write(DeviceId::new(0)?, at, &piece)?;
            }
        }
        volume.pool.commit()?;
        drop(volume);
        // As the peer: opened anew, with nothing in memory.
        let open = |name: &str| FileDevice::open(&dir.join(name), Access::ReadWrite).map(Arc::new);
        Ok(Self { pool: Pool::open(open("metadata")?, open("data")?)? })
    }

    fn snapshot(&self, number: u32) -> Result<()> {
        self.pool.create_snap(DeviceId::new(u64::from(number))?, DeviceId::new(0)?)?;
        Ok(self.pool.commit()?)
    }

    fn write(&self, first: u32, setting: &Setting) -> Result<Duration> {
        let bytes = vec![0xA5; WRITE_BYTES as usize];
        let id = DeviceId::new(0)?;
        let start = Instant::now();
        for (number, at) in (1..).zip(places(first, setting)) {
            self.pool.write(id, at, &bytes)?;
            if setting.flush_every > 0 && number % setting.flush_every == 0 {
                self.pool.commit()?;
            }
        }
        self.pool.commit()?;
        Ok(start.elapsed())
    }

    fn verify(&self, setting: &Setting) -> Result<()> {
        let mut bytes = vec![0; WRITE_BYTES as usize];
        for at in places(0, setting) {
            self.pool.read(DeviceId::new(0)?, at, &mut bytes)?;
            ensure!(bytes.iter().all(|&byte| byte == 0xA5), "the write at {at} is not there");
        }
        Ok(())
    }
}

/// Where the writes go; as `qemu-img bench -o .. -S ..` has it.
fn places(first: u32, setting: &Setting) -> impl Iterator<Item = u64> {
    let begin = begin_of(first);
    (0..setting.writes).map(move |number| (begin + number * STEP_BYTES) % VOLUME_BYTES)
}

/// Each round writes somewhere else in the blocks.
fn begin_of(round: u32) -> u64 {
    u64::from(round) * 7 * WRITE_BYTES % VOLUME_BYTES
}

fn qcow2(dir: &Path, provisioned: bool) -> Result<PathBuf> {
    let image = dir.join("image.qcow2");
    let size = VOLUME_BYTES.to_string();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg(&size))?;
    if provisioned {
        let count = (VOLUME_BYTES >> 20).to_string();
        let mut fill = Command::new("qemu-img");
        fill.args([
            "bench",
            "-q",
            "-w",
            "-f",
            "qcow2",
            "-s",
            "1M",
            "-d",
            "1",
            "-c",
            &count,
            "--pattern",
            "1",
        ]);
        run(fill.arg(&image))?;
    }
    Ok(image)
}

fn qemu_bench(image: &Path, round: u32, setting: &Setting) -> Result<Duration> {
    let [writes, size, step] = [setting.writes, WRITE_BYTES, STEP_BYTES].map(|number| number.to_string());
    let offset = begin_of(round).to_string();
    let interval = if setting.flush_every == 0 { setting.writes } else { setting.flush_every }.to_string();
    let mut bench = Command::new("qemu-img");
    bench.args(["bench", "-w", "-f", "qcow2", "-t", "writeback", "-d", "1", "-c", &writes, "-s", &size]);
    bench.args(["-S", &step, "-o", &offset, "--flush-interval", &interval, "--pattern", "165"]).arg(image);
    let said = run(&mut bench)?;
    // Its own measure, without the start of the process.
    let seconds = said.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(Duration::from_secs_f64(seconds.context("qemu-img bench does not say how long it took")?.parse()?))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().context("qemu-img is in Debian's package qemu-utils")?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn qemu_version() -> Result<String> {
    Ok(run(Command::new("qemu-img").arg("--version"))?.lines().next().unwrap_or_default().to_owned())
}

fn per_write(elapsed: Duration, setting: &Setting) -> f64 {
    elapsed.as_secs_f64() * 1e6 / setting.writes as f64
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

#[expect(clippy::print_stdout, reason = "a benchmark prints what it measures")]
fn say(line: &str) {
    println!("{line}");
}
