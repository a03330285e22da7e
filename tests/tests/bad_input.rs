//! Bad input gets one clear line, the right exit code, and loses or half-makes nothing.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};
use thinbak_tests::{BLOCK, Model, Outcome, Way, World, seed, spawn};

const SIZE: u64 = 16 * 1024 * 1024;

/// One line that says what went wrong, at most one that says the way out, and nothing that looks like a
/// crash.
fn refused(outcome: Outcome, code: i32) -> Result<()> {
    let outcome = outcome.expect(code)?;
    let said: Vec<&str> = outcome.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let errors = said.iter().filter(|line| line.starts_with("error:")).count();
    ensure!(errors == 1, "{errors} error lines in: {}", outcome.stderr);
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    ensure!(outcome.stdout.is_empty(), "on stdout: {}", outcome.text());
    Ok(())
}

#[test]
fn every_bad_request_has_its_exit_code() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let pool = world.open_pool()?;
    pool.write(&pool.volume("v")?, 0, &[1; 65536])?;
    pool.flush()?;
    drop(pool);
    let repo = world.repo().display().to_string();
    world.backup("v")?;
    let (v, nothing) = (world.volume("v"), world.volume("nothing"));
    let no_pool = format!("dir:{}", world.scratch.join("absent").display());
    let no_repo = world.scratch.join("absent").display().to_string();
    let size = (BLOCK * 3 + 512).to_string();
    let cases: &[(&[&str], i32)] = &[
        (&["pool", "status", &no_pool], 10),
        (&["pool", "status", "unheard-of"], 10),
        (&["backup", "--repo", &repo, &nothing], 10),
        (&["backup", "--repo", &repo, &format!("{no_pool}/v")], 10),
        (&["backup", "--repo", &no_repo, &v], 10),
        (&["backup", "--server", "http://127.0.0.1:1", &v], 10),
        (&["backup", &v], 2),
        (&["restore", "--repo", &repo, "p/v:99", "--to", &nothing], 10),
        (&["restore", "--repo", &repo, "p/unheard-of:1", "--to", &nothing], 10),
        (&["restore", "--repo", &repo, "p/v:1", "--to", &v], 5),
        (&["restore", "--repo", &repo, "p/v:1", "--to", &format!("{no_pool}/w")], 10),
        (&["volume", "create", &v, "--size", "1M"], 5),
        (&["volume", "create", &nothing, "--size", &size], 2),
        (&["volume", "create", &world.volume(".hidden"), "--size", "1M"], 2),
        (&["volume", "remove", &nothing], 10),
        (&["volume", "snapshot", &format!("{nothing}@s")], 10),
        (&["volume", "resize", &nothing, "--size", "1M"], 10),
        (&["volume", "export", &nothing], 10),
        (&["msnap", "release", &world.pool()], 10),
        (&["generation", "--repo", &repo, "show", "p/v:7"], 10),
        (&["generation", "--repo", &repo, "delete", "p/v:1"], 5),
        (&["pool", "create", &format!("dir:{}", world.pool_dir().display()), "--size", "64M"], 5),
        (&["pool", "create", "p", "--size", "64M"], 5),
        (&["pool", "create", "q", "--size", "64M", "--metadata-size", "16K"], 2),
        (&["pool", "create", "q", "--data", "/nothing/d", "--metadata", "/nothing/m"], 10),
        (&["backup", "--repo", &repo, &v, "--host", "a/b"], 2),
        (&["dump", &world.scratch.join("absent").display().to_string()], 10),
        (&["delta", "--from", "1", "--to", "77", &world.pool()], 10),
    ];
    for (words, code) in cases {
        let outcome = world.thinbak.run(words)?;
        refused(outcome, *code).with_context(|| format!("thinbak {}", words.join(" ")))?;
    }
    world.check_pool()?;
    let listed = world.thinbak.ok(&["volume", "list", &world.pool()])?.text();
    ensure!(!listed.contains("nothing"), "half made: {listed}");
    Ok(())
}

#[test]
fn another_volume_under_a_known_name_is_refused_unless_adopted() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 10)?;
    world.backup("v")?;
    let (v, repo) = (world.volume("v"), world.repo().display().to_string());
    world.thinbak.ok(&["volume", "remove", &v])?;
    world.thinbak.ok(&["volume", "create", &v, "--size", &SIZE.to_string()])?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 10)?;
    refused(world.thinbak.run(&["backup", "--repo", &repo, &v])?, 5)?;
    world.thinbak.ok(&["backup", "--repo", &repo, &v, "--adopt"])?;
    // It is another volume, so it counts from 1; what the old one left is still there under another name.
    world.restore("v", 1, "copy")?;
    ensure!(world.export("copy")? == world.export("v")?);
    let listed = world.on_repository(&["generation", "list"])?.expect(0)?.text();
    let listed: serde_json::Value = serde_json::from_str(&listed)?;
    let listed = listed.get("generations").and_then(serde_json::Value::as_array);
    ensure!(listed.is_some_and(|all| all.len() == 2), "{listed:?}");
    Ok(())
}

#[test]
fn a_repository_of_a_newer_format_is_refused() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let path = world.repo().join("thinbak-repository");
    let text = fs::read_to_string(&path)?;
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
    let newer = newer.replace("\"format_version\":1", "\"format_version\":2");
    ensure!(newer != text, "no format version in {text}");
    fs::write(&path, newer)?;
    let repo = world.repo().display().to_string();
    refused(world.thinbak.run(&["backup", "--repo", &repo, &world.volume("v")])?, 1)?;
    refused(world.server.run(&["run", "--repo", &repo, "--listen", "127.0.0.1:0"])?, 1)
}

#[test]
fn a_repository_is_opened_once() -> Result<()> {
    let world = World::new(Way::Network, SIZE)?;
    let repo = world.repo().display().to_string();
    refused(world.thinbak.run(&["backup", "--repo", &repo, &world.volume("v")])?, 11)
}

#[test]
fn a_pool_is_opened_once() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let held = world.open_pool()?;
    refused(world.thinbak.run(&["pool", "status", &world.pool()])?, 11)?;
    drop(held);
    world.thinbak.ok(&["pool", "status", &world.pool()])?;
    Ok(())
}

#[test]
fn a_server_without_a_certificate_listens_on_the_loopback_only() -> Result<()> {
    let world = World::bare(Way::Embedded)?;
    let repo = world.repo().display().to_string();
    fs::remove_dir_all(world.repo().join("tls"))?;
    refused(world.server.run(&["run", "--repo", &repo, "--listen", "0.0.0.0:0"])?, 2)
}

/// Changes one bit of a file.
fn flip(path: &std::path::Path, offset: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    byte[0] ^= 0x10;
    Ok(file.write_all_at(&byte, offset)?)
}

/// The one pack of a small repository.
fn pack_of(world: &World) -> Result<std::path::PathBuf> {
    let mut packs = world.packs()?;
    packs.sort_by_key(|path| fs::metadata(path).map_or(0, |metadata| metadata.len()));
    packs.pop().context("no pack")
}

#[test]
fn a_bit_flipped_in_a_pack_is_found_named_and_contained() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 40)?;
    world.backup("v")?;
    let pack = pack_of(&world)?;
    flip(&pack, fs::metadata(&pack)?.len() / 3)?;
    let verify = world.on_repository(&["verify"])?.expect(4)?;
    ensure!(verify.text().contains("p/v"), "the damage is not named: {}", verify.text());
    world.on_repository(&["restore", "p/v:1", "--to", &world.volume("copy")])?.expect(4)?;
    let listed = world.thinbak.ok(&["volume", "list", &world.pool()])?.text();
    ensure!(!listed.contains("copy"), "half made: {listed}");
    Ok(())
}

#[test]
fn a_truncated_pack_is_found() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 40)?;
    world.backup("v")?;
    let pack = pack_of(&world)?;
    let file = OpenOptions::new().write(true).open(&pack)?;
    file.set_len(fs::metadata(&pack)?.len() / 2)?;
    world.on_repository(&["verify"])?.expect(4)?;
    world.on_repository(&["restore", "p/v:1", "--to", &world.volume("copy")])?.expect(4)?;
    Ok(())
}

#[test]
fn a_damaged_catalogue_is_refused_and_not_touched() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 10)?;
    world.backup("v")?;
    let path = world.repo().join("catalogue.sqlite");
    let whole = fs::read(&path)?;
    for (damage, what) in
        [(whole[..whole.len() / 3].to_vec(), "cut"), (vec![b'x'; whole.len()], "overwritten")]
    {
        fs::write(&path, &damage)?;
        for extra in ["catalogue.sqlite-wal", "catalogue.sqlite-shm"] {
            let _ = fs::remove_file(world.repo().join(extra));
        }
        let repo = world.repo().display().to_string();
        let outcome = world.thinbak.run(&["generation", "list", "--repo", &repo])?;
        refused(outcome, 4).with_context(|| format!("a catalogue {what}"))?;
    }
    fs::write(&path, whole)?;
    world.restore("v", 1, "copy")?;
    Ok(())
}

#[test]
fn damaged_pool_metadata_is_refused_and_not_written() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 10)?;
    let path = world.pool_dir().join("metadata");
    let whole = fs::read(&path)?;
    let mut flipped = whole.clone();
    flipped[100] ^= 1;
    let cut = whole[..8192].to_vec();
    let mut magic = whole.clone();
    magic[32] ^= 1;
    for (damage, what) in [(flipped, "a flipped bit"), (cut, "cut"), (magic, "no magic")] {
        fs::write(&path, &damage)?;
        let outcome = world.thinbak.run(&["volume", "list", &world.pool()])?;
        refused(outcome, 4).with_context(|| format!("metadata with {what}"))?;
        ensure!(fs::read(&path)? == damage, "metadata with {what} was written to");
    }
    fs::write(&path, whole)?;
    world.check_pool()
}

/// Every file of the pool, hashed.
fn hashes(world: &World) -> Result<Vec<(std::path::PathBuf, blake3::Hash)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(world.pool_dir())? {
        let path = entry?.path();
        let hash = thinbak_tests::hash_file(&path)?;
        found.push((path, hash));
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(found)
}

#[test]
fn metadata_that_are_not_the_pools_own_are_refused_by_every_command_and_left_alone() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 10)?;
    // Another pool of the very same history.
    let other = world.scratch.join("other");
    let size = (SIZE * 4).to_string();
    world.thinbak.ok(&["pool", "create", "other", "--size", &size, "--dir", &other.display().to_string()])?;
    world.thinbak.ok(&["volume", "create", "other/v", "--size", &SIZE.to_string()])?;
    let path = world.pool_dir().join("metadata");
    let whole = fs::read(&path)?;
    let another = fs::read(other.join("metadata"))?;
    let shorter = whole[..whole.len() / 2 / 4096 * 4096].to_vec();
    let coarse = {
        let dir = world.scratch.join("coarse");
        let words = ["pool", "create", "coarse", "--size", &size, "--block-size", "128K"];
        world.thinbak.ok(&[&words[..], &["--dir", &dir.display().to_string()]].concat())?;
        fs::read(dir.join("metadata"))?
    };
    let mut flipped = whole.clone();
    flipped[333] ^= 4;
    let (v, repo) = (world.volume("v"), world.repo().display().to_string());
    for (metadata, what, code) in [
        (another, "another pool's", 5),
        (shorter, "shorter", 4),
        (coarse, "of another block size", 5),
        (flipped, "flipped", 4),
    ] {
        fs::write(&path, metadata)?;
        let before = hashes(&world)?;
        for words in [
            &["pool", "status", "p"][..],
            &["volume", "list", "p"],
            &["volume", "create", "p/w", "--size", "1M"],
            &["backup", "--repo", &repo, &v],
        ] {
            refused(world.thinbak.run(words)?, code)
                .with_context(|| format!("metadata {what}: {}", words.join(" ")))?;
        }
        world.thinbak.run(&["pool", "check", "p"])?.expect(code).with_context(|| format!("check: {what}"))?;
        ensure!(hashes(&world)? == before, "metadata {what}: something was written");
    }
    fs::write(&path, whole)?;
    world.check_pool()
}

#[test]
fn a_closed_pipe_is_not_an_error() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let command = format!(
        "'{}' dump '{}' | true; exit ${{PIPESTATUS[0]}}",
        world.thinbak.path().display(),
        world.pool()
    );
    let mut shell = std::process::Command::new("bash");
    shell.args(["-c", &command]).env("THINBAK_STATE_DIR", world.scratch.join("state"));
    shell.env("THINBAK_SOCKET", world.scratch.join("state/agent.sock"));
    ensure!(spawn(&mut shell)?.wait()?.success());
    Ok(())
}

#[test]
fn a_backup_goes_on_when_nobody_reads_what_it_prints() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 40)?;
    let repo = world.repo().display().to_string();
    for generation in 1..=3 {
        let mut command = world.thinbak.command(&["--json", "--repo", &repo, "backup", &world.volume("v")]);
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        ensure!(spawn(command.stdout(writer))?.wait()?.success());
        let shown = ["--repo", &repo, "generation", "show", &format!("p/v:{generation}")];
        world.thinbak.ok(&shown)?;
    }
    // Nor does a verdict get lost.
    let pack = pack_of(&world)?;
    flip(&pack, fs::metadata(&pack)?.len() / 3)?;
    let mut command = world.thinbak.command(&["--json", "--repo", &repo, "verify"]);
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    ensure!(spawn(command.stdout(writer))?.wait()?.code() == Some(4));
    Ok(())
}
