//! The hooks of a run.

use std::time::Duration;

use thinbak_proto::{Failed, FailureKind};

use super::{Chosen, Run};
use crate::schedule::{
    hooks::{self, Hook, lines},
    keeper::Keeper,
    scheduler::Again,
    state::RunState,
};

/// How long `after` may take when the agent is told to stop: systemd waits for no more than the unit's `TimeoutStopSec`.
const LIMIT_AT_THE_END: Duration = Duration::from_secs(30);

/// Ends the hooks of a run that ended with its process, and runs `after`.
pub(in crate::schedule) async fn owed_after(keeper: &Keeper, job: &str, broken: &RunState) {
    hooks::end_left(job, broken.started_ms).await;
    let Some((words, limit_ms)) = broken.after.as_ref().filter(|_| broken.before_begun) else { return };
    let mut variables = variables(job, broken, lines(broken.volumes.iter().map(String::as_str)));
    variables.push(("THINBAK_RESULT", "interrupted".to_owned()));
    variables.push(("THINBAK_FAILED_VOLUMES", String::new()));
    variables.push(("THINBAK_ERROR", "the agent ended in the middle of the run".to_owned()));
    let hook = Hook { name: "after", words, limit: Duration::from_millis(*limit_ms), variables };
    if let Err(why) = hook.run(late(keeper)).await {
        tracing::error!(job, why, "the hook that a broken run left to be run failed");
    }
}

/// Resolves when `after` may take no longer because the agent is to stop.
async fn late(keeper: &Keeper) {
    keeper.stopped().await;
    tokio::time::sleep(LIMIT_AT_THE_END).await;
}

impl Run<'_> {
    /// Runs `before`, if there is one. Whether the backup may begin.
    pub(super) async fn before(&mut self) -> bool {
        let Some(words) = self.job().hooks.before.clone() else { return true };
        let hooks = &self.job().hooks;
        let limit_ms = u64::try_from(hooks.timeout.as_millis()).unwrap_or(u64::MAX);
        let after = hooks.after.clone().map(|words| (words, limit_ms));
        self.remember(|job| {
            if let Some(running) = &mut job.running {
                running.before_begun = true;
                running.after = after;
            }
        })
        .await;
        let hook = Hook {
            name: "before",
            words: &words,
            limit: self.job().hooks.timeout,
            variables: self.variables(),
        };
        let told = self.told.clone();
        let mut stopped = false;
        let ended = hook
            .run(async {
                Self::to_end(self.keeper, told.as_ref()).await;
                stopped = true;
            })
            .await;
        self.interrupted |= stopped;
        match ended {
            Ok(()) => !self.interrupted,
            Err(why) => {
                self.hook_failed("before", why).await;
                false
            }
        }
    }

    /// Runs `after`, if there is one. An interrupted run gives it less time.
    pub(super) async fn after(&mut self) {
        let Some(words) = self.job().hooks.after.clone() else { return };
        let mut variables = self.variables();
        variables.extend(self.result());
        let timeout = self.job().hooks.timeout;
        let limit = if self.interrupted { timeout.min(LIMIT_AT_THE_END) } else { timeout };
        let hook = Hook { name: "after", words: &words, limit, variables };
        if let Err(why) = hook.run(late(self.keeper)).await {
            self.hook_failed("after", why).await;
        }
    }

    /// Runs `on_failure`, if there is one.
    pub(super) async fn on_failure(&mut self, again: Option<&Again>, now_ms: u64) {
        let Some(words) = self.job().hooks.on_failure.clone() else { return };
        let mut variables = self.variables();
        variables.extend(self.result());
        let seconds = again.map(|again| again.at_ms.saturating_sub(now_ms) / 1000);
        let seconds = seconds.map(|seconds| seconds.to_string()).unwrap_or_default();
        variables.push(("THINBAK_RETRY_SECONDS", seconds));
        let hook = Hook { name: "on_failure", words: &words, limit: self.job().hooks.timeout, variables };
        let keeper = self.keeper;
        if let Err(why) = hook.run(keeper.stopped()).await {
            self.hook_failed("on_failure", why).await;
        }
    }

    async fn hook_failed(&mut self, hook: &str, why: String) {
        let failed = Failed::new(FailureKind::Failed, format!("hook `{hook}`: {why}"));
        self.failed(self.job().name.clone(), failed).await;
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let labels: Vec<_> = self.chosen.iter().map(Chosen::label).collect();
        let run =
            RunState { attempt: self.order.attempt, started_ms: self.started_ms, ..RunState::default() };
        variables(&self.job().name, &run, lines(labels.iter().map(String::as_str)))
    }

    /// How it went so far.
    fn result(&self) -> [(&'static str, String); 3] {
        let failed: Vec<_> = self
            .chosen
            .iter()
            .filter(|chosen| self.outcomes.get(&chosen.uuid) != Some(&true))
            .map(Chosen::label)
            .collect();
        [
            ("THINBAK_RESULT", self.result_word().to_owned()),
            ("THINBAK_FAILED_VOLUMES", lines(failed.iter().map(String::as_str))),
            ("THINBAK_ERROR", self.why().unwrap_or_default()),
        ]
    }
}

fn variables(job: &str, run: &RunState, volumes: String) -> Vec<(&'static str, String)> {
    let kind = match run.attempt {
        0 => "manual",
        1 => "schedule",
        _ => "retry",
    };
    vec![
        ("THINBAK_JOB", job.to_owned()),
        ("THINBAK_RUN", kind.to_owned()),
        ("THINBAK_ATTEMPT", run.attempt.to_string()),
        ("THINBAK_STARTED_MS", run.started_ms.to_string()),
        ("THINBAK_VOLUMES", volumes),
    ]
}
