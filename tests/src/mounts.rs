//! File systems that a test fills, or has elsewhere.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::spawn;

/// Something mounted, which takes root, unmounted when dropped.
pub struct Mounted(PathBuf);

impl Mounted {
    fn mount(options: &[&str], what: &Path, place: &Path) -> Result<Self> {
        std::fs::create_dir_all(place)?;
        let mut command = Command::new("mount");
        command.args(options).args([what, place]);
        ensure!(spawn(&mut command)?.wait()?.success(), "cannot mount: root is needed");
        Ok(Self(place.into()))
    }

    /// A file system of `bytes` in memory.
    pub fn small_disk(place: &Path, bytes: u64) -> Result<Self> {
        Self::mount(&["-t", "tmpfs", "-o", &format!("size={bytes}")], Path::new("tmpfs"), place)
    }

    /// A folder that lies elsewhere from now on.
    pub fn elsewhere(place: &Path, there: &Path) -> Result<Self> {
        let mut command = Command::new("cp");
        command.arg("-a").args([place, there]);
        ensure!(spawn(&mut command)?.wait()?.success(), "cannot copy {}", place.display());
        Self::mount(&["--bind"], there, place)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Fills a disk up to so many bytes.
pub fn fill(disk: &Path, ballast: &Path, left: u64) -> Result<()> {
    let room = rustix::fs::statvfs(disk)?;
    let bytes = (room.f_bavail * room.f_frsize).saturating_sub(left);
    std::fs::write(ballast, vec![1; usize::try_from(bytes)?]).context("filling the disk")
}
