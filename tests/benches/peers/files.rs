//! What the rounds do with files.

use std::{fs::File, io::Read, os::unix::fs::MetadataExt as _, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::Cost;

/// Bytes that a folder takes on the disk, as `du` counts.
pub(crate) fn disk_bytes(folder: &Path) -> Result<u64> {
    rustix::fs::sync();
    counted(folder)
}

fn counted(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // A server that runs may remove a file meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { counted(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

/// Brings a file into the page cache.
pub(crate) fn warm(path: &Path) -> Result<()> {
    std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
    Ok(())
}

/// What it takes to bring the rest of a file to the disk.
pub(crate) fn flushed(path: &Path) -> Result<Cost> {
    let since = Instant::now();
    File::open(path)?.sync_all()?;
    Ok(Cost { wall: since.elapsed(), ..Cost::default() })
}

/// Fails unless a file is what was read, byte for byte.
pub(crate) fn ensure_equal(mut read: impl Read, file: &Path) -> Result<()> {
    let mut file = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let (a, b) = (fill(&mut read, &mut ours)?, fill(&mut file, &mut theirs)?);
        ensure!(a == b, "restored wrongly: from byte {at} on {a} bytes instead of {b}");
        ensure!(ours.get(..a) == theirs.get(..b), "restored wrongly: a difference in the MiB at byte {at}");
        at += a;
        if a < ours.len() {
            return Ok(());
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
