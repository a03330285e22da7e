//! The end of a run: what follows it, what is remembered, what is counted.

use thinbak_proto::{Failed, FailureKind};
use tokio::sync::mpsc::error::TrySendError;

use super::{Chosen, Run};
use crate::{
    pools::now_ms,
    schedule::{
        keeper::{RunEnded, VolumeEnded},
        scheduler::{Again, Went, again},
    },
};

impl Run<'_> {
    /// Ends the run. Returns the repetition that follows.
    pub(super) async fn end(mut self) -> Option<Again> {
        let by_schedule = self.order.attempt > 0;
        let ended_ms = now_ms();
        let retry = self.job().retry;
        let next = |run: &Self| {
            let volumes = run.to_repeat();
            again(retry, run.order.attempt, run.went(), ended_ms, volumes).filter(|_| by_schedule)
        };
        let mut follows = next(&self);
        if self.went() == Went::Badly {
            self.on_failure(follows.as_ref(), ended_ms).await;
        }
        // The agent may have been told to stop meanwhile, which changes nothing of what is to follow.
        follows = follows.or_else(|| next(&self));
        self.remember_end(follows.clone()).await;
        self.count();
        tracing::info!(
            job = self.job().name,
            result = self.result_word(),
            volumes = self.chosen.len(),
            why = self.why().unwrap_or_default(),
            retry = follows.is_some(),
            "a job has ended"
        );
        self.tell_interruption();
        follows
    }

    async fn remember_end(&self, follows: Option<Again>) {
        let (went, why, ended_ms) = (self.went(), self.why(), now_ms());
        let by_schedule = self.order.attempt > 0;
        let (pools, chosen) = (self.pools.clone(), self.chosen.clone());
        let whole = self.order.volumes.is_empty();
        self.remember(move |job| {
            job.running = None;
            job.last_end_ms = Some(ended_ms);
            match went {
                // Of a repetition: all that had failed before is well now.
                Went::Well => (job.last_success_ms, job.last_ok) = (Some(ended_ms), Some(true)),
                Went::Badly | Went::BrokenOff => job.failed(ended_ms, why.unwrap_or_default()),
            }
            if let Some(plan) = job.plan.as_mut().filter(|_| by_schedule) {
                plan.retry = follows;
            }
            if whole {
                // Volumes that are not there any more, or not covered, are forgotten.
                job.volumes.retain(|uuid, known| {
                    !pools.contains(&known.pool) || chosen.iter().any(|chosen| chosen.uuid == *uuid)
                });
            }
        })
        .await;
    }

    fn count(&self) {
        let (job, counters) = (&self.job().name, self.keeper.counters());
        counters.runs.get_or_create(&RunEnded { job: job.clone(), outcome: self.result_word() }).inc();
        for chosen in &self.chosen {
            let outcome = match self.outcomes.get(&chosen.uuid) {
                Some(true) => "ok",
                Some(false) if !self.interrupted => "failed",
                _ => "interrupted",
            };
            let ended = VolumeEnded { job: job.clone(), volume: chosen.label(), outcome };
            counters.volumes.get_or_create(&ended).inc();
        }
    }

    /// The last word to a caller that waits for a run which the end of the agent broke off.
    fn tell_interruption(&self) {
        let Some(told) = self.told.as_ref().filter(|_| self.interrupted) else { return };
        let failed = Failed::new(FailureKind::Failed, format!("job `{}` was interrupted", self.job().name));
        match told.try_send(Err(failed.into())) {
            // Nobody listens, or the listener sees the stream end.
            Ok(()) | Err(TrySendError::Closed(_) | TrySendError::Full(_)) => {}
        }
    }

    /// Uuids of the volumes that a repetition is for; empty: all, as where something failed that is no volume.
    fn to_repeat(&self) -> Vec<String> {
        let failed: Vec<&Chosen> =
            self.chosen.iter().filter(|chosen| self.outcomes.get(&chosen.uuid) != Some(&true)).collect();
        let of_volumes =
            self.errors.iter().all(|(what, _)| failed.iter().any(|chosen| chosen.label() == *what));
        match of_volumes && !self.job().group {
            true => failed.iter().map(|chosen| chosen.uuid.clone()).collect(),
            false => Vec::new(),
        }
    }

    /// `ok`, `partial`, `failed` or `interrupted`.
    pub(super) fn result_word(&self) -> &'static str {
        match self.went() {
            Went::Well => "ok",
            Went::BrokenOff => "interrupted",
            Went::Badly if self.outcomes.values().any(|good| *good) => "partial",
            Went::Badly => "failed",
        }
    }

    /// What went wrong, in a line.
    pub(super) fn why(&self) -> Option<String> {
        let first = self.errors.first().map(|(what, failed)| format!("{what}: {}", failed.message));
        match (first, self.errors.len()) {
            (Some(first), 1) => Some(first),
            (Some(first), more) => Some(format!("{first} (and {} more)", more - 1)),
            (None, _) => self.interrupted.then(|| "the run was interrupted".to_owned()),
        }
    }
}
