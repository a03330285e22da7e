//! A pool, a repository and the programs, as one test has them.

use std::{
    collections::BTreeSet,
    fs::File,
    ops::Deref,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_engine::EmbeddedPool;

use crate::{
    Outcome, Program, Scratch, ServerProcess, program, programs::while_none_is_born, spawn, summary_of,
    thin_check,
};

/// Data block size of the pools here, unless said otherwise.
pub const BLOCK: u64 = 64 * 1024;

/// How commands reach the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `--repo DIR`.
    Embedded,
    /// `--server URL`.
    Network,
}

/// Everything that one test has.
pub struct World {
    /// Where it all lies.
    pub scratch: Scratch,
    /// The `thinbak` command.
    pub thinbak: Program,
    /// The `thinbak-server` command.
    pub server: Program,
    /// The running server, if the way is over the network.
    pub running: Option<ServerProcess>,
    way: Way,
}

impl World {
    /// A pool of 64 KiB blocks with one empty volume `v` of `size` bytes, and an empty repository.
    pub fn new(way: Way, size: u64) -> Result<Self> {
        let world = Self::bare(way)?;
        world.create_pool(&["--size", &(size * 4).to_string()])?;
        world.thinbak.ok(&["volume", "create", &world.volume("v"), "--size", &size.to_string()])?;
        Ok(world)
    }

    /// Only the repository.
    pub fn bare(way: Way) -> Result<Self> {
        Self::with_chunks(way, 64 * 1024)
    }

    /// Only the repository, with chunks of so many bytes.
    pub fn with_chunks(way: Way, chunk_bytes: u64) -> Result<Self> {
        let scratch = Scratch::new()?;
        let state = scratch.join("state");
        let (thinbak, server) = (program("thinbak", &state)?, program("thinbak-server", &state)?);
        let (repo, chunk_bytes) = (scratch.join("repo").display().to_string(), chunk_bytes.to_string());
        server.ok(&["init", "--repo", &repo, "--chunk-size", &chunk_bytes])?;
        let mut world = Self { scratch, thinbak, server, running: None, way };
        if way == Way::Network {
            world.start_server()?;
        }
        Ok(world)
    }

    /// Makes the pool `p`.
    pub fn create_pool(&self, words: &[&str]) -> Result<()> {
        let dir = self.pool_dir().display().to_string();
        self.thinbak.ok(&[&["pool", "create", "p", "--dir", &dir], words].concat())?;
        Ok(())
    }

    /// Starts the server (again).
    pub fn start_server(&mut self) -> Result<()> {
        self.running = Some(ServerProcess::start(&self.server, &self.repo())?);
        Ok(())
    }

    /// The repository's directory.
    #[must_use]
    pub fn repo(&self) -> PathBuf {
        self.scratch.join("repo")
    }

    /// The repository's packs, in the order of their numbers.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn packs(&self) -> Result<Vec<PathBuf>> {
        let (mut folders, mut packs) = (vec![self.repo().join("packs")], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() { folders.push(path) } else { packs.push(path) }
            }
        }
        packs.sort();
        Ok(packs)
    }

    /// The pool as commands name it.
    #[must_use]
    pub fn pool(&self) -> String {
        "p".to_owned()
    }

    /// The pool's directory.
    #[must_use]
    pub fn pool_dir(&self) -> PathBuf {
        self.scratch.join("p")
    }

    /// A volume of the pool as commands name it.
    #[must_use]
    pub fn volume(&self, name: &str) -> String {
        format!("{}/{name}", self.pool())
    }

    /// A command with where the repository is and `--json` before its words.
    #[must_use]
    pub fn with_repository(&self, words: &[&str]) -> Vec<String> {
        let mut all = match (&self.running, self.way) {
            (Some(server), Way::Network) => vec!["--server".to_owned(), server.url.clone()],
            _ => vec!["--repo".to_owned(), self.repo().display().to_string()],
        };
        all.push("--json".to_owned());
        all.extend(words.iter().map(|word| (*word).to_owned()));
        all
    }

    /// Runs a command on the repository.
    pub fn on_repository(&self, words: &[&str]) -> Result<Outcome> {
        self.thinbak.run(&self.with_repository(words))
    }

    /// Backs up a volume; the summary.
    pub fn backup(&self, volume: &str) -> Result<Value> {
        let summary = summary_of(&self.on_repository(&["backup", &self.volume(volume)])?.expect(0)?)?;
        self.check_pool()?;
        Ok(summary)
    }

    /// Restores a generation by its number to a new volume; the summary.
    pub fn restore(&self, volume: &str, generation: u64, to: &str) -> Result<Value> {
        let from = format!("p/{volume}:{generation}");
        let outcome = self.on_repository(&["restore", &from, "--to", &self.volume(to)])?.expect(0)?;
        self.check_pool()?;
        summary_of(&outcome)
    }

    /// The content of a volume or snapshot.
    pub fn export(&self, volume: &str) -> Result<Vec<u8>> {
        let path = self.scratch.join("export.img");
        let mut command = self.thinbak.command(&["volume", "export", &self.volume(volume)]);
        let status = spawn(command.stdout(File::create(&path)?))?.wait()?;
        ensure!(status.success(), "export of {volume} failed");
        Ok(std::fs::read(&path)?)
    }

    /// Opens the pool in this process; no command may use it meanwhile.
    pub fn open_pool(&self) -> Result<OpenPool> {
        OpenPool::open(&self.pool_dir())
    }

    /// Asks the independent judge and our own checker about the pool, and that nothing is left over: no
    /// metadata snapshot, no private device.
    pub fn check_pool(&self) -> Result<()> {
        thin_check(&self.pool_dir().join("metadata"))?;
        let check = self.thinbak.ok(&["pool", "check", &self.pool()])?;
        let listed = self.thinbak.ok(&["--json", "volume", "list", &self.pool()])?.text();
        ensure!(!listed.contains("\"unknown\""), "unknown devices: {listed}\n{}", check.text());
        let msnap = self.thinbak.ok(&["--json", "msnap", "show", &self.pool()])?.text();
        let msnap: Value = serde_json::from_str(&msnap)?;
        ensure!(msnap.get("held_root").is_none_or(|root| root.is_null() || root == 0), "held: {msnap}");
        Ok(())
    }
}

/// A pool opened in this process. When it is dropped its locks are gone, also those that a child of another
/// test had a copy of.
pub struct OpenPool(Option<EmbeddedPool>);

impl OpenPool {
    /// Opens the pool in a directory; no command may use it meanwhile.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self(Some(EmbeddedPool::open(dir).context("opening the pool")?)))
    }
}

impl Deref for OpenPool {
    type Target = EmbeddedPool;

    fn deref(&self) -> &EmbeddedPool {
        self.0.as_ref().expect("an open pool")
    }
}

impl Drop for OpenPool {
    fn drop(&mut self) {
        while_none_is_born(|| drop(self.0.take()));
    }
}

/// A volume's content as a naive model, changed together with the real one.
pub struct Model {
    /// What the volume reads.
    pub bytes: Vec<u8>,
    /// Blocks that are mapped.
    pub mapped: BTreeSet<u64>,
    random: StdRng,
}

impl Model {
    /// An empty volume of `size` bytes.
    #[must_use]
    pub fn new(size: u64, seed: u64) -> Self {
        Self {
            bytes: vec![0; usize::try_from(size).unwrap_or(0)],
            mapped: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// Writes at random places of the volume `name`, and discards now and then, in model and pool alike.
    /// Returns the number of operations that changed something.
    pub fn scribble(&mut self, pool: &EmbeddedPool, name: &str, operations: usize) -> Result<()> {
        let volume = pool.volume(name)?;
        let size = self.bytes.len() as u64;
        for _ in 0..operations {
            let offset = self.random.random_range(0..size / 512) * 512;
            let len = (self.random.random_range(1..=512) * 512).min(size - offset);
            if self.random.random_range(0..8) == 0 {
                pool.discard(&volume, offset, len)?;
                let (first, last) = (offset.div_ceil(BLOCK), (offset + len) / BLOCK);
                for block in first..last {
                    self.mapped.remove(&block);
                    self.slice(block * BLOCK, BLOCK).fill(0);
                }
                continue;
            }
            let mut data = vec![0; usize::try_from(len)?];
            match self.random.random_range(0..4) {
                0 => {}
                1 => data.fill(self.random.random()),
                _ => self.random.fill_bytes(&mut data),
            }
            pool.write(&volume, offset, &data)?;
            self.slice(offset, len).copy_from_slice(&data);
            self.mapped.extend(offset / BLOCK..(offset + len).div_ceil(BLOCK));
        }
        pool.flush()?;
        Ok(())
    }

    fn slice(&mut self, offset: u64, len: u64) -> &mut [u8] {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = begin.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
        self.bytes.get_mut(begin..end).unwrap_or_default()
    }

    /// Makes the model another size, as the volume was made. New space reads as zero.
    pub fn resize(&mut self, size: u64) {
        self.bytes.resize(usize::try_from(size).unwrap_or(0), 0);
    }
}

/// A number field of a summary.
pub fn number(summary: &Value, field: &str) -> Result<u64> {
    let value = summary.get(field).and_then(Value::as_u64);
    value.with_context(|| format!("no number {field} in {summary}"))
}

/// A text field of a summary.
pub fn text<'a>(summary: &'a Value, field: &str) -> Result<&'a str> {
    summary.get(field).and_then(Value::as_str).with_context(|| format!("no text {field} in {summary}"))
}

/// Where a pool's metadata lies.
#[must_use]
pub fn metadata_of(pool: &Path) -> PathBuf {
    pool.join("metadata")
}
