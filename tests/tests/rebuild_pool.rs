//! A pool that is gone is made anew from what its backups stored: the same volumes with the same content, generations as
//! snapshots that share what is the same; also after a kill in the middle.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use thinbak_tests::{BLOCK, Model, Way, World, json_lines, number, seed, text, thin_check};

const MIB: u64 = 1024 * 1024;

/// A pool with two volumes that were backed up three times, one that never was, and a snapshot.
fn pool(world: &World) -> Result<[Model; 2]> {
    world.create_pool(&["--size", "96M", "--low-water", "8M"])?;
    let mut models = [Model::new(12 * MIB, seed()?), Model::new(7 * MIB + 3 * BLOCK, seed()? + 1)];
    for (name, model) in ["a", "b"].iter().zip(&models) {
        let size = model.bytes.len().to_string();
        world.thinbak.ok(&["volume", "create", &world.volume(name), "--size", &size])?;
    }
    world.thinbak.ok(&["volume", "create", &world.volume("c"), "--size", "4M"])?;
    world.thinbak.ok(&["volume", "snapshot", &world.volume("a@mine")])?;
    for round in 0..3 {
        for (name, model) in ["a", "b"].iter().zip(&mut models) {
            model.scribble(&*world.open_pool()?, name, if round == 0 { 50 } else { 5 })?;
        }
        world.backup("a")?;
        world.backup("b")?;
    }
    Ok(models)
}

fn content(world: &World, volume: &str) -> Result<Vec<u8>> {
    Ok(world.thinbak.ok(&["volume", "export", volume])?.stdout)
}

/// The plan and what followed.
fn rebuild(world: &World, words: &[&str], code: i32) -> Result<Vec<Value>> {
    let words = [&["pool", "rebuild"], words].concat();
    json_lines(&world.on_repository(&words)?.expect(code)?)
}

#[test]
fn a_pool_that_is_gone_is_made_anew_with_what_its_volumes_were() -> Result<()> {
    for way in [Way::Embedded, Way::Network] {
        let world = World::bare(way)?;
        let models = pool(&world)?;
        let shape: Value =
            serde_json::from_str(&world.on_repository(&["pool", "shape", "p"])?.expect(0)?.text())?;
        let names: Vec<_> = shape["shape"]["volumes"]
            .as_array()
            .context("no volumes")?
            .iter()
            .map(|one| one["name"].clone())
            .collect();
        ensure!(names == ["a", "b", "c", "a@mine"].map(Value::from), "{names:?}");
        // Nothing but content changed after the first backup.
        ensure!(number(&shape, "generation")? == 1, "{shape}");
        let listed = world.on_repository(&["generation", "list"])?.expect(0)?.text();
        ensure!(!listed.contains(".shape"), "{listed}");
        let used = world.open_pool()?.pool().status().data_used;
        world.thinbak.ok(&["pool", "remove", "p"])?;

        let plan = rebuild(&world, &["p", "--to", "q", "--generations", "all", "--dry-run"], 0)?;
        ensure!(plan.len() == 1 && plan[0]["snapshots_not_restored"][0] == "a@mine", "{plan:?}");
        ensure!(plan[0]["volumes"][0]["generations"] == serde_json::json!([1, 2, 3]), "{plan:?}");
        world.thinbak.run(&["pool", "status", "q"])?.expect(10)?;

        let told = rebuild(&world, &["p", "--to", "q", "--generations", "all"], 3)?;
        ensure!(
            told.iter().filter(|line| text(line, "message_type").is_ok_and(|kind| kind == "summary")).count()
                == 6,
            "{told:?}"
        );
        for (name, model) in ["q/a", "q/b"].iter().zip(&models) {
            ensure!(content(&world, name)? == model.bytes, "{name} is not what it was");
        }
        let status: Value =
            serde_json::from_str(&world.thinbak.ok(&["--json", "pool", "status", "q"])?.text())?;
        ensure!(number(&status, "data_used_blocks")? <= used, "{status} uses more than {used}");
        ensure!(number(&status, "data_total_blocks")? == 96 * MIB / BLOCK, "{status}");
        ensure!(number(&status["settings"], "low_water_bytes")? == 8 * MIB, "{status}");
        // Done once; what is not of it is not touched.
        rebuild(&world, &["p", "--to", "q"], 5)?;
        let again = rebuild(&world, &["p", "--to", "q", "--resume"], 3)?;
        ensure!(again.len() == 1, "{again:?}");
        world.thinbak.ok(&["volume", "create", "q/z", "--size", "1M"])?;
        rebuild(&world, &["p", "--to", "q", "--resume"], 5)?;
        // A pool made anew under the former name goes on with its shapes.
        world.create_pool(&["--size", "32M"])?;
        world.thinbak.ok(&["volume", "create", "p/a2", "--size", "1M"])?;
        world.backup("a2")?;
        let words = ["pool", "shape", "p"];
        let shape: Value = serde_json::from_str(&world.on_repository(&words)?.expect(0)?.text())?;
        ensure!(number(&shape, "generation")? == 2, "{shape}");
        let place = text(&status, "place")?.to_owned();
        thin_check(&std::path::Path::new(&place).join("metadata"))?;
    }
    Ok(())
}

#[test]
fn a_rebuild_that_is_killed_is_gone_on_with() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    let models = pool(&world)?;
    world.thinbak.ok(&["pool", "remove", "p"])?;
    let words = world.with_repository(&["pool", "rebuild", "p", "--to", "q"]);
    let since = Instant::now();
    for pause in 0_u64.. {
        let mut resumed = words.clone();
        if pause > 0 {
            resumed.push("--resume".to_owned());
        }
        let mut running = world.thinbak.start(&resumed)?;
        std::thread::sleep(Duration::from_millis(10 + 15 * pause));
        if !running.kill()? {
            running.wait()?.expect(3)?;
            break;
        }
        ensure!(since.elapsed() < Duration::from_secs(120), "it never ends");
    }
    for (name, model) in ["q/a", "q/b"].iter().zip(&models) {
        ensure!(content(&world, name)? == model.bytes, "{name} is not what it was");
    }
    Ok(())
}

#[test]
fn what_cannot_be_rebuilt_is_refused_before_anything_is_made() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    rebuild(&world, &["nothing", "--to", "q"], 10)?;
    pool(&world)?;
    world.on_repository(&["pool", "shape", "p:7"])?.expect(10)?;
    world.on_repository(&["pool", "shape", "elsewhere/p"])?.expect(10)?;
    rebuild(&world, &["p", "--to", "p"], 5)?;
    rebuild(&world, &["p", "--to", "lvm:vg/tp", "--generations", "2"], 2)?;
    rebuild(&world, &["p", "--to", "q", "--generations", "0"], 2)?;
    // Too small: nothing is restored.
    let dir = world.scratch.join("small").display().to_string();
    world.thinbak.ok(&["pool", "create", "small", "--dir", &dir, "--size", "1M"])?;
    rebuild(&world, &["p", "--to", "small"], 5)?;
    ensure!(world.thinbak.ok(&["--json", "volume", "list", "small"])?.text().contains("[]"));
    Ok(())
}
