//! The repository, its server, and what they take.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::fs::{Advice, fadvise, sync};
use thinbak_tests::{Program, Scratch, ServerProcess, program};

use super::chunks::CHUNK_BYTES;

/// Bytes of disk.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    pub(crate) index: i64,
    pub(crate) catalogue: i64,
    pub(crate) packs: i64,
    pub(crate) other: i64,
}

impl Sizes {
    pub(crate) fn all(&self) -> i64 {
        self.index + self.catalogue + self.packs + self.other
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            index: self.index - before.index,
            catalogue: self.catalogue - before.catalogue,
            packs: self.packs - before.packs,
            other: self.other - before.other,
        }
    }

    /// The mean of `count`.
    pub(crate) fn each(&self, count: u64) -> Self {
        let count = count.max(1) as i64;
        Self {
            index: self.index / count,
            catalogue: self.catalogue / count,
            packs: self.packs / count,
            other: self.other / count,
        }
    }
}

/// An empty repository in a directory of its own, with a server that runs or not.
pub(crate) struct Place {
    // Before the scratch space, so that it ends before that is removed.
    running: Option<ServerProcess>,
    server: Program,
    pub(crate) thinbak: Program,
    dir: PathBuf,
    _scratch: Scratch,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let (state, dir) = (scratch.join("state"), scratch.join("repo"));
        let (server, thinbak) = (program("thinbak-server", &state)?, program("thinbak", &state)?);
        let (repo, chunk_bytes) = (dir.display().to_string(), CHUNK_BYTES.to_string());
        server.ok(&["init", "--repo", &repo, "--chunk-size", &chunk_bytes])?;
        let mut place = Self { running: None, server, thinbak, dir, _scratch: scratch };
        place.open()?;
        Ok(place)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn url(&self) -> Result<&str> {
        self.running.as_ref().map(|server| server.url.as_str()).context("no server runs")
    }

    /// Most memory of the server since it was started.
    pub(crate) fn peak_rss(&self) -> Option<u64> {
        self.running.as_ref()?.peak_rss()
    }

    /// Processor time of the server since it was started. Unlike what it takes by the clock it hardly depends on what
    /// else the machine does.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        let id = self.running.as_ref().context("no server runs")?.id();
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        // What follows the name, which may hold anything: the 3rd field of all is the first of these.
        let (_, fields) = stat.rsplit_once(") ").context("no process's stat")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Starts the server; how long it took until it listened.
    pub(crate) fn open(&mut self) -> Result<Duration> {
        let since = Instant::now();
        self.running = Some(ServerProcess::start(&self.server, &self.dir)?);
        Ok(since.elapsed())
    }

    /// The same with nothing of the repository in the page cache.
    pub(crate) fn open_cold(&mut self) -> Result<Duration> {
        sync();
        each_file(&self.dir, &mut |path| Ok(fadvise(File::open(path)?, 0, None, Advice::DontNeed)?))?;
        self.open()
    }

    /// Ends the server as an admin does.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |server| server.stop().map(drop))
    }

    /// Ends it with SIGKILL and starts it again; how long that took until it listened.
    pub(crate) fn kill_and_open(&mut self) -> Result<Duration> {
        if let Some(server) = self.running.take() {
            server.kill()?;
        }
        self.open()
    }

    /// Stops the server when it has nothing more to do.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.running.is_none() {
            self.open()?;
        }
        self.quiet()?;
        self.stop()
    }

    /// Waits until nothing changes in the repository any more: the index is merged behind those who write, and tells
    /// nobody when it has ended. So it is looked at now and then; nothing but how fast what follows is depends on it.
    pub(crate) fn quiet(&self) -> Result<()> {
        let mut before = (0, 0);
        loop {
            std::thread::sleep(Duration::from_secs(2));
            let (mut files, mut bytes) = (0, 0);
            each_file(&self.dir, &mut |path| {
                files += 1;
                // A file that was merged away meanwhile.
                bytes += path.metadata().map_or(0, |found| found.len());
                Ok(())
            })?;
            if before == (files, bytes) {
                return Ok(());
            }
            before = (files, bytes);
        }
    }

    /// What the repository takes on disk. The server must not run, or the files change meanwhile.
    pub(crate) fn sizes(&self) -> Result<Sizes> {
        let mut sizes = Sizes::default();
        each_file(&self.dir, &mut |path| {
            let bytes = i64::try_from(path.metadata()?.blocks() * 512)?;
            let below = path.strip_prefix(&self.dir)?;
            let name = below.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned());
            *match name.as_deref().unwrap_or_default() {
                "index" => &mut sizes.index,
                "packs" => &mut sizes.packs,
                name if name.starts_with("catalogue") => &mut sizes.catalogue,
                _ => &mut sizes.other,
            } += bytes;
            Ok(())
        })?;
        Ok(sizes)
    }
}

fn each_file(dir: &Path, visit: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        match path.is_dir() {
            true => each_file(&path, visit)?,
            false => visit(&path)?,
        }
    }
    Ok(())
}
