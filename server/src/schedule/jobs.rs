//! Running what is due.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::tz::TimeZone;
use thinbak_proto::{Failed, FailureKind, v1};

use super::{Job, Scheduler};
use crate::{
    collect,
    config::Timetable,
    repository::Repository,
    retention::prune::{self, Prune},
    verify,
};

/// A scheduled verification leaves out what was verified since so long.
const VERIFY_AGE_MS: u64 = 30 * 86_400_000;
/// The clock is looked at this often, for it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A job that the timetable names and this program cannot do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the schedule names {0}, which this server cannot do")]
pub struct MissingJob(pub Job);

impl From<MissingJob> for Failed {
    fn from(error: MissingJob) -> Self {
        Self::new(FailureKind::Usage, error.to_string())
    }
}

type Run = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failed>> + Send + Sync>;

/// How each job is done.
#[derive(Default)]
pub struct Jobs(Vec<(Job, Run)>);

impl Jobs {
    /// What can be done to a repository.
    #[must_use]
    pub fn of(repository: &Arc<Repository>) -> Self {
        let own = || Arc::clone(repository);
        let (pruned, collected, verified, copied) = (own(), own(), own(), own());
        Self::default()
            .with(Job::Prune, move || Box::pin(prune(Arc::clone(&pruned))))
            .with(Job::Collect, move || Box::pin(collect(Arc::clone(&collected))))
            .with(Job::Verify, move || Box::pin(verify(Arc::clone(&verified))))
            .with(Job::CatalogueBackup, move || Box::pin(back_up_catalogue(Arc::clone(&copied))))
    }

    /// The same and one more job.
    #[must_use]
    pub fn with(
        mut self,
        job: Job,
        run: impl Fn() -> BoxFuture<'static, Result<(), Failed>> + Send + Sync + 'static,
    ) -> Self {
        self.0.push((job, Box::new(run)));
        self
    }

    /// That all of a timetable can be done.
    pub fn check(&self, timetable: &Timetable) -> Result<(), MissingJob> {
        let missing = timetable.entries().find(|(job, _)| !self.0.iter().any(|(known, _)| known == job));
        missing.map_or(Ok(()), |(job, _)| Err(MissingJob(job)))
    }

    /// Does a job. What goes wrong is logged: the next time comes.
    pub(super) async fn run(&self, job: Job) {
        let Some((_, run)) = self.0.iter().find(|(known, _)| *known == job) else { return };
        tracing::info!(%job, "scheduled job begins");
        match run().await {
            Ok(()) => tracing::info!(%job, "scheduled job is done"),
            Err(failed) => tracing::error!(%job, reason = failed.message, "scheduled job failed"),
        }
    }
}

/// Keeps a timetable until it is dropped. A job that is broken off is done again at the next start.
pub async fn keep(repository: Arc<Repository>, timetable: Timetable, jobs: Jobs) {
    let scheduler = loop {
        match scheduler(&repository, &timetable).await {
            Ok(scheduler) => break scheduler,
            Err(failed) => tracing::error!(reason = failed.message, "the schedule cannot be read"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let remembering = async |job: Job, began_ms| {
        if let Err(error) = repository.catalogue.remember_job(&job.to_string(), began_ms).await {
            tracing::error!(%job, %error, "that the job was done cannot be remembered");
        }
    };
    run(scheduler, || repository.now_ms(), tokio::time::sleep, async |job| jobs.run(job).await, remembering)
        .await;
}

/// A scheduler that knows what was done in earlier lives of the server.
async fn scheduler(repository: &Repository, timetable: &Timetable) -> Result<Scheduler, Failed> {
    let mut entries = Vec::new();
    for (job, when) in timetable.entries() {
        entries.push((
            job,
            when,
            repository.catalogue.job_counted_from(&job.to_string(), repository.now_ms()).await?,
        ));
    }
    Ok(Scheduler::new(entries, TimeZone::system()))
}

/// Runs what is due, one job at a time, for ever.
pub(super) async fn run(
    mut scheduler: Scheduler,
    now_ms: impl Fn() -> u64,
    sleep: impl AsyncFn(Duration),
    work: impl AsyncFn(Job),
    done: impl AsyncFn(Job, u64),
) {
    loop {
        let began_ms = now_ms();
        scheduler.look(began_ms);
        match scheduler.due(began_ms) {
            Some(job) => {
                scheduler.begun(job, began_ms);
                work(job).await;
                done(job, began_ms).await;
            }
            None => sleep(scheduler.wait(began_ms).unwrap_or(LOOK_EVERY).min(LOOK_EVERY)).await,
        }
    }
}

/// Applies the stored policies.
async fn prune(repository: Arc<Repository>) -> Result<(), Failed> {
    let request = v1::PruneRequest { stored_policies: true, ..v1::PruneRequest::default() };
    let plan = Prune::of(&repository, request, repository.now_ms(), TimeZone::system()).await?;
    let mut events = prune::start(repository, plan);
    while let Some(event) = events.recv().await {
        if let Some(v1::prune_event::Event::Summary(summary)) = event?.event {
            let v1::PruneSummary { volumes, kept, removed, .. } = summary;
            tracing::info!(volumes, kept, removed, "the stored retention policies were applied");
        }
    }
    Ok(())
}

/// Frees what is not needed, with the options that a request without any stands for.
async fn collect(repository: Arc<Repository>) -> Result<(), Failed> {
    let mut events = collect::start(repository, collect::Options::default());
    while let Some(event) = events.recv().await {
        event?;
    }
    Ok(())
}

/// Reads back everything that was not read for 30 days.
async fn verify(repository: Arc<Repository>) -> Result<(), Failed> {
    let request = v1::VerifyRequest { older_than_ms: VERIFY_AGE_MS, ..v1::VerifyRequest::default() };
    let plan = verify::Plan::of(&repository, request).await?;
    let mut events = verify::start(repository, plan);
    let mut damaged = 0;
    while let Some(event) = events.recv().await {
        if let Some(v1::verify_event::Event::Summary(summary)) = event?.event {
            damaged = summary.damaged;
        }
    }
    match damaged {
        0 => Ok(()),
        count => Err(Failed::new(FailureKind::Damaged, format!("verification found {count} places damaged"))),
    }
}

/// Copies the catalogue.
async fn back_up_catalogue(repository: Arc<Repository>) -> Result<(), Failed> {
    repository.back_up_catalogue(Repository::CATALOGUE_BACKUPS).await?;
    Ok(())
}
