//! A repository that lost its catalogue, its index or both: the programs make them anew from the packs, or bring a
//! copy back, and what can be restored is what could be restored before.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_tests::{Model, Outcome, Way, World, json_lines, seed};

const SIZE: u64 = 4 << 20;

struct Life {
    world: World,
    model: Model,
    /// What the volume held in each generation that can be seen.
    kept: Vec<(u64, Vec<u8>)>,
}

impl Life {
    /// Five generations of a volume, of which one is deleted and one is protected.
    fn new(way: Way) -> Result<Self> {
        let world = World::new(way, SIZE)?;
        let mut life = Self { world, model: Model::new(SIZE, seed()?), kept: Vec::new() };
        for _ in 0..5 {
            life.back_up()?;
        }
        life.on_repository(&["generation", "delete", "p/v:2"])?.expect(0)?;
        life.kept.retain(|(number, _)| *number != 2);
        life.on_repository(&["generation", "protect", "p/v:3"])?.expect(0)?;
        Ok(life)
    }

    fn back_up(&mut self) -> Result<()> {
        let pool = self.world.open_pool()?;
        self.model.scribble(&pool, "v", 6)?;
        drop(pool);
        let summary = self.world.backup("v")?;
        let number = summary.get("generation").and_then(Value::as_u64).context("no generation")?;
        self.kept.push((number, self.model.bytes.clone()));
        Ok(())
    }

    fn on_repository(&self, words: &[&str]) -> Result<Outcome> {
        self.world.on_repository(words)
    }

    /// Stops the server, if there is one.
    fn stop(&mut self) -> Result<()> {
        if let Some(running) = self.world.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// What is listed, and what is deleted but for the times: its grace begins anew.
    fn listed(&self) -> Result<Value> {
        let list = |words: &[&str]| -> Result<Value> {
            Ok(serde_json::from_str(&self.on_repository(words)?.expect(0)?.text())?)
        };
        let alive = list(&["generation", "list"])?;
        let mut deleted = list(&["generation", "list", "--deleted"])?;
        for one in deleted.get_mut("generations").and_then(Value::as_array_mut).context("no list")? {
            let one = one.as_object_mut().context("no object")?;
            ensure!(one.remove("deleted_at").is_some() && one.remove("undelete_until").is_some(), "{one:?}");
        }
        Ok(serde_json::json!([alive, deleted]))
    }

    fn server(&self, command: &str, more: &[&str]) -> Result<Outcome> {
        let repo = self.world.repo().display().to_string();
        self.world.server.run(&[&[command, "--repo", &repo, "--json"], more].concat())
    }

    /// Every generation restores to what it held.
    fn check(&self) -> Result<()> {
        let file = self.world.scratch.join("restored.img");
        for (number, bytes) in &self.kept {
            let from = format!("p/v:{number}");
            self.on_repository(&["restore", &from, "--to-file", &file.display().to_string()])?.expect(0)?;
            ensure!(fs::read(&file)? == *bytes, "generation {number} is not what it was");
            fs::remove_file(&file)?;
        }
        self.server("verify", &[])?.expect(0)?;
        Ok(())
    }
}

fn summary(outcome: &Outcome) -> Result<Value> {
    json_lines(outcome)?.pop().context("nothing was printed")
}

fn remove(path: &Path) -> Result<()> {
    for companion in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(companion);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

#[test]
fn without_catalogue_and_index_everything_comes_back_from_the_packs() -> Result<()> {
    let mut life = Life::new(Way::Embedded)?;
    let before = life.listed()?;
    let repo = life.world.repo();
    for (catalogue, index) in [("missing", true), ("garbage", false), ("garbage", true)] {
        remove(&repo.join("catalogue.sqlite"))?;
        if catalogue == "garbage" {
            fs::write(repo.join("catalogue.sqlite"), b"not a database at all".repeat(300))?;
        }
        if index {
            fs::remove_dir_all(repo.join("index"))?;
        }
        let refused = life.on_repository(&["generation", "list"])?.expect(4)?;
        ensure!(refused.stderr.contains("thinbak-server rebuild-catalogue --repo"), "{}", refused.stderr);
        let rebuilt = summary(&life.server("rebuild-catalogue", &[])?.expect(0)?)?;
        let number = |field: &str| rebuilt.get(field).and_then(Value::as_u64);
        // What the pool looked like is one of them.
        ensure!(number("generations") == Some(5) && number("deleted_generations") == Some(1), "{rebuilt}");
        let lost = rebuilt.get("only_in_a_backup").and_then(Value::as_array).context("no list")?;
        ensure!(
            lost.iter().any(|only| only.get("place").is_some_and(|place| place == "quarantine")),
            "{rebuilt}"
        );
        let after = life.listed()?;
        ensure!(after == before, "{after}\ninstead of\n{before}");
        life.check()?;
    }
    // The next backup is an increment, with the next number.
    life.back_up()?;
    ensure!(life.kept.last().is_some_and(|(number, _)| *number == 6), "{:?}", life.kept.len());
    life.check()?;
    life.on_repository(&["generation", "undelete", "p/v:2"])?.expect(0)?;
    Ok(())
}

#[test]
fn a_copy_made_by_a_running_server_is_brought_back_and_brought_up_to_date() -> Result<()> {
    let mut life = Life::new(Way::Network)?;
    let url = life.world.running.as_ref().context("no server")?.url.clone();
    let copied = life.world.server.ok(&["backup-catalogue", "--server", &url, "--json", "--keep", "2"])?;
    let copy = summary(&copied)?.get("path").and_then(Value::as_str).context("no path")?.to_owned();
    life.server("rebuild-catalogue", &[])?.expect(11)?;
    life.server("restore-catalogue", &[&copy])?.expect(11)?;
    // Later than the copy.
    life.back_up()?;
    life.on_repository(&["generation", "delete", "p/v:4"])?.expect(0)?;
    life.kept.retain(|(number, _)| *number != 4);
    let before = life.listed()?;
    life.stop()?;
    remove(&life.world.repo().join("catalogue.sqlite"))?;
    fs::write(life.world.repo().join("catalogue.sqlite"), b"gone")?;
    let refused = life.server("stats", &[])?.expect(4)?;
    ensure!(
        refused.stderr.contains(&copy) && refused.stderr.contains("restore-catalogue"),
        "{}",
        refused.stderr
    );
    let restored = summary(&life.server("restore-catalogue", &[&copy])?.expect(0)?)?;
    let number = |field: &str| restored.get(field).and_then(Value::as_u64);
    ensure!(number("added") == Some(1) && number("changed") == Some(1), "{restored}");
    life.world.start_server()?;
    let after = life.listed()?;
    ensure!(after == before, "{after}\ninstead of\n{before}");
    life.stop()?;
    life.world.start_server()?;
    for (number, bytes) in life.kept.clone() {
        life.world.restore("v", number, &format!("r{number}"))?;
        ensure!(life.world.export(&format!("r{number}"))? == bytes, "generation {number}");
    }
    Ok(())
}

#[test]
fn damage_in_the_packs_is_listed_and_costs_only_what_needs_it() -> Result<()> {
    let mut life = Life::new(Way::Embedded)?;
    // Every command seals a pack of its own: the second backup's is the one with its root.
    let mut packs: Vec<_> = fs::read_dir(life.world.repo().join("packs/00000"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    packs.sort();
    let victim = packs.get(4).context("no fifth pack")?;
    fs::remove_file(victim)?;
    let outcome = life.server("rebuild-catalogue", &[])?.expect(4)?;
    let text = outcome.text();
    ensure!(text.contains("pack 00000004 is missing"), "{text}");
    // Again, now that nobody knows of the pack any more: what it held is not there, and that is all.
    life.server("rebuild-catalogue", &[])?;
    life.kept.retain(|(number, _)| *number != 5);
    life.check()
}

/// Kills a rebuild again and again, at times that have nothing to do with what it does; whatever is there then
/// opens or is made anew, and in the end all is as it was.
#[test]
fn a_rebuild_may_be_killed_at_any_moment() -> Result<()> {
    let life = Life::new(Way::Embedded)?;
    let before = life.listed()?;
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let repo = life.world.repo().display().to_string();
    let mut killed = 0;
    for _ in 0..12 {
        let mut running = life.world.server.start(&["rebuild-catalogue", "--repo", &repo])?;
        // The moment of the kill is the random thing under test.
        std::thread::sleep(std::time::Duration::from_millis(random.random_range(0..120)));
        killed += u32::from(running.kill()?);
        // With the old catalogue or the new one, what can be seen is the same.
        let after = life.listed()?;
        ensure!(after == before, "seed {seed}: {after}\ninstead of\n{before}");
    }
    println!("{killed} of 12 were killed while they ran");
    life.server("rebuild-catalogue", &[])?.expect(0)?;
    ensure!(life.listed()? == before);
    let left: Vec<String> = fs::read_dir(&repo)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    ensure!(!left.iter().any(|name| name.contains(".draft") || name.contains(".new-")), "{left:?}");
    life.check()
}
