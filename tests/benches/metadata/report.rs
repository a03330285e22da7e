//! What was measured, on what, beside what is wanted.

use std::{path::Path, process::Command};

use anyhow::Result;
use thinbak_tests::machine;

use super::command::Measured;

/// Our time as a part of a peer's, and the part that it may be.
pub(crate) struct Ratio {
    peer: String,
    faster: f64,
    /// None where it must only be less than the peer's.
    target: Option<f64>,
}

impl Ratio {
    /// At most one part in `part`.
    pub(crate) fn at_most(ours: &Measured, peer: &Measured, part: f64) -> Self {
        Self { target: Some(part), ..Self::below(ours, peer) }
    }

    pub(crate) fn below(ours: &Measured, peer: &Measured) -> Self {
        Self { peer: peer.name.clone(), faster: peer.median() / ours.median(), target: None }
    }

    fn text(&self) -> String {
        let target = match self.target {
            Some(part) => format!("target 1/{part:.0}"),
            None => "target: less".to_owned(),
        };
        format!("1/{:.1} of {} ({target})", self.faster, self.peer)
    }
}

/// Lines of the table.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<[String; 5]>,
}

impl Report {
    pub(crate) fn add(&mut self, case: &str, measured: &Measured, ratios: Vec<Ratio>) {
        let ratios: Vec<String> = ratios.iter().map(Ratio::text).collect();
        let line = [
            case.to_owned(),
            measured.name.clone(),
            format!("{:.4}", measured.median()),
            format!("{:.1}", measured.peak_rss as f64 / f64::from(1 << 20)),
            ratios.join(", "),
        ];
        let [_, name, seconds, peak, ratios] = &line;
        say(&format!("  {name}: {seconds} s, peak {peak} MiB  {ratios}"));
        self.lines.push(line);
    }

    /// A table in Markdown.
    pub(crate) fn print(&self) {
        say("\n| image | command | median s | peak MiB | part of a peer's time |\n|---|---|---|---|---|");
        for line in &self.lines {
            say(&format!("| {} |", line.join(" | ")));
        }
    }
}

/// Says what it all runs on.
pub(crate) fn surroundings(scratch: &Path, blocks: u64, runs: usize, new: Option<&Path>) -> Result<()> {
    say(&machine()?);
    say(&format!(
        "scratch space {} on {}",
        scratch.display(),
        said("stat", &["-f", "-c", "%T", &scratch.to_string_lossy()])
    ));
    say(&format!("{blocks} blocks of 64 KiB mapped by each device, {runs} runs in turn"));
    say(&format!("thin-provisioning-tools {}", said("thin_delta", &["--version"])));
    if let Some(new) = new {
        let version = said(&new.to_string_lossy(), &["thin_delta", "--version"]);
        say(&format!("and {version} from {}", new.display()));
    }
    Ok(())
}

/// The first line that a command prints.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[expect(clippy::print_stdout, reason = "the report of a benchmark")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
