//! `thinbak status`.

use thinbak_proto::v1::{BackupState, BackupStatusRequest, BackupStatusResponse, VolumeBackup};

use super::{
    Context,
    stop::{PARTIAL, Stop},
};
use crate::{
    client::connect_agent,
    output::{Column, human, json},
};

pub(super) async fn run(context: &Context) -> Result<(), Stop> {
    let agent = connect_agent(&context.settings).await?;
    let status = agent.schedule().backup_status(BackupStatusRequest {}).await;
    agent.close().await;
    let status = status?.into_inner();
    let (output, well) = (context.output, is_well(&status));
    if output.is_json() {
        output.document(&json::backup_status(&status, well))?;
    } else {
        output.table(&columns(), status.volumes.iter().map(row).collect())?;
        for volume in status.volumes.iter().filter(|volume| volume.state() == BackupState::Failed) {
            let when = human::time(volume.last_failure_ms);
            output.note(&format!(
                "{}/{}: {} failed at {when}: {}",
                volume.pool, volume.volume, volume.job, volume.last_failure
            ));
        }
        status.problems.iter().for_each(|problem| output.warning(problem));
        status.warnings.iter().for_each(|warning| output.note(warning));
    }
    if well { Ok(()) } else { Err(Stop::Exit(PARTIAL)) }
}

fn is_well(status: &BackupStatusResponse) -> bool {
    let bad = |volume: &VolumeBackup| {
        matches!(volume.state(), BackupState::Overdue | BackupState::Failed | BackupState::Uncovered)
    };
    status.problems.is_empty() && !status.volumes.iter().any(bad)
}

fn columns() -> [Column; 7] {
    [
        Column::Left("VOLUME"),
        Column::Left("STATE"),
        Column::Left("JOB"),
        Column::Left("LAST SUCCESS"),
        Column::Right("GENERATION"),
        Column::Left("LAST FAILURE"),
        Column::Left("NEXT RUN"),
    ]
}

fn row(volume: &VolumeBackup) -> Vec<String> {
    let or = |ms: u64, otherwise: &str| if ms == 0 { otherwise.to_owned() } else { human::time(ms) };
    vec![
        format!("{}/{}", volume.pool, volume.volume),
        json::backup_state(volume.state()).to_owned(),
        if volume.job.is_empty() { "-".to_owned() } else { volume.job.clone() },
        or(volume.last_success_ms, "never"),
        Some(volume.generation)
            .filter(|number| *number > 0)
            .map(|number| number.to_string())
            .unwrap_or_default(),
        or(volume.last_failure_ms, "-"),
        or(volume.next_run_ms, "-"),
    ]
}
