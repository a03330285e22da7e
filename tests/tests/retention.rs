//! Policies, deletion and its undoing through the programs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use thinbak_tests::{Model, Outcome, Way, World, json_lines, seed, summary_of};

const SIZE: u64 = 16 * 1024 * 1024;

/// A volume with so many generations, and what it read in each of them.
fn backed_up(way: Way, generations: u64) -> Result<(World, Vec<Vec<u8>>)> {
    let world = World::new(way, SIZE)?;
    let mut model = Model::new(SIZE, seed()?);
    let mut states = Vec::new();
    for _ in 0..generations {
        model.scribble(&*world.open_pool()?, "v", 10)?;
        world.backup("v")?;
        states.push(model.bytes.clone());
    }
    Ok((world, states))
}

/// The numbers of a list of generations.
fn listed(world: &World, words: &[&str]) -> Result<Vec<u64>> {
    let words = [&["generation", "list"], words].concat();
    let document: Value = serde_json::from_slice(&world.on_repository(&words)?.expect(0)?.stdout)?;
    let generations = document.get("generations").and_then(Value::as_array).context("no generations")?;
    generations
        .iter()
        .map(|generation| generation.get("generation").and_then(Value::as_u64).context("no number"))
        .collect()
}

/// What a run of prune says: `NUMBER ACTION REASONS` a generation.
fn decisions(outcome: &Outcome) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for line in json_lines(outcome)? {
        let text = |field: &str| line.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        if text("message_type") == "status" {
            let reasons = line.get("reasons").and_then(Value::as_array).context("no reasons")?;
            let reasons: Vec<_> = reasons.iter().filter_map(Value::as_str).collect();
            let number = line.get("generation").and_then(Value::as_u64).context("no number")?;
            found.push(format!("{number} {} {}", text("action"), reasons.join(", ")));
        }
    }
    Ok(found)
}

fn field(summary: &Value, name: &str) -> u64 {
    summary.get(name).and_then(Value::as_u64).unwrap_or(u64::MAX)
}

/// The packs' contents, to see that nothing changed.
fn packs(world: &World) -> Result<Vec<Vec<u8>>> {
    world.packs()?.iter().map(|path| Ok(fs::read(path)?)).collect()
}

/// The whole life of a deletion: planned, done, undone, and what comes back is what was there.
fn deletion_and_back(way: Way) -> Result<()> {
    let (world, states) = backed_up(way, 5)?;
    world.on_repository(&["generation", "protect", "p/v:1"])?.expect(0)?;
    let expected = [
        "1 keep protected",
        "2 remove no rule keeps it",
        "3 remove no rule keeps it",
        "4 keep last 2",
        "5 keep newest, last 1",
    ];
    let dry = world.on_repository(&["prune", "p/v", "--keep-last", "2", "--dry-run"])?.expect(0)?;
    ensure!(decisions(&dry)? == expected, "{}", dry.text());
    ensure!(field(&summary_of(&dry)?, "removed") == 2, "{}", dry.text());
    ensure!(listed(&world, &["p/v"])? == [1, 2, 3, 4, 5], "a dry run deleted something");
    ensure!(listed(&world, &["--deleted"])?.is_empty(), "a dry run deleted something");

    let done = world.on_repository(&["prune", "*/v", "--keep-last", "2"])?.expect(0)?;
    ensure!(decisions(&done)? == expected, "{}", done.text());
    ensure!(listed(&world, &["p/v"])? == [1, 4, 5]);
    ensure!(listed(&world, &["p/v", "--limit", "2"])? == [4, 5]);
    ensure!(listed(&world, &["--deleted"])? == [2, 3]);
    world.on_repository(&["restore", "p/v:2", "--to", &world.volume("x")])?.expect(10)?;

    world.on_repository(&["generation", "undelete", "p/v:2"])?.expect(0)?;
    world.on_repository(&["generation", "undelete", "p/v:2"])?.expect(5)?;
    world.on_repository(&["generation", "undelete", "p/v:9"])?.expect(10)?;
    world.on_repository(&["generation", "undelete", "p/v:latest"])?.expect(2)?;
    ensure!(listed(&world, &["p/v"])? == [1, 2, 4, 5]);
    for (number, state) in [(1, 0), (2, 1), (4, 3), (5, 4)] {
        let name = format!("restored-{number}");
        world.restore("v", number, &name)?;
        ensure!(Some(&world.export(&name)?) == states.get(state), "generation {number} differs");
    }
    Ok(())
}

#[test]
fn what_was_deleted_comes_back_bit_identical_in_an_embedded_repository() -> Result<()> {
    deletion_and_back(Way::Embedded)
}

#[test]
fn what_was_deleted_comes_back_bit_identical_from_a_server() -> Result<()> {
    deletion_and_back(Way::Network)
}

#[test]
fn the_newest_and_the_protected_cannot_be_deleted_by_hand() -> Result<()> {
    let (world, _) = backed_up(Way::Embedded, 2)?;
    world.on_repository(&["generation", "protect", "p/v:1"])?.expect(0)?;
    world.on_repository(&["generation", "delete", "p/v:1"])?.expect(5)?;
    world.on_repository(&["generation", "delete", "p/v:2"])?.expect(5)?;
    world.on_repository(&["generation", "protect", "--off", "p/v:1"])?.expect(0)?;
    world.on_repository(&["generation", "delete", "p/v:1"])?.expect(0)?;
    ensure!(listed(&world, &[])? == [2] && listed(&world, &["--deleted"])? == [1]);
    Ok(())
}

#[test]
fn a_policy_that_would_delete_everything_is_a_usage_error() -> Result<()> {
    let (world, _) = backed_up(Way::Embedded, 2)?;
    for words in [
        &["prune", "p/v"][..],
        &["prune", "*", "--keep-last", "0", "--keep-within", "0d"],
        &["prune", "p/v", "--keep-within", "3m"],
        &["prune", "--keep-last", "1"],
    ] {
        world.on_repository(words)?.expect(2)?;
    }
    world.on_repository(&["prune", "nobody/*", "--keep-last", "1"])?.expect(10)?;
    ensure!(listed(&world, &[])? == [1, 2]);
    Ok(())
}

/// A clock was wrong for one backup, far ahead. What is dated in the future stays and takes no place.
#[test]
fn a_generation_dated_in_the_future_pushes_nothing_out() -> Result<()> {
    let (world, _) = backed_up(Way::Embedded, 4)?;
    let catalogue = world.repo().join("catalogue.sqlite");
    let year = 365 * 24 * 3_600_000_i64;
    runtime()?.block_on(async {
        use sqlx::{Connection as _, SqliteConnection};
        let mut connection = SqliteConnection::connect(&format!("sqlite://{}", catalogue.display())).await?;
        sqlx::query("UPDATE generations SET created_at_ms = created_at_ms + ? WHERE number = 3")
            .bind(year)
            .execute(&mut connection)
            .await?;
        connection.close().await
    })?;
    let words = ["prune", "p/v", "--keep-last", "2", "--keep-within", "1s", "--dry-run"];
    let told = decisions(&world.on_repository(&words)?.expect(0)?)?;
    ensure!(told.get(1).is_some_and(|line| line.starts_with("2 keep last 2")), "{told:?}");
    ensure!(told.get(2).is_some_and(|line| line == "3 keep dated in the future"), "{told:?}");
    ensure!(told.first().is_some_and(|line| line.starts_with("1 ")) && told.len() == 4, "{told:?}");
    // And the next backup is of now again.
    world.backup("v")?;
    let newest = world.on_repository(&["prune", "p/v", "--keep-last", "1", "--dry-run"])?.expect(0)?;
    let told = decisions(&newest)?;
    ensure!(told.last().is_some_and(|line| line == "5 keep newest, last 1"), "{told:?}");
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

#[test]
fn the_server_applies_the_policies_of_its_configuration() -> Result<()> {
    let (world, _) = backed_up(Way::Embedded, 4)?;
    let path = world.scratch.join("server.toml");
    let config = path.display().to_string();
    let repo = world.repo().display().to_string();
    let write = |text: &str| fs::write(&path, format!("repo = \"{repo}\"\n{text}"));
    write(
        "[[retention]]\nvolumes = \"*/other\"\nkeep_last = 1\n[[retention]]\nvolumes = \"*/p/*\"\nkeep_last = 3\n",
    )?;
    let prune = |more: &[&str]| world.server.run(&[&["--config", &config, "prune", "--json"], more].concat());
    let before = packs(&world)?;
    let dry = prune(&["--dry-run"])?.expect(0)?;
    let expected = ["1 remove no rule keeps it", "2 keep last 3", "3 keep last 2", "4 keep newest, last 1"];
    ensure!(decisions(&dry)? == expected, "{}", dry.text());
    ensure!(packs(&world)? == before, "a dry run wrote something");
    ensure!(decisions(&prune(&[])?.expect(0)?)? == expected);
    ensure!(listed(&world, &[])? == [2, 3, 4]);
    for (text, said) in [
        ("graze = \"7d\"\n", "line 2: unknown field `graze`"),
        ("[[retention]]\nvolumes = \"*\"\n", "line 2: the policy keeps nothing"),
        ("[schedule]\nprune = \"at night\"\n", "line 3:"),
        ("", "no retention policy"),
    ] {
        write(text)?;
        let refused = prune(&[])?.expect(2)?;
        ensure!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    ensure!(listed(&world, &[])? == [2, 3, 4]);
    Ok(())
}

/// The grace is over at once; nothing deleted can come back.
#[test]
fn without_grace_a_deletion_is_final() -> Result<()> {
    let (world, _) = backed_up(Way::Embedded, 2)?;
    let path = world.scratch.join("server.toml");
    fs::write(&path, "grace = \"0s\"\n[[retention]]\nvolumes = \"*\"\nkeep_last = 1\n")?;
    let (config, repo) = (path.display().to_string(), world.repo().display().to_string());
    world.server.ok(&["--config", &config, "prune", "--repo", &repo])?;
    let refused = world.on_repository(&["generation", "undelete", "p/v:1"])?.expect(5)?;
    ensure!(refused.stderr.contains("grace"), "{}", refused.stderr);
    ensure!(listed(&world, &["--deleted"])?.is_empty());
    Ok(())
}

/// Killed wherever it is, prune leaves a repository in which what is visible restores, and the next run ends
/// the work.
#[test]
fn a_killed_prune_is_continued_by_the_next() -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed()?);
    let (world, states) = backed_up(Way::Embedded, 2)?;
    for _ in 2..72 {
        world.on_repository(&["backup", &world.volume("v")])?.expect(0)?;
    }
    let mut seen = vec![72];
    for _ in 0..6 {
        let words = world.with_repository(&["prune", "p/v", "--keep-last", "3"]);
        let mut running = world.thinbak.start(&words)?;
        // The moment of the kill is the random thing under test.
        std::thread::sleep(Duration::from_millis(random.random_range(0..60)));
        running.kill()?;
        let left = listed(&world, &[])?;
        ensure!(left.last() == Some(&72), "{left:?}");
        ensure!(seen.last() >= Some(&left.len()), "deleted generations came back: {seen:?}, {left:?}");
        seen.push(left.len());
    }
    println!("left after each kill: {seen:?}");
    world.on_repository(&["prune", "p/v", "--keep-last", "3"])?.expect(0)?;
    ensure!(listed(&world, &[])? == [70, 71, 72]);
    world.restore("v", 71, "back")?;
    ensure!(Some(&world.export("back")?) == states.last(), "generation 71 differs");
    world.on_repository(&["generation", "undelete", "p/v:1"])?.expect(0)?;
    world.restore("v", 1, "first")?;
    ensure!(Some(&world.export("first")?) == states.first(), "generation 1 differs");
    Ok(())
}
