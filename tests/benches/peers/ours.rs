//! Thinbak's round: an agent's commands, and a server that runs beside them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{
    Program, ServerProcess, Timed, import, program, spawn, summary_of, text, timed, write_changes,
};

use super::{
    Images,
    files::{disk_bytes, ensure_equal, flushed},
    report::{Record, Step},
};

/// The built programs.
pub(crate) struct Thinbak;

/// A round in its folder.
struct Round {
    thinbak: Program,
    server: ServerProcess,
    folder: PathBuf,
    pool: String,
    repository: PathBuf,
}

impl Thinbak {
    /// The programs beside this one, and their version.
    pub(crate) fn find() -> Result<(Self, String)> {
        let nowhere = Path::new("/nonexistent");
        program("thinbak-server", nowhere)?;
        let version = program("thinbak", nowhere)?.ok(&["--version"])?.text();
        Ok((Self, version.trim().to_owned()))
    }

    pub(crate) fn round(&self, folder: &Path, images: &Images, record: &mut Record) -> Result<()> {
        let thinbak = program("thinbak", &folder.join("state"))?;
        let server = program("thinbak-server", &folder.join("state"))?;
        let repository = folder.join("repository");
        server.ok(&["init", "--repo", &repository.to_string_lossy()])?;
        let server = ServerProcess::start(&server, &repository)?;
        let pool = format!("dir:{}", folder.join("pool").display());
        let size = std::fs::metadata(&images.first)?.len() * 3;
        thinbak.ok(&["pool", "create", &pool, "--size", &size.to_string()])?;
        let round = Round { thinbak, server, folder: folder.to_owned(), pool, repository };
        round.go(images, record)
    }
}

impl Round {
    fn go(&self, images: &Images, record: &mut Record) -> Result<()> {
        let volume = format!("{}/volume", self.pool);
        import(&self.thinbak, &volume, &images.first)?;
        let backup = ["--json", "backup", &volume];
        let first = self.timed(&backup)?;
        let stored = disk_bytes(&self.repository)?;
        record.add(Step::First, first.cost, stored.cast_signed());
        record.add(Step::Check, self.timed(&["verify"])?.cost, 0);

        write_changes(&self.folder.join("pool"), "volume", &images.second, &images.changed)?;
        let second = self.timed(&backup)?;
        let both = disk_bytes(&self.repository)?;
        record.add(Step::Incremental, second.cost, both.cast_signed() - stored.cast_signed());

        let summary = summary_of(&second.outcome)?;
        let name = text(&summary, "volume")?;
        let (newest, oldest) = (format!("{name}:latest"), format!("{name}:1"));
        let file = self.folder.join("restored");
        let to_file = self.timed(&["restore", &newest, "--to-file", &file.to_string_lossy()])?;
        record.add(Step::ToFile, to_file.cost, 0);
        record.add(Step::OnDisk, to_file.cost + flushed(&file)?, 0);
        ensure_equal(File::open(&file)?, &images.second)?;
        std::fs::remove_file(file)?;
        self.restore_to_volume(&newest, images, record)?;

        let deleted = self.timed(&["generation", "delete", &oldest])?.cost;
        let collected = self.timed(&["collect", "--grace", "0s"])?.cost;
        let left = disk_bytes(&self.repository)?;
        record.add(Step::Delete, deleted + collected, left.cast_signed() - both.cast_signed());
        Ok(())
    }

    fn restore_to_volume(&self, newest: &str, images: &Images, record: &mut Record) -> Result<()> {
        let target = format!("{}/restored", self.pool);
        let restored = self.timed(&["restore", newest, "--to", &target])?;
        record.add(Step::ToVolume, restored.cost, 0);
        let mut export = self.thinbak.command(&["volume", "export", &target]);
        let mut export = spawn(export.stdout(Stdio::piped()))?;
        let compared = ensure_equal(export.stdout.take().context("no stdout")?, &images.second);
        let status = export.wait()?;
        compared?;
        ensure!(status.success(), "export failed");
        self.thinbak.ok(&["volume", "remove", &target])?;
        Ok(())
    }

    fn timed(&self, arguments: &[&str]) -> Result<Timed> {
        let mut command = self.thinbak.command(&["--server", &self.server.url]);
        command.args(arguments);
        rustix::fs::sync();
        let Timed { outcome, cost } = timed(&mut command, Some(self.server.id()))?;
        let outcome = outcome.expect(0).with_context(|| format!("thinbak {}", arguments.join(" ")))?;
        Ok(Timed { outcome, cost })
    }
}
