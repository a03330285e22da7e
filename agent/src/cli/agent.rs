//! `thinbak agent`.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{AgentStatusRequest, ReloadRequest},
};

use super::{Context, args::Agent, stop::Stop};
use crate::{
    client::{AgentChannel, connect_running_agent},
    daemon,
    output::{Column, human, json},
    schedule::ReadSettings,
};

pub(super) async fn run(context: &Context, command: Agent) -> Result<(), Stop> {
    match command {
        Agent::Run => {
            let global = context.global.clone();
            let again: ReadSettings = Box::new(move || super::settings(&global));
            Ok(daemon::serve(&context.settings, Some(again), daemon::termination()?).await?)
        }
        Agent::Reload => reload(context).await,
        Agent::Status => status(context).await,
    }
}

async fn running(context: &Context) -> Result<AgentChannel, Failed> {
    connect_running_agent(&context.settings).await?.ok_or_else(|| {
        let socket = context.settings.socket.display();
        Failed::new(FailureKind::NotFound, format!("no agent is running at {socket}"))
            .with_hint("start one with: thinbak agent run")
    })
}

async fn reload(context: &Context) -> Result<(), Stop> {
    let agent = running(context).await?;
    let answer = agent.schedule().reload(ReloadRequest {}).await?.into_inner();
    let output = context.output;
    if output.is_json() {
        return Ok(output.document(&json::reloaded(&answer))?);
    }
    for change in &answer.changes {
        output.line(change)?;
    }
    output.note(&format!("the agent has read its configuration, which has {} jobs", answer.jobs));
    Ok(())
}

async fn status(context: &Context) -> Result<(), Stop> {
    let agent = running(context).await?;
    let status = agent.agent().status(AgentStatusRequest {}).await?.into_inner();
    let output = context.output;
    if output.is_json() {
        return Ok(output.document(&json::agent(&status))?);
    }
    output.line(&format!(
        "thinbak {} with process id {}, since {}, at {}",
        status.version,
        status.pid,
        human::time(status.started_at_ms),
        context.settings.socket.display()
    ))?;
    let pools: Vec<_> = status.pools.iter().map(|pool| pool.name.as_str()).collect();
    output.line(&format!(
        "open pools: {}",
        if pools.is_empty() { "none".to_owned() } else { pools.join(", ") }
    ))?;
    if status.jobs.is_empty() {
        return Ok(output.line("running jobs: none")?);
    }
    let columns = [
        Column::Left("JOB"),
        Column::Left("VOLUME"),
        Column::Left("PHASE"),
        Column::Right("DONE"),
        Column::Right("TOTAL"),
        Column::Left("SINCE"),
    ];
    let rows = status.jobs.iter().map(|job| {
        vec![
            job.job.clone(),
            job.volume.clone(),
            job.phase.clone(),
            human::bytes(job.done_bytes),
            human::bytes(job.total_bytes),
            human::time(job.started_at_ms),
        ]
    });
    Ok(output.table(&columns, rows.collect())?)
}
