//! Jobs of the configuration: by themselves in the daemon, by hand, their hooks, and what is left when they are cut off.

#![expect(clippy::indexing_slicing, reason = "JSON documents: what is absent is null")]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use thinbak_tests::{Model, Outcome, Program, Way, World, seed, spawn};

const SIZE: u64 = 16 * 1024 * 1024;
/// Processes may be stopped for minutes while somebody measures.
const PATIENCE: Duration = Duration::from_secs(240);

/// A pool with the volume `v`, a repository, and a configuration.
struct Host {
    world: World,
    thinbak: Program,
}

/// A daemon, ended with SIGKILL when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Agent {
    fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.0.id())?).context("no process id")?;
        Ok(kill_process(id, signal)?)
    }

    /// Ends it as systemd does.
    fn stop(mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }
}

impl Host {
    fn new() -> Result<Self> {
        let world = World::new(Way::Embedded, SIZE)?;
        Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 20)?;
        let thinbak = world.thinbak.clone().env("THINBAK_CONFIG", world.scratch.join("agent.toml"));
        let host = Self { world, thinbak };
        host.configure("")?;
        Ok(host)
    }

    /// Writes the configuration: where the repository is, and `rest`.
    fn configure(&self, rest: &str) -> Result<()> {
        let text = format!("repository = \"{}\"\n{rest}", self.world.repo().display());
        Ok(fs::write(self.world.scratch.join("agent.toml"), text)?)
    }

    /// A hook that appends a line to the log of the hooks.
    fn hook(&self, name: &str, then: &str) -> String {
        let log = self.hooks().display().to_string();
        format!(
            "{name} = [\"/bin/sh\", \"-c\", 'echo \"$THINBAK_HOOK $THINBAK_RUN $THINBAK_RESULT\" >> {log}; {then}']\n"
        )
    }

    fn hooks(&self) -> PathBuf {
        self.world.scratch.join("hooks")
    }

    /// The lines that hooks wrote.
    fn hooked(&self) -> Vec<String> {
        let text = fs::read_to_string(self.hooks()).unwrap_or_default();
        text.lines().map(|line| line.trim_end().to_owned()).collect()
    }

    fn agent(&self) -> Result<Agent> {
        let log = File::options().create(true).append(true).open(self.world.scratch.join("agent.log"))?;
        let mut command = self.thinbak.command(&["agent", "run"]);
        let mut agent = Agent(spawn(command.stdout(Stdio::null()).stderr(log))?);
        self.until("the agent answers", || {
            ensure!(agent.0.try_wait()?.is_none(), "the agent ended");
            Ok(self.thinbak.run(&["agent", "status"])?.code == 0)
        })?;
        Ok(agent)
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !done()? {
            let log = fs::read_to_string(self.world.scratch.join("agent.log")).unwrap_or_default();
            ensure!(since.elapsed() < PATIENCE, "waited in vain: {what}\nhooks: {:?}\n{log}", self.hooked());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn run(&self, words: &[&str]) -> Result<Outcome> {
        self.thinbak.run(words)
    }

    /// The document of `thinbak --json status`, and its exit code.
    fn status(&self) -> Result<(Value, i32)> {
        let outcome = self.run(&["--json", "status"])?;
        let document = serde_json::from_str(&outcome.text());
        Ok((document.with_context(|| format!("{outcome:?}"))?, outcome.code))
    }

    /// What the status says of a volume.
    fn volume(&self, name: &str) -> Result<Value> {
        let (status, _) = self.status()?;
        let volumes = status["volumes"].as_array().context("no volumes")?.clone();
        volumes
            .into_iter()
            .find(|volume| volume["volume"] == name)
            .with_context(|| format!("no {name}: {status}"))
    }

    fn is_ok(&self, name: &str) -> Result<bool> {
        Ok(self.volume(name)?["state"] == "ok")
    }

    /// What `thinbak job list` says of a job.
    fn job(&self, name: &str) -> Result<Value> {
        let listed: Value = serde_json::from_str(&self.run(&["--json", "job", "list"])?.expect(0)?.text())?;
        let jobs = listed["jobs"].as_array().context("no jobs")?.clone();
        jobs.into_iter().find(|job| job["name"] == name).with_context(|| format!("no {name}: {listed}"))
    }

    /// The file that the agent remembers jobs in.
    fn remembered(&self) -> PathBuf {
        self.world.scratch.join("state/jobs.json")
    }

    fn until_the_transfer(&self) -> Result<()> {
        self.until("the transfer has begun", || {
            let status = self.run(&["--json", "agent", "status"])?.expect(0)?.text();
            let status: Value = serde_json::from_str(&status)?;
            Ok(status["jobs"]
                .as_array()
                .is_some_and(|jobs| jobs.iter().any(|job| job["phase"] == "transfer")))
        })
    }

    /// Numbers of the generations of a volume.
    fn generations(&self, volume: &str) -> Result<Vec<u64>> {
        let listed = self.world.on_repository(&["generation", "list", &self.world.volume(volume)])?;
        let listed: Value = serde_json::from_str(&listed.expect(0)?.text())?;
        let listed = listed["generations"].as_array().context("no generations")?;
        Ok(listed.iter().filter_map(|generation| generation["generation"].as_u64()).collect())
    }
}

#[test]
fn a_job_runs_by_itself_new_volumes_join_and_the_hooks_are_in_order() -> Result<()> {
    let host = Host::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let job = "[[job]]\nname = \"all\"\nvolumes = [\"p/*\"]\nexclude = [\"p/x*\"]\nschedule = \"1s\"\noverdue = \"1h\"\n";
    let hooks = host.hook("before", "true") + &host.hook("after", "true") + &host.hook("on_failure", "true");
    let rest = format!("metrics = \"127.0.0.1:{port}\"\nnot_backed_up = [\"p/x*\"]\n{job}{hooks}");
    host.configure(&rest)?;
    let agent = host.agent()?;
    host.until("v is backed up twice", || {
        let volume = host.volume("v")?;
        Ok(volume["state"] == "ok" && volume["generation"].as_u64() >= Some(2))
    })?;
    for name in ["p/w", "p/x1"] {
        host.run(&["volume", "create", name, "--size", "1M"])?.expect(0)?;
    }
    host.until("w joins", || host.is_ok("w"))?;
    ensure!(host.volume("x1")?["state"] == "left out");
    let (status, code) = host.status()?;
    ensure!(code == 0 && status["well"] == true, "{status}");
    let metrics = scrape(port)?;
    for line in [
        "thinbak_agent_volume_last_success_timestamp_seconds{job=\"all\",volume=\"p/v\"} 1",
        "thinbak_agent_volume_last_msnap_held_seconds{job=\"all\",volume=\"p/v\"} ",
        "thinbak_agent_job_runs_total{job=\"all\",outcome=\"ok\"} ",
        "thinbak_agent_volume_backups_total{job=\"all\",volume=\"p/w\",outcome=\"ok\"} ",
        "thinbak_agent_job_next_run_timestamp_seconds{job=\"all\"} 1",
        "thinbak_agent_volumes{state=\"left_out\"} 1",
    ] {
        ensure!(metrics.contains(line), "{line} is not in {metrics}");
    }
    agent.stop()?;
    let hooked = host.hooked();
    for pair in hooked.chunks(2) {
        let good =
            [["before schedule", "after schedule ok"], ["before schedule", "after schedule interrupted"]];
        ensure!(
            good.iter().any(|good| pair == good)
                || pair.first().is_some_and(|first| first.starts_with("before retry")),
            "{hooked:?}"
        );
    }
    host.world.restore("v", 2, "copy")?;
    ensure!(host.world.export("copy")? == host.world.export("v")?);
    host.world.check_pool()
}

fn scrape(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_hook_that_fails_keeps_anything_from_being_backed_up_and_is_told() -> Result<()> {
    let host = Host::new()?;
    let job = "[[job]]\nname = \"j\"\nvolumes = [\"p/v\"]\n";
    let around = host.hook("after", "true") + &host.hook("on_failure", "true");
    host.configure(&format!("{job}{around}{}", host.hook("before", "echo no room >&2; exit 3")))?;
    let failed = host.run(&["job", "run", "j"])?.expect(1)?;
    ensure!(
        failed.stderr.contains("hook `before`: /bin/sh ended with exit code 3: no room"),
        "{}",
        failed.stderr
    );
    ensure!(
        host.hooked() == ["before manual", "after manual failed", "on_failure manual failed"],
        "{:?}",
        host.hooked()
    );
    let (status, code) = host.status()?;
    ensure!(code == 3 && status["problems"].to_string().contains("no room"), "{status}");
    ensure!(host.volume("v")?["state"] == "waiting");
    // With another hook all is well, and nothing is called wrong any more.
    host.configure(&format!("{job}{around}{}", host.hook("before", "true")))?;
    host.run(&["job", "run", "j"])?.expect(0)?;
    ensure!(host.hooked().get(3..) == Some(&["before manual".to_owned(), "after manual ok".to_owned()][..]));
    ensure!(host.status()?.1 == 0 && host.is_ok("v")?);
    // A volume that no job covers is told by the exit code.
    host.run(&["volume", "create", "p/w", "--size", "1M"])?.expect(0)?;
    ensure!(host.status()?.1 == 3 && host.volume("w")?["state"] == "uncovered");
    let list = host.run(&["status"])?.expect(3)?.text();
    ensure!(list.contains("p/w") && list.contains("uncovered") && !list.contains('@'), "{list}");
    // What cannot be is said by name.
    host.run(&["job", "run", "none"])?.expect(10)?;
    host.run(&["agent", "reload"])?.expect(10)?;
    host.configure("[[job]]\nname = \"j\"\nvolumes = [\"p/none*\"]\n")?;
    let none = host.run(&["job", "run", "j"])?.expect(10)?;
    ensure!(none.stderr.contains("no volume matches") && none.stderr.contains("hint:"), "{}", none.stderr);
    Ok(())
}

#[test]
fn what_was_missed_is_done_once_after_a_restart() -> Result<()> {
    let host = Host::new()?;
    host.configure("[[job]]\nname = \"hourly\"\nvolumes = [\"p/*\"]\nschedule = \"1h\"\n")?;
    let agent = host.agent()?;
    host.until("the first run is done", || host.is_ok("v"))?;
    agent.stop()?;
    ensure!(host.status()?.1 == 3, "no agent runs the job");
    // As if five hours had gone by.
    let mut state: Value = serde_json::from_slice(&fs::read(host.remembered())?)?;
    let plan = &mut state["jobs"]["hourly"]["plan"]["counted_from_ms"];
    *plan = (plan.as_u64().context("no moment")? - 5 * 3_600_000).into();
    fs::write(host.remembered(), serde_json::to_vec(&state)?)?;
    let agent = host.agent()?;
    host.until("the second run is done", || Ok(host.volume("v")?["generation"] == 2))?;
    host.until("it is over", || Ok(host.job("hourly")?["running_since"].is_null()))?;
    agent.stop()?;
    let agent = host.agent()?;
    ensure!(host.job("hourly")?["next_run"].as_str() > host.job("hourly")?["last_start"].as_str());
    agent.stop()?;
    ensure!(host.generations("v")? == [1, 2]);
    Ok(())
}

#[test]
fn a_run_that_was_killed_is_settled_by_the_next_agent() -> Result<()> {
    let host = Host::new()?;
    let go = host.world.scratch.join("go");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", go.display());
    let job = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nschedule = \"1d\"\n";
    host.configure(&format!("{job}{}{}", host.hook("before", &wait), host.hook("after", "true")))?;
    let mut agent = host.agent()?;
    host.until("the run begins", || Ok(host.hooked() == ["before schedule"]))?;
    ensure!(!host.job("j")?["running_since"].is_null());
    ensure!(host.run(&["job", "run", "j"])?.code == 11, "two at a time");
    agent.0.kill()?;
    agent.0.wait()?;
    ensure!(host.job("j")?["running_since"].is_null(), "nobody runs it");
    fs::write(&go, "")?;
    let agent = host.agent()?;
    host.until("the run is repeated", || host.is_ok("v"))?;
    host.until("it is over", || Ok(!host.job("j")?["last_success"].is_null()))?;
    agent.stop()?;
    let expected = ["before schedule", "after schedule interrupted", "before retry", "after retry ok"];
    ensure!(host.hooked() == expected, "{:?}", host.hooked());
    ensure!(host.generations("v")? == [1]);
    let state: Value = serde_json::from_slice(&fs::read(host.remembered())?)?;
    ensure!(
        state["jobs"]["j"]["running"].is_null() && state["jobs"]["j"]["plan"]["retry"].is_null(),
        "{state}"
    );
    host.world.check_pool()
}

/// A job of the volume `v` that goes on for a while.
const SLOW: &str = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nschedule = \"1d\"\nbandwidth = \"64K\"\n";

#[test]
fn a_backup_that_was_killed_is_made_anew_and_leaves_nothing() -> Result<()> {
    let host = Host::new()?;
    host.configure(SLOW)?;
    let mut agent = host.agent()?;
    host.until_the_transfer()?;
    agent.0.kill()?;
    agent.0.wait()?;
    host.configure(&SLOW.replace("64K", "1G"))?;
    ensure!(host.volume("v")?["state"] == "waiting" && host.job("j")?["last_success"].is_null());
    let agent = host.agent()?;
    host.until("it is backed up", || host.is_ok("v"))?;
    agent.stop()?;
    ensure!(host.generations("v")? == [1]);
    host.world.restore("v", 1, "copy")?;
    ensure!(host.world.export("copy")? == host.world.export("v")?);
    host.world.check_pool()
}

#[test]
fn a_backup_ends_with_its_agent_and_leaves_nothing() -> Result<()> {
    let host = Host::new()?;
    host.configure(&format!("{SLOW}{}", host.hook("after", "true")))?;
    let agent = host.agent()?;
    host.until_the_transfer()?;
    agent.stop()?;
    ensure!(host.hooked() == ["after schedule interrupted"], "{:?}", host.hooked());
    host.world.check_pool()?;
    // The next agent goes on at once.
    host.configure(&SLOW.replace("64K", "1G"))?;
    let agent = host.agent()?;
    host.until("it is backed up", || host.is_ok("v"))?;
    agent.stop()?;
    ensure!(host.generations("v")? == [1]);
    host.world.check_pool()
}

#[test]
fn a_run_ends_with_its_agent_and_still_its_hook_after_runs() -> Result<()> {
    let host = Host::new()?;
    let job = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nschedule = \"1d\"\n";
    host.configure(&format!("{job}{}{}", host.hook("before", "sleep 600"), host.hook("after", "true")))?;
    let agent = host.agent()?;
    host.until("the run begins", || Ok(host.hooked() == ["before schedule"]))?;
    agent.stop()?;
    ensure!(host.hooked() == ["before schedule", "after schedule interrupted"], "{:?}", host.hooked());
    let failure = host.job("j")?["last_failure_reason"].to_string();
    ensure!(failure.contains("interrupted"), "{failure}");
    // The same of a run by hand in the command's own process.
    let mut run = host.thinbak.start(&["job", "run", "j"])?;
    host.until("the run begins", || Ok(host.hooked().len() == 3 || run.has_ended()?))?;
    let id = Pid::from_raw(i32::try_from(run.id())?).context("no process id")?;
    kill_process(id, Signal::INT)?;
    run.wait()?.expect(130)?;
    ensure!(
        host.hooked().get(2..)
            == Some(&["before manual".to_owned(), "after manual interrupted".to_owned()][..]),
        "{:?}",
        host.hooked()
    );
    Ok(())
}

#[test]
fn a_configuration_that_is_refused_leaves_the_old_one_in_force() -> Result<()> {
    let host = Host::new()?;
    let job = |name: &str| format!("[[job]]\nname = \"{name}\"\nvolumes = [\"p/*\"]\n");
    host.configure(&job("a"))?;
    let agent = host.agent()?;
    host.configure(&(job("a") + "shedule = \"1h\"\n"))?;
    let command = |config: &str, words: &[&str]| {
        let thinbak = host.thinbak.clone().env("THINBAK_CONFIG", config);
        thinbak.run(words)
    };
    // The command itself reads another file, or it would be refused as well.
    let refused = command("/dev/null", &["agent", "reload"])?.expect(2)?;
    ensure!(
        refused.stderr.contains("line 5: unknown field `shedule`") && refused.stderr.contains("hint:"),
        "{}",
        refused.stderr
    );
    agent.signal(Signal::HUP)?;
    let listed = command("/dev/null", &["job", "list"])?.expect(0)?.text();
    ensure!(listed.contains("a  ") && !listed.contains("b  "), "{listed}");
    host.configure(&(job("a") + &job("b")))?;
    let changed = host.run(&["agent", "reload"])?.expect(0)?.text();
    ensure!(changed.contains("job `b` is new"), "{changed}");
    host.run(&["job", "run", "b"])?.expect(0)?;
    ensure!(!host.job("b")?["last_success"].is_null() && host.job("a")?["last_success"].is_null());
    host.configure("metrics = \"127.0.0.1:1\"\n")?;
    command("/dev/null", &["agent", "reload"])?.expect(5)?;
    host.configure(&job("c"))?;
    agent.signal(Signal::HUP)?;
    host.until("the signal is heard", || Ok(host.job("c").is_ok()))?;
    agent.stop()
}

#[test]
fn rules_and_groups_of_a_job_hold_and_a_damaged_memory_is_set_aside() -> Result<()> {
    let host = Host::new()?;
    host.run(&["volume", "create", "p/w", "--size", "1M"])?.expect(0)?;
    let job = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\ngroup = true\nkeep_last = 1\nbandwidth = \"1G\"\nread_rate = \"1G\"\n";
    host.configure(job)?;
    for round in 1..=3 {
        Model::new(SIZE, seed()? + round).scribble(&*host.world.open_pool()?, "v", 5)?;
        host.run(&["job", "run", "j"])?.expect(0)?;
    }
    ensure!(host.generations("v")? == [3] && host.generations("w")? == [3]);
    let groups: Vec<Value> = ["v:3", "w:3"]
        .into_iter()
        .map(|name| {
            let shown = host.world.on_repository(&["generation", "show", &host.world.volume(name)])?;
            let shown: Value = serde_json::from_str(&shown.expect(0)?.text())?;
            Ok(shown["group"].clone())
        })
        .collect::<Result<_>>()?;
    ensure!(groups[0].is_string() && groups[0] == groups[1], "{groups:?}");
    host.world.restore("v", 3, "copy")?;
    ensure!(host.world.export("copy")? == host.world.export("v")?);
    host.run(&["volume", "remove", "p/copy"])?.expect(0)?;
    // A torn file: told, set aside, and the jobs go on.
    let whole = fs::read(host.remembered())?;
    fs::write(host.remembered(), &whole[..whole.len() / 2])?;
    let (status, code) = host.status()?;
    ensure!(code == 3 && status["problems"].to_string().contains("is damaged"), "{status}");
    host.run(&["job", "run", "j"])?.expect(0)?;
    ensure!(host.status()?.1 == 0);
    let aside = fs::read_dir(host.world.scratch.join("state"))?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("jobs.json.damaged-"));
    ensure!(aside.count() == 1);
    Ok(())
}

#[test]
fn a_server_that_does_not_answer_fails_the_run_and_it_is_repeated() -> Result<()> {
    let host = Host::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let retry = "retry = { count = 5, first = \"1s\", max = \"2s\" }\n";
    let job = format!("[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nschedule = \"1d\"\n{retry}");
    host.configure(&format!(
        "{job}server = \"http://127.0.0.1:{port}\"\n{}",
        host.hook("on_failure", "true")
    ))?;
    let agent = host.agent()?;
    host.until("it has failed", || Ok(host.volume("v")?["state"] == "failed"))?;
    host.until("it fails again", || Ok(host.hooked().len() >= 2))?;
    ensure!(
        host.hooked()
            .starts_with(&["on_failure schedule failed".to_owned(), "on_failure retry failed".to_owned()])
    );
    ensure!(host.status()?.1 == 3);
    host.configure(&job)?;
    host.run(&["agent", "reload"])?.expect(0)?;
    host.until("it is backed up", || host.is_ok("v"))?;
    agent.stop()?;
    ensure!(host.generations("v")? == [1]);
    Ok(())
}

#[test]
fn what_cannot_be_remembered_does_not_keep_a_backup_from_being_made() -> Result<()> {
    let host = Host::new()?;
    host.configure("[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\n")?;
    // A folder where the file is written.
    fs::create_dir(host.world.scratch.join("state/jobs.json.new"))?;
    host.run(&["job", "run", "j"])?.expect(0)?;
    ensure!(host.generations("v")? == [1]);
    ensure!(host.volume("v")?["state"] == "waiting", "nothing is remembered, so nothing is claimed");
    fs::remove_dir(host.world.scratch.join("state/jobs.json.new"))?;
    host.run(&["job", "run", "j"])?.expect(0)?;
    ensure!(host.is_ok("v")?);
    Ok(())
}

#[test]
fn an_agent_that_cannot_remember_says_so() -> Result<()> {
    let host = Host::new()?;
    host.configure("[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\nschedule = \"1d\"\n")?;
    fs::create_dir(host.world.scratch.join("state/jobs.json.new"))?;
    let agent = host.agent()?;
    host.until("it is told", || {
        let (status, code) = host.status()?;
        Ok(code == 3 && status["problems"].to_string().contains("cannot be remembered"))
    })?;
    agent.stop()
}

#[test]
fn an_agent_with_a_job_that_has_nowhere_to_go_does_not_start() -> Result<()> {
    let host = Host::new()?;
    let job = "[[job]]\nname = \"j\"\nvolumes = [\"p/*\"]\n";
    fs::write(host.world.scratch.join("agent.toml"), job)?;
    let refused = host.run(&["agent", "run"])?.expect(2)?;
    ensure!(refused.stderr.contains("job `j`: no repository is named"), "{}", refused.stderr);
    fs::write(host.world.scratch.join("agent.toml"), format!("{job}schedule = \"25:00\"\n"))?;
    let refused = host.run(&["agent", "run"])?.expect(2)?;
    ensure!(
        refused.stderr.contains("agent.toml, line 4: ") && refused.stderr.contains("hint: "),
        "{}",
        refused.stderr
    );
    Ok(())
}
