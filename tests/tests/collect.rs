//! Collection through the programs: what it says, what it frees, and what it leaves, also when everything is killed.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use thinbak_tests::{Model, Outcome, Way, World, json_lines, number, seed, spawn, summary_of};

const SIZE: u64 = 24 * 1024 * 1024;
/// Everything that is not in use goes, and no deletion can be undone.
const ALL: [&str; 5] = ["collect", "--threshold", "100%", "--grace", "0s"];

fn plan_of(outcome: &Outcome) -> Result<Value> {
    let lines = json_lines(outcome)?;
    let plan = lines.into_iter().find(|line| line.get("message_type").is_some_and(|kind| kind == "plan"));
    plan.context("no plan")
}

/// Bytes of all packs.
fn pack_bytes(world: &World) -> Result<u64> {
    world.packs()?.iter().map(|path| Ok(fs::metadata(path)?.len())).sum()
}

/// Generations of a volume that is written between them; what each holds.
fn history(world: &World, generations: u64) -> Result<Vec<Vec<u8>>> {
    let mut model = Model::new(SIZE, seed()?);
    let mut states = Vec::new();
    for generation in 0..generations {
        model.scribble(&*world.open_pool()?, "v", if generation == 0 { 100 } else { 25 })?;
        world.backup("v")?;
        states.push(model.bytes.clone());
    }
    Ok(states)
}

fn delete(world: &World, generation: usize) -> Result<()> {
    world.on_repository(&["generation", "delete", &format!("p/v:{generation}")])?.expect(0)?;
    Ok(())
}

fn a_collection_frees_what_its_dry_run_said(way: Way) -> Result<()> {
    let world = World::new(way, SIZE)?;
    let states = history(&world, 6)?;
    let deleted = [1, 2, 4];
    for generation in deleted {
        delete(&world, generation)?;
    }
    // Within the grace period nothing goes.
    let kept = plan_of(&world.on_repository(&["collect", "--threshold", "100%"])?.expect(0)?)?;
    // But small packs become one, and have one header and footer.
    let surroundings = 160 * number(&kept, "merge_packs")?;
    // With the one that says what the pool looked like.
    ensure!(number(&kept, "free_bytes")? == surroundings && number(&kept, "generations")? == 7, "{kept}");
    let before = pack_bytes(&world)?;
    let planned = plan_of(&world.on_repository(&[&ALL[..], &["--dry-run"]].concat())?.expect(0)?)?;
    ensure!(pack_bytes(&world)? == before, "a dry run changed the packs");
    ensure!(number(&planned, "expired_generations")? == 3, "{planned}");
    let planned = number(&planned, "free_bytes")?;
    ensure!(planned > SIZE / 64, "only {planned} bytes");
    let summary = summary_of(&world.on_repository(&ALL)?.expect(0)?)?;
    ensure!(number(&summary, "freed_bytes")? == planned, "{planned} planned: {summary}");
    // Tombstones were added, and a pack with its header and footer; a server has not written its index yet.
    let after = pack_bytes(&world)?;
    ensure!(
        after + planned <= before + 4096 && after + planned + planned / 50 + 4096 >= before,
        "{before} {after} {planned}"
    );
    for (state, generation) in states.iter().zip(1..).filter(|(_, generation)| !deleted.contains(generation))
    {
        let name = format!("restored-{generation}");
        world.restore("v", u64::try_from(generation)?, &name)?;
        ensure!(world.export(&name)? == *state, "generation {generation} differs");
    }
    world.on_repository(&["verify"])?.expect(0)?;
    world.on_repository(&["generation", "show", "p/v:2"])?.expect(10)?;
    Ok(())
}

#[test]
fn a_collection_frees_what_its_dry_run_said_in_an_embedded_repository() -> Result<()> {
    a_collection_frees_what_its_dry_run_said(Way::Embedded)
}

#[test]
fn a_collection_frees_what_its_dry_run_said_on_a_server() -> Result<()> {
    a_collection_frees_what_its_dry_run_said(Way::Network)
}

#[test]
fn the_server_command_collects_a_repository_that_nobody_serves() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    history(&world, 3)?;
    delete(&world, 2)?;
    let repo = world.repo().display().to_string();
    let words = [&ALL[..], &["--repo", &repo]].concat();
    let said = world.server.ok(&[&words[..], &["--dry-run"]].concat())?.text();
    ensure!(said.contains("to be freed:") && !said.contains("freed: 0B"), "{said}");
    let outcome = world.server.ok(&[&words[..], &["--json"]].concat())?;
    let summary = summary_of(&outcome)?;
    ensure!(number(&summary, "freed_bytes")? == number(&plan_of(&outcome)?, "free_bytes")?, "{summary}");
    let refused = world.server.run(&["collect", "--repo", &repo, "--threshold", "200%"])?.expect(2)?;
    ensure!(refused.stderr.contains("200%"), "{}", refused.stderr);
    let served = World::new(Way::Network, SIZE)?;
    let repo = served.repo().display().to_string();
    let busy = served.server.run(&["collect", "--repo", &repo])?.expect(11)?;
    ensure!(busy.stderr.contains("hint:"), "{}", busy.stderr);
    Ok(())
}

/// Starts a restore and stops its process while it runs: it asks for nothing more.
fn stopped_restore(world: &World, to: &Path) -> Result<(Child, Pid)> {
    for _ in 0..20 {
        let to_file = to.display().to_string();
        let words = world.with_repository(&["restore", "p/v:1", "--to-file", &to_file]);
        let mut child = spawn(world.thinbak.command(&words).stdout(Stdio::piped()))?;
        // It tells how far it is as soon as it has begun.
        let mut begun = [0];
        child.stdout.as_mut().context("no stdout")?.read_exact(&mut begun)?;
        let pid = Pid::from_raw(i32::try_from(child.id())?).context("no process")?;
        kill_process(pid, Signal::STOP)?;
        if child.try_wait()?.is_none() && !to.exists() {
            return Ok((child, pid));
        }
        kill_process(pid, Signal::CONT)?;
        ensure!(child.wait()?.success(), "a restore failed");
        fs::remove_file(to)?;
    }
    anyhow::bail!("each restore had ended before it was stopped")
}

#[test]
fn what_is_being_restored_stays_although_it_is_deleted_and_given_up() -> Result<()> {
    let world = World::new(Way::Network, 4 * SIZE)?;
    let mut model = Model::new(4 * SIZE, seed()?);
    let mut states = Vec::new();
    for operations in [400, 300, 1] {
        model.scribble(&*world.open_pool()?, "v", operations)?;
        world.backup("v")?;
        states.push(model.bytes.clone());
    }
    let file = world.scratch.join("restored.img");
    let (mut restore, pid) = stopped_restore(&world, &file)?;
    // Of the second nothing is held, so this collection has much to do.
    delete(&world, 1)?;
    delete(&world, 2)?;
    let collected = world.on_repository(&ALL)?.expect(0)?;
    let plan = plan_of(&collected)?;
    // What the pool looked like is one of those that stay.
    ensure!(number(&plan, "expired_generations")? == 2 && number(&plan, "generations")? == 2, "{plan}");
    ensure!(number(&summary_of(&collected)?, "removed_packs")? > 0, "{}", collected.text());
    world.on_repository(&["generation", "undelete", "p/v:1"])?.expect(5)?;
    kill_process(pid, Signal::CONT)?;
    // What it has to say must be read, or it waits.
    let mut said = String::new();
    restore.stdout.take().context("no stdout")?.read_to_string(&mut said)?;
    ensure!(restore.wait()?.success(), "the restore failed: {said}");
    ensure!(states.first() == Some(&fs::read(&file)?), "generation 1 differs");
    // Now nobody needs it.
    let summary = summary_of(&world.on_repository(&ALL)?.expect(0)?)?;
    ensure!(number(&summary, "freed_bytes")? > SIZE / 8, "{summary}");
    world.restore("v", 3, "last")?;
    ensure!(states.last() == Some(&world.export("last")?), "generation 3 differs");
    world.on_repository(&["verify"])?.expect(0)?;
    Ok(())
}

/// A host with a pool of its own, backing up to the server of another world.
struct Host {
    world: World,
    pool: &'static str,
    model: Model,
    /// What each generation holds that was seen on the server.
    states: BTreeMap<u64, Vec<u8>>,
}

impl Host {
    fn new(pool: &'static str, seed: u64) -> Result<Self> {
        let world = World::bare(Way::Embedded)?;
        let dir = world.scratch.join(pool).display().to_string();
        world.thinbak.ok(&["pool", "create", pool, "--dir", &dir, "--size", &(SIZE * 8).to_string()])?;
        let volume = format!("{pool}/v");
        world.thinbak.ok(&["volume", "create", &volume, "--size", &SIZE.to_string()])?;
        Ok(Self { world, pool, model: Model::new(SIZE, seed), states: BTreeMap::new() })
    }

    fn write(&mut self) -> Result<()> {
        let pool = thinbak_engine::EmbeddedPool::open(&self.world.scratch.join(self.pool))?;
        self.model.scribble(&pool, "v", 20)
    }

    fn on(&self, url: &str, words: &[&str]) -> Vec<String> {
        let all = [&["--server", url, "--json"], words].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    /// The generations that the server shows. Those that are new hold what the volume holds now.
    fn look(&mut self, url: &str) -> Result<()> {
        let volume = format!("{}/v", self.pool);
        let outcome = self.world.thinbak.run(&self.on(url, &["generation", "list", &volume]))?;
        let listed: Value = match outcome.code {
            0 => serde_json::from_slice(&outcome.stdout)?,
            10 => return Ok(()),
            _ => anyhow::bail!("{}", outcome.stderr),
        };
        let rows = listed.as_array().or_else(|| listed.get("generations").and_then(Value::as_array));
        let numbers = rows.context("no list")?.iter().map(|row| number(row, "generation"));
        let numbers: Vec<u64> = numbers.collect::<Result<_>>()?;
        self.states.retain(|generation, _| numbers.contains(generation));
        for generation in numbers {
            self.states.entry(generation).or_insert_with(|| self.model.bytes.clone());
        }
        Ok(())
    }

    fn check(&self, url: &str) -> Result<()> {
        for (generation, state) in &self.states {
            let file = self.world.scratch.join("restored.img");
            let (from, to) = (format!("{}/v:{generation}", self.pool), file.display().to_string());
            self.world.thinbak.ok(&self.on(url, &["restore", &from, "--to-file", &to]))?;
            ensure!(fs::read(&file)? == *state, "{from} differs");
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

#[test]
fn killed_again_and_again_while_all_runs_at_once_nothing_is_lost_and_nothing_leaks() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut served = World::bare(Way::Network)?;
    let mut hosts = [Host::new("q", seed)?, Host::new("r", seed + 1)?];
    let mut killed_collections = 0;
    for round in 0..14 {
        let url = served.running.as_ref().context("no server")?.url.clone();
        let mut jobs = Vec::new();
        for host in &mut hosts {
            host.write()?;
            let volume = format!("{}/v", host.pool);
            jobs.push(host.world.thinbak.start(&host.on(&url, &["backup", &volume]))?);
            let newest = host.states.keys().last().copied().unwrap_or_default();
            let gone: Vec<u64> = host
                .states
                .keys()
                .copied()
                .filter(|number| *number < newest && random.random_bool(0.4))
                .collect();
            for generation in gone {
                let words = ["generation", "delete", &format!("{volume}:{generation}")];
                jobs.push(host.world.thinbak.start(&host.on(&url, &words))?);
            }
        }
        let mut collection = served.thinbak.start(&served.with_repository(&ALL))?;
        // When it is killed is chance, as it is in life.
        thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        if round % 4 != 3 {
            served.running.take().context("no server")?.kill()?;
        }
        killed_collections += u32::from(!collection.has_ended()?);
        for mut job in jobs {
            if random.random_bool(0.3) {
                job.kill()?;
            }
            job.wait()?;
        }
        collection.wait()?;
        if served.running.is_none() {
            served.start_server()?;
        }
        let url = served.running.as_ref().context("no server")?.url.clone();
        hosts.iter_mut().try_for_each(|host| host.look(&url))?;
        hosts.iter().try_for_each(|host| host.check(&url))?;
    }
    println!("{killed_collections} collections were cut off");
    let url = served.running.as_ref().context("no server")?.url.clone();
    for host in &mut hosts {
        host.world.thinbak.ok(&host.on(&url, &["backup", &format!("{}/v", host.pool)]))?;
        host.look(&url)?;
    }
    for _ in 0..3 {
        served.on_repository(&ALL)?.expect(0)?;
    }
    let plan = plan_of(&served.on_repository(&ALL)?.expect(0)?)?;
    ensure!(number(&plan, "free_bytes")? == 0 && number(&plan, "kept_dead_bytes")? == 0, "leaked: {plan}");
    ensure!(number(&plan, "lost_chunks")? == 0, "{plan}");
    served.on_repository(&["verify"])?.expect(0)?;
    hosts.iter().try_for_each(|host| host.check(&url))
}
