//! The shapes of `--json`. Queries answer with one document; jobs with an object a line, whose `message_type`
//! is `status`, `summary` or `error`. What `thinbak-server` says in the same words is
//! written in `thinbak-proto`.

use serde_json::{Value, json};
pub(crate) use thinbak_proto::json::{
    collect_pack, collect_plan, collect_summary, prune_decision, prune_summary, verify_summary,
};
use thinbak_proto::{
    Failed, FailureKind, format_utc,
    v1::{
        AgentStatusResponse, BackupState, BackupStatusResponse, CheckPoolResponse, DeletedGeneration,
        Generation, JobInfo, JobStatus, JobSummary, ListJobsResponse, MsnapInfo, PoolDiscards, PoolInfo,
        PoolSettings, ReloadResponse, RunningJob, VerifyDamage, VerifyPack, VerifyRecord, VolumeBackup,
        VolumeInfo, VolumeKind,
    },
};

/// A job's progress.
pub(crate) fn status(status: &JobStatus) -> Value {
    json!({
        "message_type": "status",
        "job": status.job,
        "volume": status.volume,
        "phase": status.phase,
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
    })
}

/// What a job did.
pub(crate) fn summary(summary: &JobSummary) -> Value {
    json!({
        "message_type": "summary",
        "job": summary.job,
        "volume": summary.volume,
        "generation": summary.generation,
        "mode": summary.mode,
        "reason": optional(&summary.reason),
        "target": optional(&summary.target),
        "volume_bytes": summary.volume_bytes,
        "mapped_bytes": summary.mapped_bytes,
        "changed_bytes": summary.changed_bytes,
        "read_bytes": summary.read_bytes,
        "sent_bytes": summary.sent_bytes,
        "stored_bytes": summary.stored_bytes,
        "deduplicated_bytes": summary.deduplicated_bytes,
        "healed_bytes": summary.healed_bytes,
        "notes": summary.notes,
        "msnap_held_seconds": summary.msnap_held_seconds,
        "seconds": summary.seconds,
    })
}

/// Why something failed; `volume` only where it is one of several.
pub(crate) fn error(job: &str, volume: Option<&str>, failed: &Failed) -> Value {
    let kind = match failed.kind {
        FailureKind::Failed => "failed",
        FailureKind::Usage => "usage",
        FailureKind::Damaged => "damaged",
        FailureKind::Refused => "refused",
        FailureKind::NotFound => "not_found",
        FailureKind::Busy => "busy",
        FailureKind::Denied => "denied",
        FailureKind::BaseUnknown => "base_unknown",
        FailureKind::NoSpace => "no_space",
    };
    json!({
        "message_type": "error",
        "job": optional(job),
        "volume": volume,
        "kind": kind,
        "exit_code": failed.exit_code(),
        "message": failed.message,
        "hint": failed.hint,
    })
}

pub(crate) fn pool(pool: &PoolInfo) -> Value {
    if !pool.error.is_empty() {
        return json!({ "name": pool.name, "kind": pool.kind, "place": pool.place, "error": pool.error });
    }
    json!({
        "name": pool.name,
        "kind": pool.kind,
        "place": pool.place,
        "uuid": pool.uuid,
        "mode": pool.mode,
        "transaction_id": pool.transaction_id,
        "block_bytes": pool.block_bytes,
        "metadata_used_blocks": pool.metadata_used_blocks,
        "metadata_total_blocks": pool.metadata_total_blocks,
        "data_used_blocks": pool.data_used_blocks,
        "data_total_blocks": pool.data_total_blocks,
        "held_root": Some(pool.held_root).filter(|root| *root != 0),
        "volumes": pool.volumes,
        "snapshots": pool.snapshots,
        "status_line": pool.status_line,
        "table_line": pool.table_line,
        "needs_check": pool.needs_check,
        "snapshot_clock": pool.snapshot_clock,
        "events": pool.events,
        "settings": pool.settings.map(settings),
        "warnings": pool.warnings,
    })
}

fn settings(settings: PoolSettings) -> Value {
    json!({
        "zero": settings.zero(),
        "discards": discards_name(settings.discards()),
        "error_when_full": settings.error_when_full(),
        "low_water_bytes": settings.low_water_bytes(),
        "no_space_timeout_seconds": settings.no_space_timeout_seconds(),
        "permission": if settings.read_only() { "r" } else { "rw" },
    })
}

/// What becomes of discards, in LVM's word.
pub(crate) fn discards_name(discards: PoolDiscards) -> &'static str {
    match discards {
        PoolDiscards::Passdown => "passdown",
        PoolDiscards::Nopassdown => "nopassdown",
        PoolDiscards::Ignore => "ignore",
    }
}

pub(crate) fn check(pool: &str, report: &CheckPoolResponse) -> Value {
    let damage = report.damage.iter().map(|damage| {
        json!({ "invariant": damage.invariant, "fatal": damage.fatal, "description": damage.description })
    });
    json!({
        "pool": pool,
        "sound": report.damage.is_empty(),
        "damage": damage.collect::<Vec<_>>(),
        "devices": report.devices,
        "mappings": report.mappings,
        "metadata_blocks_checked": report.metadata_blocks_checked,
    })
}

/// A volume's kind in a word.
pub(crate) fn kind_name(kind: VolumeKind) -> &'static str {
    match kind {
        VolumeKind::Volume => "volume",
        VolumeKind::Snapshot => "snapshot",
        VolumeKind::Base => "base",
        VolumeKind::Unknown => "unknown",
    }
}

pub(crate) fn volume(volume: &VolumeInfo) -> Value {
    json!({
        "name": volume.name,
        "kind": kind_name(volume.kind()),
        "uuid": volume.uuid,
        "device_id": volume.device_id,
        "size_bytes": volume.size_bytes,
        "mapped_bytes": volume.mapped_bytes,
        "created_at": Some(volume.created_at_ms).filter(|ms| *ms > 0).map(format_utc),
        "read_only": volume.read_only,
        "external_origin": volume.origin.as_ref().map(|origin| json!({
            "path": origin.path,
            "size_bytes": origin.size_bytes,
        })),
    })
}

pub(crate) fn msnap(msnap: &MsnapInfo) -> Value {
    if msnap.held_root == 0 {
        return json!({ "pool": msnap.pool, "held_root": null });
    }
    json!({
        "pool": msnap.pool,
        "held_root": msnap.held_root,
        "transaction_id": msnap.transaction_id,
        "time": msnap.time,
        "devices": msnap.devices,
        "ours": msnap.ours,
    })
}

pub(crate) fn generation(generation: &Generation) -> Value {
    json!({
        "volume": generation.volume_name,
        "volume_uuid": generation.volume_uuid,
        "generation": generation.number,
        "created_at": format_utc(generation.created_at_ms),
        "size_bytes": generation.size_bytes,
        "mapped_bytes": generation.mapped_bytes,
        "changed_bytes": generation.changed_bytes,
        "new_bytes": generation.new_bytes,
        "stored_bytes": generation.stored_bytes,
        "chunk_bytes": generation.chunk_bytes,
        "root": hex(&generation.root),
        "parent": Some(generation.parent).filter(|parent| *parent != 0),
        "protected": generation.protected,
        "group": optional(&generation.group),
        "point": generation.point.as_ref().map(|point| json!({
            "identity": point.identity,
            "pool_uuid": point.pool_uuid,
            "device_id": point.device_id,
            "transaction_id": point.transaction_id,
            "created_at": format_utc(point.created_at_ms),
            "size_bytes": point.size_bytes,
            "block_bytes": point.block_bytes,
            "mapped_blocks": point.mapped_blocks,
        })),
    })
}

pub(crate) fn deleted_generation(deleted: &DeletedGeneration) -> Value {
    let mut value = deleted.generation.as_ref().map(generation).unwrap_or_default();
    if let Some(members) = value.as_object_mut() {
        members.insert("deleted_at".to_owned(), format_utc(deleted.deleted_at_ms).into());
        members.insert("undelete_until".to_owned(), format_utc(deleted.undelete_until_ms).into());
    }
    value
}

pub(crate) fn verify_damage(damage: &VerifyDamage) -> Value {
    json!({
        "message_type": "error",
        "job": "verify",
        "volume": damage.volume_name,
        "kind": "damaged",
        "exit_code": 4,
        "generation": damage.generation,
        "offset_bytes": damage.offset_bytes,
        "length_bytes": damage.length_bytes,
        "message": damage.reason,
    })
}

pub(crate) fn damaged_record(record: &VerifyRecord) -> Value {
    json!({
        "message_type": "error",
        "job": "verify",
        "kind": "damaged_record",
        "exit_code": 4,
        "record_kind": super::human::record_kind(record.kind()),
        "id": hex(&record.id),
        "pack": record.pack,
        "pack_offset_bytes": record.pack.map(|_| record.offset_bytes),
        "message": record.reason,
    })
}

pub(crate) fn damaged_pack(pack: &VerifyPack) -> Value {
    json!({
        "message_type": "error",
        "job": "verify",
        "kind": "damaged_pack",
        "exit_code": 4,
        "pack": pack.pack,
        "message": pack.reason,
    })
}

pub(crate) fn agent(status: &AgentStatusResponse) -> Value {
    json!({
        "version": status.version,
        "pid": status.pid,
        "started_at": format_utc(status.started_at_ms),
        "pools": status.pools.iter().map(pool).collect::<Vec<_>>(),
        "jobs": status.jobs.iter().map(job).collect::<Vec<_>>(),
    })
}

fn job(job: &RunningJob) -> Value {
    json!({
        "job": job.job,
        "volume": job.volume,
        "phase": job.phase,
        "done_bytes": job.done_bytes,
        "total_bytes": job.total_bytes,
        "started_at": format_utc(job.started_at_ms),
    })
}

/// How a volume's backup is, in a word.
pub(crate) fn backup_state(state: BackupState) -> &'static str {
    match state {
        BackupState::Ok => "ok",
        BackupState::Waiting => "waiting",
        BackupState::Overdue => "overdue",
        BackupState::Failed => "failed",
        BackupState::Uncovered => "uncovered",
        BackupState::LeftOut => "left out",
    }
}

pub(crate) fn reloaded(answer: &ReloadResponse) -> Value {
    json!({ "jobs": answer.jobs, "changes": answer.changes })
}

pub(crate) fn jobs(answer: &ListJobsResponse) -> Value {
    json!({
        "agent_running": answer.kept,
        "jobs": answer.jobs.iter().map(job_info).collect::<Vec<_>>(),
        "warnings": answer.warnings,
    })
}

pub(crate) fn backup_status(status: &BackupStatusResponse, well: bool) -> Value {
    json!({
        "well": well,
        "agent_running": status.kept,
        "volumes": status.volumes.iter().map(volume_backup).collect::<Vec<_>>(),
        "jobs": status.jobs.iter().map(job_info).collect::<Vec<_>>(),
        "problems": status.problems,
        "warnings": status.warnings,
    })
}

fn job_info(job: &JobInfo) -> Value {
    json!({
        "name": job.name,
        "schedule": optional(&job.schedule),
        "volumes": job.volumes,
        "exclude": job.exclude,
        "group": job.group,
        "next_run": moment(job.next_run_ms),
        "running_since": moment(job.running_since_ms),
        "last_start": moment(job.last_start_ms),
        "last_end": moment(job.last_end_ms),
        "last_success": moment(job.last_success_ms),
        "last_failure": moment(job.last_failure_ms),
        "last_failure_reason": optional(&job.last_failure),
        "retry_attempt": Some(job.attempt).filter(|attempt| *attempt > 0),
    })
}

fn volume_backup(volume: &VolumeBackup) -> Value {
    let success = volume.last_success_ms > 0;
    json!({
        "pool": volume.pool,
        "volume": volume.volume,
        "uuid": volume.uuid,
        "size_bytes": volume.size_bytes,
        "job": optional(&volume.job),
        "state": backup_state(volume.state()),
        "last_success": moment(volume.last_success_ms),
        "last_failure": moment(volume.last_failure_ms),
        "last_failure_reason": optional(&volume.last_failure),
        "next_run": moment(volume.next_run_ms),
        "generation": success.then_some(volume.generation),
        "sent_bytes": success.then_some(volume.sent_bytes),
        "seconds": success.then_some(volume.seconds),
    })
}

/// A moment, or null for none.
fn moment(ms: u64) -> Option<String> {
    Some(ms).filter(|ms| *ms > 0).map(format_utc)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn optional(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    #[test]
    fn a_summary_carries_the_fields_that_scripts_rely_on() {
        let summary = summary(&JobSummary { job: "backup".into(), generation: 3, ..JobSummary::default() });
        for key in [
            "message_type",
            "job",
            "volume",
            "generation",
            "volume_bytes",
            "mapped_bytes",
            "changed_bytes",
            "read_bytes",
            "sent_bytes",
            "stored_bytes",
            "deduplicated_bytes",
            "healed_bytes",
            "msnap_held_seconds",
            "seconds",
        ] {
            assert!(keys(&summary).contains(&key), "{key}");
        }
        assert_eq!(summary["message_type"], "summary");
        assert_eq!(summary["generation"], 3);
        assert_eq!(summary["reason"], Value::Null);
    }

    #[test]
    fn an_error_carries_kind_and_exit_code() {
        let failed = Failed::new(FailureKind::NotFound, "no pool").with_hint("make one");
        let error = error("backup", Some("p/v"), &failed);
        assert_eq!(
            error,
            json!({
                "message_type": "error", "job": "backup", "volume": "p/v", "kind": "not_found",
                "exit_code": 10, "message": "no pool", "hint": "make one",
            })
        );
    }

    #[test]
    fn a_generation_is_told_with_its_root_in_hexadecimal() {
        let value =
            generation(&Generation { root: vec![0xab; 32].into(), parent: 0, ..Generation::default() });
        assert_eq!(value["root"].as_str().map(str::len), Some(64));
        assert_eq!(value["parent"], Value::Null);
        assert_eq!(value["created_at"], "1970-01-01T00:00:00.000Z");
    }
}
