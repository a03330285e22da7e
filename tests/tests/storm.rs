//! Everything at once, through the programs. Hosts back up volumes that change, delete, undelete, prune and restore
//! their generations; others collect and verify; and at random moments the server, or the client of a job, gets
//! SIGKILL. The server is started again, now and then with a catalogue made anew from the packs. All the while, and when the
//! storm is over: each generation is visible, deleted or gone as its host was told, what is visible restores to what
//! the volume was, nothing is damaged, and two collections leave nothing that a third could free.
//!
//! It lasts 45 seconds, or THINBAK_STORM_SECONDS, and longer until each kind of job has succeeded. What
//! happens is drawn from the seed; what meets what is up to the machine.

#[path = "storm/history.rs"]
mod history;
#[path = "storm/host.rs"]
mod host;
#[path = "storm/weather.rs"]
mod weather;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::Value;
use thinbak_tests::{Program, json_lines, number, seed, summary_of};

use host::Host;
use weather::{Answer, Job, Storm};

const HOSTS: u64 = 3;

#[test]
fn whatever_is_killed_while_all_runs_at_once_nothing_is_lost_and_nothing_leaks() -> Result<()> {
    let seed = seed()?;
    let storm = Storm::new()?;
    let mut hosts = (0..HOSTS).map(|host| Host::new(&storm, host, seed)).collect::<Result<Vec<_>>>()?;
    let server = std::thread::scope(|scope| {
        let storm = &storm;
        let mut threads = Vec::new();
        for host in &mut hosts {
            threads.push(scope.spawn(move || storm.until_over(|| host.live())));
        }
        for (place, work) in [collect, verify].into_iter().enumerate() {
            threads.push(scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed ^ (100 + place as u64));
                let thinbak = storm.thinbak(&format!("state-{place}"))?;
                storm.until_over(|| work(storm, &thinbak, &mut random))
            }));
        }
        let server = storm.rage(&mut StdRng::seed_from_u64(seed ^ 200));
        storm.end();
        for thread in threads {
            thread.join().expect("no thread panics")?;
        }
        server
    })?;
    println!("{}", storm.told());
    check(&storm, &mut hosts)?;
    let log = server.kill()?;
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}

/// Collects, in one way or another.
fn collect(storm: &Storm, thinbak: &Program, random: &mut StdRng) -> Result<()> {
    let threshold = format!("{}%", random.random_range(1..=10) * 10);
    let mut words = vec!["collect", "--threshold", &threshold];
    words.extend(pick(random, &[&["--grace", "0s"][..], &["--grace", "3s"], &["--grace", "8s"], &[]]));
    words.extend(pick(random, &[&["--max-extra-space", "1M"][..], &["--rate", "4M"], &[], &[]]));
    if random.random_bool(0.1) {
        words.push("--dry-run");
    }
    if let Answer::Done(outcome) = storm.run(Job::Collect, thinbak, &words, random)? {
        let summary = summary_of(&outcome)?;
        ensure!(number(&summary, "lost_chunks")? == 0, "chunks are lost: {summary}");
        storm.count(Job::Remove, number(&summary, "removed_packs")?);
        storm.count(Job::Move, number(&summary, "moved_bytes")?);
    }
    Ok(())
}

/// Verifies all, or a sample.
fn verify(storm: &Storm, thinbak: &Program, random: &mut StdRng) -> Result<()> {
    let words = pick(random, &[&["verify"][..], &["verify"], &["verify", "--sample", "20%"]]);
    if let Answer::Refused(outcome) = storm.run(Job::Verify, thinbak, words, random)? {
        outcome.expect(0)?;
    }
    // The rest of the machine is for the others; how long this is decides nothing.
    std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
    Ok(())
}

fn pick<'a>(random: &mut StdRng, all: &[&'a [&'a str]]) -> &'a [&'a str] {
    all.choose(random).copied().unwrap_or_default()
}

/// Runs a collection that takes all that it can, and returns what its plan is to free.
fn collect_all(storm: &Storm, thinbak: &Program, more: &[&str]) -> Result<u64> {
    let words = [&["collect", "--grace", "0s", "--threshold", "100%"], more].concat();
    let lines = json_lines(&thinbak.run(&storm.words(&words))?.expect(0)?)?;
    let is_plan = |line: &&Value| line.get("message_type").is_some_and(|kind| kind == "plan");
    let plan = lines.iter().find(is_plan).context("no plan")?;
    ensure!(number(plan, "lost_chunks")? == 0 && number(plan, "kept_dead_bytes")? == 0, "{plan}");
    number(plan, "free_bytes")
}

/// What must be so when all is quiet.
fn check(storm: &Storm, hosts: &mut [Host<'_>]) -> Result<()> {
    let thinbak = storm.thinbak("state-check")?;
    hosts.iter_mut().try_for_each(Host::check)?;
    thinbak.run(&storm.words(&["verify"]))?.expect(0)?;
    // Tombstones go when what they end has gone, so the second may find those of the first.
    collect_all(storm, &thinbak, &[])?;
    let left = collect_all(storm, &thinbak, &[])?;
    ensure!(left < 64 << 10, "{left} bytes were left by a collection");
    let left = collect_all(storm, &thinbak, &["--dry-run"])?;
    ensure!(left == 0, "{left} bytes are left by two collections");
    hosts.iter_mut().try_for_each(Host::check)?;
    thinbak.run(&storm.words(&["verify"]))?.expect(0)?;
    Ok(())
}
