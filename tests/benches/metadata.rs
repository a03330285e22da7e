//! Finding what changed, dumping and checking metadata: whole commands as a user types them, beside the same work of
//! thin-provisioning-tools, in turn, on images of a pool with a volume and a snapshot of it.
//!
//! `cargo bench -p thinbak-tests --bench metadata`, with THINBAK_BENCH_BLOCKS=16777216 (blocks of 64 KiB that each of both
//! maps: 1 TiB), THINBAK_BENCH_RUNS=3, and THINBAK_PEER_PDATA_TOOLS with the path of a `pdata_tools` of a newer
//! release than the system's. About 1.4 GB of scratch space in TMPDIR, which should not be a tmpfs: all commands read
//! around the page cache. Asserts nothing about speed; that all say the same of an image is asserted.

#[path = "metadata/command.rs"]
mod command;
#[path = "metadata/report.rs"]
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{Changed, Layout, MetadataImage, Scratch, program};

use self::{
    command::{Command, Measured, measure},
    report::{Ratio, Report, say},
};

/// Entries of a node where keys came in order.
const HALF_FULL: u64 = 126;
/// The least entries that the kernel leaves in a node.
const LEAST_FULL: u64 = 84;
/// Mean length of a run of data in an aged pool.
const AGED: Layout = Layout::Aged { run_blocks: 32 };

/// One image, and what is wanted of it.
struct Case {
    name: &'static str,
    layout: Layout,
    changed: Changed,
    /// How much of the time of the faster `thin_delta` the changes may take, or of each.
    target: Target,
    /// Whether it is dumped and checked too.
    is_dumped: bool,
}

/// One part of a peer's time.
enum Target {
    OfFaster(f64),
    OfNewAndOld(f64, f64),
}

const CASES: [Case; 7] = [
    Case {
        name: "nothing changed",
        layout: Layout::Sequential,
        changed: Changed::Nothing,
        target: Target::OfFaster(200.0),
        is_dumped: false,
    },
    Case {
        name: "1,000 clustered",
        layout: Layout::Sequential,
        changed: Changed::Clustered(1_000),
        target: Target::OfFaster(100.0),
        is_dumped: false,
    },
    Case {
        name: "1,000 scattered",
        layout: Layout::Sequential,
        changed: Changed::Scattered(1_000),
        target: Target::OfFaster(10.0),
        is_dumped: true,
    },
    Case {
        name: "100,000 scattered",
        layout: Layout::Sequential,
        changed: Changed::Scattered(100_000),
        target: Target::OfFaster(2.0),
        is_dumped: false,
    },
    Case {
        name: "aged, nothing changed",
        layout: AGED,
        changed: Changed::Nothing,
        target: Target::OfFaster(200.0),
        is_dumped: false,
    },
    Case {
        name: "aged, 1,000 scattered",
        layout: AGED,
        changed: Changed::Scattered(1_000),
        target: Target::OfNewAndOld(50.0, 20.0),
        is_dumped: true,
    },
    Case {
        name: "aged, 100,000 scattered",
        layout: AGED,
        changed: Changed::Scattered(100_000),
        target: Target::OfFaster(2.0),
        is_dumped: false,
    },
];

/// The same work by three programs.
struct Rivals {
    ours: Vec<Command>,
    old: Command,
    new: Option<Command>,
}

fn main() -> Result<()> {
    let blocks: u64 = setting("THINBAK_BENCH_BLOCKS", 16 << 20)?;
    let runs: usize = setting("THINBAK_BENCH_RUNS", 3)?;
    let new = std::env::var_os("THINBAK_PEER_PDATA_TOOLS").map(PathBuf::from);
    let scratch = Scratch::new()?;
    report::surroundings(scratch.path(), blocks, runs, new.as_deref())?;
    let mut report = Report::default();
    for case in &CASES {
        let image = scratch.join("metadata");
        let written = image_of(case, blocks).write(&image)?;
        say(&format!(
            "{}: image of {:.2} GB, {} nodes in the snapshot's tree, {} copied for the origin",
            case.name,
            written.bytes as f64 / 1e9,
            written.nodes,
            written.copied_nodes
        ));
        delta(case, &scratch, &image, new.as_deref(), runs, &mut report)?;
        if case.is_dumped {
            dump_and_check(case, &scratch, &image, new.as_deref(), runs, &mut report)?;
        }
        std::fs::remove_file(image)?;
    }
    report.print();
    Ok(())
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(default),
    }
}

/// As many changes for each mapped block as on the full size.
fn image_of(case: &Case, blocks: u64) -> MetadataImage {
    let share = |count: u64| (count * blocks / (16 << 20)).max(1);
    MetadataImage {
        blocks,
        changed: match case.changed {
            Changed::Nothing => Changed::Nothing,
            Changed::Clustered(count) => Changed::Clustered(share(count)),
            Changed::Scattered(count) => Changed::Scattered(share(count)),
        },
        layout: case.layout,
        entries_per_node: if case.layout == Layout::Sequential { HALF_FULL } else { LEAST_FULL },
        metadata_snap: false,
        seed: 1,
    }
}

fn ours(scratch: &Scratch, words: &[&str], image: &Path) -> Result<Command> {
    let thinbak = program("thinbak", &scratch.join("state"))?;
    let image = image.display().to_string();
    let arguments: Vec<&str> = words.iter().copied().chain([image.as_str()]).collect();
    Ok(Command::new(format!("thinbak {}", words.join(" ")), thinbak.command(&arguments)))
}

fn peer(tool: &str, words: &[&str], image: &Path, new: Option<&Path>) -> Command {
    let mut command = match new {
        None => std::process::Command::new(tool),
        Some(path) => {
            let mut command = std::process::Command::new(path);
            command.arg(tool);
            command
        }
    };
    command.args(words).arg(image);
    Command::new(format!("{tool} {}", if new.is_some() { "(newer)" } else { "(system's)" }), command)
}

fn delta(
    case: &Case,
    scratch: &Scratch,
    image: &Path,
    new: Option<&Path>,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    let words = ["--thin1", "2", "--thin2", "1"];
    let rivals = Rivals {
        ours: vec![
            ours(scratch, &["delta", "--changes", "--from", "2", "--to", "1"], image)?,
            ours(scratch, &["delta", "--from", "2", "--to", "1"], image)?,
        ],
        ..Rivals::of("thin_delta", &words, image, new)
    };
    let (ours, old, new) = rivals.measure(scratch, runs)?;
    let [changes, full] = ours.as_slice() else { return Ok(()) };
    ensure!(full.answer.whole == old.answer.whole, "{}: thin_delta says something else", case.name);
    ensure!(
        changes.answer.differing == old.answer.differing,
        "{}: other changes than thin_delta's",
        case.name
    );
    if let Some(new) = &new {
        ensure!(new.answer.body == old.answer.body, "{}: the two thin_delta differ", case.name);
    }
    let ratios = match (&case.target, &new) {
        (Target::OfNewAndOld(of_new, of_old), new) => {
            let mut ratios = vec![Ratio::at_most(changes, &old, *of_old)];
            ratios.extend(new.as_ref().map(|new| Ratio::at_most(changes, new, *of_new)));
            ratios
        }
        (Target::OfFaster(part), new) => {
            let new = new.as_ref().filter(|new| new.median() < old.median());
            vec![Ratio::at_most(changes, new.unwrap_or(&old), *part)]
        }
    };
    report.add(case.name, changes, ratios);
    let ratios = [Some(&old), new.as_ref()].into_iter().flatten();
    report.add(case.name, full, ratios.map(|peer| Ratio::below(full, peer)).collect());
    [Some(&old), new.as_ref()].into_iter().flatten().for_each(|peer| report.add(case.name, peer, Vec::new()));
    Ok(())
}

fn dump_and_check(
    case: &Case,
    scratch: &Scratch,
    image: &Path,
    new: Option<&Path>,
    runs: usize,
    report: &mut Report,
) -> Result<()> {
    for (words, tool) in [(&["dump"][..], "thin_dump"), (&["pool", "check"][..], "thin_check")] {
        let rivals = Rivals { ours: vec![ours(scratch, words, image)?], ..Rivals::of(tool, &[], image, new) };
        let (ours, old, new) = rivals.measure(scratch, runs)?;
        // The newer one names what devices share once, so that its text is another.
        if tool == "thin_dump" {
            let same = ours.iter().all(|ours| ours.answer.whole == old.answer.whole);
            ensure!(same, "{}: {} dumps something else", case.name, old.name);
        }
        for ours in &ours {
            let peers = [new.as_ref(), Some(&old)].into_iter().flatten();
            report.add(case.name, ours, peers.map(|peer| Ratio::below(ours, peer)).collect());
        }
        [Some(&old), new.as_ref()]
            .into_iter()
            .flatten()
            .for_each(|peer| report.add(case.name, peer, Vec::new()));
    }
    Ok(())
}

impl Rivals {
    /// The system's tool, and the newer one where there is one.
    fn of(tool: &str, words: &[&str], image: &Path, new: Option<&Path>) -> Self {
        let newer = new.map(|path| peer(tool, words, image, Some(path)));
        Self { ours: Vec::new(), old: peer(tool, words, image, None), new: newer }
    }

    /// Ours, the system's and the newer one.
    fn measure(self, scratch: &Scratch, runs: usize) -> Result<(Vec<Measured>, Measured, Option<Measured>)> {
        let count = self.ours.len();
        let mut commands = self.ours;
        commands.push(self.old);
        commands.extend(self.new);
        let mut measured = measure(commands, scratch, runs)?.into_iter();
        let ours = measured.by_ref().take(count).collect();
        Ok((ours, measured.next().context("not measured")?, measured.next()))
    }
}
