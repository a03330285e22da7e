//! `kill -9` of either side at any moment of a backup: every earlier generation restores, the pool is
//! clean, and the same backup run again sends nothing that had been stored.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_tests::{Model, Way, World, number, seed, summary_of, text};

const SIZE: u64 = 96 * 1024 * 1024;

/// Rounds of one test; more by THINBAK_KILL_ROUNDS.
fn rounds() -> usize {
    std::env::var("THINBAK_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// Lets some time pass, up to `most`: the moment of the kill is the random thing under test.
fn pass_time(random: &mut StdRng, most: Duration) {
    std::thread::sleep(most.mul_f64(random.random_range(0.0..1.1)));
}

/// Restores a generation to a file and compares.
fn must_restore(world: &World, generation: usize, content: &[u8]) -> Result<()> {
    let path = world.scratch.join("restored.img");
    let (from, to) = (format!("p/v:{generation}"), path.display().to_string());
    world.on_repository(&["restore", &from, "--to-file", &to])?.expect(0)?;
    ensure!(std::fs::read(&path)? == content, "generation {generation} differs");
    Ok(std::fs::remove_file(path)?)
}

/// Plain bytes of the distinct chunks on stable storage.
fn stored_bytes(world: &World) -> Result<u64> {
    let repo = world.repo().display().to_string();
    let stats = world.server.ok(&["stats", "--repo", &repo, "--json"])?.text();
    number(&serde_json::from_str::<Value>(&stats)?, "chunk_plain_bytes")
}

#[test]
fn an_agent_killed_at_any_moment_of_a_backup_loses_and_leaves_nothing() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed);
    let mut generations: Vec<Vec<u8>> = Vec::new();
    let mut duration = Duration::from_secs(1);
    let mut killed = 0;
    for _ in 0..rounds() {
        model.scribble(&*world.open_pool()?, "v", 120)?;
        let stored_before = stored_bytes(&world)?;
        let words = world.with_repository(&["backup", &world.volume("v")]);
        let since = Instant::now();
        let mut running = world.thinbak.start(&words)?;
        pass_time(&mut random, duration);
        killed += usize::from(running.kill()?);
        world.check_pool()?;
        for (content, generation) in generations.iter().zip(1..) {
            must_restore(&world, generation, content)?;
        }
        let stored = stored_bytes(&world)?;
        let before = Instant::now();
        let summary = world.backup("v")?;
        duration = before.elapsed().max(Duration::from_millis(200));
        // What the killed run had stored is found again, not sent. It may have committed and kept its base in
        // its last moment; then this one found nothing to do.
        if text(&summary, "mode")? != "unchanged" {
            let brought = stored - stored_before;
            ensure!(number(&summary, "deduplicated_bytes")? >= brought, "{brought} were stored, {summary}");
        }
        let number = usize::try_from(number(&summary, "generation")?)?;
        // A generation that the killed run committed before it died holds the same content.
        generations.resize(number, model.bytes.clone());
        must_restore(&world, number, &model.bytes)?;
        ensure!(since.elapsed() < Duration::from_secs(300), "a round took too long");
    }
    ensure!(killed > 0, "every backup had ended before it was killed");
    Ok(())
}

#[test]
fn a_server_killed_at_any_moment_of_a_backup_loses_nothing() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::new(Way::Network, SIZE)?;
    let mut model = Model::new(SIZE, seed);
    let mut generations: Vec<Vec<u8>> = Vec::new();
    let mut duration = Duration::from_secs(1);
    for _ in 0..rounds() {
        model.scribble(&*world.open_pool()?, "v", 120)?;
        let running = world.thinbak.start(&world.with_repository(&["backup", &world.volume("v")]))?;
        pass_time(&mut random, duration);
        world.running.take().context("no server")?.kill()?;
        let outcome = running.wait()?;
        ensure!(matches!(outcome.code, 0 | 1 | 10), "exit code {}: {}", outcome.code, outcome.stderr);
        if outcome.code != 0 {
            ensure!(outcome.stderr.contains("error:") || outcome.text().contains("\"error\""), "{outcome:?}");
        }
        world.start_server()?;
        for (content, generation) in generations.iter().zip(1..) {
            must_restore(&world, generation, content)?;
        }
        let before = Instant::now();
        let summary = world.backup("v")?;
        duration = before.elapsed().max(Duration::from_millis(200));
        let number = usize::try_from(number(&summary, "generation")?)?;
        generations.resize(number, model.bytes.clone());
        must_restore(&world, number, &model.bytes)?;
    }
    Ok(())
}

#[test]
fn a_restore_killed_at_any_moment_leaves_no_half_volume() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed);
    model.scribble(&*world.open_pool()?, "v", 300)?;
    world.backup("v")?;
    let first = model.bytes.clone();
    model.scribble(&*world.open_pool()?, "v", 100)?;
    let mut duration = Duration::from_secs(1);
    for round in 0..rounds() {
        let copy = world.volume("copy");
        let words: &[&str] = if round % 2 == 0 {
            &["restore", "p/v:1", "--to", &copy]
        } else {
            &["restore", "p/v:1", "--in-place"]
        };
        let mut running = world.thinbak.start(&world.with_repository(words))?;
        pass_time(&mut random, duration);
        running.kill()?;
        world.check_pool()?;
        let content = world.export("v")?;
        ensure!(content == model.bytes || (round % 2 == 1 && content == first), "half a volume");
        let listed = world.thinbak.ok(&["volume", "list", &world.pool()])?.text();
        if listed.contains("copy") {
            ensure!(world.export("copy")? == first, "half a copy");
            world.thinbak.ok(&["volume", "remove", &copy])?;
        }
        let before = Instant::now();
        summary_of(&world.on_repository(words)?.expect(0)?)?;
        duration = before.elapsed();
        if round % 2 == 0 {
            ensure!(world.export("copy")? == first);
            world.thinbak.ok(&["volume", "remove", &copy])?;
        } else {
            ensure!(world.export("v")? == first);
            model.bytes.clone_from(&first);
            model.scribble(&*world.open_pool()?, "v", 100)?;
        }
    }
    Ok(())
}
