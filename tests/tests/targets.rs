//! Imports and restores into pools of other block sizes and behaviours, over nothing and over what a target held before.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_engine::EmbeddedPool;
use thinbak_tests::{BLOCK, Model, Way, World, seed, spawn, thin_check};

/// The volume ends within a block of every target.
const SIZE: u64 = 6 * 1024 * 1024 + 64 * 1024;
/// A multiple of every block size; what a target has before a restore in place, and after it was grown again.
const LARGER: u64 = 9 * 1024 * 1024;
const STALE: u8 = 0xa5;

/// A pool in which free space is full of something.
struct Target<'a> {
    world: &'a World,
    name: String,
    dir: PathBuf,
    block: u64,
    discards: &'static str,
}

impl<'a> Target<'a> {
    fn new(world: &'a World, block: u64, discards: &'static str, zero: &str) -> Result<Self> {
        let name = format!("p{}-{discards}-{zero}", block / 1024);
        let dir = world.scratch.join(&name);
        let (size, block_size) = ((block * 40).max(4 * LARGER).to_string(), block.to_string());
        let path = dir.display().to_string();
        let words = ["pool", "create", &name, "--size", &size, "--block-size", &block_size, "--dir", &path];
        world.thinbak.ok(&[&words[..], &["--discards", discards, "--zero", zero]].concat())?;
        let target = Self { world, name, dir, block, discards };
        target.spoil()?;
        Ok(target)
    }

    /// Fills all space of the pool with something, before anything is in it.
    fn spoil(&self) -> Result<()> {
        let data = OpenOptions::new().write(true).open(self.dir.join("data"))?;
        let stale = vec![STALE; 64 * 1024];
        for at in (0..data.metadata()?.len()).step_by(stale.len()) {
            data.write_all_at(&stale, at)?;
        }
        Ok(())
    }

    fn volume(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// A volume that is full of something.
    fn dirty(&self, name: &str) -> Result<()> {
        self.world.thinbak.ok(&["volume", "create", &self.volume(name), "--size", &LARGER.to_string()])?;
        let engine = EmbeddedPool::open(&self.dir)?;
        engine.write(&engine.volume(name)?, 0, &vec![STALE; usize::try_from(LARGER)?])?;
        Ok(engine.flush()?)
    }

    fn mapped(&self, name: &str) -> Result<u64> {
        let engine = EmbeddedPool::open(&self.dir)?;
        let device = engine.volume(name)?.device;
        Ok(engine.pool().device(device)?.map_or(0, |device| device.details.mapped_blocks))
    }

    /// The volume holds what the model does, and nothing shows up behind it when it grows.
    fn holds(&self, name: &str, model: &Model) -> Result<()> {
        let volume = self.volume(name);
        let exported =
            || Ok::<_, anyhow::Error>(self.world.thinbak.ok(&["volume", "export", &volume])?.stdout);
        ensure!(exported()? == model.bytes, "{volume}: the content differs");
        self.world.thinbak.ok(&["volume", "resize", &volume, "--size", &LARGER.to_string()])?;
        let grown = exported()?;
        let (front, tail) = grown.split_at(model.bytes.len());
        ensure!(front == model.bytes, "{volume}: the content differs after it grew");
        ensure!(tail.iter().all(|byte| *byte == 0), "{volume}: something lay behind its end");
        Ok(())
    }

    fn check(&self, model: &Model, image: &PathBuf) -> Result<()> {
        let mut wanted: Vec<u64> = model.mapped.iter().map(|mapped| mapped * BLOCK / self.block).collect();
        wanted.dedup();
        let wanted = wanted.len() as u64;

        let imported = self.volume("imported");
        let mut import = self.world.thinbak.command(&["volume", "import", &imported]);
        ensure!(spawn(import.stdin(File::open(image)?))?.wait()?.success(), "import into {imported}");
        ensure!(self.mapped("imported")? <= wanted, "{imported}: a hole takes space");
        self.holds("imported", model)?;

        self.world.on_repository(&["restore", "p/v:1", "--to", &self.volume("clean")])?.expect(0)?;
        ensure!(self.mapped("clean")? <= wanted, "{}/clean: a hole takes space", self.name);
        self.holds("clean", model)?;

        self.dirty("dirty")?;
        let in_place = format!("--in-place={}", self.volume("dirty"));
        self.world.on_repository(&["restore", "p/v:1", &in_place])?.expect(0)?;
        if self.discards != "ignore" {
            ensure!(self.mapped("dirty")? <= wanted, "{}/dirty: a hole takes space", self.name);
        }
        self.holds("dirty", model)?;
        thin_check(&self.dir.join("metadata"))
    }
}

/// The model's bytes as a file with holes.
fn image(world: &World, model: &Model) -> Result<PathBuf> {
    let path = world.scratch.join("image");
    let file = File::create(&path)?;
    file.set_len(model.bytes.len() as u64)?;
    for (number, page) in (0u64..).zip(model.bytes.chunks(4096)) {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, number * 4096)?;
        }
    }
    ensure!(fs::read(&path)? == model.bytes);
    Ok(path)
}

fn every_target(block: u64) -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 25)?;
    world.backup("v")?;
    let image = image(&world, &model)?;
    for discards in ["passdown", "nopassdown", "ignore"] {
        for zero in ["y", "n"] {
            let target = Target::new(&world, block, discards, zero)?;
            target.check(&model, &image).with_context(|| target.name.clone())?;
        }
    }
    Ok(())
}

#[test]
fn blocks_of_64_kib() -> Result<()> {
    every_target(64 * 1024)
}

#[test]
fn blocks_of_192_kib() -> Result<()> {
    every_target(192 * 1024)
}

#[test]
fn blocks_of_1_mib() -> Result<()> {
    every_target(1024 * 1024)
}
