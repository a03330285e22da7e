//! A server whose disk is full: backups fail with one clear line, restores go on, the health says so, and when there is
//! room again nobody has to do anything.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{
    Model, OpenPool, Outcome, Program, Scratch, ServerProcess, json_lines, number, program, seed, spawn,
    summary_of,
};

const SIZE: u64 = 48 * 1024 * 1024;

/// A file system of `bytes` in memory, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(place: &'a Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir(place)?;
        let options = format!("size={bytes}");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place);
        ensure!(spawn(&mut command)?.wait()?.success(), "a tmpfs cannot be mounted: root is needed");
        Ok(Self(place))
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Fills a disk up to so many bytes.
fn fill(disk: &Path, ballast: &Path, left: u64) -> Result<()> {
    let room = rustix::fs::statvfs(disk)?;
    let bytes = (room.f_bavail * room.f_frsize).saturating_sub(left);
    std::fs::write(ballast, vec![1; usize::try_from(bytes)?]).context("filling the disk")
}

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Waits until the health says what it should. The server looks at its disk now and then, and tells nobody when that has
/// changed: it can only be asked again. Bounded, so that a health that never changes fails the test.
fn await_health(address: &str, state: &str) -> Result<String> {
    let since = Instant::now();
    loop {
        let health = get(address, "/health")?;
        if health.contains(&format!("\r\n\r\n{state}\n")) {
            return Ok(health);
        }
        ensure!(since.elapsed() < Duration::from_secs(60), "not {state} but {health}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn backup(thinbak: &Program, url: &str, code: i32) -> Result<String> {
    let outcome = thinbak.run(&["--server", url, "backup", "p/v", "--host", "h"])?.expect(code)?;
    Ok(outcome.stderr)
}

#[test]
fn a_full_disk_stops_backups_only_and_room_is_all_it_takes() -> Result<()> {
    let seed = seed()?;
    let scratch = Scratch::new()?;
    let disk = scratch.join("disk");
    let _disk = SmallDisk::mount(&disk, 96 << 20)?;
    let (repo, ballast) = (disk.join("repo"), disk.join("ballast"));
    let server = program("thinbak-server", &scratch.join("state"))?;
    let thinbak = program("thinbak", &scratch.join("state"))?;
    server.ok(&["init", "--repo", &repo.display().to_string()])?;
    let metrics = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let server = server.env("THINBAK_METRICS", &metrics);
    let running = ServerProcess::start(&server, &repo)?;
    let pool = scratch.join("p");
    thinbak.ok(&["pool", "create", "p", "--size", "256M", "--dir", &pool.display().to_string()])?;
    thinbak.ok(&["volume", "create", "p/v", "--size", &SIZE.to_string()])?;
    let mut model = Model::new(SIZE, seed);
    let scribble = |model: &mut Model, count| -> Result<()> {
        let pool = thinbak_engine::EmbeddedPool::open(&pool)?;
        model.scribble(&pool, "v", count)
    };
    scribble(&mut model, 20)?;
    backup(&thinbak, &running.url, 0)?;
    let first = model.bytes.clone();
    await_health(&metrics, "ok")?;

    // All but some hundred KiB, which is less than the reserve.
    fill(&disk, &ballast, 300 << 10)?;
    scribble(&mut model, 60)?;
    let said = backup(&thinbak, &running.url, 1)?;
    ensure!(said.contains("no space") && said.contains("hint:"), "{said}");
    let health = await_health(&metrics, "degraded")?;
    ensure!(health.starts_with("HTTP/1.1 200") && health.contains("no_space: "), "{health}");
    ensure!(get(&metrics, "/metrics")?.contains("thinbak_degraded_cause{cause=\"no_space\"} 1"));
    let copy = scratch.join("copy.img").display().to_string();
    thinbak.ok(&["--server", &running.url, "restore", "h/p/v:1", "--to-file", &copy])?;
    ensure!(std::fs::read(&copy)? == first, "a restore while the disk is full");
    std::fs::remove_file(&copy)?;

    std::fs::remove_file(&ballast)?;
    await_health(&metrics, "ok")?;
    backup(&thinbak, &running.url, 0)?;
    await_health(&metrics, "ok")?;
    thinbak.ok(&["--server", &running.url, "restore", "h/p/v:latest", "--to-file", &copy])?;
    ensure!(std::fs::read(&copy)? == model.bytes, "the backup after the disk was full");
    thinbak.ok(&["--server", &running.url, "verify"])?;
    Ok(())
}

/// What a collection did with each pack, in order: why, and what it copied.
fn packs_of(outcome: &Outcome) -> Result<Vec<(bool, u64)>> {
    let mut packs = Vec::new();
    for line in json_lines(outcome)?.iter().filter(|line| line["message_type"] == "pack") {
        ensure!(line["kept"] == "", "{line}");
        packs.push((line["reason"] == "dead", number(line, "moved_bytes")?));
    }
    Ok(packs)
}

#[test]
fn a_collection_on_a_full_disk_makes_the_room_that_backups_need() -> Result<()> {
    let seed = seed()?;
    let scratch = Scratch::new()?;
    let disk = scratch.join("disk");
    let _disk = SmallDisk::mount(&disk, 128 << 20)?;
    let (repo, ballast) = (disk.join("repo"), disk.join("ballast"));
    let repo_name = repo.display().to_string();
    let server = program("thinbak-server", &scratch.join("state"))?;
    let thinbak = program("thinbak", &scratch.join("state"))?;
    server.ok(&["init", "--repo", &repo_name])?;
    let pool = scratch.join("p");
    thinbak.ok(&["pool", "create", "p", "--size", "512M", "--dir", &pool.display().to_string()])?;
    let mut models = [Model::new(SIZE, seed), Model::new(SIZE, seed + 1)];
    let mut states = Vec::new();
    for name in ["v", "w"] {
        thinbak.ok(&["volume", "create", &format!("p/{name}"), "--size", &SIZE.to_string()])?;
    }
    // Each command seals packs of its own. Of the first w nothing is left in the second, of v a part.
    for round in 0..4 {
        for (name, model) in ["v", "w"].into_iter().zip(&mut models) {
            let pool = OpenPool::open(&pool)?;
            match (name, round) {
                ("w", 1) => {
                    pool.discard(&pool.volume("w")?, 0, SIZE)?;
                    pool.flush()?;
                    model.bytes.fill(0);
                }
                ("w", _) => model.scribble(&pool, "w", if round == 0 { 400 } else { 1 })?,
                _ => model.scribble(&pool, "v", 60)?,
            }
            drop(pool);
            let volume = format!("p/{name}");
            thinbak.ok(&["--repo", &repo_name, "backup", &volume, "--host", "h"])?;
        }
        states.push(models[0].bytes.clone());
    }
    let running = ServerProcess::start(&server, &repo)?;
    fill(&disk, &ballast, 1 << 20)?;
    models[0].scribble(&*OpenPool::open(&pool)?, "v", 60)?;
    let said = backup(&thinbak, &running.url, 1)?;
    ensure!(said.contains("no space"), "{said}");

    let on = |words: &[&str]| thinbak.run(&[&["--server", &running.url, "--json"], words].concat());
    on(&["generation", "delete", "h/p/v:1", "h/p/v:2", "h/p/v:3", "h/p/w:1"])?.expect(0)?;
    let collected = on(&["collect", "--grace", "0s", "--threshold", "100%"])?.expect(0)?;
    let packs = packs_of(&collected)?;
    let dead = packs.iter().take_while(|(dead, _)| *dead).count();
    ensure!(dead > 0 && packs.iter().skip(dead).all(|(dead, _)| !dead), "dead packs first: {packs:?}");
    ensure!(packs.iter().map(|(_, moved)| moved).sum::<u64>() > 1 << 20, "hardly a copy: {packs:?}");
    let freed = number(&summary_of(&collected)?, "freed_bytes")?;
    ensure!(freed > 12 << 20, "only {freed} bytes were freed");

    // With the ballast still there.
    backup(&thinbak, &running.url, 0)?;
    let copy = scratch.join("copy.img").display().to_string();
    for (generation, state) in [("4", states.last()), ("latest", Some(&models[0].bytes))] {
        on(&["restore", &format!("h/p/v:{generation}"), "--to-file", &copy])?.expect(0)?;
        ensure!(Some(&std::fs::read(&copy)?) == state, "v:{generation} differs");
        std::fs::remove_file(&copy)?;
    }
    on(&["verify"])?.expect(0)?;
    Ok(())
}
