//! `thinbak job`.

use thinbak_proto::v1::{JobInfo, ListJobsRequest, RunJobRequest};

use super::{Context, args::Job, interrupt, jobs, stop::Stop};
use crate::{
    client::connect_agent,
    output::{Column, human, json},
};

pub(super) async fn run(context: &Context, command: Job) -> Result<(), Stop> {
    let agent = connect_agent(&context.settings).await?;
    let outcome = match command {
        Job::List => interrupt::unless_interrupted(list(context, agent.schedule())).await,
        Job::Run { name } => {
            let run = async {
                let events = agent.schedule().run_job(RunJobRequest { name }).await?;
                jobs::follow(context, "backup", events.into_inner()).await
            };
            interrupt::unless_interrupted(run).await
        }
    };
    // Of a run in this process that was interrupted, the hook `after` is waited for.
    agent.close().await;
    outcome
}

async fn list(
    context: &Context,
    mut schedule: thinbak_proto::v1::schedule_client::ScheduleClient<crate::channel::BoxedChannel>,
) -> Result<(), Stop> {
    let answer = schedule.list_jobs(ListJobsRequest {}).await?.into_inner();
    let output = context.output;
    if output.is_json() {
        return Ok(output.document(&json::jobs(&answer))?);
    }
    answer.warnings.iter().for_each(|warning| output.warning(warning));
    if answer.jobs.is_empty() {
        output.note("the configuration has no [[job]]");
        return Ok(());
    }
    let columns = [
        Column::Left("JOB"),
        Column::Left("SCHEDULE"),
        Column::Left("NEXT RUN"),
        Column::Left("LAST START"),
        Column::Left("LAST SUCCESS"),
        Column::Left("STATE"),
        Column::Left("VOLUMES"),
    ];
    output.table(&columns, answer.jobs.iter().map(row).collect())?;
    for job in answer.jobs.iter().filter(|job| job.last_failure_ms > job.last_success_ms) {
        output.note(&format!(
            "{}: failed at {}: {}",
            job.name,
            human::time(job.last_failure_ms),
            job.last_failure
        ));
    }
    if !answer.kept && answer.jobs.iter().any(|job| !job.schedule.is_empty()) {
        output.warning("no agent is running, so jobs do not run by themselves");
    }
    Ok(())
}

fn row(job: &JobInfo) -> Vec<String> {
    let or = |ms: u64, otherwise: &str| if ms == 0 { otherwise.to_owned() } else { human::time(ms) };
    let state = match job {
        JobInfo { running_since_ms: 1.., .. } => "running".to_owned(),
        JobInfo { attempt: attempt @ 1.., .. } => format!("attempt {attempt} follows"),
        job if job.last_failure_ms > job.last_success_ms => "failed".to_owned(),
        JobInfo { last_success_ms: 1.., .. } => "ok".to_owned(),
        _ => "new".to_owned(),
    };
    let schedule = if job.schedule.is_empty() { "by hand" } else { job.schedule.as_str() };
    let mut volumes = job.volumes.join(" ");
    if !job.exclude.is_empty() {
        volumes.push_str(&format!(" but {}", job.exclude.join(" ")));
    }
    vec![
        job.name.clone(),
        schedule.to_owned(),
        or(job.next_run_ms, "-"),
        or(job.last_start_ms, "never"),
        or(job.last_success_ms, "never"),
        state,
        volumes,
    ]
}
