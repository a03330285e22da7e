//! A process that resumes what a killed agent left suspended.
//!
//! It is started before anything is suspended and says when it is ready, with its memory locked. From then on it waits to be
//! told that all is resumed. When instead its standard input ends, because the agent died, or nothing is said for too long,
//! it resumes what is suspended of the devices that it was given.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mm::{MlockAllFlags, mlockall, munlockall},
};
use thinbak_proto::{Failed, FailureKind};

use super::mapper::Mapper;

/// How long devices may stay suspended.
const PATIENCE_SECONDS: i64 = 10;
const READY: &str = "ready";

/// The agent's end of it.
pub(super) struct Watchdog {
    child: Child,
    input: ChildStdin,
}

impl Watchdog {
    /// Starts it and waits until it is ready. The memory of this process is locked from then on until
    /// [`end`](Self::end).
    pub(super) fn start(devices: &[String]) -> Result<Self, Failed> {
        let failed = |error: io::Error| {
            let message = format!("start the process that resumes devices if this one dies: {error}");
            Failed::new(FailureKind::Failed, message)
        };
        let mut child = Command::new("/proc/self/exe")
            .arg("resume-if-left")
            .args(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        let watchdog = Self { child, input };
        match read {
            Ok(_) if line.trim_end() == READY => {}
            Ok(_) => return Err(failed(io::Error::other("it is not ready"))),
            Err(error) => return Err(failed(error)),
        }
        // What is not in memory might have to be read from a device that is suspended.
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|error| failed(error.into()))?;
        Ok(watchdog)
    }

    /// Says that all is resumed, and waits for its end.
    pub(super) fn end(mut self) {
        if let Err(error) = munlockall() {
            tracing::warn!(%error, "the memory stays locked");
        }
        let told = self.input.write_all(b".").and_then(|()| self.input.flush());
        match told.and_then(|()| self.child.wait()) {
            Ok(status) if status.success() => {}
            Ok(status) => tracing::warn!(%status, "the process that resumes devices had to"),
            Err(error) => tracing::warn!(%error, "the process that resumes devices is gone"),
        }
    }
}

/// The process itself. Fails when it had to resume anything.
pub(crate) fn watch(devices: &[String]) -> Result<(), Failed> {
    let mapper = Mapper::open()?;
    let failed = |error: io::Error| Failed::new(FailureKind::Failed, format!("watch over devices: {error}"));
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(|error| failed(error.into()))?;
    let mut output = io::stdout();
    output.write_all(READY.as_bytes()).and_then(|()| output.write_all(b"\n")).map_err(failed)?;
    output.flush().map_err(failed)?;
    let input = io::stdin();
    let limit = Timespec { tv_sec: PATIENCE_SECONDS, tv_nsec: 0 };
    let told = {
        let mut waited = [PollFd::new(&input, PollFlags::IN)];
        poll(&mut waited, Some(&limit)).is_ok_and(|ready| ready > 0)
    };
    if told && input.lock().read(&mut [0]).is_ok_and(|read| read > 0) {
        return Ok(());
    }
    let mut resumed = Vec::new();
    for device in devices {
        if mapper.info(device)?.is_some_and(|info| info.suspended) {
            mapper.resume(device)?;
            resumed.push(device.as_str());
        }
    }
    match resumed.as_slice() {
        [] => Ok(()),
        resumed => {
            let message = format!("resumed {}, which were left suspended", resumed.join(", "));
            Err(Failed::new(FailureKind::Failed, message))
        }
    }
}
