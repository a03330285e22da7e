//! What a command costs: the clock on the wall, the processors, memory.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    ops::Add,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::{Outcome, spawn};

/// Ticks of a second in /proc/PID/stat: the kernel's USER_HZ, 100 on every architecture that we know.
const TICKS: u64 = 100;

/// What commands cost together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From the start to the end.
    pub wall: Duration,
    /// Of all threads and of the child processes, in hundredths of a second.
    pub cpu: Duration,
    /// The most memory that was resident at any time, in bytes, read every 10 ms.
    pub peak_rss: u64,
}

/// One command after the other.
impl Add for Cost {
    type Output = Self;

    fn add(self, next: Self) -> Self {
        Self {
            wall: self.wall + next.wall,
            cpu: self.cpu + next.cpu,
            peak_rss: self.peak_rss.max(next.peak_rss),
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Timed {
    /// What it said.
    pub outcome: Outcome,
    /// What it cost.
    pub cost: Cost,
}

/// Runs a command to its end, whatever the exit code. With the process id of a server that works for it, what the server
/// costs meanwhile is added: its processor time, and its peak to that of the command.
///
/// # Errors
/// A program that cannot be started.
pub fn timed(command: &mut Command, server: Option<u32>) -> Result<Timed> {
    // Not pipes: nobody would read them while this waits.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    if let Some(server) = server {
        // Sets VmHWM back; where that is not allowed the server's peak is the one since it was started.
        let _ = std::fs::write(format!("/proc/{server}/clear_refs"), "5");
    }
    let server_before = server.map(cpu_of).transpose()?.unwrap_or_default();
    let since = Instant::now();
    let mut child = spawn(command)?;
    let (ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    let (wall, cpu) = std::thread::scope(|scope| {
        // The peak only ever grows, so a sample now and then catches it.
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                peak.fetch_max(peak_rss_of(child.id()).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        // Not reaped yet, so that its processor time can still be asked for.
        let waited =
            waitid(WaitId::Pid(Pid::from_child(&child)), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let wall = since.elapsed();
        ended.store(true, Ordering::Release);
        waited.context("waiting for the command")?;
        anyhow::Ok((wall, cpu_of(child.id())?))
    })?;
    let status = child.wait()?;
    let server_cpu = server.map(cpu_of).transpose()?.unwrap_or_default().saturating_sub(server_before);
    let peak_rss = peak.into_inner() + server.and_then(peak_rss_of).unwrap_or(0);
    Ok(Timed {
        outcome: Outcome {
            code: status.code().unwrap_or(-1),
            stdout: whole(&mut stdout)?,
            stderr: String::from_utf8_lossy(&whole(&mut stderr)?).into_owned(),
        },
        cost: Cost { wall, cpu: cpu + server_cpu, peak_rss },
    })
}

fn whole(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The most memory that a process has had resident so far, in bytes; `None` once it has ended.
#[must_use]
pub fn peak_rss_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Processor time of a process and of those of its children that it has waited for.
fn cpu_of(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The name before may have blanks in it. Then come utime, stime, cutime and cstime, fields 14 to 17 of proc(5).
    let fields = text.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().skip(11).take(4));
    let ticks: u64 = fields.into_iter().flatten().filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// A number that a benchmark is told by an environment variable.
#[must_use]
pub fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Processors, kernel and load of this machine, in a line.
///
/// # Errors
/// No /proc.
pub fn machine() -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let threads = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let model = model.trim_start_matches([':', '\t', ' ']);
    Ok(format!("{threads} threads of {model}, kernel {}, load {}", kernel.trim(), load()?))
}

/// The load averages of 1, 5 and 15 minutes.
///
/// # Errors
/// No /proc.
pub fn load() -> Result<String> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    Ok(load.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_costs_what_it_and_its_children_use() {
        let script = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        let mut command = Command::new("sh");
        let timed =
            timed(command.args(["-c", &format!("sh -c '{script}'; echo done; exit 3")]), None).unwrap();
        assert_eq!((timed.outcome.code, timed.outcome.text().as_str()), (3, "done\n"));
        assert!(timed.cost.cpu > Duration::ZERO, "{:?}", timed.cost);
        assert!(timed.cost.peak_rss > 100 << 10, "{:?}", timed.cost);
    }
}
