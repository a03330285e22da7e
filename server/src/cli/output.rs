//! What is printed, and where. A closed pipe is no error.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::Path,
};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use thinbak_proto::{Failed, v1};

pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// A line on stdout. That nobody reads it is the reader's choice.
    fn data(&self, line: impl Display) {
        let _ = writeln!(anstream::stdout().lock(), "{line}");
    }

    /// A line on stderr.
    fn say(&self, line: impl Display) {
        let _ = writeln!(anstream::stderr().lock(), "{line}");
    }

    pub(super) fn failed(&self, failed: &Failed) {
        if self.json {
            let (message, hint, code) = (&failed.message, &failed.hint, failed.exit_code());
            self.data(json!({"message_type": "error", "message": message, "hint": hint, "exit_code": code}));
        }
        self.say(format_args!("error: {}", failed.message));
        if let Some(hint) = &failed.hint {
            self.say(format_args!("hint: {hint}"));
        }
    }

    pub(super) fn initialised(&self, dir: &Path, uuid: uuid::Uuid, chunk_bytes: u32) {
        if self.json {
            self.data(json!({"repository": dir, "uuid": uuid, "chunk_bytes": chunk_bytes}));
        } else {
            self.say(format_args!("made repository {uuid} in {}", dir.display()));
        }
    }

    pub(super) fn listening(&self, address: SocketAddr) {
        self.say(format_args!("listening on {address}"));
    }

    pub(super) fn serving_metrics(&self, address: SocketAddr) {
        self.say(format_args!("metrics on http://{address}/metrics"));
    }

    pub(super) fn stats(&self, stats: &v1::StatsResponse) {
        let rows = [
            ("volumes", stats.volumes, false),
            ("generations", stats.generations, false),
            ("logical_bytes", stats.logical_bytes, true),
            ("chunks", stats.chunks, false),
            ("chunk_plain_bytes", stats.chunk_plain_bytes, true),
            ("chunk_stored_bytes", stats.chunk_stored_bytes, true),
            ("map_nodes", stats.map_nodes, false),
            ("map_node_bytes", stats.map_node_bytes, true),
            ("packs", stats.packs, false),
            ("pack_bytes", stats.pack_bytes, true),
            ("index_bytes", stats.index_bytes, true),
            ("catalogue_bytes", stats.catalogue_bytes, true),
        ];
        if self.json {
            let numbers = rows.into_iter().map(|(name, value, _)| (name.to_owned(), Value::from(value)));
            let mut members: serde_json::Map<String, Value> = numbers.collect();
            members.insert("health".to_owned(), stats.health.clone().into());
            members.insert("problems".to_owned(), stats.problems.clone().into());
            return self.data(Value::Object(members));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (name, value, bytes) in rows {
            let name = name.replace('_', " ");
            table.add_row([name, if bytes { size(value) } else { value.to_string() }]);
        }
        table.add_row(["health", &stats.health]);
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self.data(table.trim_fmt());
        for problem in &stats.problems {
            self.data(problem);
        }
    }

    pub(super) fn progress(&self, progress: v1::VerifyProgress) {
        let v1::VerifyProgress { done_bytes, total_bytes } = progress;
        if self.json {
            let (done, total) = (done_bytes, total_bytes);
            self.data(json!({"message_type": "status", "done_bytes": done, "total_bytes": total}));
        } else if std::io::stderr().is_terminal() {
            let _ =
                write!(anstream::stderr().lock(), "\r{} of {}\x1b[K", size(done_bytes), size(total_bytes));
        }
    }

    pub(super) fn damage(&self, damage: &v1::VerifyDamage) {
        let v1::VerifyDamage { volume_name, generation, offset_bytes, length_bytes, reason } = damage;
        if self.json {
            return self.data(json!({
                "message_type": "damage",
                "volume": volume_name,
                "generation": generation,
                "offset_bytes": offset_bytes,
                "length_bytes": length_bytes,
                "reason": reason,
            }));
        }
        self.data(format_args!(
            "{volume_name}:{generation} {length_bytes} bytes at {offset_bytes}: {reason}"
        ));
    }

    pub(super) fn verified(&self, summary: &v1::VerifySummary) {
        if self.json {
            return self.data(json!({
                "message_type": "summary",
                "job": "verify",
                "generations": summary.generations,
                "chunks_checked": summary.chunks_checked,
                "chunks_skipped": summary.chunks_skipped,
                "map_nodes_checked": summary.map_nodes_checked,
                "bytes_checked": summary.bytes_checked,
                "damaged": summary.damaged,
                "seconds": summary.seconds,
            }));
        }
        if std::io::stderr().is_terminal() {
            let _ = write!(anstream::stderr().lock(), "\r\x1b[K");
        }
        let (chunks, nodes, bytes) =
            (summary.chunks_checked, summary.map_nodes_checked, size(summary.bytes_checked));
        self.data(format_args!(
            "{} generations: {chunks} chunks ({bytes}) and {nodes} map nodes read back, {} chunks left out, {} damaged",
            summary.generations, summary.chunks_skipped, summary.damaged
        ));
    }
}

/// Collection.
impl Output {
    pub(super) fn collect_plan(&self, plan: &v1::CollectPlan, dry_run: bool) {
        if self.json {
            return self.data(json!({
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
                "kept_dead_bytes": plan.kept_dead_bytes,
                "free_bytes": plan.free_bytes,
                "expired_generations": plan.expired_generations,
                "generations": plan.generations,
                "lost_chunks": plan.lost_chunks,
            }));
        }
        self.data(format_args!(
            "to be freed: {} of {} in {} packs: {} in {} packs with nothing in use, {} in {} packs mostly not in use, of \
             which {} are copied; {} not in use stay",
            size(plan.free_bytes),
            size(plan.pack_bytes),
            plan.packs,
            size(plan.dead_pack_bytes),
            plan.dead_packs,
            size(plan.repack_pack_bytes),
            plan.repack_packs,
            size(plan.repack_live_bytes),
            size(plan.kept_dead_bytes)
        ));
        if plan.lost_chunks > 0 {
            self.say(format_args!(
                "warning: {} chunks that generations need are not stored; `thinbak-server verify` tells of which",
                plan.lost_chunks
            ));
        }
    }

    pub(super) fn collect_pack(&self, pack: &v1::CollectPack) {
        if self.json {
            let reason = if pack.reason() == v1::CollectReason::MostlyDead { "mostly_dead" } else { "dead" };
            return self.data(json!({
                "message_type": "pack",
                "job": "collect",
                "pack": pack.pack,
                "reason": reason,
                "moved_bytes": pack.moved_bytes,
                "freed_bytes": pack.freed_bytes,
                "kept": pack.kept,
            }));
        }
        if !pack.kept.is_empty() {
            self.say(format_args!("pack {:08x} stays: {}", pack.pack, pack.kept));
        }
    }

    pub(super) fn collected(&self, summary: &v1::CollectSummary, dry_run: bool) {
        if self.json {
            return self.data(json!({
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
            }));
        }
        if std::io::stderr().is_terminal() {
            let _ = write!(anstream::stderr().lock(), "\r\x1b[K");
        }
        if !dry_run {
            self.data(format_args!(
                "freed: {}; {} packs removed, {} copied, {} packs left for a later run",
                size(u64::try_from(summary.freed_bytes).unwrap_or_default()),
                summary.removed_packs,
                size(summary.moved_bytes),
                summary.kept_packs
            ));
        }
    }
}

/// A size for people, in powers of 1024.
fn size(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, "K");
    for larger in ["M", "G", "T", "P", "E"] {
        if value < 1023.95 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_one_decimal_and_the_next_unit_in_time() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(1023), "1023B");
        assert_eq!(size(65536), "64.0K");
        assert_eq!(size((1 << 20) - 1), "1.0M");
        assert_eq!(size(u64::MAX), "16.0E");
    }
}
