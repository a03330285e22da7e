//! Volumes over external origins from end to end: what they read is backed up, restored and exported.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_engine::EmbeddedPool;
use thinbak_tests::{BLOCK, Way, World, hash_file, number, seed, text};

const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * BLOCK;

/// A volume over an origin as a naive model: the blocks that were written, and a file behind them.
struct Over {
    world: World,
    origin: Vec<u8>,
    path: PathBuf,
    blocks: BTreeMap<u64, Vec<u8>>,
    random: StdRng,
}

impl Over {
    fn new(origin_bytes: u64) -> Result<Self> {
        let world = World::new(Way::Embedded, SIZE)?;
        let mut random = StdRng::seed_from_u64(seed()?);
        let mut origin = vec![0; usize::try_from(origin_bytes)?];
        random.fill_bytes(&mut origin);
        // A block of zeros, in which something appears later.
        part_mut(&mut origin, BLOCK, BLOCK).fill(0);
        let path = world.scratch.join("origin.img");
        fs::write(&path, &origin)?;
        let (size, origin_path) = (SIZE.to_string(), path.display().to_string());
        world.thinbak.ok(&["volume", "create", "p/o", "--size", &size, "--external-origin", &origin_path])?;
        Ok(Self { world, origin, path, blocks: BTreeMap::new(), random })
    }

    fn behind(&self, block: u64) -> Vec<u8> {
        let begin = usize::try_from(block * BLOCK).unwrap_or(usize::MAX);
        let mut bytes: Vec<u8> = self.origin.iter().skip(begin).take(BLOCK as usize).copied().collect();
        bytes.resize(BLOCK as usize, 0);
        bytes
    }

    /// What the volume reads, with these blocks of its own.
    fn reads(&self, blocks: &BTreeMap<u64, Vec<u8>>) -> Vec<u8> {
        let piece = |block| blocks.get(&block).cloned().unwrap_or_else(|| self.behind(block));
        (0..BLOCKS).flat_map(piece).collect()
    }

    fn now(&self) -> Vec<u8> {
        self.reads(&self.blocks)
    }

    /// Writes and discards, but leaves the second block alone.
    fn scribble(&mut self, operations: usize) -> Result<()> {
        let pool = self.world.open_pool()?;
        let volume = pool.volume("o")?;
        for _ in 0..operations {
            let offset = self.random.random_range(2 * BLOCK / 512..SIZE / 512) * 512;
            let len = (self.random.random_range(1..=400) * 512).min(SIZE - offset);
            if self.random.random_range(0..4) == 0 {
                pool.discard(&volume, offset, len)?;
                for block in offset.div_ceil(BLOCK)..(offset + len) / BLOCK {
                    self.blocks.remove(&block);
                }
                continue;
            }
            let mut data = vec![0; usize::try_from(len)?];
            self.random.fill_bytes(&mut data);
            pool.write(&volume, offset, &data)?;
            for (at, byte) in (offset..).zip(data) {
                let behind = if self.blocks.contains_key(&(at / BLOCK)) {
                    None
                } else {
                    Some(self.behind(at / BLOCK))
                };
                let own = self.blocks.entry(at / BLOCK).or_insert_with(|| behind.unwrap_or_default());
                part_mut(own, at % BLOCK, 1).fill(byte);
            }
        }
        Ok(pool.flush()?)
    }

    fn discard(&mut self, first: u64, count: u64) -> Result<()> {
        let pool = self.world.open_pool()?;
        pool.discard(&pool.volume("o")?, first * BLOCK, count * BLOCK)?;
        self.blocks.retain(|block, _| !(first..first + count).contains(block));
        Ok(pool.flush()?)
    }

    /// Somebody else changes the origin, in the second block and in others.
    fn change_origin(&mut self) -> Result<()> {
        let file = fs::OpenOptions::new().write(true).open(&self.path)?;
        for place in [BLOCK + 10, 3 * BLOCK, self.origin.len() as u64 - 100] {
            let mut data = [0; 50];
            self.random.fill_bytes(&mut data);
            file.write_all_at(&data, place)?;
            part_mut(&mut self.origin, place, 50).copy_from_slice(&data);
        }
        Ok(())
    }

    /// Backs the volume up, restores the generation under a name of its own, and compares both with the model.
    fn back_up(&self, generation: u64) -> Result<Value> {
        ensure!(self.world.export("o")? == self.now(), "export before generation {generation} differs");
        let summary = self.world.backup("o")?;
        ensure!(number(&summary, "generation")? == generation, "{summary}");
        let copy = format!("copy-{generation}");
        self.world.restore("o", generation, &copy)?;
        ensure!(self.world.export(&copy)? == self.now(), "generation {generation} differs");
        ensure!(self.origin_of(&copy)?.is_null(), "{copy} is not self-contained");
        self.world.thinbak.ok(&["volume", "remove", &self.world.volume(&copy)])?;
        Ok(summary)
    }

    /// What `volume list` says of a volume's origin.
    fn origin_of(&self, name: &str) -> Result<Value> {
        let listed: Value =
            serde_json::from_str(&self.world.thinbak.ok(&["--json", "volume", "list", "p"])?.text())?;
        let volumes = listed.get("volumes").and_then(Value::as_array).context("no volumes")?;
        let found = volumes.iter().find(|volume| volume.get("name").is_some_and(|found| found == name));
        found.and_then(|volume| volume.get("external_origin")).cloned().context("not listed")
    }
}

/// Up to `len` bytes from `begin` on, as far as there are any.
fn part_mut(bytes: &mut [u8], begin: u64, len: u64) -> &mut [u8] {
    let size = bytes.len() as u64;
    let place = |at: u64| usize::try_from(at.min(size)).unwrap_or(0);
    bytes.get_mut(place(begin)..place(begin + len)).unwrap_or_default()
}

fn whole_life(origin_bytes: u64) -> Result<()> {
    let mut over = Over::new(origin_bytes)?;
    let listed = over.origin_of("o")?;
    ensure!(number(&listed, "size_bytes")? == origin_bytes, "{listed}");
    over.scribble(12)?;
    let first = over.now();
    ensure!(text(&over.back_up(1)?, "mode")? == "full");

    let summary = over.back_up(2)?;
    ensure!(text(&summary, "mode")? == "compared" && !text(&summary, "reason")?.is_empty(), "{summary}");
    ensure!(number(&summary, "sent_bytes")? == 0, "nothing changed: {summary}");

    over.world.thinbak.ok(&["volume", "snapshot", "p/o@s"])?;
    let at_snapshot = over.blocks.clone();
    over.scribble(8)?;
    over.back_up(3)?;

    over.change_origin()?;
    let summary = over.back_up(4)?;
    ensure!(number(&summary, "sent_bytes")? > 0, "{summary}");
    ensure!(over.world.export("o@s")? == over.reads(&at_snapshot), "the snapshot reads something else");
    ensure!(over.origin_of("o@s")? == listed);

    // In place the volume comes to stand for itself; the next backup does not take the old base for it.
    let before = hash_file(&over.path)?;
    over.world.on_repository(&["restore", "p/o:1", "--in-place"])?.expect(0)?;
    ensure!(over.origin_of("o")?.is_null());
    ensure!(over.world.export("o")? == first, "the restore in place differs");
    over.world.check_pool()?;
    let summary = over.world.backup("o")?;
    ensure!(text(&summary, "mode")? == "compared", "{summary}");
    over.world.restore("o", 5, "copy-5")?;
    ensure!(over.world.export("copy-5")? == first, "generation 5 differs");
    let summary = over.world.backup("o")?;
    ensure!(text(&summary, "mode")? == "unchanged", "{summary}");
    ensure!(hash_file(&over.path)? == before, "the origin was written");
    ensure!(fs::read(&over.path)? == over.origin);
    Ok(())
}

#[test]
fn over_a_shorter_origin_that_ends_within_a_block() -> Result<()> {
    whole_life(20 * BLOCK + 777)
}

#[test]
fn over_a_longer_origin() -> Result<()> {
    whole_life(SIZE + 3 * BLOCK + 1)
}

#[test]
fn over_an_origin_of_the_same_size() -> Result<()> {
    whole_life(SIZE)
}

#[test]
fn a_shrunken_and_grown_volume_reads_its_origin_again() -> Result<()> {
    let mut over = Over::new(SIZE)?;
    over.scribble(10)?;
    // The origin shows at both ends of what is cut off, and behind the last block that is mapped.
    over.discard(BLOCKS / 2, 2)?;
    over.discard(BLOCKS - 3, 3)?;
    over.world.backup("o")?;
    let resize = |world: &World, size: u64| {
        world.thinbak.ok(&["volume", "resize", "p/o", "--size", &size.to_string()]).map(drop)
    };
    resize(&over.world, SIZE / 2)?;
    over.world.backup("o")?;
    over.change_origin()?;
    resize(&over.world, 2 * SIZE)?;
    let mut wanted = over.now();
    wanted.resize(usize::try_from(2 * SIZE)?, 0);
    ensure!(over.world.export("o")? == wanted);
    over.world.backup("o")?;
    over.world.restore("o", 3, "copy")?;
    ensure!(over.world.export("copy")? == wanted);
    Ok(())
}

#[test]
fn an_origin_that_is_gone_or_shorter_is_named_and_concerns_its_volumes_only() -> Result<()> {
    let mut over = Over::new(4 * BLOCK)?;
    over.scribble(5)?;
    let elsewhere = over.world.scratch.join("elsewhere");
    fs::rename(&over.path, &elsewhere)?;
    let origin = over.path.display().to_string();
    for words in [
        &["volume", "export", "p/o"][..],
        &["backup", "p/o", "--repo", &over.world.repo().display().to_string()],
    ] {
        let outcome = over.world.thinbak.run(words)?.expect(10)?;
        ensure!(outcome.stderr.contains(&origin) && outcome.stderr.contains("`o"), "{}", outcome.stderr);
        ensure!(outcome.stderr.contains("hint:"), "{}", outcome.stderr);
    }
    over.world.backup("v")?;
    over.world.thinbak.ok(&["volume", "snapshot", "p/o@s"])?;
    over.world.check_pool()?;

    fs::write(&over.path, &over.origin[..over.origin.len() - 1])?;
    let outcome = over.world.thinbak.run(&["volume", "export", "p/o"])?.expect(5)?;
    ensure!(outcome.stderr.contains(&origin), "{}", outcome.stderr);
    fs::rename(&elsewhere, &over.path)?;
    ensure!(over.world.export("o")? == over.now());

    for (path, code) in [("/nowhere/at/all", 10), ("/dev/null", 2), ("/", 2)] {
        let made = over.world.thinbak.run(&[
            "volume",
            "create",
            "p/x",
            "--size",
            "1M",
            "--external-origin",
            path,
        ])?;
        made.expect(code)?;
    }
    let pool: &EmbeddedPool = &*over.world.open_pool()?;
    ensure!(pool.volume("x").is_err());
    Ok(())
}

#[test]
fn nothing_is_imported_over_an_origin() -> Result<()> {
    let over = Over::new(4 * BLOCK)?;
    let mut import = over.world.thinbak.command(&["volume", "import", "p/o"]);
    import.stdin(fs::File::open(&over.path)?).stderr(std::process::Stdio::null());
    ensure!(thinbak_tests::spawn(&mut import)?.wait()?.code() == Some(5));
    ensure!(over.world.export("o")? == over.now());
    Ok(())
}
