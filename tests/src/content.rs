//! Volumes with the mix of content that real ones have.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use thinbak_engine::EmbeddedPool;

use crate::{Program, spawn};

/// Unit of the mix in bytes.
const BLOCK: usize = 64 * 1024;

/// Shares of a volume's content, in blocks of 64 KiB.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    /// Blocks in all.
    pub blocks: usize,
    /// Seed of the layout and of the incompressible content.
    pub seed: u64,
}

/// A tar stream of the system's own files: text, libraries, programs.
struct SystemFiles {
    tar: Child,
    stream: ChildStdout,
}

impl SystemFiles {
    fn new() -> Result<Self> {
        let folders = ["bin", "lib", "share", "include", "sbin", "local"];
        let present = folders.into_iter().filter(|folder| Path::new("/usr").join(folder).exists());
        let mut tar = Command::new("tar")
            .args(["-C", "/usr", "--sort=name", "--mtime=@0", "-cf", "-"])
            .args(present)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("running tar")?;
        let stream = tar.stdout.take().context("tar has no output")?;
        Ok(Self { tar, stream })
    }

    /// Fills `block`, starting the stream again at its end.
    fn fill(&mut self, block: &mut [u8]) -> Result<()> {
        let mut filled = 0;
        while filled < block.len() {
            match self.stream.read(block.get_mut(filled..).unwrap_or_default())? {
                0 => {
                    let _ = self.tar.wait();
                    *self = Self::new()?;
                }
                read => filled += read,
            }
        }
        Ok(())
    }
}

impl Drop for SystemFiles {
    fn drop(&mut self) {
        let _ = self.tar.kill();
        let _ = self.tar.wait();
    }
}

/// Writes a volume image: extents of 64 KiB to 4 MiB drawn 40 % incompressible, 40 % files of /usr,
/// 20 % zeros (written, not holes).
pub fn write_mix(path: &Path, mix: Mix) -> Result<()> {
    let file = File::create(path)?;
    let mut random = StdRng::seed_from_u64(mix.seed);
    let mut files = SystemFiles::new()?;
    let share = mix.blocks * 2 / 5;
    let mut left = [share, share, mix.blocks - 2 * share];
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    while left.iter().sum::<usize>() > 0 {
        let mut pick = random.random_range(0..left.iter().sum());
        let kind = left.iter().position(|count| {
            let here = pick < *count;
            pick = pick.saturating_sub(*count);
            here
        });
        let kind = kind.unwrap_or(2);
        let run = (1 << random.random_range(0..7)).min(left.get(kind).copied().unwrap_or(0));
        for _ in 0..run {
            match kind {
                0 => random.fill_bytes(&mut block),
                1 => files.fill(&mut block)?,
                _ => block.fill(0),
            }
            file.write_all_at(&block, at)?;
            at += BLOCK as u64;
        }
        if let Some(count) = left.get_mut(kind) {
            *count -= run;
        }
    }
    Ok(())
}

/// Copies an image and rewrites `changed` of its blocks, scattered, half incompressible and half files
/// of /usr. Returns the numbers of the changed blocks, ascending.
pub fn changed_copy(from: &Path, to: &Path, mix: Mix, changed: usize) -> Result<Vec<u64>> {
    std::fs::copy(from, to)?;
    let file = OpenOptions::new().write(true).open(to)?;
    let mut random = StdRng::seed_from_u64(mix.seed ^ 0x5eed);
    let mut files = SystemFiles::new()?;
    let mut numbers: Vec<u64> = (0..mix.blocks as u64).collect();
    numbers.shuffle(&mut random);
    numbers.truncate(changed);
    numbers.sort_unstable();
    let mut block = vec![0; BLOCK];
    for (count, number) in numbers.iter().enumerate() {
        if count % 2 == 0 {
            random.fill_bytes(&mut block)
        } else {
            files.fill(&mut block)?
        }
        // No block of the first image begins so: every one of these is a change.
        block.get_mut(..8).unwrap_or_default().copy_from_slice(&(number ^ mix.seed).to_le_bytes());
        file.write_all_at(&block, number * BLOCK as u64)?;
    }
    Ok(numbers)
}

/// Makes a volume of an image, with `thinbak volume import`.
///
/// # Errors
/// An import that fails.
pub fn import(thinbak: &Program, volume: &str, image: &Path) -> Result<()> {
    let mut command = thinbak.command(&["volume", "import", volume]);
    let status = spawn(command.stdin(File::open(image)?))?.wait()?;
    ensure!(status.success(), "import failed");
    Ok(())
}

/// Brings `volume` of the pool in a directory to the content of `image`, writing nothing but the changed blocks.
///
/// # Errors
/// A pool that another process has open, an image that is too short.
pub fn write_changes(pool: &Path, volume: &str, image: &Path, changed: &[u64]) -> Result<()> {
    let pool = EmbeddedPool::open(pool)?;
    let volume = pool.volume(volume)?;
    let image = File::open(image)?;
    let mut block = vec![0; BLOCK];
    for number in changed {
        image.read_exact_at(&mut block, number * BLOCK as u64)?;
        pool.write(&volume, number * BLOCK as u64, &block)?;
    }
    Ok(pool.flush()?)
}
