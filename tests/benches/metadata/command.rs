//! Whole commands, measured in turn.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{Scratch, peak_rss_of, spawn};

/// A command, and what the report calls it.
pub(crate) struct Command {
    name: String,
    command: std::process::Command,
}

/// What a command said, as digests of lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// All of it.
    pub(crate) whole: blake3::Hash,
    /// What it says of mappings, without the pool's and the devices' lines, which are not the same in all releases.
    pub(crate) body: blake3::Hash,
    /// Of that what is not the same in both devices.
    pub(crate) differing: blake3::Hash,
}

/// What running a command came to.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) answer: Answer,
    /// Of a run of its own.
    pub(crate) peak_rss: u64,
    /// Ascending.
    seconds: Vec<f64>,
}

impl Measured {
    /// Wall time in seconds.
    pub(crate) fn median(&self) -> f64 {
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Command {
    pub(crate) fn new(name: String, command: std::process::Command) -> Self {
        Self { name, command }
    }

    fn run(&mut self, stdout: Stdio, watch: impl FnOnce(&mut Child) -> Result<()>) -> Result<()> {
        self.command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
        let mut child = spawn(&mut self.command).with_context(|| format!("{} is needed", self.name))?;
        watch(&mut child)?;
        let status = child.wait()?;
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(())
    }
}

/// Runs each command once to see what it says and how much memory it takes, which also warms all caches; then all of them
/// in turn, `runs` times, with nobody looking.
pub(crate) fn measure(commands: Vec<Command>, scratch: &Scratch, runs: usize) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut commands = commands;
    for command in &mut commands {
        let path = scratch.join("answer");
        let mut peak_rss = 0;
        command.run(File::create(&path)?.into(), |child| {
            while child.try_wait()?.is_none() {
                peak_rss = peak_rss.max(peak_rss_of(child.id()).unwrap_or(0));
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(())
        })?;
        let answer = answer(&path).with_context(|| format!("reading what {} said", command.name))?;
        std::fs::remove_file(path)?;
        measured.push(Measured { name: command.name.clone(), answer, peak_rss, seconds: Vec::new() });
    }
    for _ in 0..runs {
        for (command, measured) in commands.iter_mut().zip(&mut measured) {
            let since = Instant::now();
            command.run(Stdio::null(), |_| Ok(()))?;
            measured.seconds.push(since.elapsed().as_secs_f64());
        }
    }
    for measured in &mut measured {
        measured.seconds.sort_by(f64::total_cmp);
    }
    Ok(measured)
}

fn answer(path: &Path) -> Result<Answer> {
    let (mut whole, mut body, mut differing) =
        (blake3::Hasher::new(), blake3::Hasher::new(), blake3::Hasher::new());
    let mut lines = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        whole.update(&line);
        if line.starts_with(b"    <") {
            body.update(&line);
            if !line.starts_with(b"    <same ") {
                differing.update(&line);
            }
        }
        line.clear();
    }
    Ok(Answer { whole: whole.finalize(), body: body.finalize(), differing: differing.finalize() })
}
