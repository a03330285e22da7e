//! The built programs, run as a user runs them.

use std::{
    ffi::OsStr,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::peak_rss_of;

/// Held while a child process is between its birth and its program: until then it holds copies of this
/// process's open files, and with them the locks of pools.
static SPAWN: Mutex<()> = Mutex::new(());

/// Starts a command; when this returns the child holds nothing of ours.
pub fn spawn(command: &mut Command) -> Result<Child> {
    let _alone = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn().with_context(|| format!("starting {:?}", command.get_program()))
}

/// Does something while no child is being born.
pub(crate) fn while_none_is_born<T>(work: impl FnOnce() -> T) -> T {
    let _alone = SPAWN.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// One of our programs with the environment of one test: its own state directory and socket, nothing
/// of the caller's THINBAK variables.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    state: PathBuf,
    variables: Vec<(String, String)>,
}

/// Finds a built program beside the running test.
pub fn program(name: &str, state: &Path) -> Result<Program> {
    let test = std::env::current_exe()?;
    let found = test.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|path| path.is_file());
    let path = found.with_context(|| format!("{name} is not built: run `cargo build --workspace` first"))?;
    Ok(Program { path, state: state.to_owned(), variables: Vec::new() })
}

/// What a finished program said.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; -1 when it was killed by a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails unless the exit code is `code`.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "exit code {} instead of {code}\nstdout: {}\nstderr: {}",
            self.code,
            self.text(),
            self.stderr
        );
        Ok(self)
    }
}

/// A program that runs.
pub struct Running {
    child: Child,
}

impl Program {
    /// The same with one more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.to_owned(), value.as_ref().to_string_lossy().into_owned()));
        self
    }

    /// Where the program file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command with the arguments, ready to be started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.path);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("THINBAK_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("THINBAK_STATE_DIR", &self.state)
            .env("THINBAK_SOCKET", self.state.join("agent.sock"))
            .env("THINBAK_CONFIG", "/dev/null")
            .env("NO_COLOR", "1")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end, whatever the exit code.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Outcome> {
        self.start(arguments)?.wait()
    }

    /// Runs it to its end; anything but exit code 0 is an error that carries its output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Outcome> {
        self.run(arguments)?.expect(0)
    }

    /// Starts it with output captured.
    pub fn start<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Running> {
        let mut command = self.command(arguments);
        let child = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        Ok(Running { child })
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it with SIGKILL, if it still runs. True if it did.
    pub fn kill(&mut self) -> Result<bool> {
        let running = self.child.try_wait()?.is_none();
        self.child.kill()?;
        self.child.wait()?;
        Ok(running)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end.
    pub fn wait(self) -> Result<Outcome> {
        let output = self.child.wait_with_output()?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The most memory it has had resident so far, in bytes; `None` once it has ended.
    #[must_use]
    pub fn peak_rss(&self) -> Option<u64> {
        peak_rss_of(self.id())
    }
}

/// A running `thinbak-server`, ended with SIGKILL when dropped.
pub struct ServerProcess {
    child: Child,
    /// `http://ADDR`.
    pub url: String,
    log: std::thread::JoinHandle<String>,
}

impl ServerProcess {
    /// Starts a server on a repository and waits until it listens.
    pub fn start(server: &Program, repository: &Path) -> Result<Self> {
        Self::start_at(server, repository, "127.0.0.1:0")
    }

    /// The same at a given address.
    pub fn start_at(server: &Program, repository: &Path, address: &str) -> Result<Self> {
        let repository = repository.to_string_lossy();
        let mut command = server.command(&["run", "--repo", &repository, "--listen", address]);
        let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut said = String::new();
        let url = loop {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                bail!("the server ended before it listened: {said}");
            }
            said.push_str(&line);
            if let Some((_, address)) = line.trim_end().split_once("listening on ") {
                break format!("http://{}", address.split_whitespace().next().unwrap_or(address));
            }
        };
        // Somebody must read on, or the server blocks on a full pipe.
        let log = std::thread::spawn(move || {
            let mut rest = String::new();
            let _ = lines.read_to_string(&mut rest);
            rest
        });
        Ok(Self { child, url, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory it has had resident so far, in bytes.
    #[must_use]
    pub fn peak_rss(&self) -> Option<u64> {
        peak_rss_of(self.id())
    }

    /// Ends it with SIGTERM and waits; what it logged.
    pub fn stop(mut self) -> Result<String> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(id, Signal::TERM)?;
        let status = self.child.wait()?;
        let log = self.take_log();
        ensure!(status.success(), "the server ended with {status}: {log}");
        Ok(log)
    }

    fn take_log(&mut self) -> String {
        let log = std::mem::replace(&mut self.log, std::thread::spawn(String::new));
        log.join().unwrap_or_default()
    }

    /// Ends it with SIGKILL; what it logged.
    pub fn kill(mut self) -> Result<String> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(self.take_log())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The JSON objects that a job printed, a line each.
pub fn json_lines(outcome: &Outcome) -> Result<Vec<Value>> {
    let text = outcome.text();
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// The one summary that a job printed.
pub fn summary_of(outcome: &Outcome) -> Result<Value> {
    let mut summaries = json_lines(outcome)?;
    summaries.retain(|line| line.get("message_type").and_then(Value::as_str) == Some("summary"));
    ensure!(summaries.len() == 1, "{} summaries in {}", summaries.len(), outcome.text());
    summaries.pop().context("no summary")
}
