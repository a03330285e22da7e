//! The main job from end to end through the programs: backups of a changing volume, every generation
//! restored and compared with what the volume was.

use anyhow::{Result, ensure};
use thinbak_tests::{BLOCK, Model, Way, World, number, seed, text};

const SIZE: u64 = 48 * 1024 * 1024;

/// Six generations of a volume that is written, discarded, shrunk and grown, all restored at the end.
fn whole_cycle(way: Way) -> Result<()> {
    let world = World::new(way, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    let mut states = Vec::new();
    for generation in 1..=4u64 {
        model.scribble(&*world.open_pool()?, "v", if generation == 1 { 150 } else { 12 })?;
        let summary = world.backup("v")?;
        ensure!(number(&summary, "generation")? == generation, "{summary}");
        let mode = text(&summary, "mode")?;
        ensure!(mode == if generation == 1 { "full" } else { "incremental" }, "{summary}");
        ensure!(number(&summary, "mapped_bytes")? == model.mapped.len() as u64 * BLOCK, "{summary}");
        ensure!(number(&summary, "read_bytes")? <= number(&summary, "changed_bytes")?, "{summary}");
        states.push((model.bytes.clone(), model.mapped.clone()));
    }
    for (state, generation) in states.iter().zip(1u64..) {
        let name = format!("restored-{generation}");
        world.restore("v", generation, &name)?;
        ensure!(world.export(&name)? == state.0, "generation {generation} differs");
    }
    let verify = world.on_repository(&["verify"])?.expect(0)?;
    ensure!(verify.text().contains("\"damaged\":0"), "{}", verify.text());
    Ok(())
}

#[test]
fn every_generation_restores_bit_identical_through_an_embedded_repository() -> Result<()> {
    whole_cycle(Way::Embedded)
}

#[test]
fn every_generation_restores_bit_identical_through_a_server() -> Result<()> {
    whole_cycle(Way::Network)
}

#[test]
fn what_is_unmapped_stays_unmapped() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let pool = world.open_pool()?;
    let volume = pool.volume("v")?;
    pool.write(&volume, 5 * BLOCK, &vec![7; BLOCK as usize])?;
    pool.write(&volume, 100 * BLOCK, &vec![8; 3 * BLOCK as usize])?;
    pool.flush()?;
    drop(pool);
    world.backup("v")?;
    world.restore("v", 1, "copy")?;
    let pool = world.open_pool()?;
    let mapped = |name: &str| -> Result<u64> {
        let device = pool.volume(name)?.device;
        Ok(pool.pool().device(device)?.map_or(0, |device| device.details.mapped_blocks))
    };
    ensure!((mapped("v")?, mapped("copy")?) == (4, 4));
    Ok(())
}

#[test]
fn an_unchanged_volume_is_neither_snapshotted_nor_read_nor_sent() -> Result<()> {
    let world = World::new(Way::Network, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 20)?;
    world.backup("v")?;
    let ids = |world: &World| -> Result<Vec<u32>> {
        let pool = world.open_pool()?;
        Ok(pool.pool().devices()?.iter().map(|device| device.id.get()).collect())
    };
    let before = ids(&world)?;
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "unchanged", "{summary}");
    for field in ["read_bytes", "sent_bytes", "changed_bytes"] {
        ensure!(number(&summary, field)? == 0, "{summary}");
    }
    ensure!(number(&summary, "generation")? == 2, "{summary}");
    ensure!(number(&summary, "stored_bytes")? < 16 * 1024, "{summary}");
    ensure!(ids(&world)? == before, "a snapshot was made");
    world.restore("v", 2, "copy")?;
    ensure!(world.export("copy")? == world.export("v")?);
    Ok(())
}

#[test]
fn shrink_back_up_grow_back_up_restore() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 120)?;
    world.backup("v")?;
    let mut states = vec![model.bytes.clone()];
    let whole = model.bytes.clone();
    for (number, size) in [(2, SIZE / 3), (3, SIZE / 2), (4, SIZE * 2)] {
        let size = size / BLOCK * BLOCK;
        world.thinbak.ok(&["volume", "resize", &world.volume("v"), "--size", &size.to_string()])?;
        model.resize(size);
        // What lay beyond a shrunken end is still mapped and comes back on growth.
        for (byte, old) in model.bytes.iter_mut().zip(&whole).skip(usize::try_from(SIZE / 3 / BLOCK * BLOCK)?)
        {
            *byte = *old;
        }
        let summary = world.backup("v")?;
        ensure!(thinbak_tests::number(&summary, "generation")? == number, "{summary}");
        ensure!(text(&summary, "mode")? == "incremental", "{summary}");
        states.push(model.bytes.clone());
    }
    for (state, generation) in states.iter().zip(1u64..) {
        let name = format!("restored-{generation}");
        world.restore("v", generation, &name)?;
        ensure!(world.export(&name)? == *state, "generation {generation} differs");
    }
    Ok(())
}

#[test]
fn a_restore_in_place_writes_only_what_differs() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 150)?;
    world.backup("v")?;
    let first = model.bytes.clone();
    model.scribble(&*world.open_pool()?, "v", 4)?;
    world.backup("v")?;
    let outcome = world.on_repository(&["restore", "p/v:1", "--in-place"]);
    let summary = thinbak_tests::summary_of(&outcome?.expect(0)?)?;
    ensure!(number(&summary, "changed_bytes")? < SIZE / 8, "{summary}");
    ensure!(world.export("v")? == first);
    world.check_pool()?;
    // The base is untouched, so the next backup is incremental and right.
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "incremental", "{summary}");
    world.restore("v", 3, "copy")?;
    ensure!(world.export("copy")? == first);
    Ok(())
}

#[test]
fn what_lay_beyond_a_smaller_generation_does_not_come_back_after_a_restore_in_place() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let resize =
        |size: u64| world.thinbak.ok(&["volume", "resize", &world.volume("v"), "--size", &size.to_string()]);
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 100)?;
    resize(SIZE / 2)?;
    world.backup("v")?;
    resize(SIZE)?;
    world.on_repository(&["restore", "p/v:1", "--in-place"])?.expect(0)?;
    resize(SIZE)?;
    model.bytes[usize::try_from(SIZE / 2)?..].fill(0);
    ensure!(world.export("v")? == model.bytes);
    world.check_pool()
}

#[test]
fn a_restore_to_a_file_is_sparse_and_never_overwrites() -> Result<()> {
    let world = World::new(Way::Network, SIZE)?;
    let pool = world.open_pool()?;
    let volume = pool.volume("v")?;
    pool.write(&volume, 30 * BLOCK, &vec![9; BLOCK as usize])?;
    pool.flush()?;
    drop(pool);
    world.backup("v")?;
    let path = world.scratch.join("out.img");
    let to = path.display().to_string();
    world.on_repository(&["restore", "p/v:latest", "--to-file", &to])?.expect(0)?;
    ensure!(std::fs::read(&path)? == world.export("v")?);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path)?);
    ensure!(blocks * 512 < 1024 * 1024, "{blocks} sectors of a file with 64 KiB of content");
    world.on_repository(&["restore", "p/v:latest", "--to-file", &to])?.expect(5)?;
    ensure!(std::fs::read(&path)? == world.export("v")?);
    Ok(())
}

#[test]
fn a_written_base_is_noticed_and_content_is_compared() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    model.scribble(&*world.open_pool()?, "v", 60)?;
    world.backup("v")?;
    // Write to the base behind the registry's back, as a pool rolled back or merged would look.
    let pool = world.open_pool()?;
    let base = pool.bases().into_iter().next();
    let base = base.ok_or_else(|| anyhow::anyhow!("no base"))?;
    pool.pool().write(base.point.device_id, 0, &[1; 4096])?;
    pool.flush()?;
    drop(pool);
    model.scribble(&*world.open_pool()?, "v", 3)?;
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "compared", "{summary}");
    ensure!(!text(&summary, "reason")?.is_empty(), "{summary}");
    ensure!(number(&summary, "sent_bytes")? < SIZE / 8, "{summary}");
    world.restore("v", 2, "copy")?;
    ensure!(world.export("copy")? == model.bytes);
    Ok(())
}

#[test]
fn data_that_changed_behind_an_unwritten_base_stops_the_backup() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let pool = world.open_pool()?;
    let volume = pool.volume("v")?;
    pool.write(&volume, 0, &vec![3; 20 * BLOCK as usize])?;
    pool.flush()?;
    drop(pool);
    world.backup("v")?;
    // The disk lies: every data block reads differently, and no mapping says so.
    let data = world.pool_dir().join("data");
    let whole = std::fs::read(&data)?;
    std::fs::write(&data, whole.iter().map(|byte| byte ^ 1).collect::<Vec<u8>>())?;
    let pool = world.open_pool()?;
    pool.write(&volume, 30 * BLOCK, &vec![4; BLOCK as usize])?;
    pool.flush()?;
    drop(pool);
    let v = world.volume("v");
    let refused = world.on_repository(&["backup", &v])?.expect(4)?;
    ensure!(refused.stderr.contains("does not read as generation 1"), "{}", refused.stderr);
    world.check_pool()?;
    // The way out that the hint names: without the base all content is compared, and what differs is sent.
    let listed = world.thinbak.ok(&["volume", "list", "p"])?.text();
    let base = listed.split_whitespace().find(|word| word.starts_with("v@thinbak-base-"));
    let base = base.ok_or_else(|| anyhow::anyhow!("no base in {listed}"))?;
    world.thinbak.ok(&["volume", "remove", &world.volume(base)])?;
    let summary = world.backup("v")?;
    ensure!(text(&summary, "mode")? == "compared", "{summary}");
    world.restore("v", 2, "copy")?;
    ensure!(world.export("copy")? == world.export("v")?);
    Ok(())
}

#[test]
fn volumes_of_a_group_are_of_one_moment() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    world.thinbak.ok(&["volume", "create", &world.volume("w"), "--size", &SIZE.to_string()])?;
    for name in ["v", "w"] {
        Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, name, 10)?;
    }
    let (v, w) = (world.volume("v"), world.volume("w"));
    world.on_repository(&["backup", &v, &w, "--group"])?.expect(0)?;
    let listed = world.on_repository(&["generation", "list"])?.expect(0)?.text();
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let listed = listed.to_string();
    ensure!(listed.matches("\"group\":\"").count() == 2, "{listed}");
    for name in ["v", "w"] {
        world.restore(name, 1, &format!("{name}-copy"))?;
        ensure!(world.export(&format!("{name}-copy"))? == world.export(name)?);
    }
    Ok(())
}
