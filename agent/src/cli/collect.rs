//! `thinbak collect`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use thinbak_proto::v1::{CollectPlan, CollectRequest, CollectSummary, collect_event::Event};

use super::{Context, grammar, jobs::going_on, stop::Stop};
use crate::{
    output::{human, json},
    repository_client::{self, RepositoryConnection},
};

#[derive(Debug, Args)]
pub(super) struct Collect {
    /// Say what would be freed, and free nothing
    #[arg(long)]
    dry_run: bool,
    /// Rewrite packs of which at most this share is in use (default: 50%)
    #[arg(long, value_parser = grammar::share, value_name = "PERCENT")]
    threshold: Option<f64>,
    /// Rewrite no pack of which more than this is in use: it is on the disk twice for a while
    #[arg(long, value_parser = grammar::size, value_name = "SIZE")]
    max_extra_space: Option<u64>,
    /// Copy at most this much in all
    #[arg(long, value_parser = grammar::size, value_name = "SIZE")]
    max_repack: Option<u64>,
    /// Copy at most this much in a second
    #[arg(long, value_parser = grammar::size, value_name = "SIZE")]
    rate: Option<u64>,
    /// Keep deleted generations for this long, instead of the repository's grace period
    #[arg(long, value_parser = thinbak_proto::parse_duration, value_name = "TIME")]
    grace: Option<Duration>,
}

pub(super) async fn run(context: &Context, collect: Collect) -> Result<(), Stop> {
    let connection = repository_client::connect(&context.settings.repository()?).await?;
    let outcome = follow(context, &connection, &collect).await;
    connection.close().await;
    outcome
}

impl From<&Collect> for CollectRequest {
    fn from(collect: &Collect) -> Self {
        let millis = |grace: Duration| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        Self {
            dry_run: collect.dry_run,
            threshold: collect.threshold,
            max_extra_space_bytes: collect.max_extra_space,
            max_repack_bytes: collect.max_repack,
            rate_bytes_per_second: collect.rate.unwrap_or_default(),
            grace_ms: collect.grace.map(millis),
        }
    }
}

async fn follow(context: &Context, connection: &RepositoryConnection, collect: &Collect) -> Result<(), Stop> {
    let output = context.output;
    let mut events = connection.repository().collect(CollectRequest::from(collect)).await?.into_inner();
    let mut bars = output.progress();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Plan(plan)) => {
                if output.is_json() {
                    going_on(output.json_line(&json::collect_plan(&plan, collect.dry_run)))?;
                } else {
                    plan_lines(&plan).iter().try_for_each(|line| going_on(output.line(line)))?;
                }
                if plan.lost_chunks > 0 {
                    output.warning(&format!(
                        "{} chunks that generations need are not stored; `thinbak verify` tells of which",
                        plan.lost_chunks
                    ));
                }
            }
            Some(Event::Progress(progress)) if output.is_json() => {
                going_on(output.json_line(&json!({
                    "message_type": "status",
                    "job": "collect",
                    "done_bytes": progress.done_bytes,
                    "total_bytes": progress.total_bytes,
                })))?;
            }
            Some(Event::Progress(progress)) => {
                bars.update("collect", "", progress.done_bytes, progress.total_bytes);
            }
            Some(Event::Pack(pack)) if output.is_json() => {
                going_on(output.json_line(&json::collect_pack(&pack)))?
            }
            Some(Event::Pack(pack)) if pack.kept.is_empty() => {}
            Some(Event::Pack(pack)) => {
                bars.clear();
                output.note(&format!("pack {:08x} stays: {}", pack.pack, pack.kept));
            }
            Some(Event::Summary(summary)) => {
                bars.clear();
                if output.is_json() {
                    going_on(output.json_line(&json::collect_summary(&summary, collect.dry_run)))?;
                } else if !collect.dry_run {
                    going_on(output.line(&summary_line(&summary)))?;
                }
            }
            None => {}
        }
    }
    Ok(())
}

fn plan_lines(plan: &CollectPlan) -> Vec<String> {
    let mut lines = vec![format!(
        "to be freed: {} of {} in {} packs",
        human::bytes(plan.free_bytes),
        human::bytes(plan.pack_bytes),
        plan.packs
    )];
    if plan.dead_packs > 0 {
        let bytes = human::bytes(plan.dead_pack_bytes);
        lines.push(format!("  {} packs with nothing in use: {bytes}", plan.dead_packs));
    }
    if plan.repack_packs > 0 {
        lines.push(format!(
            "  {} packs mostly not in use: {}, of which {} are copied",
            plan.repack_packs,
            human::bytes(plan.repack_pack_bytes),
            human::bytes(plan.repack_live_bytes)
        ));
    }
    if plan.merge_packs > 0 {
        let bytes = human::bytes(plan.merge_live_bytes);
        lines.push(format!("  {} small packs are put together: {bytes} are copied", plan.merge_packs));
    }
    if plan.kept_dead_bytes > 0 {
        let bytes = human::bytes(plan.kept_dead_bytes);
        lines.push(format!("  {bytes} not in use stay in packs mostly in use"));
    }
    if plan.expired_generations > 0 {
        let expired = plan.expired_generations;
        lines.push(format!("  {expired} deleted generations are given up: their grace period is over"));
    }
    lines
}

fn summary_line(summary: &CollectSummary) -> String {
    format!(
        "freed: {}; {} packs removed, {} copied, {} packs left for a later run, in {}",
        human::bytes(u64::try_from(summary.freed_bytes).unwrap_or_default()),
        summary.removed_packs,
        human::bytes(summary.moved_bytes),
        summary.kept_packs,
        human::seconds(summary.seconds)
    )
}
