//! With an agent running, commands go through it and the pool stays open there.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use thinbak_tests::{Model, Running, Way, World, seed, spawn};

const SIZE: u64 = 32 * 1024 * 1024;

/// Starts the agent and waits until it answers.
fn start_agent(world: &World) -> Result<Running> {
    let mut agent = world.thinbak.start(&["agent", "run"])?;
    let since = Instant::now();
    while world.thinbak.run(&["agent", "status"])?.code != 0 {
        ensure!(!agent.has_ended()?, "the agent ended: {:?}", agent.wait()?);
        ensure!(since.elapsed() < Duration::from_secs(20), "the agent does not answer");
    }
    Ok(agent)
}

#[test]
fn commands_go_through_a_running_agent() -> Result<()> {
    let world = World::new(Way::Network, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 30)?;
    let mut agent = start_agent(&world)?;
    world.on_repository(&["backup", &world.volume("v")])?.expect(0)?;
    let status = world.thinbak.ok(&["--json", "agent", "status"])?.text();
    ensure!(status.contains(&world.pool_dir().display().to_string()), "the pool is not open there: {status}");
    ensure!(world.open_pool().is_err(), "the pool is open twice");
    world.restore("v", 1, "copy")?;
    ensure!(world.export("copy")? == world.export("v")?);
    // A second agent is refused, the first one goes on.
    world.thinbak.run(&["agent", "run"])?.expect(11)?;
    world.thinbak.ok(&["agent", "status"])?;
    // A killed agent leaves a socket that the next command and the next agent are not confused by.
    agent.kill()?;
    world.thinbak.ok(&["pool", "status", &world.pool()])?;
    let mut agent = start_agent(&world)?;
    world.thinbak.ok(&["volume", "list", &world.pool()])?;
    agent.kill()?;
    Ok(())
}

#[test]
fn an_agent_ends_on_sigterm_and_gives_its_pools_back() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    let agent = start_agent(&world)?;
    world.thinbak.ok(&["volume", "list", &world.pool()])?;
    let pid = rustix::process::Pid::from_raw(i32::try_from(agent.id())?);
    let Some(pid) = pid else { bail!("no pid") };
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    agent.wait()?.expect(0)?;
    drop(world.open_pool()?);
    ensure!(!world.scratch.join("state/agent.sock").exists(), "the socket is left over");
    Ok(())
}

#[test]
fn jobs_of_one_volume_exclude_each_other_and_others_run() -> Result<()> {
    let world = World::new(Way::Network, SIZE)?;
    world.thinbak.ok(&["volume", "create", &world.volume("w"), "--size", &SIZE.to_string()])?;
    for name in ["v", "w"] {
        Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, name, 60)?;
    }
    let mut agent = start_agent(&world)?;
    let volumes = ["v", "v", "w", "w", "v", "w"];
    let mut children = Vec::new();
    for name in volumes {
        let words = world.with_repository(&["backup", &world.volume(name)]);
        children.push(spawn(world.thinbak.command(&words).stdout(Stdio::null()).stderr(Stdio::null()))?);
    }
    let mut codes = Vec::new();
    for mut child in children {
        codes.push(child.wait()?.code().unwrap_or(-1));
    }
    ensure!(codes.iter().all(|code| matches!(code, 0 | 11)), "{codes:?}");
    ensure!(codes.iter().filter(|code| **code == 0).count() >= 2, "{codes:?}");
    for name in ["v", "w"] {
        world.restore(name, 1, &format!("{name}-copy"))?;
        ensure!(world.export(&format!("{name}-copy"))? == world.export(name)?);
    }
    agent.kill()?;
    Ok(())
}
