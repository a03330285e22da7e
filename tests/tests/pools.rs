//! How a pool behaves is said, changed and shown by commands; pools grow; messages reach them.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{SeekFrom, seek};
use serde_json::Value;
use thinbak_tests::{BLOCK, Way, World, spawn, thin_check};

const SIZE: u64 = 16 * 1024 * 1024;

fn json(world: &World, words: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&world.thinbak.ok(&[&["--json"], words].concat())?.text())?)
}

fn setting(status: &Value, name: &str) -> Result<Value> {
    status.get("settings").and_then(|settings| settings.get(name)).cloned().context("no such setting")
}

fn line(status: &Value, name: &str) -> Result<String> {
    Ok(status.get(name).and_then(Value::as_str).context("no such line")?.trim_end().to_owned())
}

#[test]
fn a_pool_behaves_as_it_was_made_and_as_it_was_set_later() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    world.create_pool(&[
        "--size",
        "64M",
        "--zero",
        "n",
        "--discards",
        "nopassdown",
        "--low-water",
        "100K",
    ])?;
    let status = json(&world, &["pool", "status", "p"])?;
    ensure!(setting(&status, "zero")? == false && setting(&status, "discards")? == "nopassdown", "{status}");
    ensure!(setting(&status, "error_when_full")? == true, "a job must not hang by default: {status}");
    ensure!(setting(&status, "low_water_bytes")? == 2 * BLOCK, "{status}");
    ensure!(
        line(&status, "status_line")?
            == "0 131072 thin-pool 0 60/512 0/1024 - rw no_discard_passdown error_if_no_space - 128",
        "{status}"
    );
    let (metadata, data) = (world.pool_dir().join("metadata"), world.pool_dir().join("data"));
    let table = format!("0 131072 thin-pool {} {} 128", metadata.display(), data.display());
    ensure!(
        line(&status, "table_line")?
            == format!("{table} 2 3 skip_block_zeroing no_discard_passdown error_if_no_space"),
        "{status}"
    );
    let set = ["--errorwhenfull", "n", "--no-space-timeout", "7", "--zero", "y", "--low-water", "0"];
    let status = json(&world, &[&["pool", "set", "p"], &set[..]].concat())?;
    ensure!(line(&status, "table_line")? == format!("{table} 0 1 no_discard_passdown"), "{status}");
    ensure!(line(&status, "status_line")?.contains("queue_if_no_space"), "{status}");
    // It is there in the next process too, and a person is told.
    let shown = world.thinbak.ok(&["pool", "status", "p"])?.text();
    ensure!(shown.contains("are queued for 7 s") && shown.contains("nopassdown"), "{shown}");
    for discards in ["ignore", "passdown"] {
        let status = json(&world, &["pool", "set", "p", "--discards", discards])?;
        ensure!(setting(&status, "discards")? == discards, "{status}");
    }
    thin_check(&metadata)
}

#[test]
fn a_pool_of_permission_r_is_read_and_not_changed() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    world.thinbak.ok(&["pool", "set", "p", "--permission", "r"])?;
    let before = fs::read(world.pool_dir().join("metadata"))?;
    let status = json(&world, &["pool", "status", "p"])?;
    ensure!(status.get("mode").is_some_and(|mode| mode == "ro"), "{status}");
    for (code, words) in [
        (1, &["volume", "create", "p/w", "--size", "1M"][..]),
        // Refused by the guard before it is tried.
        (5, &["volume", "snapshot", "p/v@s"]),
        (1, &["volume", "remove", "p/v"]),
        (1, &["pool", "resize", "p", "--metadata-size", "8M"]),
        (1, &["pool", "message", "p", "create_thin", "9"]),
    ] {
        let outcome = world.thinbak.run(words)?.expect(code)?;
        ensure!(outcome.stderr.contains("read-only"), "{words:?}: {}", outcome.stderr);
    }
    ensure!(world.export("v")?.len() as u64 == SIZE);
    ensure!(fs::read(world.pool_dir().join("metadata"))? == before, "it was changed");
    world.thinbak.ok(&["pool", "set", "p", "--permission", "rw"])?;
    world.thinbak.ok(&["volume", "create", "p/w", "--size", "1M"])?;
    world.check_pool()
}

#[test]
fn a_full_pool_fails_the_job_and_names_the_way_out() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    world.create_pool(&["--size", "4M"])?;
    let image = world.scratch.join("image");
    fs::write(&image, vec![7; 8 << 20])?;
    let import = || -> Result<std::process::Output> {
        let mut command = world.thinbak.command(&["volume", "import", "p/v"]);
        command.stdin(File::open(&image)?).stdout(std::process::Stdio::piped());
        Ok(spawn(command.stderr(std::process::Stdio::piped()))?.wait_with_output()?)
    };
    let full = import()?;
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    ensure!(full.status.code() == Some(1), "{said}");
    ensure!(
        said.contains("no free data block") && said.contains("hint: make room with: thinbak pool resize"),
        "{said}"
    );
    let status = json(&world, &["pool", "status", "p"])?;
    ensure!(status.get("data_used_blocks").is_some_and(|used| used == 0), "something is left: {status}");
    world.thinbak.ok(&["pool", "resize", "p", "--size", "16M", "--metadata-size", "4M"])?;
    ensure!(import()?.status.success());
    ensure!(world.export("v")? == fs::read(&image)?);
    world.check_pool()
}

#[test]
fn a_metadata_device_beyond_the_formats_limit_is_taken_with_a_warning() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    let dir = world.pool_dir().display().to_string();
    let words = ["pool", "create", "p", "--dir", &dir, "--size", "64M", "--metadata-size", "17G"];
    let made = world.thinbak.ok(&words)?;
    ensure!(
        made.stderr.contains("warning: pool p: the metadata device has 18253611008 bytes"),
        "{}",
        made.stderr
    );
    let status = world.thinbak.ok(&["--json", "pool", "status", "p"])?;
    ensure!(status.stderr.contains("warning:"), "{}", status.stderr);
    let status: Value = serde_json::from_str(&status.text())?;
    ensure!(status.get("metadata_total_blocks").is_some_and(|total| total == 4_161_600), "{status}");
    world.thinbak.ok(&["volume", "create", "p/v", "--size", "16M"])?;
    let pool = world.open_pool()?;
    pool.write(&pool.volume("v")?, 5 * BLOCK, &vec![7; BLOCK as usize])?;
    pool.flush()?;
    drop(pool);
    let exported = world.export("v")?;
    ensure!(exported[usize::try_from(5 * BLOCK)?] == 7);
    world.thinbak.ok(&["pool", "check", "p"])?;
    let metadata = File::open(world.pool_dir().join("metadata"))?;
    let beyond = seek(metadata.as_fd(), SeekFrom::Data(4_161_600 * 4096));
    ensure!(beyond == Err(rustix::io::Errno::NXIO), "written beyond the limit: {beyond:?}");
    Ok(())
}

#[test]
fn devices_made_by_messages_are_shown_by_their_ids_and_wrong_messages_are_told_with_the_kernels_error()
-> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let message = |words: &str| {
        let words: Vec<&str> = ["pool", "message", "p"].into_iter().chain(words.split(' ')).collect();
        world.thinbak.run(&words)
    };
    message("create_thin 7")?.expect(0)?;
    message("create_snap 8 0")?.expect(0)?;
    let listed = world.thinbak.ok(&["volume", "list", "p"])?.text();
    ensure!(listed.contains("#7") && listed.contains("#8"), "{listed}");
    for (words, code, says) in [
        ("create_thin 7", 5, "(File exists)"),
        ("create_snap 9 10", 10, "(No data available)"),
        ("delete 10", 10, "(No data available)"),
        ("delete 0", 5, "out of step"),
        ("set_transaction_id 1 5", 5, "out of step"),
        ("create_thin -1", 2, "(Invalid argument)"),
        ("create_thin 16777216", 2, "(Invalid argument)"),
        ("levitate", 2, "(Invalid argument)"),
        ("release_metadata_snap", 10, "(Invalid argument)"),
    ] {
        let outcome = message(words)?.expect(code)?;
        ensure!(outcome.stderr.contains(says), "{words}: {}", outcome.stderr);
        ensure!(
            outcome.stderr.contains(&format!("message `{words}` to pool p")),
            "{words}: {}",
            outcome.stderr
        );
    }
    message("reserve_metadata_snap")?.expect(0)?;
    let outcome = message("reserve_metadata_snap")?.expect(11)?;
    ensure!(outcome.stderr.contains("(Device or resource busy)"), "{}", outcome.stderr);
    message("release_metadata_snap")?.expect(0)?;
    message("delete 7")?.expect(0)?;
    message("delete 8")?.expect(0)?;
    world.check_pool()
}
