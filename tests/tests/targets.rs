//! Restores over what a target held before, where the target's blocks are not those of the source.

use anyhow::{Result, ensure};
use thinbak_tests::{BLOCK, Model, Way, World, seed, thin_check};

const SIZE: u64 = 18 * 1024 * 1024;

#[test]
fn in_place_into_pools_of_larger_blocks() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 25)?;
    world.backup("v")?;
    for block in [192 * 1024, 1024 * 1024] {
        let (pool, dir) = (format!("p{block}"), world.scratch.join(&format!("p{block}")));
        let size = block * 384;
        let (path, size, block_size) = (dir.display().to_string(), size.to_string(), block.to_string());
        let words = ["pool", "create", &pool, "--size", &size, "--block-size", &block_size, "--dir", &path];
        world.thinbak.ok(&words)?;
        let target = format!("{pool}/x");
        world.thinbak.ok(&["volume", "create", &target, "--size", &SIZE.to_string()])?;
        let mapped_by = |name: &str| -> Result<u64> {
            let engine = thinbak_engine::EmbeddedPool::open(&dir)?;
            let device = engine.volume(name)?.device;
            Ok(engine.pool().device(device)?.map_or(0, |device| device.details.mapped_blocks))
        };
        {
            let engine = thinbak_engine::EmbeddedPool::open(&dir)?;
            engine.write(&engine.volume("x")?, 0, &vec![0xa5; usize::try_from(SIZE)?])?;
            engine.flush()?;
        }
        world.on_repository(&["restore", "p/v:1", &format!("--in-place={target}")])?.expect(0)?;
        let exported = world.thinbak.ok(&["volume", "export", &target])?.stdout;
        ensure!(exported == model.bytes, "blocks of {block}: the content differs");
        let mut wanted: Vec<u64> = model.mapped.iter().map(|mapped| mapped * BLOCK / block).collect();
        wanted.dedup();
        ensure!(mapped_by("x")? == wanted.len() as u64, "blocks of {block}: a hole takes space");
        thin_check(&dir.join("metadata"))?;
    }
    Ok(())
}
