//! The peers, as their users run them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use thinbak_tests::{Cost, Timed, timed};

use super::{
    Images,
    files::{disk_bytes, ensure_equal, flushed, warm},
    report::{Record, Step},
};

/// A program in the way that it is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Restic,
    Rustic,
    /// Rustic with chunks as ours.
    RusticFixed,
    Borg,
    BlkArchive,
}

pub(crate) const KINDS: [Kind; 5] =
    [Kind::Restic, Kind::Rustic, Kind::RusticFixed, Kind::Borg, Kind::BlkArchive];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Restic => "restic",
            Self::Rustic => "rustic",
            Self::RusticFixed => "rustic, fixed 64 KiB",
            Self::Borg => "borg, fixed 64 KiB",
            Self::BlkArchive => "blk-archive",
        }
    }

    pub(crate) fn settings(self) -> &'static str {
        match self {
            Self::Restic => "compression auto (zstd's default level), encrypted as always, default chunker",
            Self::Rustic => "zstd level 3, encrypted as always, default chunker",
            Self::RusticFixed => "zstd level 3, encrypted as always, chunks of 64 KiB",
            Self::Borg => "zstd level 3, not encrypted, chunks of 64 KiB",
            Self::BlkArchive => "its own compression (zstd), not encrypted, default chunker",
        }
    }

    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Restic => "restic",
            Self::Rustic | Self::RusticFixed => "rustic",
            Self::Borg => "borg",
            Self::BlkArchive => "blk-stash",
        }
    }

    /// Environment variable with the path of the program.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Restic => "THINBAK_BENCH_RESTIC",
            Self::Rustic | Self::RusticFixed => "THINBAK_BENCH_RUSTIC",
            Self::Borg => "THINBAK_BENCH_BORG",
            Self::BlkArchive => "THINBAK_BENCH_BLK_STASH",
        }
    }
}

/// A peer that is on this machine.
pub(crate) struct Peer {
    kind: Kind,
    path: PathBuf,
}

impl Peer {
    /// A peer and what it says of its version, if it is here.
    pub(crate) fn find(kind: Kind) -> Result<Option<(Self, String)>> {
        let told = std::env::var_os(kind.variable()).map(PathBuf::from);
        let path = match told {
            Some(path) if path.as_os_str().is_empty() => return Ok(None),
            Some(path) => {
                ensure!(path.is_file(), "{} is {}, which is no file", kind.variable(), path.display());
                path
            }
            None => {
                let folders = std::env::var_os("PATH").unwrap_or_default();
                let mut places = std::env::split_paths(&folders).map(|folder| folder.join(kind.program()));
                let Some(path) = places.find(|path| path.is_file()) else { return Ok(None) };
                path
            }
        };
        let word = if kind == Kind::Restic { "version" } else { "--version" };
        let output = Command::new(&path).arg(word).output().with_context(|| path.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned();
        Ok(Some((Self { kind, path }, said)))
    }

    pub(crate) fn round(&self, folder: &Path, images: &Images, record: &mut Record) -> Result<()> {
        let place = Place { peer: self, folder };
        let (volume, repository) = (folder.join("volume"), folder.join("repository"));
        std::fs::hard_link(&images.first, &volume)?;
        place.init()?;
        warm(&volume)?;
        let first = place.backup("first")?;
        let stored = disk_bytes(&repository)?;
        record.add(Step::First, first, stored.cast_signed());
        record.add(Step::Check, place.check()?, 0);

        // The path is the same and the file another one, as a device with new content is: nobody may trust its times.
        std::fs::remove_file(&volume)?;
        std::fs::hard_link(&images.second, &volume)?;
        warm(&volume)?;
        let second = place.backup("second")?;
        let both = disk_bytes(&repository)?;
        record.add(Step::Incremental, second, both.cast_signed() - stored.cast_signed());

        let restored = folder.join("restored");
        std::fs::create_dir(&restored)?;
        let to_file = place.restore()?;
        record.add(Step::ToFile, to_file, 0);
        record.add(Step::OnDisk, to_file + flushed(&restored.join("volume"))?, 0);
        ensure_equal(File::open(restored.join("volume"))?, &images.second)?;
        std::fs::remove_dir_all(restored)?;

        if let Some(deleted) = place.delete_first()? {
            record.add(Step::Delete, deleted, disk_bytes(&repository)?.cast_signed() - both.cast_signed());
        }
        Ok(())
    }
}

/// A peer with a repository in a folder that holds nothing else but the volume.
struct Place<'a> {
    peer: &'a Peer,
    folder: &'a Path,
}

impl Place<'_> {
    fn init(&self) -> Result<Cost> {
        match self.peer.kind {
            Kind::Restic => self.run(&["-q", "init"]),
            Kind::Rustic => self.run(&["init", "--set-compression", "3"]),
            Kind::RusticFixed => {
                let chunks = ["--set-chunker", "fixed_size", "--set-chunk-size", "64KiB"];
                self.run(&[&["init", "--set-compression", "3"], &chunks[..]].concat())
            }
            Kind::Borg => self.run(&["init", "-e", "none"]),
            Kind::BlkArchive => self.run(&["create", "-a", "repository"]),
        }
    }

    fn backup(&self, name: &str) -> Result<Cost> {
        match self.peer.kind {
            Kind::Restic => self.run(&["-q", "backup", "--compression", "auto", "volume"]),
            Kind::Rustic | Kind::RusticFixed => self.run(&["backup", "volume"]),
            Kind::Borg => {
                let how = ["--compression", "zstd,3", "--chunker-params", "fixed,65536"];
                self.run(&[&["create"], &how[..], &[&format!("::{name}"), "volume"]].concat())
            }
            Kind::BlkArchive => self.run(&["pack", "-a", "repository", "volume"]),
        }
    }

    /// Reads back all that the repository holds.
    fn check(&self) -> Result<Cost> {
        match self.peer.kind {
            Kind::Restic | Kind::Rustic | Kind::RusticFixed => self.run(&["check", "--read-data"]),
            Kind::Borg => self.run(&["check", "--verify-data"]),
            Kind::BlkArchive => {
                let stream = self.newest_stream()?;
                self.run(&["verify", "-a", "repository", "--stream", &stream, "--internal"])
            }
        }
    }

    /// Makes restored/volume of the newest backup.
    fn restore(&self) -> Result<Cost> {
        match self.peer.kind {
            Kind::Restic => self.run(&["-q", "restore", "latest", "--target", "restored"]),
            Kind::Rustic | Kind::RusticFixed => {
                self.run(&["restore", "--sparse", "by-content", "latest", "restored"])
            }
            Kind::Borg => self.run_in(&self.folder.join("restored"), &["extract", "--sparse", "::second"]),
            Kind::BlkArchive => {
                let stream = self.newest_stream()?;
                let target = ["--create", "restored/volume"];
                self.run(&[&["unpack", "-a", "repository", "--stream", &stream], &target[..]].concat())
            }
        }
    }

    /// Deletes the first backup and frees its space at once; `None` where that cannot be done.
    fn delete_first(&self) -> Result<Option<Cost>> {
        Ok(match self.peer.kind {
            Kind::Restic => {
                Some(self.run(&["-q", "forget", "--group-by", "", "--keep-last", "1", "--prune"])?)
            }
            Kind::Rustic | Kind::RusticFixed => {
                Some(self.run(&["forget", "--keep-last", "1"])? + self.run(&["prune", "--instant-delete"])?)
            }
            Kind::Borg => Some(self.run(&["delete", "::first"])? + self.run(&["compact"])?),
            Kind::BlkArchive => None,
        })
    }

    /// What blk-archive calls its newest backup.
    fn newest_stream(&self) -> Result<String> {
        let listed = self.command(self.folder, &["list", "-a", "repository", "-j"]).output()?;
        let streams: Vec<Value> =
            serde_json::from_slice(&listed.stdout).context("reading the list of streams")?;
        let field = |stream: &Value, name: &str| {
            stream.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let newest = streams.iter().max_by_key(|stream| field(stream, "time")).context("no stream")?;
        Ok(field(newest, "stream_id"))
    }

    fn run(&self, arguments: &[&str]) -> Result<Cost> {
        self.run_in(self.folder, arguments)
    }

    fn run_in(&self, folder: &Path, arguments: &[&str]) -> Result<Cost> {
        rustix::fs::sync();
        let Timed { outcome, cost } = timed(&mut self.command(folder, arguments), None)?;
        if outcome.code == 0 {
            return Ok(cost);
        }
        let said = format!("{}\n{}", outcome.text(), outcome.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).take(5).collect();
        bail!("`{}`: exit code {}: {}", arguments.join(" "), outcome.code, lines.join(" / "))
    }

    /// A command with nothing of the caller's settings, and with caches of its own.
    fn command(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.peer.path);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["RESTIC_", "RUSTIC_", "BORG_", "BLK_STASH_", "XDG_"].iter().any(|ours| name.starts_with(ours))
            {
                command.env_remove(&*name);
            }
        }
        let repository = self.folder.join("repository");
        command
            .args(arguments)
            .current_dir(folder)
            .env("HOME", self.folder.join("home"))
            .envs([("RESTIC_PASSWORD", "bench"), ("RUSTIC_PASSWORD", "bench")])
            .envs([("RUSTIC_NO_PROGRESS", "true"), ("RUSTIC_LOG_LEVEL", "warn")])
            .envs([("RESTIC_REPOSITORY", &repository), ("RUSTIC_REPOSITORY", &repository)])
            .env("BORG_REPO", &repository)
            // It asks when a repository that is not encrypted is seen the first time or elsewhere.
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
            .env("BORG_RELOCATED_REPO_ACCESS_IS_OK", "yes")
            .stdin(std::process::Stdio::null());
        command
    }
}
