//! Jobs also store the metadata of pools, once a day, as `thin_restore` reads them.

#![expect(clippy::indexing_slicing, reason = "JSON documents: what is absent is null")]

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use thinbak_tests::{Model, Program, Way, World, seed, thin_check};

const SIZE: u64 = 8 * 1024 * 1024;
const JOB: &str = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nkeep_last = 1\n";

struct Host {
    world: World,
    thinbak: Program,
}

impl Host {
    fn new(shape: &str) -> Result<Self> {
        let world = World::new(Way::Embedded, SIZE)?;
        Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 30)?;
        let config = world.scratch.join("agent.toml");
        fs::write(&config, format!("repository = \"{}\"\n{shape}{JOB}", world.repo().display()))?;
        let thinbak = world.thinbak.clone().env("THINBAK_CONFIG", config);
        Ok(Self { world, thinbak })
    }

    /// Runs the job and returns what its summary notes.
    fn run(&self) -> Result<String> {
        let said = self.thinbak.run(&["--json", "job", "run", "j"])?.expect(0)?.text();
        let summary = said.lines().find(|line| line.contains("\"summary\"")).context(said.clone())?;
        Ok(serde_json::from_str::<Value>(summary)?["notes"].to_string())
    }

    /// The numbers of the generations of HOST/p/NAME.
    fn numbers(&self, name: &str) -> Result<Vec<u64>> {
        let listed = self.thinbak.run(&["--json", "generation", "list", &format!("p/{name}")])?;
        if listed.code == 10 {
            return Ok(Vec::new());
        }
        let listed: Value = serde_json::from_str(&listed.expect(0)?.text())?;
        let generations = listed["generations"].as_array().context("no list")?;
        generations.iter().map(|one| one["generation"].as_u64().context("no number")).collect()
    }

    /// The note of when the last dump was begun.
    fn mark(&self) -> Result<PathBuf> {
        let found = walk(&self.world.scratch.join(""))?;
        found.into_iter().next().context("nothing says when metadata were stored")
    }
}

/// All files in folders called metadata-dumps.
fn walk(dir: &std::path::Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(walk(&entry.path())?);
        } else if dir.ends_with("metadata-dumps") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[test]
fn metadata_of_a_pool_are_stored_once_a_day_and_can_be_restored() -> Result<()> {
    let host = Host::new("")?;
    ensure!(host.run()? == "[]");
    ensure!(host.numbers(".metadata")? == [1] && host.numbers(".shape")? == [1]);
    let text = host.world.scratch.join("text");
    host.thinbak
        .run(&["restore", "p/.metadata:latest", "--to-file", &text.display().to_string()])?
        .expect(0)?;
    let metadata = host.world.scratch.join("restored");
    File::create(&metadata)?.set_len(4 * 1024 * 1024)?;
    let restored = Command::new("thin_restore").arg("-i").arg(&text).arg("-o").arg(&metadata).output()?;
    ensure!(restored.status.success(), "{restored:?}");
    thin_check(&metadata)?;
    let dumped = fs::read_to_string(&text)?;
    ensure!(dumped.contains("<device dev_id=") && dumped.trim_end().ends_with("</superblock>"));
    // Another run on this day stores none, and what the rules of jobs and people delete is not this.
    ensure!(host.run()? == "[]" && host.numbers(".metadata")? == [1]);
    File::options()
        .write(true)
        .open(host.mark()?)?
        .set_modified(SystemTime::now() - Duration::from_secs(21 * 3600))?;
    ensure!(host.run()? == "[]" && host.numbers(".metadata")? == [1, 2]);
    host.thinbak.run(&["prune", "*", "--keep-last", "1"])?.expect(0)?;
    ensure!(host.numbers("v")?.len() == 1 && host.numbers(".metadata")? == [1, 2]);
    let listed = host.thinbak.run(&["generation", "list"])?.expect(0)?.text();
    ensure!(!listed.contains(".metadata"), "{listed}");
    host.world.check_pool()
}

#[test]
fn a_dump_that_failed_is_told_by_the_next_run_and_not_repeated_on_that_day() -> Result<()> {
    let host = Host::new("")?;
    // Somebody else holds the one metadata snapshot.
    host.thinbak.run(&["msnap", "reserve", "p"])?.expect(0)?;
    let held = host.thinbak.run(&["--json", "job", "run", "j"])?;
    ensure!(host.numbers(".metadata")?.is_empty(), "{held:?}");
    host.thinbak.run(&["msnap", "release", "p"])?.expect(0)?;
    let notes = host.run()?;
    ensure!(notes.contains("the metadata of pool p were not stored"), "{notes}");
    ensure!(host.numbers(".metadata")?.is_empty());
    fs::remove_file(host.mark()?)?;
    ensure!(host.run()? == "[]" && host.numbers(".metadata")? == [1]);
    // Killed in the middle, it says so.
    fs::write(host.mark()?, "it was interrupted")?;
    let notes = host.run()?;
    ensure!(notes.contains("interrupted"), "{notes}");
    Ok(())
}

#[test]
fn metadata_are_left_alone_where_the_configuration_says_never() -> Result<()> {
    let host = Host::new("[shape]\nmetadata_dump = \"never\"\n")?;
    host.run()?;
    ensure!(host.numbers(".metadata")?.is_empty() && host.numbers(".shape")? == [1]);
    let config = host.world.scratch.join("agent.toml");
    fs::write(config, "[shape]\nmetadata_dump = \"hourly\"\n")?;
    let refused = host.thinbak.run(&["job", "list"])?.expect(2)?;
    ensure!(refused.stderr.contains("line 2") && refused.stderr.contains("daily"), "{}", refused.stderr);
    Ok(())
}
