//! The daemon's loop: what is due is run.

use std::{sync::Arc, time::Duration};

use jiff::tz::TimeZone;
use tokio::sync::mpsc;

use super::{
    keeper::{Keeper, timings},
    run::Order,
    scheduler::{Again, Due, Scheduler},
};
use crate::pools::now_ms;

/// The clock is looked at this often, for it may be set, and the machine may have slept.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// A job that somebody runs by hand, or that could not begin, is looked at again after so long.
const POSTPONED: Duration = Duration::from_secs(5);

/// Runs what is due until the keeper is stopped and nothing runs any more.
pub(crate) async fn keep(keeper: Arc<Keeper>) {
    keeper.now_kept();
    keeper.recover().await;
    let state = loop {
        match keeper.remembered().await {
            Ok((state, _)) => break state,
            Err(failed) => tracing::error!(error = %failed, "jobs cannot be scheduled"),
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = keeper.stopped() => return,
        }
    };
    let mut scheduler = keeper.scheduler(&state, now_ms());
    remember_plans(&keeper, &scheduler).await;
    let (ended, mut runs) = mpsc::unbounded_channel::<(String, Option<Again>)>();
    loop {
        let now = now_ms();
        scheduler.look(now);
        scheduler.look_at_retries(now, |name| keeper.job(name).map_or(Duration::ZERO, |job| job.retry.max));
        while let Some(due) = scheduler.due(now) {
            begin(&keeper, &mut scheduler, due, now, &ended).await;
        }
        let wait = scheduler.wait(now).unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Some((name, again)) = runs.recv() => scheduler.ended(&name, again),
            () = keeper.changed.notified() => {
                let settings = keeper.settings();
                let (jobs, most) = (timings(&settings), settings.jobs.max_running);
                scheduler = scheduler.reloaded(jobs, TimeZone::system(), most, now_ms());
                remember_plans(&keeper, &scheduler).await;
            }
            () = keeper.stopped() => break,
        }
    }
    keeper.drained().await;
}

/// Begins a job that is due.
async fn begin(
    keeper: &Arc<Keeper>,
    scheduler: &mut Scheduler,
    due: Due,
    now: u64,
    ended: &mpsc::UnboundedSender<(String, Option<Again>)>,
) {
    let before = scheduler.plan(&due.name).cloned();
    let plan = scheduler.begin(&due, now);
    let name = due.name.clone();
    let started = match keeper.job(&due.name) {
        Ok(job) => {
            let order = Order { job, attempt: due.attempt, volumes: due.volumes, plan };
            keeper.start(order, None).await
        }
        Err(failed) => Err(failed),
    };
    match started {
        Ok(end) => {
            let ended = ended.clone();
            tokio::spawn(async move {
                // A run that was lost is over as well.
                let again = end.await.unwrap_or_default();
                let _ = ended.send((name, again));
            });
        }
        Err(failed) => {
            tracing::info!(job = name, reason = %failed, "a job that is due waits");
            scheduler.postpone(&name, before, now, POSTPONED);
        }
    }
}

/// Jobs that are new are known from now on.
async fn remember_plans(keeper: &Keeper, scheduler: &Scheduler) {
    for (name, plan) in scheduler.plans() {
        let plan = plan.clone();
        keeper.remember(name, move |job| job.plan = Some(plan)).await;
    }
}
