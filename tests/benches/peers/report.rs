//! What was measured, as a table, and beside what is wanted of it.

use std::collections::BTreeMap;

use thinbak_tests::{Cost, Limits};

const MIB: f64 = 1048576.0;

/// A part of the main job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    First,
    Incremental,
    ToFile,
    /// The same, with an fsync of the file.
    OnDisk,
    ToVolume,
    Check,
    Delete,
}

impl Step {
    const ALL: [Self; 7] = [
        Self::First,
        Self::Incremental,
        Self::ToFile,
        Self::OnDisk,
        Self::ToVolume,
        Self::Check,
        Self::Delete,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first backup",
            Self::Incremental => "backup of 1 %",
            Self::ToFile => "restore to a file",
            Self::OnDisk => "restore to a file, with fsync",
            Self::ToVolume => "restore to a pool's volume",
            Self::Check => "read-back check",
            Self::Delete => "deletion and collection",
        }
    }

    fn changes_repository(self) -> bool {
        matches!(self, Self::First | Self::Incremental | Self::Delete)
    }
}

/// A step of one round: its cost, and the bytes by which the repository grew.
type Measured = (Cost, i64);

/// All that was measured of a program.
pub(crate) struct Record {
    pub(crate) name: &'static str,
    steps: BTreeMap<Step, Vec<Measured>>,
}

impl Record {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, steps: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, step: Step, cost: Cost, grown: i64) {
        let mut line = format!(
            "  {}, {}: {:.2} s, CPU {:.2} s, peak {:.0} MiB",
            self.name,
            step.name(),
            cost.wall.as_secs_f64(),
            cost.cpu.as_secs_f64(),
            cost.peak_rss as f64 / MIB
        );
        if step.changes_repository() {
            line.push_str(&format!(", repository {:+.1} MiB", grown as f64 / MIB));
        }
        say(&line);
        self.steps.entry(step).or_default().push((cost, grown));
    }

    fn spread(&self, step: Step, value: impl Fn(&Measured) -> f64) -> Option<Spread> {
        Spread::of(self.steps.get(&step)?.iter().map(value))
    }

    /// Median in seconds.
    fn seconds(&self, step: Step) -> Option<f64> {
        Some(self.spread(step, |(cost, _)| cost.wall.as_secs_f64())?.median)
    }

    /// Median of the bytes by which the repository grew.
    fn grown(&self, step: Step) -> Option<f64> {
        Some(self.spread(step, |(_, grown)| *grown as f64)?.median)
    }
}

/// Median, least and most.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { least: *sorted.first()?, median: f64::midpoint(*low, *high), most: *sorted.last()? })
    }

    fn text(&self, decimals: usize) -> String {
        let number = |value: f64| format!("{value:.decimals$}");
        let (least, most) = (number(self.least), number(self.most));
        let range = if least == most { String::new() } else { format!(" ({least} to {most})") };
        format!("{}{range}", number(self.median))
    }
}

/// Everything; thinbak's record is the first.
pub(crate) struct Report {
    pub(crate) records: Vec<Record>,
    /// Of each round.
    pub(crate) limits: Vec<Limits>,
}

impl Report {
    /// A table in Markdown, then a line for each target.
    pub(crate) fn print(&self) {
        say("Medians (least to most).\n");
        say("| step | program | seconds | thinbak is faster by | CPU s | peak MiB | repository, MiB more |");
        say("|---|---|---|---|---|---|---|");
        for step in Step::ALL {
            for record in &self.records {
                if let Some(line) = self.line(step, record) {
                    say(&line);
                }
            }
        }
        say("");
        self.limit_line();
        self.speed_line(Step::First, Step::First, 1.5);
        self.stored_line();
        self.speed_line(Step::Incremental, Step::Incremental, 10.0);
        self.speed_line(Step::ToFile, Step::ToFile, 2.0);
        self.speed_line(Step::OnDisk, Step::OnDisk, 2.0);
        self.speed_line(Step::ToVolume, Step::ToFile, 2.0);
        self.speed_line(Step::Check, Step::Check, 1.0);
        self.speed_line(Step::Delete, Step::Delete, 1.0);
    }

    fn line(&self, step: Step, record: &Record) -> Option<String> {
        let seconds = record.spread(step, |(cost, _)| cost.wall.as_secs_f64())?;
        let cpu = record.spread(step, |(cost, _)| cost.cpu.as_secs_f64())?;
        let peak = record.spread(step, |(cost, _)| cost.peak_rss as f64 / MIB)?;
        let grown = record.spread(step, |(_, grown)| *grown as f64 / MIB)?;
        let faster = match self.ours().and_then(|ours| ours.seconds(step)) {
            Some(ours) if record.name != "thinbak" => format!("{:.2} x", seconds.median / ours),
            _ => String::new(),
        };
        Some(format!(
            "| {} | {} | {} | {faster} | {} | {} | {} |",
            step.name(),
            record.name,
            seconds.text(2),
            cpu.text(2),
            peak.text(0),
            if step.changes_repository() { grown.text(1) } else { String::new() }
        ))
    }

    fn ours(&self) -> Option<&Record> {
        self.records.first()
    }

    /// The peer of which something is least, and that.
    fn least(&self, value: impl Fn(&Record) -> Option<f64>) -> Option<(&'static str, f64)> {
        let peers = self.records.iter().skip(1);
        peers
            .filter_map(|record| Some((record.name, value(record)?)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
    }

    fn limit_line(&self) {
        let limit = Spread::of(self.limits.iter().map(|limits| limits.backup().as_secs_f64()));
        let ours = self.ours().and_then(|ours| ours.seconds(Step::First));
        let (Some(limit), Some(ours)) = (limit, ours) else {
            return say("first backup, part of the limit: not measured");
        };
        let percent = 100.0 * limit.median / ours;
        say(&format!(
            "first backup, part of the limit of {} s (one read, two BLAKE3 passes, zstd, zstd -d, one write with fsync, on \
             all threads): {percent:.0} %, target at least 70 %: {}",
            limit.text(2),
            // Nobody is faster than the limit: then the machine was not the same for both.
            if percent > 100.0 {
                "NOT measured, something disturbed the limits"
            } else {
                verdict(percent >= 70.0)
            }
        ));
    }

    fn stored_line(&self) {
        let ours = self.ours().and_then(|ours| ours.grown(Step::First));
        let (Some(ours), Some((name, least))) = (ours, self.least(|record| record.grown(Step::First))) else {
            return say("stored by the first backup: nothing to compare with");
        };
        let more = 100.0 * (ours / least - 1.0);
        say(&format!(
            "stored by the first backup: {:.1} MiB, {more:+.1} % of {name}'s {:.1} MiB, the least; target at most +5 %: {}",
            ours / MIB,
            least / MIB,
            verdict(more <= 5.0)
        ));
    }

    /// Our step beside the peers' one; `times` of 1 means faster than each.
    fn speed_line(&self, step: Step, theirs: Step, times: f64) {
        let ours = self.ours().and_then(|ours| ours.seconds(step));
        let (Some(ours), Some((name, fastest))) = (ours, self.least(|record| record.seconds(theirs))) else {
            return say(&format!("{}: nothing to compare with", step.name()));
        };
        let ratio = fastest / ours;
        let (target, met) = match times {
            1.0 => ("faster than each".to_owned(), ratio > 1.0),
            _ => (format!("at least {times} times"), ratio >= times),
        };
        say(&format!(
            "{}: {ratio:.2} times as fast as {name}'s {}, the fastest; target {target}: {}",
            step.name(),
            theirs.name(),
            verdict(met)
        ));
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "NOT met" }
}

#[expect(clippy::print_stdout, reason = "the report of a benchmark")]
pub(crate) fn say(text: &str) {
    println!("{text}");
}
