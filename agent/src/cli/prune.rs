//! `thinbak prune`.

use std::time::Duration;

use thinbak_proto::{
    format_duration,
    v1::{PruneDecision, PruneRequest, PruneSummary, RetentionPolicy, prune_event::Event},
};

use super::{
    Context,
    args::{Policy, Prune},
    jobs::going_on,
    restore::volume_name,
    stop::Stop,
};
use crate::{
    output::{Column, human, json},
    repository_client::{self, RepositoryConnection},
};

pub(super) async fn run(context: &Context, prune: Prune) -> Result<(), Stop> {
    let connection = repository_client::connect(&context.settings.repository()?).await?;
    let outcome = follow(context, &connection, prune).await;
    connection.close().await;
    outcome
}

impl From<Policy> for RetentionPolicy {
    fn from(policy: Policy) -> Self {
        Self {
            last: policy.keep_last,
            hourly: policy.keep_hourly,
            daily: policy.keep_daily,
            weekly: policy.keep_weekly,
            monthly: policy.keep_monthly,
            yearly: policy.keep_yearly,
            within_seconds: policy.keep_within.map_or(0, |within| within.as_secs()),
        }
    }
}

async fn follow(context: &Context, connection: &RepositoryConnection, prune: Prune) -> Result<(), Stop> {
    let (output, dry_run) = (context.output, prune.dry_run);
    let request = PruneRequest {
        volume: Some(volume_name(&prune.volume)),
        policy: Some(prune.policy.into()),
        dry_run,
        ..PruneRequest::default()
    };
    let mut events = connection.repository().prune(request).await?.into_inner();
    let mut rows = Vec::new();
    let outcome = loop {
        match events.message().await {
            Ok(Some(event)) => match event.event {
                Some(Event::Decision(decision)) if output.is_json() => {
                    going_on(output.json_line(&json::prune_decision(&decision)))?;
                }
                Some(Event::Decision(decision)) => rows.push(row(decision)),
                Some(Event::Summary(summary)) => break Ok(Some(summary)),
                None => {}
            },
            Ok(None) => break Ok(None),
            Err(status) => break Err(Stop::from(status)),
        }
    };
    // What was done before a failure is told as well.
    if !rows.is_empty() {
        going_on(output.table(&columns(), rows))?;
    }
    if let Some(summary) = outcome? {
        if output.is_json() {
            going_on(output.json_line(&json::prune_summary(&summary, dry_run)))?;
        }
        output.note(&told(&summary, dry_run));
    }
    Ok(())
}

fn columns() -> [Column; 5] {
    [
        Column::Left("VOLUME"),
        Column::Right("GENERATION"),
        Column::Left("CREATED"),
        Column::Left("ACTION"),
        Column::Left("REASON"),
    ]
}

fn row(decision: PruneDecision) -> Vec<String> {
    vec![
        decision.volume_name,
        decision.number.to_string(),
        human::time(decision.created_at_ms),
        if decision.remove { "remove" } else { "keep" }.to_owned(),
        decision.reasons.join(", "),
    ]
}

fn told(summary: &PruneSummary, dry_run: bool) -> String {
    let PruneSummary { kept, removed, .. } = summary;
    match (dry_run, removed) {
        (true, _) => format!("{removed} generations would be deleted, {kept} kept"),
        (false, 0) => format!("0 generations are deleted, {kept} kept"),
        (false, _) => format!(
            "{removed} generations are deleted, {kept} kept; `thinbak generation undelete` undoes it for {}",
            format_duration(Duration::from_secs(summary.grace_seconds))
        ),
    }
}
