//! Resuming several devices.
//!
//! A resume is done when the kernel has done it, but the call then waits, without a limit, until udev has looked at the
//! device. So each device has a thread of its own, made before anything is suspended: where udev is slow or stuck, no device
//! waits for another one.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use thinbak_proto::{Failed, FailureKind};

use super::mapper::{Mapper, MapperError};

/// How long one round waits for its threads. What is resumed by then, as far as the kernel says so, is.
const ROUND: Duration = Duration::from_secs(3);
/// Enough for a call; all of it is locked into the memory.
const STACK_BYTES: usize = 256 * 1024;

/// The threads. They end when this is dropped, but for those that still wait for udev.
pub(super) struct Resumers {
    mapper: Arc<Mapper>,
    workers: Vec<Worker>,
}

struct Worker {
    device: String,
    go: SyncSender<()>,
    /// Whether it was suspended, each time that it was to go.
    done: Receiver<Result<bool, MapperError>>,
}

/// What came of one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Devices that were suspended and are not any more.
    pub(super) resumed: Vec<String>,
    /// Why others still are, or may be.
    pub(super) left: Vec<String>,
}

impl Resumers {
    pub(super) fn start(mapper: Arc<Mapper>, devices: &[String]) -> Result<Self, Failed> {
        let workers = devices.iter().map(|device| Worker::start(&mapper, device)).collect::<io::Result<_>>();
        let workers = workers.map_err(|error| {
            Failed::new(FailureKind::Failed, format!("start the threads that resume devices: {error}"))
        })?;
        Ok(Self { mapper, workers })
    }

    /// Resumes those of these devices that are suspended, all at once.
    pub(super) fn resume(&self, devices: &[String]) -> Round {
        let asked: Vec<&Worker> =
            self.workers.iter().filter(|worker| devices.contains(&worker.device)).collect();
        for worker in &asked {
            while worker.done.try_recv().is_ok() {}
            // One that is still in the last round has been told.
            let _ = worker.go.try_send(());
        }
        let until = Instant::now() + ROUND;
        let mut round = Round::default();
        for worker in asked {
            let device = &worker.device;
            match worker.done.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Ok(false)) => {}
                Ok(Ok(true)) => round.resumed.push(device.clone()),
                Ok(Err(error)) => round.left.push(error.to_string()),
                Err(_) => match is_suspended(&self.mapper, device) {
                    Ok(false) => round.resumed.push(device.clone()),
                    Ok(true) => round.left.push(format!("resume {device}: no answer")),
                    Err(error) => round.left.push(error.to_string()),
                },
            }
        }
        round
    }
}

impl Worker {
    fn start(mapper: &Arc<Mapper>, device: &str) -> io::Result<Self> {
        let (go, started) = sync_channel::<()>(1);
        let (report, done) = sync_channel(1);
        let (mapper, name) = (Arc::clone(mapper), device.to_owned());
        thread::Builder::new().name("resume".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            while started.recv().is_ok() {
                let resumed = is_suspended(&mapper, &name).and_then(|suspended| {
                    if suspended {
                        mapper.resume(&name)?;
                    }
                    Ok(suspended)
                });
                if report.send(resumed).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { device: device.to_owned(), go, done })
    }
}

fn is_suspended(mapper: &Mapper, device: &str) -> Result<bool, MapperError> {
    Ok(mapper.info(device)?.is_some_and(|info| info.suspended))
}
