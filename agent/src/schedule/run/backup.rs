//! The backup of a run, and what is remembered of each volume.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{BackupJobRequest, JobError, JobSummary, PoolVolume, job_event::Event},
};

use super::{Chosen, Run};
use crate::{
    pools::now_ms,
    schedule::state::{Done, Failure, VolumeState},
};

impl Run<'_> {
    /// Backs the volumes up: all in one call, or those of a group in one for each pool.
    pub(super) async fn back_up(&mut self) {
        let mut calls: Vec<Vec<Chosen>> = Vec::new();
        for chosen in self.chosen.clone() {
            let alone = |call: &&mut Vec<Chosen>| call.first().is_some_and(|first| first.pool == chosen.pool);
            let call = if self.job().group { calls.iter_mut().find(alone) } else { calls.first_mut() };
            match call {
                Some(call) => call.push(chosen),
                None => calls.push(vec![chosen]),
            }
        }
        for call in calls {
            if self.interrupted {
                break;
            }
            if let Err(failed) = self.call(&call).await {
                self.missing(&call, &failed).await;
            }
        }
    }

    /// One call. An error is of all volumes that were not told of yet.
    async fn call(&mut self, volumes: &[Chosen]) -> Result<(), Failed> {
        let job = self.job();
        let named = volumes
            .iter()
            .map(|chosen| PoolVolume { pool: chosen.pool.clone(), volume: chosen.volume.clone() });
        let request = BackupJobRequest {
            volumes: named.collect(),
            repository: Some(self.address.clone()),
            group: job.group,
            writers_paused: job.hooks.before.is_some() && job.hooks.after.is_some(),
            host: job.host.clone().unwrap_or_default(),
            read_bytes_per_second: job.read_bytes_per_second,
            sent_bytes_per_second: job.sent_bytes_per_second,
            ..BackupJobRequest::default()
        };
        let mut events = self.keeper.jobs().backup(request).await?.into_inner();
        let (keeper, told) = (self.keeper, self.told.clone());
        let end = Self::to_end(keeper, told.as_ref());
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = events.message() => event?,
                () = &mut end => {
                    self.interrupted = true;
                    return Err(Failed::new(FailureKind::Failed, "the run was interrupted"));
                }
            };
            match event.map(|event| event.event) {
                None if volumes.iter().all(|chosen| self.outcomes.contains_key(&chosen.uuid)) => {
                    return Ok(());
                }
                None => {
                    return Err(Failed::new(FailureKind::Failed, "the backup ended without a word of it"));
                }
                Some(None) => {}
                Some(Some(event)) => {
                    self.note(&event).await;
                    self.tell(event).await;
                    if self.interrupted {
                        return Err(Failed::new(FailureKind::Failed, "the run was interrupted"));
                    }
                }
            }
        }
    }

    /// Remembers what an event says of a volume.
    async fn note(&mut self, event: &Event) {
        match event {
            Event::Status(_) => {}
            Event::Summary(summary) => {
                let of_it = |chosen: &&Chosen| chosen.server_name == summary.volume;
                if let Some(chosen) = self.chosen.iter().find(of_it).cloned() {
                    self.done(&chosen, Ok(summary)).await;
                }
            }
            Event::Error(JobError { volume, failure, .. }) => {
                let failed = Failed::from(failure.clone().unwrap_or_default());
                let of_it = |chosen: &&Chosen| chosen.server_name == *volume || chosen.label() == *volume;
                let label = match self.chosen.iter().find(of_it).cloned() {
                    Some(chosen) => {
                        self.done(&chosen, Err(&failed)).await;
                        chosen.label()
                    }
                    None => volume.clone(),
                };
                self.errors.push((label, failed));
            }
        }
    }

    /// The volumes of a call that failed as a whole.
    async fn missing(&mut self, volumes: &[Chosen], failed: &Failed) {
        let missing: Vec<_> =
            volumes.iter().filter(|chosen| !self.outcomes.contains_key(&chosen.uuid)).cloned().collect();
        for chosen in missing {
            self.done(&chosen, Err(failed)).await;
            self.failed(chosen.label(), failed.clone()).await;
        }
    }

    async fn done(&mut self, chosen: &Chosen, outcome: Result<&JobSummary, &Failed>) {
        self.outcomes.insert(chosen.uuid.clone(), outcome.is_ok());
        let (at_ms, chosen) = (now_ms(), chosen.clone());
        let outcome =
            outcome.map(of_summary).map_err(|failed| Failure { at_ms, message: failed.message.clone() });
        self.remember(move |job| {
            let known: &mut VolumeState = job.volumes.entry(chosen.uuid).or_default();
            (known.pool, known.volume) = (chosen.pool, chosen.volume);
            known.last_ok = Some(outcome.is_ok());
            match outcome {
                Ok(done) => (known.last_success_ms, known.done) = (Some(at_ms), Some(done)),
                Err(failure) => known.last_failure = Some(failure),
            }
        })
        .await;
    }
}

fn of_summary(summary: &JobSummary) -> Done {
    Done {
        generation: summary.generation,
        changed_bytes: summary.changed_bytes,
        read_bytes: summary.read_bytes,
        sent_bytes: summary.sent_bytes,
        msnap_held_seconds: summary.msnap_held_seconds,
        seconds: summary.seconds,
    }
}
