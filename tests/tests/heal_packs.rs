//! Whole packs damaged, cut off, swapped or lost, with the server running or not, and kills in between: one
//! verification names it, and the next backup heals what the volume still has.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use thinbak_tests::{Model, Way, World, seed};

const SIZE: u64 = 24 << 20;

/// What happens to a pack; it is told of another one.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Lost,
    Emptied,
    Cut,
    Swapped,
    Header,
    Middle,
    /// All of it, in place.
    Noise,
}

const BLOWS: [Blow; 7] =
    [Blow::Lost, Blow::Emptied, Blow::Cut, Blow::Swapped, Blow::Header, Blow::Middle, Blow::Noise];

impl Blow {
    fn strike(self, pack: &Path, other: &Path, random: &mut StdRng) -> Result<()> {
        let bytes = fs::read(pack)?;
        let file = || OpenOptions::new().write(true).open(pack);
        let noise = |random: &mut StdRng, len: usize| (0..len).map(|_| random.random()).collect::<Vec<u8>>();
        match self {
            Self::Lost => fs::remove_file(pack)?,
            Self::Emptied => file()?.set_len(0)?,
            Self::Cut => file()?.set_len(random.random_range(1..bytes.len() as u64))?,
            Self::Swapped => {
                let others = fs::read(other)?;
                fs::write(pack, others)?;
                fs::write(other, bytes)?;
            }
            Self::Header => file()?.write_all_at(&noise(random, 64), 0)?,
            Self::Middle => {
                let at = random.random_range(64..bytes.len() as u64);
                file()?.write_all_at(&noise(random, 512), at)?;
            }
            Self::Noise => file()?.write_all_at(&noise(random, bytes.len()), 0)?,
        }
        Ok(())
    }
}

/// Restores a generation to a file; what it holds.
fn restored(world: &World, generation: u64) -> Result<Vec<u8>> {
    let path = world.scratch.join("restored.img");
    let (from, to) = (format!("p/v:{generation}"), path.display().to_string());
    world.on_repository(&["restore", &from, "--to-file", &to])?.expect(0)?;
    let bytes = fs::read(&path)?;
    fs::remove_file(path)?;
    Ok(bytes)
}

fn generations(world: &World) -> Result<u64> {
    let listed = world.on_repository(&["generation", "list", "p/v"])?.expect(0)?.text();
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    Ok(listed.get("generations").and_then(|list| list.as_array()).context("no list")?.len() as u64)
}

/// A volume backed up three times, each time into a pack of its own; then a blow, and perhaps somebody who looks.
fn heals(way: Way, blow: Blow, which: usize, random: &mut StdRng) -> Result<()> {
    let mut world = World::new(way, SIZE)?;
    let mut model = Model::new(SIZE, random.random());
    for _ in 0..3 {
        model.scribble(&*world.open_pool()?, "v", 20)?;
        world.backup("v")?;
        if way == Way::Network {
            world.running.take().context("no server")?.kill()?;
            world.start_server()?;
        }
    }
    let packs = world.packs()?;
    let pack = packs.get(which).context("a backup made no pack")?;
    let other = packs.get((which + 1) % packs.len()).context("one pack only")?;
    blow.strike(pack, other, random)?;
    let before = generations(&world)?;
    world.on_repository(&["verify"])?;
    if random.random_bool(0.5) {
        // Whoever heals dies.
        let mut running = world.thinbak.start(&world.with_repository(&["backup", &world.volume("v")]))?;
        // The moment of the kill is the random thing under test.
        std::thread::sleep(Duration::from_millis(random.random_range(0..250)));
        running.kill()?;
        if way == Way::Network {
            world.running.take().context("no server")?.kill()?;
            world.start_server()?;
        }
    }
    world.backup("v")?;
    let newest = generations(&world)?;
    ensure!(newest > before, "{newest}");
    for generation in before..=newest {
        let content = restored(&world, generation).with_context(|| format!("generation {generation}"))?;
        ensure!(content == model.bytes, "generation {generation} is not what it was");
    }
    // What is left is of generations whose maps or chunks the volume no longer has.
    let left = world.on_repository(&["verify"])?;
    for line in left.text().lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        let named = event.get("generation").and_then(serde_json::Value::as_u64);
        ensure!(named.is_none_or(|generation| generation < before), "{line}");
    }
    // And backups go on, upon what was healed.
    model.scribble(&*world.open_pool()?, "v", 5)?;
    world.backup("v")?;
    ensure!(restored(&world, newest + 1)? == model.bytes, "the backup after it");
    Ok(())
}

fn all(way: Way) -> Result<()> {
    let seed = seed()?;
    let mut random = StdRng::seed_from_u64(seed);
    for blow in BLOWS {
        for which in 0..3 {
            heals(way, blow, which, &mut random)
                .with_context(|| format!("THINBAK_SEED={seed}, pack {which}, {blow:?}, {way:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_next_backup_heals_what_the_volume_still_has_in_the_same_process() -> Result<()> {
    all(Way::Embedded)
}

#[test]
fn the_next_backup_heals_what_the_volume_still_has_beside_a_server_that_runs() -> Result<()> {
    all(Way::Network)
}
