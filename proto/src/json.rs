//! What both programs say with `--json` of the events of a repository's jobs: an object a line.

use serde_json::{Value, json};

use crate::{
    format_utc,
    v1::{
        CollectPack, CollectPlan, CollectReason, CollectSummary, PruneDecision, PruneSummary, VerifySummary,
    },
};

/// What a collection is going to free.
pub fn collect_plan(plan: &CollectPlan, dry_run: bool) -> Value {
    json!({
        "message_type": "plan",
        "job": "collect",
        "dry_run": dry_run,
        "packs": plan.packs,
        "pack_bytes": plan.pack_bytes,
        "dead_packs": plan.dead_packs,
        "dead_pack_bytes": plan.dead_pack_bytes,
        "repack_packs": plan.repack_packs,
        "repack_pack_bytes": plan.repack_pack_bytes,
        "repack_live_bytes": plan.repack_live_bytes,
        "merge_packs": plan.merge_packs,
        "merge_pack_bytes": plan.merge_pack_bytes,
        "merge_live_bytes": plan.merge_live_bytes,
        "kept_dead_bytes": plan.kept_dead_bytes,
        "free_bytes": plan.free_bytes,
        "expired_generations": plan.expired_generations,
        "generations": plan.generations,
        "lost_chunks": plan.lost_chunks,
    })
}

/// What became of a pack.
pub fn collect_pack(pack: &CollectPack) -> Value {
    json!({
        "message_type": "pack",
        "job": "collect",
        "pack": pack.pack,
        "reason": match pack.reason() {
            CollectReason::Unspecified | CollectReason::Dead => "dead",
            CollectReason::MostlyDead => "mostly_dead",
            CollectReason::Small => "small",
        },
        "moved_bytes": pack.moved_bytes,
        "freed_bytes": pack.freed_bytes,
        "kept": pack.kept,
    })
}

/// What a collection has freed.
pub fn collect_summary(summary: &CollectSummary, dry_run: bool) -> Value {
    json!({
        "message_type": "summary",
        "job": "collect",
        "dry_run": dry_run,
        "removed_packs": summary.removed_packs,
        "kept_packs": summary.kept_packs,
        "removed_bytes": summary.removed_bytes,
        "moved_bytes": summary.moved_bytes,
        "freed_bytes": summary.freed_bytes,
        "expired_generations": summary.expired_generations,
        "lost_chunks": summary.lost_chunks,
        "seconds": summary.seconds,
    })
}

/// What a policy decides of a generation.
pub fn prune_decision(decision: &PruneDecision) -> Value {
    json!({
        "message_type": "status",
        "job": "prune",
        "volume": decision.volume_name,
        "generation": decision.number,
        "created_at": format_utc(decision.created_at_ms),
        "action": if decision.remove { "remove" } else { "keep" },
        "reasons": decision.reasons,
    })
}

/// What a policy came to.
pub fn prune_summary(summary: &PruneSummary, dry_run: bool) -> Value {
    json!({
        "message_type": "summary",
        "job": "prune",
        "dry_run": dry_run,
        "volumes": summary.volumes,
        "kept": summary.kept,
        "removed": summary.removed,
        "grace_seconds": summary.grace_seconds,
        "seconds": summary.seconds,
    })
}

/// What a verification has read and found.
pub fn verify_summary(summary: &VerifySummary) -> Value {
    json!({
        "message_type": "summary",
        "job": "verify",
        "generations": summary.generations,
        "chunks_checked": summary.chunks_checked,
        "chunks_skipped": summary.chunks_skipped,
        "map_nodes_checked": summary.map_nodes_checked,
        "bytes_checked": summary.bytes_checked,
        "damaged": summary.damaged,
        "damaged_records": summary.damaged_records,
        "damaged_packs": summary.damaged_packs,
        "damaged_generations": summary.damaged_generations,
        "packs_checked": summary.packs_checked,
        "packs_skipped": summary.packs_skipped,
        "stored_bytes": summary.stored_bytes,
        "lifted_records": summary.lifted_records,
        "seconds": summary.seconds,
    })
}
