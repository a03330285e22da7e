//! What a running job tells: where it is, what it did, what went wrong.

use std::{sync::Arc, time::Duration};

use thinbak_proto::{
    Failed, FailureKind,
    v1::{JobError, JobEvent, JobStatus, JobSummary, job_event::Event},
};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tonic::Status;

use crate::{pools::PoolManager, stream::Progress};

/// How often a job says how far it is.
const TICK: Duration = Duration::from_millis(200);

/// The teller of one job.
pub(super) struct Events {
    job: &'static str,
    sender: mpsc::Sender<Result<JobEvent, Status>>,
    pools: Arc<PoolManager>,
}

impl Events {
    pub(super) fn new(
        job: &'static str,
        sender: mpsc::Sender<Result<JobEvent, Status>>,
        pools: Arc<PoolManager>,
    ) -> Self {
        Self { job, sender, pools }
    }

    /// Runs `work` as a phase on `volume`, saying every now and then how far it is. Ends early when
    /// nobody listens any more: the command was interrupted.
    pub(super) async fn during<T, E: From<Failed>>(
        &self,
        volume: &str,
        phase: &str,
        progress: &Progress,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let running = self.pools.jobs().start(self.job, volume);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                _ = tick.tick() => self.tell(&running, volume, phase, progress),
                () = self.sender.closed() => break Err(interrupted(self.job, volume).into()),
            }
        };
        self.tell(&running, volume, phase, progress);
        outcome
    }

    fn tell(&self, running: &crate::pools::RunningJobGuard, volume: &str, phase: &str, progress: &Progress) {
        let (done_bytes, total_bytes) = progress.get();
        running.update(phase, done_bytes, total_bytes);
        let status = JobStatus {
            job: self.job.to_owned(),
            volume: volume.to_owned(),
            phase: phase.to_owned(),
            done_bytes,
            total_bytes,
        };
        // A reader that is behind misses a status, never a summary.
        let _ = self.sender.try_send(Ok(JobEvent { event: Some(Event::Status(status)) }));
    }

    pub(super) async fn summary(&self, summary: JobSummary) {
        let summary = JobSummary { job: self.job.to_owned(), ..summary };
        tracing::info!(
            job = summary.job,
            volume = summary.volume,
            generation = summary.generation,
            mode = summary.mode,
            changed_bytes = summary.changed_bytes,
            sent_bytes = summary.sent_bytes,
            seconds = summary.seconds,
            "done"
        );
        let _ = self.sender.send(Ok(JobEvent { event: Some(Event::Summary(summary)) })).await;
    }

    pub(super) async fn failure(&self, volume: &str, failed: Failed) {
        tracing::warn!(job = self.job, volume, error = %failed, "failed");
        let error =
            JobError { job: self.job.to_owned(), volume: volume.to_owned(), failure: Some(failed.into()) };
        let _ = self.sender.send(Ok(JobEvent { event: Some(Event::Error(error)) })).await;
    }

    /// Ends the stream: with the failure of the whole job, if it failed.
    pub(super) async fn end(self, outcome: Result<(), Failed>) {
        if let Err(failed) = outcome {
            tracing::warn!(job = self.job, error = %failed, "failed");
            let _ = self.sender.send(Err(failed.into())).await;
        }
    }
}

fn interrupted(job: &str, volume: &str) -> Failed {
    Failed::new(FailureKind::Failed, format!("{job} of {volume} was interrupted"))
}

/// Runs blocking work of a job on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Failed::new(FailureKind::Failed, format!("a task of the job ended early: {error}")))
    })
}
