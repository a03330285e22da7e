//! The main job beside restic, rustic, borg and blk-archive, on the same volume, in turn within each round, so that what
//! else the machine does meets all of them.
//!
//! `cargo bench -p thinbak-tests --bench peers`, with THINBAK_BENCH_GIB=4, THINBAK_BENCH_RUNS=3; scratch space of about five
//! times the volume in TMPDIR. A peer is found in PATH, or where THINBAK_BENCH_RESTIC, THINBAK_BENCH_RUSTIC,
//! THINBAK_BENCH_BORG or THINBAK_BENCH_BLK_STASH says; one that is not there, or whose variable is empty, is left out. Asserts nothing about speed.
//! That each program restores what it was given is asserted: the bench fails at its end where one does not.

#[path = "peers/files.rs"]
mod files;
#[path = "peers/ours.rs"]
mod ours;
#[path = "peers/peer.rs"]
mod peer;
#[path = "peers/report.rs"]
mod report;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use thinbak_agent::sink::chunk_compressor;
use thinbak_tests::{Limits, Mix, Scratch, changed_copy, load, machine, measure, setting, write_mix};

use self::{
    ours::Thinbak,
    peer::{KINDS, Peer},
    report::{Record, Report, say},
};

/// The volume before and after the change.
pub(crate) struct Images {
    pub(crate) first: PathBuf,
    pub(crate) second: PathBuf,
    /// Blocks of 64 KiB that differ, ascending.
    pub(crate) changed: Vec<u64>,
}

/// One that backs up.
enum Contender {
    Thinbak(Thinbak),
    Peer(Peer),
}

impl Contender {
    /// The whole of the main job in an empty folder.
    fn round(&self, folder: &Path, images: &Images, record: &mut Record) -> Result<()> {
        match self {
            Self::Thinbak(thinbak) => thinbak.round(folder, images, record),
            Self::Peer(peer) => peer.round(folder, images, record),
        }
    }
}

fn main() -> Result<()> {
    let gib = setting("THINBAK_BENCH_GIB", 4.0);
    let rounds = setting("THINBAK_BENCH_RUNS", 3.0) as usize;
    let mix = Mix { blocks: (gib * 16384.0) as usize, seed: 7 };
    let scratch = Scratch::new()?;
    conditions(gib, rounds, scratch.path())?;
    let mut contenders = contenders()?;
    let (first, second) = (scratch.join("first.img"), scratch.join("second.img"));
    write_mix(&first, mix)?;
    let changed = changed_copy(&first, &second, mix, mix.blocks / 100)?;
    let images = Images { first, second, changed };

    let (mut limits, mut failures) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        say(&format!("\nround {round} of {rounds}, load {}", load()?));
        // The images just written would be part of what its fsync waits for.
        rustix::fs::sync();
        let limit = measure(&images.first, scratch.path(), chunk_compressor(64 * 1024)?)?;
        say_limits(&limit);
        limits.push(limit);
        // Another begins each time, so that nobody always comes after the limits.
        let turns = contenders.len();
        for turn in 0..turns {
            let Some((contender, record)) = contenders.get_mut((turn + round - 1) % turns) else { continue };
            let folder = scratch.join("round");
            std::fs::create_dir(&folder)?;
            if let Err(error) = contender.round(&folder, &images, record) {
                let failure = format!("{} in round {round}: {error:#}", record.name);
                say(&format!("  FAILED: {failure}"));
                failures.push(failure);
            }
            std::fs::remove_dir_all(folder)?;
        }
    }
    say(&format!("\nload at the end {}\n", load()?));
    let records = contenders.into_iter().map(|(_, record)| record).collect();
    Report { records, limits }.print();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(())
}

fn say_limits(limits: &Limits) {
    let seconds = |took: Duration| format!("{:.2} s", took.as_secs_f64());
    say(&format!(
        "  limits on one thread: read {}, BLAKE3 {}, zstd {}, zstd -d {}, write compressed with fsync {}, write plain with \
         fsync {}",
        seconds(limits.read),
        seconds(limits.hash),
        seconds(limits.compress),
        seconds(limits.decompress),
        seconds(limits.write_compressed),
        seconds(limits.write_plain)
    ));
}

/// Thinbak and the peers that are here; says which, and which are not.
fn contenders() -> Result<Vec<(Contender, Record)>> {
    say("");
    let (thinbak, version) = Thinbak::find()?;
    say(&format!("{version}, as built; zstd with a level between 2 and 3"));
    let mut found = vec![(Contender::Thinbak(thinbak), Record::new("thinbak"))];
    for kind in KINDS {
        match Peer::find(kind)? {
            Some((peer, version)) => {
                say(&format!("{}: {version}; {}", kind.name(), kind.settings()));
                found.push((Contender::Peer(peer), Record::new(kind.name())));
            }
            None => say(&format!(
                "{}: MISSING, no `{}` in PATH or by {}: left out",
                kind.name(),
                kind.program(),
                kind.variable()
            )),
        }
    }
    Ok(found)
}

fn conditions(gib: f64, rounds: usize, scratch: &Path) -> Result<()> {
    say(&machine()?);
    say(&format!(
        "A volume of {gib} GiB (40 % incompressible, 40 % files of /usr, 20 % zeros), then 1 % of its blocks of 64 KiB \
         changed; {rounds} rounds in {}.",
        scratch.display()
    ));
    say(
        "What is backed up was just read or written, so it is in the page cache, for all alike; `sync` before each timed \
         command. No program is waited for beyond its end, so what it leaves to be written is not counted, but for \
         `restore to a file, with fsync`.\n\
         thinbak: agent and server are two processes over the loopback, every id is recomputed on arrival; CPU and peak \
         are the sum of both. It reads the volume from a pool, and the change is written into that pool; the others read \
         a file at the same path, with the new content. What reads as zeros is restored as holes by thinbak, rustic and borg \
         (each told to, where it has to be), and written out by those that have no such option.\n\
         The check is made with one backup in the repository, the restore is of the second backup, and the deletion is \
         of the first one, with all that frees its space at once, by each program's own thresholds for rewriting.",
    );
    Ok(())
}
