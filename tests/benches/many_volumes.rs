//! Backups of all volumes of a pool of the kernel, of which few changed, in the guest (see `tests/vm`), beside what scripts do
//! with dmsetup or LVM, `thin_delta` and `dd` for the same change.
//!
//! `THINBAK_VM=1 THINBAK_VM_SECONDS=1500 cargo bench -p thinbak-tests --bench many_volumes`, with THINBAK_BENCH_VOLUMES=100,
//! THINBAK_BENCH_CHANGED=5, THINBAK_BENCH_RUNS=20 (of which THINBAK_BENCH_TOOL_RUNS=3 also with the tools),
//! THINBAK_BENCH_LVM_VOLUMES=20; the programs must be built before. Asserts
//! nothing.

#[allow(dead_code, unused_imports, reason = "what the kernel tests need besides")]
#[path = "../tests/kernel/block_devices.rs"]
mod block_devices;
#[allow(dead_code, unused_imports, reason = "what the kernel tests need besides")]
#[path = "../tests/kernel/driven.rs"]
mod driven;
#[allow(dead_code, unused_imports, reason = "what the kernel tests need besides")]
#[path = "../tests/kernel/guest.rs"]
mod guest;
#[allow(dead_code, unused_imports, reason = "what the kernel tests need besides")]
#[path = "../tests/kernel/many.rs"]
mod many;

use std::io::Write as _;

use anyhow::Result;
use thinbak_tests::{machine, setting};

use self::{
    guest::Report,
    many::{Amount, numbers},
};

fn main() -> Result<()> {
    let count = |name, default: u32| setting(name, default.into()) as usize;
    let (changed, rounds) = (count("THINBAK_BENCH_CHANGED", 5), count("THINBAK_BENCH_RUNS", 20));
    let volumes = count("THINBAK_BENCH_VOLUMES", 100);
    // They start hundreds of programs in each round.
    let by_tools = count("THINBAK_BENCH_TOOL_RUNS", 3);
    let of_lvm = count("THINBAK_BENCH_LVM_VOLUMES", 20);
    say(&machine()?)?;
    for (what, is_lvms, volumes) in [("dm", false, volumes), ("LVM", true, of_lvm)] {
        if volumes == 0 {
            continue;
        }
        let by_tools = by_tools.min(rounds);
        let amount = Amount { volumes, changed: changed.min(volumes), rounds, by_tools };
        let Some(report) = many::run(is_lvms, &amount)? else { return Ok(()) };
        print(what, &amount, &report)?;
    }
    Ok(())
}

fn print(what: &str, amount: &Amount, report: &Report) -> Result<()> {
    let Amount { volumes, changed, rounds, by_tools } = amount;
    say(&format!(
        "\n{what}: {volumes} volumes, {changed} changed, {rounds} rounds, {by_tools} of them with tools"
    ))?;
    say(&format!("{:<46} {:>10} {:>10} {:>10}", "", "median", "p99", "most"))?;
    let (ours, tools) = (numbers(report, "ours"), numbers(report, "tools"));
    let of = |rounds: &[Vec<u64>], word: usize| {
        rounds.iter().filter_map(|round| round.get(word).copied()).collect()
    };
    let of_all = |key: &str| of(&numbers(report, key), 0);
    line("first backup of all, s", of_all("first"), 100.0)?;
    line("thinbak: backup, s", of(&ours, 0), 100.0)?;
    line("thinbak: snapshots", of(&ours, 1), 1.0)?;
    line("thinbak: metadata snapshots", of(&ours, 2), 1.0)?;
    line("thinbak: each held, ms", of_all("held"), 1000.0)?;
    line("thinbak: of that the message to reserve, ms", of_all("reserve"), 1000.0)?;
    line("thinbak: of that the message to release, ms", of_all("release"), 1000.0)?;
    line("tools: all, s", of(&tools, 0), 100.0)?;
    line("tools: snapshots of all volumes, s", of(&tools, 1), 100.0)?;
    line("tools: metadata snapshot held, ms", of(&tools, 2), 0.1)?;
    line("tools: copy of what changed, s", of(&tools, 3), 100.0)?;
    line("tools: former snapshots deleted, s", of(&tools, 4), 100.0)
}

/// A row of the table; the numbers are divided.
fn line(what: &str, mut numbers: Vec<u64>, by: f64) -> Result<()> {
    numbers.sort_unstable();
    let at = |share: f64| {
        let place = ((numbers.len() as f64 * share).ceil() as usize).clamp(1, numbers.len().max(1)) - 1;
        numbers.get(place).map_or("-".to_owned(), |number| format!("{:.2}", *number as f64 / by))
    };
    say(&format!("{what:<46} {:>10} {:>10} {:>10}", at(0.5), at(0.99), at(1.0)))
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
