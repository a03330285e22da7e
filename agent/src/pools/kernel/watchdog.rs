//! A process that resumes what a killed agent left suspended.
//!
//! It is started before anything is suspended and says when it is ready, with its memory locked. From then on it waits to be
//! told that all is resumed. Whenever nothing is said for too long it resumes what is suspended of the devices that it was
//! given, and goes on waiting: what is suspended later is resumed later. When its standard input ends, because the agent died
//! or could not resume them, it resumes what is suspended until nothing is.

use std::{
    collections::BTreeSet,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    mm::{MlockAllFlags, mlockall, munlockall},
};
use thinbak_proto::{Failed, FailureKind};

use super::{mapper::Mapper, resumers::Resumers};

/// How long devices may stay suspended.
const PATIENCE: Duration = Duration::from_secs(10);
const READY: &str = "ready";
/// How long a process that has nothing left to do may take to end.
const END: Duration = Duration::from_secs(5);
/// Between two attempts to resume what could not be resumed.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(500);
/// How long the agent tries itself before it leaves that to the process.
const AGENT_TRIES: Duration = Duration::from_secs(30);
/// How long the process tries.
const PROCESS_TRIES: Duration = Duration::from_secs(3600);

/// The agent's end of it. The memory of the agent is locked as long as this is there.
pub(super) struct Watchdog {
    /// Absent once it is waited for.
    child: Option<Child>,
    /// Absent when nothing more is said.
    input: Option<ChildStdin>,
    since: Instant,
    /// Whether it has something left to do, so that it must not be killed.
    is_needed: bool,
    _locked: Option<LockedMemory>,
}

impl Watchdog {
    /// Starts it and waits until it is ready.
    pub(super) fn start(devices: &[String]) -> Result<Self, Failed> {
        let failed = |error: io::Error| {
            let message = format!("start the process that resumes devices if this one dies: {error}");
            Failed::new(FailureKind::Failed, message)
        };
        let since = Instant::now();
        // Its messages might go to a file on a device that is suspended.
        let mut child = Command::new("/proc/self/exe")
            .arg("resume-if-left")
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let mut watchdog = Self { child: Some(child), input, since, is_needed: false, _locked: None };
        let mut line = String::new();
        match output.map(|output| BufReader::new(output).read_line(&mut line)) {
            Some(Ok(_)) if line.trim_end() == READY => {}
            Some(Err(error)) => return Err(failed(error)),
            _ => return Err(failed(io::Error::other("it is not ready"))),
        }
        // What is not in memory might have to be read from a device that is suspended.
        watchdog._locked = Some(LockedMemory::new().map_err(failed)?);
        Ok(watchdog)
    }

    /// Whether something may be suspended now: the process is there, and has not begun to resume.
    pub(super) fn guards(&mut self) -> bool {
        self.since.elapsed() < PATIENCE
            && self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Resumes devices and ends the process. It is not sent away before all are resumed: where that fails it is made to try
    /// as well.
    pub(super) fn resume(mut self, resumers: &Resumers, devices: &[String]) -> Result<(), Failed> {
        let mut left = resumers.resume(devices).left;
        if left.is_empty() {
            if let Some(input) = &mut self.input {
                // One that is gone is told of below.
                let _ = input.write_all(b".").and_then(|()| input.flush());
            }
            return Ok(());
        }
        self.input = None;
        let until = Instant::now() + AGENT_TRIES;
        while !left.is_empty() && Instant::now() < until {
            thread::sleep(BETWEEN_ROUNDS);
            left = resumers.resume(devices).left;
        }
        if left.is_empty() {
            return Ok(());
        }
        self.is_needed = true;
        Err(Failed::new(FailureKind::Failed, format!("devices are left suspended: {}", left.join("; ")))
            .with_hint(format!("dmsetup resume {}", devices.join(" "))))
    }
}

impl Drop for Watchdog {
    /// Waits for its end, but not for ever.
    fn drop(&mut self) {
        self.input = None;
        let Some(mut child) = self.child.take() else { return };
        let until = Instant::now() + if self.is_needed { Duration::ZERO } else { END };
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return,
                Ok(Some(status)) => {
                    return tracing::warn!(%status, "the process that resumes devices had to, or failed");
                }
                Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                Ok(None) => break,
                Err(error) => return tracing::warn!(%error, "the process that resumes devices is gone"),
            }
        }
        if !self.is_needed {
            tracing::warn!("the process that resumes devices does not end: it is killed");
            if let Err(error) = child.kill() {
                tracing::warn!(%error, "it cannot be killed");
            }
        }
        // Whenever that will be.
        let reaper = thread::Builder::new().name("reaper".to_owned()).spawn(move || child.wait());
        if let Err(error) = reaper {
            tracing::warn!(%error, "nobody waits for the process that resumes devices");
        }
    }
}

/// How many need the memory of this process to be locked.
static LOCKED: Mutex<u32> = Mutex::new(0);

/// The memory of this process, all that it has and will have, is locked until the last of these is dropped.
struct LockedMemory;

impl LockedMemory {
    fn new() -> io::Result<Self> {
        let mut locked = LOCKED.lock();
        if *locked == 0 {
            mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)?;
        }
        *locked += 1;
        Ok(Self)
    }
}

impl Drop for LockedMemory {
    fn drop(&mut self) {
        let mut locked = LOCKED.lock();
        *locked = locked.saturating_sub(1);
        if *locked == 0
            && let Err(error) = munlockall()
        {
            tracing::warn!(%error, "the memory stays locked");
        }
    }
}

/// What the process hears of the agent.
enum Heard {
    /// That all is resumed.
    Done,
    /// Nothing for too long.
    Nothing,
    /// That it is on its own.
    End,
}

/// The process itself. Fails when it had to resume anything. Nothing is written before all is resumed.
pub(crate) fn watch(devices: &[String]) -> Result<(), Failed> {
    let resumers = Resumers::start(Arc::new(Mapper::open()?), devices)?;
    let failed = |error: io::Error| Failed::new(FailureKind::Failed, format!("watch over devices: {error}"));
    let _locked = LockedMemory::new().map_err(failed)?;
    let mut output = io::stdout();
    output.write_all(READY.as_bytes()).and_then(|()| output.write_all(b"\n")).map_err(failed)?;
    output.flush().map_err(failed)?;
    let mut resumed = BTreeSet::new();
    let left = loop {
        match listen() {
            Heard::Done => break Vec::new(),
            Heard::Nothing => resumed.extend(resumers.resume(devices).resumed),
            Heard::End => break resume_all(&resumers, devices, &mut resumed),
        }
    };
    let resumed: Vec<String> = resumed.into_iter().collect();
    match (resumed.as_slice(), left.as_slice()) {
        ([], []) => Ok(()),
        (resumed, []) => {
            let message = format!("resumed {}, which were left suspended", resumed.join(", "));
            Err(Failed::new(FailureKind::Failed, message))
        }
        (_, left) => {
            Err(Failed::new(FailureKind::Failed, format!("devices are left suspended: {}", left.join("; "))))
        }
    }
}

/// Tries until nothing is suspended any more; returns why something is.
fn resume_all(resumers: &Resumers, devices: &[String], resumed: &mut BTreeSet<String>) -> Vec<String> {
    let until = Instant::now() + PROCESS_TRIES;
    loop {
        let round = resumers.resume(devices);
        resumed.extend(round.resumed);
        if round.left.is_empty() || Instant::now() >= until {
            return round.left;
        }
        thread::sleep(BETWEEN_ROUNDS);
    }
}

fn listen() -> Heard {
    let input = io::stdin();
    let limit = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    let ready = loop {
        let mut waited = [PollFd::new(&input, PollFlags::IN)];
        match poll(&mut waited, Some(&limit)) {
            Err(Errno::INTR) => {}
            ready => break ready,
        }
    };
    match ready {
        Ok(0) => Heard::Nothing,
        Ok(_) if input.lock().read(&mut [0]).is_ok_and(|read| read > 0) => Heard::Done,
        Ok(_) | Err(_) => Heard::End,
    }
}
