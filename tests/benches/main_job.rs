//! The main job on a realistic volume: first backup, backup of 1 %, restore, each held against what this
//! machine can do at best, measured in the same run.
//!
//! `cargo bench -p thinbak-tests --bench main_job` (THINBAK_BENCH_GIB=4, THINBAK_BENCH_RUNS=1; scratch space
//! of about five times that in TMPDIR). Asserts nothing about speed; that what was restored is what was
//! backed up is asserted.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::Value;
use thinbak_agent::sink::chunk_compressor;
use thinbak_tests::{
    Limits, Mix, Program, Scratch, Timed, changed_copy, hash_file, import, measure, program, setting,
    summary_of, threads, timed, write_changes, write_mix,
};

const BLOCK: u64 = 64 * 1024;

fn main() -> Result<()> {
    let gib: f64 = setting("THINBAK_BENCH_GIB", 4.0);
    let runs = setting("THINBAK_BENCH_RUNS", 1.0) as usize;
    let mix = Mix { blocks: (gib * 16384.0) as usize, seed: 7 };
    let scratch = Scratch::new()?;
    let (first, second) = (scratch.join("first.img"), scratch.join("second.img"));
    say(&format!("writing a volume of {gib} GiB: 40 % incompressible, 40 % files of /usr, 20 % zeros"));
    write_mix(&first, mix)?;
    let changed = changed_copy(&first, &second, mix, mix.blocks / 100)?;
    say("measuring this machine's limits on that volume, one thread each");
    let limits = measure(&first, scratch.path(), chunk_compressor(BLOCK as u32)?)?;
    print_limits(&limits);
    for run in 1..=runs {
        say(&format!("run {run} of {runs}"));
        let folder = scratch.join(&format!("run-{run}"));
        std::fs::create_dir(&folder)?;
        one_run(&folder, &first, &second, &changed, &limits)?;
        std::fs::remove_dir_all(folder)?;
    }
    Ok(())
}

fn one_run(folder: &Path, first: &Path, second: &Path, changed: &[u64], limits: &Limits) -> Result<()> {
    let thinbak = program("thinbak", &folder.join("state"))?;
    let server = program("thinbak-server", &folder.join("state"))?;
    let (pool, repo) = (folder.join("pool"), folder.join("repo"));
    let pool_name = format!("dir:{}", pool.display());
    let volume = format!("{pool_name}/volume");
    let repo_name = repo.display().to_string();
    server.ok(&["init", "--repo", &repo_name])?;
    let size = (limits.bytes * 3).next_multiple_of(BLOCK);
    thinbak.ok(&["pool", "create", &pool_name, "--size", &size.to_string()])?;
    let since = Instant::now();
    import(&thinbak, &volume, first)?;
    say(&format!("volume import: {:.2} s", since.elapsed().as_secs_f64()));

    let backup = ["--repo", &repo_name, "--json", "backup", &volume];
    let full = run(&thinbak, &backup)?;
    line("first backup", &full, limits.bytes, Some(limits.backup()))?;
    write_changes(&pool, "volume", second, changed)?;
    let one = run(&thinbak, &backup)?;
    let changed_bytes = changed.len() as u64 * BLOCK;
    let share = changed_bytes as f64 / limits.bytes as f64;
    line("backup of 1 %", &one, changed_bytes, Some(limits.backup().mul_f64(share)))?;
    let none = run(&thinbak, &backup)?;
    line("backup of nothing", &none, 0, None)?;

    let name = summary_of(&one.outcome)?;
    let name = name.get("volume").and_then(Value::as_str).unwrap_or_default().to_owned();
    for (number, source) in [(1, first), (2, second)] {
        let (target, restored) = (format!("{pool_name}/restored"), format!("{name}:{number}"));
        let done = run(&thinbak, &["--repo", &repo_name, "--json", "restore", &restored, "--to", &target])?;
        line(&format!("restore of generation {number}"), &done, limits.bytes, Some(limits.restore()))?;
        let copy = folder.join("copy.img");
        let mut export = thinbak.command(&["volume", "export", &target]);
        ensure!(export.stdout(std::fs::File::create(&copy)?).status()?.success(), "export failed");
        ensure!(hash_file(&copy)? == hash_file(source)?, "generation {number} was restored wrongly");
        std::fs::remove_file(copy)?;
        thinbak.ok(&["volume", "remove", &target])?;
    }
    Ok(())
}

fn run(program: &Program, arguments: &[&str]) -> Result<Timed> {
    let Timed { outcome, cost } = timed(&mut program.command(arguments), None)?;
    Ok(Timed { outcome: outcome.expect(0)?, cost })
}

fn line(what: &str, timed: &Timed, bytes: u64, limit: Option<Duration>) -> Result<()> {
    let summary = summary_of(&timed.outcome)?;
    let mib = |field: &str| summary.get(field).and_then(Value::as_u64).unwrap_or(0) as f64 / 1048576.0;
    let seconds = timed.cost.wall.as_secs_f64();
    let ratio = limit.map_or(String::new(), |limit| {
        format!(
            ", {:.0} % of the limit of {:.2} s",
            100.0 * limit.as_secs_f64() / seconds,
            limit.as_secs_f64()
        )
    });
    say(&format!(
        "{what}: {seconds:.2} s, {:.0} MB/s{ratio}; read {:.1} MiB, sent {:.1} MiB, stored {:.1} MiB, msnap held {:.3} s, peak {:.0} MiB",
        bytes as f64 / seconds / 1e6,
        mib("read_bytes"),
        mib("sent_bytes"),
        mib("stored_bytes"),
        summary.get("msnap_held_seconds").and_then(Value::as_f64).unwrap_or(0.0),
        timed.cost.peak_rss as f64 / 1048576.0,
    ));
    Ok(())
}

fn print_limits(limits: &Limits) {
    let rate = |what: &str, took: Duration, bytes: u64| {
        say(&format!(
            "  {what}: {:.2} s, {:.0} MB/s",
            took.as_secs_f64(),
            bytes as f64 / took.as_secs_f64() / 1e6
        ));
    };
    rate("read", limits.read, limits.bytes);
    rate("BLAKE3", limits.hash, limits.bytes);
    rate("zstd", limits.compress, limits.bytes);
    rate("zstd -d", limits.decompress, limits.bytes);
    rate("write compressed, fsync", limits.write_compressed, limits.compressed_bytes);
    rate("write plain, fsync", limits.write_plain, limits.bytes);
    say(&format!(
        "  zstd leaves {:.1} %; {} threads",
        100.0 * limits.compressed_bytes as f64 / limits.bytes as f64,
        threads()
    ));
}

#[expect(clippy::print_stdout, reason = "the report of a benchmark")]
fn say(text: &str) {
    println!("{text}");
}
