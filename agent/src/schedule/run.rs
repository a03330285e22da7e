//! One run of a job.
//!
//! Volumes are chosen, `before` runs, the volumes are backed up, `after` runs, the job's rules are applied to what was
//! backed up, and `on_failure` runs if something failed. Where the run is interrupted, by the end of the agent or of the
//! call that asked for it, the backup is broken off, and `after` runs all the same.

mod around;
mod backup;
mod ending;
mod metadata;

use std::{collections::HashMap, sync::Arc, time::Duration};

use thinbak_proto::{
    Failed, FailureKind,
    v1::{JobError, JobEvent, RepositoryAddress, job_event::Event},
};
use tokio::sync::mpsc::error::TrySendError;

pub(super) use self::around::owed_after;
use super::{
    keeper::{Keeper, Told},
    retention,
    scheduler::{Again, Plan, Went},
    select::survey,
    state::RunState,
};
use crate::{
    config::{JobConfig, Selector, host_name},
    pools::now_ms,
};

/// How long a run waits for who asked for it to read what it tells.
const LISTENER_PATIENCE: Duration = Duration::from_secs(30);

/// What is to be run.
pub(super) struct Order {
    pub(super) job: Arc<JobConfig>,
    /// 1, or more for a repetition; 0: by hand.
    pub(super) attempt: u32,
    /// Uuids of the volumes that it is for; empty: all of the job.
    pub(super) volumes: Vec<String>,
    /// What is to be remembered of the schedule when it has begun; `None` by hand.
    pub(super) plan: Option<Plan>,
}

/// A volume of the run.
#[derive(Debug, Clone)]
struct Chosen {
    pool: String,
    volume: String,
    uuid: String,
    /// HOST/POOL/VOLUME.
    server_name: String,
}

impl Chosen {
    fn label(&self) -> String {
        format!("{}/{}", self.pool, self.volume)
    }
}

/// A run under way.
struct Run<'a> {
    keeper: &'a Arc<Keeper>,
    order: &'a Order,
    told: Option<Told>,
    started_ms: u64,
    address: RepositoryAddress,
    chosen: Vec<Chosen>,
    /// Pools that were looked at, by spec.
    pools: Vec<String>,
    /// How each volume's backup ended, by uuid: whether well.
    outcomes: HashMap<String, bool>,
    /// What went wrong with what, in order.
    errors: Vec<(String, Failed)>,
    interrupted: bool,
}

/// Runs a job whose lock the caller holds. Returns the repetition that follows.
pub(super) async fn run(keeper: &Arc<Keeper>, order: Order, told: Option<Told>) -> Option<Again> {
    let name = &order.job.name;
    if let Ok((state, _)) = keeper.remembered().await
        && let Some(job) = state.jobs.get(name)
    {
        keeper.settle(name, job).await;
    }
    tracing::info!(job = name, attempt = order.attempt, "a job begins");
    let mut run = Run {
        keeper,
        order: &order,
        told,
        started_ms: now_ms(),
        address: RepositoryAddress::default(),
        chosen: Vec::new(),
        pools: Vec::new(),
        outcomes: HashMap::new(),
        errors: Vec::new(),
        interrupted: false,
    };
    run.all().await;
    run.end().await
}

impl Run<'_> {
    fn job(&self) -> &JobConfig {
        &self.order.job
    }

    async fn all(&mut self) {
        let chosen = self.choose().await;
        self.begin().await;
        if let Err(failed) = chosen {
            return self.failed(self.job().name.clone(), failed).await;
        }
        for (label, failed) in std::mem::take(&mut self.errors) {
            self.failed(label, failed).await;
        }
        if self.chosen.is_empty() {
            if self.errors.is_empty() {
                let message = "no volume matches the patterns of the job";
                let failed = Failed::new(FailureKind::NotFound, message)
                    .with_hint("thinbak status shows the volumes that there are");
                self.failed(self.job().name.clone(), failed).await;
            }
            return;
        }
        if self.before().await {
            self.back_up().await;
        }
        self.after().await;
        if !self.interrupted {
            self.apply_rules().await;
        }
        if !self.interrupted && self.keeper.settings().jobs.metadata_dumps {
            self.store_metadata().await;
        }
    }

    /// Finds the volumes, and what cannot be looked at.
    async fn choose(&mut self) -> Result<(), Failed> {
        let job = Arc::clone(&self.order.job);
        self.address = self.keeper.settings().repository_of(&job)?;
        let places = job.volumes.iter().chain(&job.exclude).filter_map(Selector::place).collect();
        let mut pools = survey(self.keeper.pools(), places, Some(&job.volumes)).await?;
        pools.retain(|pool| pool.is_in_any(&job.volumes));
        let host = job.host.clone().unwrap_or_else(host_name);
        for pool in pools {
            if let Some(failed) = pool.error {
                self.errors.push((pool.spec, failed));
                continue;
            }
            for volume in pool.volumes.iter().filter(|volume| pool.is_covered(volume, &job)) {
                if self.chosen.iter().any(|chosen| chosen.uuid == volume.uuid) {
                    continue;
                }
                self.chosen.push(Chosen {
                    pool: pool.spec.clone(),
                    volume: volume.name.clone(),
                    uuid: volume.uuid.clone(),
                    server_name: format!("{host}/{}/{}", pool.name, volume.name),
                });
            }
            self.pools.push(pool.spec);
        }
        // Volumes that are gone need no repetition; where all are, the job is done anew.
        let only = &self.order.volumes;
        if self.chosen.iter().any(|chosen| only.contains(&chosen.uuid)) {
            self.chosen.retain(|chosen| only.contains(&chosen.uuid));
        }
        Ok(())
    }

    /// Has it remembered that the run began, and that it counts for the schedule.
    async fn begin(&self) {
        let running = RunState {
            started_ms: self.started_ms,
            attempt: self.order.attempt,
            before_begun: false,
            after: None,
            volumes: self.chosen.iter().map(Chosen::label).collect(),
        };
        let plan = self.order.plan.clone();
        self.remember(move |job| {
            job.last_start_ms = Some(running.started_ms);
            job.running = Some(running);
            if plan.is_some() {
                job.plan = plan;
            }
        })
        .await;
    }

    /// Asks the server to delete what the rules of the job do not keep of the volumes that were backed up.
    async fn apply_rules(&mut self) {
        let Some(policy) = self.job().keep else { return };
        let good = self.chosen.iter().filter(|chosen| self.outcomes.get(&chosen.uuid) == Some(&true));
        let names: Vec<_> = good.map(|chosen| chosen.server_name.clone()).collect();
        if names.is_empty() {
            return;
        }
        match retention::apply(&self.address, policy, names).await {
            Ok(summary) => tracing::info!(
                job = self.job().name,
                kept = summary.kept,
                removed = summary.removed,
                "the rules of the job were applied"
            ),
            Err(failed) => {
                let message = format!("apply the rules of what is kept: {}", failed.message);
                self.failed(self.job().name.clone(), Failed { message, ..failed }).await;
            }
        }
    }

    /// Notes and tells that something went wrong.
    async fn failed(&mut self, what: String, failed: Failed) {
        tracing::warn!(job = self.job().name, what, error = %failed, "part of a job failed");
        let kind = if what == self.job().name { "run" } else { "backup" };
        let error =
            JobError { job: kind.to_owned(), volume: what.clone(), failure: Some(failed.clone().into()) };
        self.tell(Event::Error(error)).await;
        self.errors.push((what, failed));
    }

    /// Tells who asked for the run. One that does not read for a long time, as a command that was stopped at its
    /// terminal, is taken for gone: the run is interrupted.
    async fn tell(&mut self, event: Event) {
        let Some(told) = &self.told else { return };
        // A reader that is behind misses a status.
        if matches!(event, Event::Status(_)) {
            let _ = told.try_send(Ok(JobEvent { event: Some(event) }));
            return;
        }
        let event = JobEvent { event: Some(event) };
        if offer(told, event, self.keeper.stopped(), LISTENER_PATIENCE).await {
            return;
        }
        tracing::warn!(job = self.job().name, "who asked for the run does not read: it is interrupted");
        self.interrupted = true;
        let message = format!("job `{}` was interrupted: what it told was not read", self.job().name);
        if let Some(told) = self.told.take() {
            tokio::spawn(async move {
                // Should it read again, it learns of it.
                let _ = told.send(Err(Failed::new(FailureKind::Failed, message).into())).await;
            });
        }
    }

    async fn remember(&self, change: impl FnOnce(&mut super::state::JobState) + Send + 'static) {
        self.keeper.remember(&self.job().name, change).await;
    }

    fn went(&self) -> Went {
        match (self.interrupted, self.errors.is_empty()) {
            (true, _) => Went::BrokenOff,
            (false, true) => Went::Well,
            (false, false) => Went::Badly,
        }
    }

    /// Resolves when the run is to end: the agent stops, or nobody listens any more to what was asked for.
    async fn to_end(keeper: &Keeper, told: Option<&Told>) {
        let gone = async {
            match told {
                Some(told) => told.closed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = keeper.stopped() => {}
            () = gone => {}
        }
    }
}

/// Has a listener take an event. Waits for room until `stopped`, and no longer than `patience`: false if that was in vain.
async fn offer(told: &Told, event: JobEvent, stopped: impl Future<Output = ()>, patience: Duration) -> bool {
    let Err(TrySendError::Full(event)) = told.try_send(Ok(event)) else { return true };
    tokio::select! {
        // That nobody listens any more is seen by others.
        _ = told.send(event) => true,
        () = stopped => true,
        () = tokio::time::sleep(patience) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_listener_that_does_not_read_is_not_waited_for_for_ever() {
        const SHORT: Duration = Duration::from_millis(20);
        const LONG: Duration = Duration::from_secs(3600);
        let (told, mut heard) = tokio::sync::mpsc::channel(1);
        let event = JobEvent::default;
        assert!(offer(&told, event(), pending(), LONG).await);
        assert!(!offer(&told, event(), pending(), SHORT).await, "nobody reads");
        assert!(offer(&told, event(), ready(()), LONG).await, "the agent stops");
        heard.recv().await.unwrap().unwrap();
        assert!(offer(&told, event(), pending(), LONG).await);
        drop(heard);
        assert!(offer(&told, event(), pending(), LONG).await, "gone");
    }
}
