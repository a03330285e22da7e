//! Collection on a disk that is full.

use anyhow::{Result, ensure};
use thinbak_tests::{
    Model, Mounted, OpenPool, Outcome, Program, Scratch, ServerProcess, fill, json_lines, number, program,
    seed, summary_of,
};

const SIZE: u64 = 48 * 1024 * 1024;

fn backup(thinbak: &Program, url: &str, code: i32) -> Result<String> {
    let outcome = thinbak.run(&["--server", url, "backup", "p/v", "--host", "h"])?.expect(code)?;
    Ok(outcome.stderr)
}

/// What a collection did with each pack, in order: why, and what it copied.
fn packs_of(outcome: &Outcome) -> Result<Vec<(bool, u64)>> {
    let mut packs = Vec::new();
    for line in json_lines(outcome)?.iter().filter(|line| line["message_type"] == "pack") {
        ensure!(line["kept"] == "", "{line}");
        packs.push((line["reason"] == "dead", number(line, "moved_bytes")?));
    }
    Ok(packs)
}

#[test]
fn a_collection_on_a_full_disk_makes_the_room_that_backups_need() -> Result<()> {
    let seed = seed()?;
    let scratch = Scratch::new()?;
    let disk = scratch.join("disk");
    let _disk = Mounted::small_disk(&disk, 128 << 20)?;
    let (repo, ballast) = (disk.join("repo"), disk.join("ballast"));
    let repo_name = repo.display().to_string();
    let server = program("thinbak-server", &scratch.join("state"))?;
    let thinbak = program("thinbak", &scratch.join("state"))?;
    server.ok(&["init", "--repo", &repo_name])?;
    let pool = scratch.join("p");
    thinbak.ok(&["pool", "create", "p", "--size", "512M", "--dir", &pool.display().to_string()])?;
    let mut models = [Model::new(SIZE, seed), Model::new(SIZE, seed + 1)];
    let mut states = Vec::new();
    for name in ["v", "w"] {
        thinbak.ok(&["volume", "create", &format!("p/{name}"), "--size", &SIZE.to_string()])?;
    }
    // Each command seals packs of its own. Of the first w nothing is left in the second, of v a part.
    for round in 0..4 {
        for (name, model) in ["v", "w"].into_iter().zip(&mut models) {
            let pool = OpenPool::open(&pool)?;
            match (name, round) {
                ("w", 1) => {
                    pool.discard(&pool.volume("w")?, 0, SIZE)?;
                    pool.flush()?;
                    model.bytes.fill(0);
                }
                ("w", _) => model.scribble(&pool, "w", if round == 0 { 400 } else { 1 })?,
                _ => model.scribble(&pool, "v", 60)?,
            }
            drop(pool);
            let volume = format!("p/{name}");
            thinbak.ok(&["--repo", &repo_name, "backup", &volume, "--host", "h"])?;
        }
        states.push(models[0].bytes.clone());
    }
    let running = ServerProcess::start(&server, &repo)?;
    fill(&disk, &ballast, 1 << 20)?;
    models[0].scribble(&*OpenPool::open(&pool)?, "v", 60)?;
    let said = backup(&thinbak, &running.url, 1)?;
    ensure!(said.contains("no space"), "{said}");

    let on = |words: &[&str]| thinbak.run(&[&["--server", &running.url, "--json"], words].concat());
    on(&["generation", "delete", "h/p/v:1", "h/p/v:2", "h/p/v:3", "h/p/w:1"])?.expect(0)?;
    let collected = on(&["collect", "--grace", "0s", "--threshold", "100%"])?.expect(0)?;
    let packs = packs_of(&collected)?;
    let dead = packs.iter().take_while(|(dead, _)| *dead).count();
    ensure!(dead > 0 && packs.iter().skip(dead).all(|(dead, _)| !dead), "dead packs first: {packs:?}");
    ensure!(packs.iter().map(|(_, moved)| moved).sum::<u64>() > 1 << 20, "hardly a copy: {packs:?}");
    let freed = number(&summary_of(&collected)?, "freed_bytes")?;
    ensure!(freed > 12 << 20, "only {freed} bytes were freed");

    // With the ballast still there.
    backup(&thinbak, &running.url, 0)?;
    let copy = scratch.join("copy.img").display().to_string();
    for (generation, state) in [("4", states.last()), ("latest", Some(&models[0].bytes))] {
        on(&["restore", &format!("h/p/v:{generation}"), "--to-file", &copy])?.expect(0)?;
        ensure!(Some(&std::fs::read(&copy)?) == state, "v:{generation} differs");
        std::fs::remove_file(&copy)?;
    }
    on(&["verify"])?.expect(0)?;
    Ok(())
}
