//! Several generations of a volume restored together: each is what the volume was, what they share takes space once, and
//! nothing half is ever seen.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_engine::EmbeddedPool;
use thinbak_tests::{BLOCK, Model, Outcome, Way, World, json_lines, number, seed, text, thin_check};

const MIB: u64 = 1024 * 1024;

/// What the volume was when a generation was made.
struct Moment {
    bytes: Vec<u8>,
    mapped: BTreeSet<u64>,
}

impl Moment {
    /// What is there of `from .. to`.
    fn part(&self, from: u64, to: u64) -> &[u8] {
        let bound = |at: u64| usize::try_from(at).map_or(self.bytes.len(), |at| at.min(self.bytes.len()));
        self.bytes.get(bound(from)..bound(to)).unwrap_or_default()
    }

    /// A block of the volume, filled up with zeros; all zeros where there is none.
    fn block(&self, at: u64, size: u64) -> Vec<u8> {
        let mut block = self.part(at * size, (at + 1) * size).to_vec();
        block.resize(usize::try_from(size).unwrap_or_default(), 0);
        block
    }

    fn blocks(&self, size: u64) -> u64 {
        (self.bytes.len() as u64).div_ceil(size)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Data blocks that hold something in any of the moments, one for each time that the content of a block changes.
fn needed_blocks(moments: &[&Moment], size: u64) -> u64 {
    let count = moments.iter().map(|moment| moment.blocks(size)).max().unwrap_or(0);
    let mut needed = 0;
    for at in 0..count {
        let mut before = vec![0; usize::try_from(size).unwrap_or_default()];
        for moment in moments {
            let now = moment.block(at, size);
            needed += u64::from(now != before && !is_zero(&now));
            before = now;
        }
    }
    needed
}

/// Bytes of the chunks that are not the same hole, zero or content in both, up to the end of the newer one.
fn different_bytes(old: &Moment, new: &Moment, chunk: u64) -> u64 {
    let blocks = chunk / BLOCK;
    let holds = |moment: &Moment, at: u64| {
        let mapped = (at * blocks..(at + 1) * blocks).any(|block| moment.mapped.contains(&block));
        let content = moment.part(at * chunk, (at + 1) * chunk).to_vec();
        (mapped, if is_zero(&content) { Vec::new() } else { content })
    };
    let size = new.bytes.len() as u64;
    let different = (0..size.div_ceil(chunk)).filter(|at| holds(old, *at) != holds(new, *at));
    different.map(|at| ((at + 1) * chunk).min(size) - at * chunk).sum()
}

/// A volume that changes from generation to generation: written, discarded, grown, shrunk, and once not at all.
fn history(world: &World, seed: u64) -> Result<Vec<Moment>> {
    let first = 12 * MIB + 3 * BLOCK;
    world.create_pool(&["--size", &(100 * MIB).to_string()])?;
    world.thinbak.ok(&["volume", "create", &world.volume("v"), "--size", &first.to_string()])?;
    let mut model = Model::new(first, seed);
    let mut moments = Vec::new();
    let sizes = [
        first,
        first,
        7 * MIB + BLOCK,
        7 * MIB + 2 * BLOCK,
        15 * MIB + 5 * BLOCK,
        15 * MIB + 5 * BLOCK,
        5 * MIB,
    ];
    for (step, size) in sizes.into_iter().enumerate() {
        resize(world, &mut model, size)?;
        match step {
            0 => model.scribble(&*world.open_pool()?, "v", 60)?,
            5 => {}
            _ => model.scribble(&*world.open_pool()?, "v", 12)?,
        }
        world.backup("v")?;
        moments.push(Moment { bytes: model.bytes.clone(), mapped: model.mapped.clone() });
    }
    Ok(moments)
}

/// Resizes volume and model. What lies behind a smaller end is given up before: it would come back.
fn resize(world: &World, model: &mut Model, size: u64) -> Result<()> {
    let former = model.bytes.len() as u64;
    if size < former {
        let pool = world.open_pool()?;
        pool.discard(&pool.volume("v")?, size, former - size)?;
        model.mapped.retain(|block| *block < size / BLOCK);
    }
    if size != former {
        world.thinbak.ok(&["volume", "resize", &world.volume("v"), "--size", &size.to_string()])?;
    }
    model.resize(size);
    Ok(())
}

/// Another pool, with blocks of its own.
struct Target<'a> {
    world: &'a World,
    name: String,
    block: u64,
}

impl<'a> Target<'a> {
    fn new(world: &'a World, block: u64, words: &[&str]) -> Result<Self> {
        let name = format!("q{}{}", block / 1024, words.concat());
        let (dir, block_size) = (world.scratch.join(&name).display().to_string(), block.to_string());
        let size = (200 * block).max((100 * MIB).next_multiple_of(block)).to_string();
        let create = ["pool", "create", &name, "--dir", &dir, "--block-size", &block_size, "--size", &size];
        world.thinbak.ok(&[&create[..], words].concat())?;
        Ok(Self { world, name, block })
    }

    fn copy(&self) -> String {
        format!("{}/copy", self.name)
    }

    fn restore(&self, generations: &[&str]) -> Result<Outcome> {
        let copy = self.copy();
        self.world.on_repository(&[&["restore"], generations, &["--to", &copy]].concat())
    }

    fn export(&self, name: &str) -> Result<Vec<u8>> {
        Ok(self.world.thinbak.ok(&["volume", "export", &format!("{}/{name}", self.name)])?.stdout)
    }

    fn open(&self) -> Result<EmbeddedPool> {
        Ok(EmbeddedPool::open(&self.world.scratch.join(&self.name))?)
    }

    /// All devices of the pool, private ones too, by name.
    fn names(&self) -> Result<Vec<String>> {
        let pool = self.open()?;
        let mut names: Vec<_> = pool.volumes().into_iter().map(|volume| volume.name).collect();
        ensure!(pool.unknown_devices()?.is_empty(), "devices that nobody knows");
        ensure!(pool.pool().devices()?.len() == names.len(), "devices are missing");
        names.sort();
        Ok(names)
    }

    fn thin_check(&self) -> Result<()> {
        thin_check(&self.world.scratch.join(&self.name).join("metadata"))
    }

    /// `copy` holds the last of the moments and its snapshots the others, and all takes as much space as is needed.
    fn holds(&self, moments: &[(u64, &Moment)]) -> Result<()> {
        let (last, older) = moments.split_last().context("no moment")?;
        let mut names: Vec<_> =
            older.iter().map(|(generation, _)| format!("copy@gen-{generation}")).collect();
        names.push("copy".to_owned());
        for (name, (generation, moment)) in names.iter().zip(older.iter().chain([last])) {
            ensure!(self.export(name)? == moment.bytes, "{name}: generation {generation} differs");
        }
        names.sort();
        ensure!(self.names()? == names, "{:?}", self.names()?);
        let pool = self.open()?;
        for (name, moment) in names.iter().map(|name| {
            let found = older.iter().find(|(generation, _)| *name == format!("copy@gen-{generation}"));
            (name, found.unwrap_or(last).1)
        }) {
            let volume =
                pool.volumes().into_iter().find(|volume| volume.name == *name).context("no volume")?;
            let device = pool.pool().device(volume.device)?.context("no device")?;
            let (mapped, wanted) = (device.details.mapped_blocks, needed_blocks(&[moment], self.block));
            ensure!(mapped == wanted, "{name}: {mapped} blocks are mapped, {wanted} hold something");
            ensure!(volume.read_only == (name != "copy"), "{name}: {volume:?}");
        }
        let all: Vec<&Moment> = moments.iter().map(|(_, moment)| *moment).collect();
        let (used, wanted) = (pool.pool().status().data_used, needed_blocks(&all, self.block));
        ensure!(used == wanted, "{used} blocks are in use, {wanted} hold something of their own");
        drop(pool);
        self.thin_check()
    }

    fn remove(&self) -> Result<()> {
        for name in self.names()?.iter().rev() {
            self.world.thinbak.ok(&["volume", "remove", &format!("{}/{name}", self.name)])?;
        }
        ensure!(self.open()?.pool().status().data_used == 0, "space is lost");
        Ok(())
    }
}

fn summaries(outcome: &Outcome) -> Result<Vec<Value>> {
    let mut lines = json_lines(outcome)?;
    lines.retain(|line| line.get("message_type").and_then(Value::as_str) == Some("summary"));
    Ok(lines)
}

fn kept_sharing(way: Way, chunk: u64, block: u64) -> Result<()> {
    let world = World::with_chunks(way, chunk)?;
    let moments = history(&world, seed()?)?;
    let target = Target::new(&world, block, &[])?;
    let all: Vec<_> = (1..).zip(&moments).collect();

    let outcome = target.restore(&["p/v:all"])?.expect(0)?;
    target.holds(&all)?;
    let told = summaries(&outcome)?;
    ensure!(told.len() == all.len(), "{told:?}");
    for (summary, pair) in told.iter().skip(1).zip(all.windows(2)) {
        let [(_, old), (generation, new)] = pair else { continue };
        ensure!(number(summary, "generation")? == *generation, "{summary}");
        let different = different_bytes(old, new, chunk);
        ensure!(number(summary, "changed_bytes")? == different, "{different} differ: {summary}");
        ensure!(number(summary, "sent_bytes")? <= different + 4096, "{summary}");
        ensure!(number(summary, "mapped_bytes")? <= number(summary, "volume_bytes")?, "{summary}");
    }
    let places: Vec<_> = told.iter().map(|summary| text(summary, "target")).collect::<Result<_>>()?;
    let place = |generation: u64| format!("{}@gen-{generation}", target.copy());
    ensure!(places.first() == Some(&place(1).as_str()) && places.last() == Some(&target.copy().as_str()));
    target.remove()?;

    // Named one by one, in any order and twice; those between are skipped.
    target.restore(&["p/v:latest", "p/v:5", "p/v:2", "p/v:7"])?.expect(0)?;
    let chosen: Vec<_> = all.into_iter().filter(|(generation, _)| matches!(generation, 2 | 5 | 7)).collect();
    target.holds(&chosen)
}

#[test]
fn sharing_is_kept_in_blocks_of_64_kib_through_an_embedded_repository() -> Result<()> {
    kept_sharing(Way::Embedded, 64 * 1024, 64 * 1024)
}

#[test]
fn sharing_is_kept_in_blocks_of_192_kib_through_a_server() -> Result<()> {
    kept_sharing(Way::Network, 64 * 1024, 192 * 1024)
}

#[test]
fn sharing_is_kept_in_blocks_of_1_mib_through_an_embedded_repository() -> Result<()> {
    kept_sharing(Way::Embedded, 64 * 1024, 1024 * 1024)
}

#[test]
fn sharing_is_kept_in_blocks_smaller_than_the_chunks() -> Result<()> {
    kept_sharing(Way::Network, 1024 * 1024, 64 * 1024)
}

#[test]
fn sharing_is_kept_in_blocks_that_no_chunk_fits() -> Result<()> {
    kept_sharing(Way::Embedded, 256 * 1024, 192 * 1024)
}

#[test]
fn a_pool_that_ignores_discards_or_does_not_zero_holds_the_same() -> Result<()> {
    let world = World::with_chunks(Way::Embedded, 64 * 1024)?;
    let moments = history(&world, seed()?)?;
    for words in [["--discards", "ignore"], ["--zero", "n"]] {
        let target = Target::new(&world, 192 * 1024, &words)?;
        target.restore(&["p/v:1..4", "p/v:5.."])?.expect(0)?;
        for (generation, moment) in (1..).zip(&moments).take(6) {
            let found = target.export(&format!("copy@gen-{generation}"))?;
            ensure!(found == moment.bytes, "{words:?}: generation {generation} differs");
        }
        ensure!(target.export("copy")? == moments[6].bytes, "{words:?}: the newest generation differs");
        // Nothing comes back from behind the end.
        let size = (24 * MIB).to_string();
        world.thinbak.ok(&["volume", "resize", &target.copy(), "--size", &size])?;
        let grown = target.export("copy")?;
        ensure!(is_zero(&grown[moments[6].bytes.len()..]), "{words:?}: something lay behind the end");
        target.thin_check()?;
    }
    Ok(())
}

#[test]
fn one_generation_has_no_snapshot_however_it_is_named() -> Result<()> {
    let world = World::with_chunks(Way::Network, 64 * 1024)?;
    let moments = history(&world, seed()?)?;
    let target = Target::new(&world, BLOCK, &[])?;
    for named in [&["p/v:3..3"][..], &["p/v:3", "p/v:3"], &["p/v:..3", "p/v:3"][..1]] {
        let expected: Vec<_> =
            if named == ["p/v:..3"] { (1..).zip(&moments).take(3).collect() } else { vec![(3, &moments[2])] };
        target.restore(named)?.expect(0)?;
        target.holds(&expected)?;
        target.remove()?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_restored_together_is_refused_and_leaves_nothing() -> Result<()> {
    let world = World::with_chunks(Way::Embedded, 64 * 1024)?;
    history(&world, seed()?)?;
    world.thinbak.ok(&["volume", "create", &world.volume("w"), "--size", &MIB.to_string()])?;
    world.backup("w")?;
    let target = Target::new(&world, BLOCK, &[])?;
    world.thinbak.ok(&["volume", "create", &format!("{}/taken", target.name), "--size", "1M"])?;
    let file = world.scratch.join("out.img").display().to_string();
    let (copy, taken) = (target.copy(), format!("{}/taken", target.name));
    let cases: &[(&[&str], i32)] = &[
        (&["p/v:1", "p/v:2", "--to", &taken], 5),
        (&["p/v:1", "p/v:99", "--to", &copy], 10),
        (&["p/v:90..", "--to", &copy], 10),
        (&["p/v:1", "p/w:1", "--to", &copy], 2),
        (&["p/v:3..1", "--to", &copy], 2),
        (&["p/v:1", "p/v:2", "--to-file", &file], 2),
        (&["p/v:all", "--to-file", &file], 2),
        (&["p/v:1", "p/v:2", "--in-place"], 2),
        (&["p/v:..2", &format!("--in-place={taken}")], 2),
        (&["--to", &copy], 2),
    ];
    let before = (target.names()?, world.export("v")?);
    for (words, code) in cases {
        let refused = world.on_repository(&[&["restore"], *words].concat())?.expect(*code);
        let refused = refused.with_context(|| format!("{words:?}"))?;
        ensure!(refused.stderr.starts_with("error:"), "{words:?}: {}", refused.stderr);
        ensure!(!std::path::Path::new(&file).exists(), "{words:?} made a file");
        ensure!((target.names()?, world.export("v")?) == before, "{words:?} left something");
    }
    world.check_pool()
}

/// Rounds of one test; more by THINBAK_KILL_ROUNDS.
fn rounds() -> usize {
    std::env::var("THINBAK_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// All or nothing is there; takes it away.
fn all_or_nothing(target: &Target<'_>, moments: &[(u64, &Moment)]) -> Result<bool> {
    let names = target.names()?;
    if names.is_empty() {
        ensure!(target.open()?.pool().status().data_used == 0, "space is lost");
        target.thin_check()?;
        return Ok(false);
    }
    target.holds(moments)?;
    target.remove()?;
    Ok(true)
}

#[test]
fn a_restore_killed_at_any_moment_leaves_all_or_nothing() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    for way in [Way::Embedded, Way::Network] {
        let world = World::with_chunks(way, 64 * 1024)?;
        let moments = history(&world, seed)?;
        let moments: Vec<_> = (1..).zip(&moments).collect();
        let target = Target::new(&world, BLOCK, &[])?;
        let words = world.with_repository(&["restore", "p/v:all", "--to", &target.copy()]);
        let (mut duration, mut killed) = (Duration::from_secs(1), 0);
        for _ in 0..rounds() {
            let mut running = world.thinbak.start(&words)?;
            // The moment of the kill is the random thing under test.
            std::thread::sleep(duration.mul_f64(random.random_range(0.0..1.05)));
            killed += usize::from(running.kill()?);
            all_or_nothing(&target, &moments)?;
            let since = Instant::now();
            target.restore(&["p/v:all"])?.expect(0)?;
            duration = since.elapsed();
            ensure!(all_or_nothing(&target, &moments)?, "the second restore left nothing");
        }
        ensure!(killed > 0, "every restore had ended before it was killed");
    }
    Ok(())
}

#[test]
fn a_restore_whose_server_is_killed_fails_and_leaves_nothing() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::with_chunks(Way::Network, 64 * 1024)?;
    let moments = history(&world, seed)?;
    let mut duration = Duration::from_secs(1);
    for _ in 0..rounds() {
        let killed = world.running.take().context("no server")?;
        let url = killed.url.clone();
        let target = Target { world: &world, name: "q64".to_owned(), block: BLOCK };
        if !world.scratch.join("q64").exists() {
            Target::new(&world, BLOCK, &[])?;
        }
        let words = ["restore", "p/v:all", "--server", &url, "--json", "--to", &target.copy()];
        let running = world.thinbak.start(&words)?;
        // The moment of the kill is the random thing under test.
        std::thread::sleep(duration.mul_f64(random.random_range(0.0..1.05)));
        killed.kill()?;
        let outcome = running.wait()?;
        ensure!(matches!(outcome.code, 0 | 1 | 10), "exit code {}: {}", outcome.code, outcome.stderr);
        let all: Vec<_> = (1..).zip(&moments).collect();
        ensure!(all_or_nothing(&target, &all)? == (outcome.code == 0), "{outcome:?}");
        world.start_server()?;
        let target = Target { world: &world, name: "q64".to_owned(), block: BLOCK };
        let since = Instant::now();
        target.restore(&["p/v:all"])?.expect(0)?;
        duration = since.elapsed();
        ensure!(all_or_nothing(&target, &all)?, "the second restore left nothing");
    }
    Ok(())
}

#[test]
fn an_interrupted_restore_leaves_nothing_and_can_be_run_again() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::with_chunks(Way::Network, 64 * 1024)?;
    let moments = history(&world, seed)?;
    let moments: Vec<_> = (1..).zip(&moments).collect();
    let target = Target::new(&world, BLOCK, &[])?;
    let words = world.with_repository(&["restore", "p/v:all", "--to", &target.copy()]);
    let mut duration = Duration::from_secs(1);
    for _ in 0..rounds() {
        let running = world.thinbak.start(&words)?;
        // The moment is the random thing under test. So early that it is not told yet what to do when it is interrupted,
        // it is simply ended.
        std::thread::sleep(duration.mul_f64(random.random_range(0.0..1.05)));
        let process = rustix::process::Pid::from_raw(i32::try_from(running.id())?).context("no process")?;
        rustix::process::kill_process(process, rustix::process::Signal::INT)?;
        let outcome = running.wait()?;
        ensure!(matches!(outcome.code, 0 | 130 | -1), "exit code {}: {}", outcome.code, outcome.stderr);
        let is_there = all_or_nothing(&target, &moments)?;
        ensure!(is_there || outcome.code != 0, "{outcome:?}");
        let since = Instant::now();
        target.restore(&["p/v:all"])?.expect(0)?;
        duration = since.elapsed();
        ensure!(all_or_nothing(&target, &moments)?, "the second restore left nothing");
    }
    Ok(())
}

/// Waits until something is so, which it will be without our doing.
fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let since = Instant::now();
    while !is_so()? {
        ensure!(since.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
    }
    Ok(())
}

#[test]
fn a_running_agent_takes_away_what_a_restore_that_failed_or_was_killed_has_begun() -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::with_chunks(Way::Network, 64 * 1024)?;
    let moments = history(&world, seed)?;
    Target::new(&world, BLOCK, &[])?;
    let mut agent = world.thinbak.start(&["agent", "run"])?;
    until("the agent answers", || Ok(world.thinbak.run(&["agent", "status"])?.code == 0))?;
    for round in 0..rounds() {
        let words = world.with_repository(&["restore", "p/v:all", "--to", "q64/copy"]);
        let mut running = world.thinbak.start(&words)?;
        // The moment of the kill is the random thing under test.
        std::thread::sleep(Duration::from_secs_f64(random.random_range(0.0..0.4)));
        if round % 2 == 0 {
            running.kill()?;
        } else {
            world.running.take().context("no server")?.kill()?;
            running.wait()?;
            world.start_server()?;
        }
        until("the job ends", || {
            let status: Value =
                serde_json::from_str(&world.thinbak.ok(&["--json", "agent", "status"])?.text())?;
            Ok(status.get("jobs").and_then(Value::as_array).context("no jobs")?.is_empty())
        })?;
        // Also between two phases of a job, when it is not listed: the volume is locked for all of it.
        until("the volume is free", || {
            let code = world.on_repository(&["restore", "p/v:99", "--to", "q64/copy"])?.code;
            ensure!(code == 10, "{code}");
            Ok(world.on_repository(&["restore", "p/v:1", "--to", "q64/copy"])?.code != 11)
        })?;
        let volumes = world.thinbak.ok(&["volume", "list", "q64"])?.text();
        let names: Vec<_> = volumes.split_whitespace().filter(|word| word.starts_with("copy")).collect();
        ensure!(names.len() == 1 || names.len() == moments.len(), "{volumes}");
        let devices = world.thinbak.ok(&["dump", "q64"])?.text().matches("<device ").count();
        ensure!(devices == names.len(), "{devices} devices in the pool, {volumes}");
        for name in names.iter().rev() {
            world.thinbak.ok(&["volume", "remove", &format!("q64/{name}")])?;
        }
    }
    agent.kill()?;
    Ok(())
}
