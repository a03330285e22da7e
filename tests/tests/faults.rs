//! A server whose disk is full or takes no writes: backups fail with one clear error, restores go on, the health says
//! so, and when the disk is well again nobody has to do anything.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use thinbak_tests::{
    Model, Mounted, OpenPool, Program, Scratch, ServerProcess, Way, World, fill, program, seed,
};

const SIZE: u64 = 48 * 1024 * 1024;

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A volume, a server, and what the volume reads.
struct Site {
    running: ServerProcess,
    thinbak: Program,
    pool: PathBuf,
    copy: String,
    metrics: String,
    model: Model,
}

impl Site {
    /// Serves the repository that is there, to which one backup is made.
    fn new(scratch: &Scratch, repo: &Path) -> Result<Self> {
        let metrics = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let server = program("thinbak-server", &scratch.join("state"))?.env("THINBAK_METRICS", &metrics);
        let thinbak = program("thinbak", &scratch.join("state"))?;
        let pool = scratch.join("p");
        thinbak.ok(&["pool", "create", "p", "--size", "256M", "--dir", &pool.display().to_string()])?;
        thinbak.ok(&["volume", "create", "p/v", "--size", &SIZE.to_string()])?;
        let running = ServerProcess::start(&server, repo)?;
        let copy = scratch.join("copy.img").display().to_string();
        let mut site = Self { running, thinbak, pool, copy, metrics, model: Model::new(SIZE, seed()?) };
        site.scribble(20)?;
        site.backup(0)?;
        site.await_health("ok")?;
        Ok(site)
    }

    fn scribble(&mut self, count: usize) -> Result<()> {
        self.model.scribble(&*OpenPool::open(&self.pool)?, "v", count)
    }

    fn backup(&self, code: i32) -> Result<String> {
        let words = ["--server", &self.running.url, "backup", "p/v", "--host", "h"];
        Ok(self.thinbak.run(&words)?.expect(code)?.stderr)
    }

    fn restored(&self, generation: &str) -> Result<Vec<u8>> {
        let volume = format!("h/p/v:{generation}");
        self.thinbak.ok(&["--server", &self.running.url, "restore", &volume, "--to-file", &self.copy])?;
        let bytes = std::fs::read(&self.copy)?;
        std::fs::remove_file(&self.copy)?;
        Ok(bytes)
    }

    /// Waits until the health says what it should. It changes with a probe of the disk and tells nobody: it can only be
    /// asked again. Bounded, so that one that never changes fails the test.
    fn await_health(&self, state: &str) -> Result<String> {
        let since = Instant::now();
        loop {
            let health = get(&self.metrics, "/health")?;
            if health.contains(&format!("\r\n\r\n{state}\n")) {
                return Ok(health);
            }
            ensure!(since.elapsed() < Duration::from_secs(60), "not {state} but {health}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Backs up while something is wrong, makes it well again, and backs up.
    fn sick_then_well(
        &mut self,
        cause: &str,
        complaint: &str,
        heal: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let first = self.model.bytes.clone();
        self.scribble(60)?;
        let said = self.backup(1)?;
        let lines = said.lines().filter(|line| line.starts_with("error:")).count();
        ensure!(lines == 1 && said.contains(complaint), "{said}");
        let health = self.await_health("degraded")?;
        ensure!(health.starts_with("HTTP/1.1 200") && health.contains(&format!("{cause}: ")), "{health}");
        let metrics = get(&self.metrics, "/metrics")?;
        ensure!(metrics.contains(&format!("thinbak_degraded_cause{{cause=\"{cause}\"}} 1")), "{metrics}");
        ensure!(self.restored("1")? == first, "a restore meanwhile");

        heal(self)?;
        self.await_health("ok")?;
        self.backup(0)?;
        self.await_health("ok")?;
        ensure!(self.restored("latest")? == self.model.bytes, "the backup afterwards");
        self.thinbak.ok(&["--server", &self.running.url, "verify"])?;
        Ok(())
    }
}

fn init(scratch: &Scratch, repo: &Path) -> Result<()> {
    program("thinbak-server", &scratch.join("state"))?.ok(&[
        "init",
        "--repo",
        &repo.display().to_string(),
    ])?;
    Ok(())
}

#[test]
fn a_full_disk_stops_backups_only_and_room_is_all_it_takes() -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.join("disk");
    let _disk = Mounted::small_disk(&disk, 96 << 20)?;
    let (repo, ballast) = (disk.join("repo"), disk.join("ballast"));
    init(&scratch, &repo)?;
    let mut site = Site::new(&scratch, &repo)?;
    // All but some hundred KiB, which is less than the reserve.
    fill(&disk, &ballast, 300 << 10)?;
    site.sick_then_well("no_space", "no space", |_| Ok(std::fs::remove_file(&ballast)?))
}

#[test]
fn a_full_disk_under_the_catalogue_alone_is_no_other() -> Result<()> {
    let scratch = Scratch::new()?;
    let disk = scratch.join("disk");
    let _disk = Mounted::small_disk(&disk, 16 << 20)?;
    let (repo, ballast) = (disk.join("repo"), disk.join("ballast"));
    init(&scratch, &repo)?;
    let _packs = Mounted::elsewhere(&repo.join("packs"), &scratch.join("packs"))?;
    let _index = Mounted::elsewhere(&repo.join("index"), &scratch.join("index"))?;
    let mut site = Site::new(&scratch, &repo)?;
    // To the last byte.
    let filled = std::fs::write(&ballast, vec![1; 16 << 20]);
    ensure!(filled.is_err_and(|error| error.kind() == ErrorKind::StorageFull), "the disk is not full");
    site.sick_then_well("catalogue", "disk is full", |_| Ok(std::fs::remove_file(&ballast)?))
}

#[test]
fn a_limit_of_file_sizes_is_a_failed_write_also_without_a_server() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 60)?;
    world.backup("v")?;
    model.scribble(&*world.open_pool()?, "v", 60)?;
    let backup = world.thinbak.command(&world.with_repository(&["backup", &world.volume("v")]));
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]).arg(backup.get_program()).args(backup.get_args());
    for (name, value) in backup.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let ended = limited.output()?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() == Some(1) && said.starts_with("error: "), "{}: {said}", ended.status);
    world.backup("v")?;
    world.restore("v", 2, "back")?;
    ensure!(world.export("back")? == model.bytes, "the backup afterwards");
    Ok(())
}

#[test]
fn writes_that_fail_stop_backups_only_and_need_no_hand_when_they_succeed_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let repo = scratch.join("repo");
    init(&scratch, &repo)?;
    let mut site = Site::new(&scratch, &repo)?;
    let process = i32::try_from(site.running.id()).ok().and_then(Pid::from_raw).context("no process")?;
    let limit = |bytes| prlimit(Some(process), Resource::Fsize, Rlimit { current: bytes, maximum: None });
    // From now on no file of the server's may grow, nor be overwritten.
    limit(Some(0))?;
    site.sick_then_well("writing", "File too large", |_| limit(None).map(drop).map_err(Into::into))
}
