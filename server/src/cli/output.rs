//! What is printed, and where. A closed pipe is no error.

use std::{
    fmt::Display,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::Path,
};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use thinbak_proto::{Failed, format_local, json, remote::Fingerprint, v1};

pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// A line on stdout. That nobody reads it is the reader's choice.
    pub(super) fn data(&self, line: impl Display) {
        let _ = writeln!(anstream::stdout().lock(), "{line}");
    }

    /// A line on stderr.
    pub(super) fn say(&self, line: impl Display) {
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

    pub(super) fn initialised(&self, dir: &Path, uuid: uuid::Uuid, chunk_bytes: u32, tls: &Fingerprint) {
        if self.json {
            let fingerprint = tls.to_string();
            self.data(json!({
                "repository": dir, "uuid": uuid, "chunk_bytes": chunk_bytes, "fingerprint": fingerprint,
            }));
        } else {
            self.say(format_args!("made repository {uuid} in {}", dir.display()));
            self.say(format_args!("its certificate is {tls}"));
        }
    }

    pub(super) fn fingerprint(&self, fingerprint: &Fingerprint) {
        if self.json {
            self.data(json!({"fingerprint": fingerprint.to_string()}));
        } else {
            self.data(fingerprint);
        }
    }

    /// `tls`: what clients pin, if it is TLS that is served.
    pub(super) fn listening(&self, address: SocketAddr, tls: Option<&Fingerprint>) {
        match tls {
            Some(fingerprint) => {
                self.say(format_args!("listening on {address} with certificate {fingerprint}"))
            }
            None => self.say(format_args!("listening on {address}")),
        }
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

    /// What becomes of a generation, as a line of JSON.
    pub(super) fn decision(&self, decision: &v1::PruneDecision) {
        self.data(json::prune_decision(decision));
    }

    /// What became of generations, as a table.
    pub(super) fn decisions(&self, decisions: &[v1::PruneDecision]) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["VOLUME", "GENERATION", "CREATED", "ACTION", "REASON"]);
        for decision in decisions {
            table.add_row([
                decision.volume_name.clone(),
                decision.number.to_string(),
                format_local(decision.created_at_ms),
                if decision.remove { "remove" } else { "keep" }.to_owned(),
                decision.reasons.join(", "),
            ]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self.data(table.trim_fmt());
    }

    pub(super) fn pruned(&self, summary: &v1::PruneSummary, dry_run: bool) {
        let v1::PruneSummary { volumes, kept, removed, .. } = *summary;
        if self.json {
            return self.data(json::prune_summary(summary, dry_run));
        }
        let verb = if dry_run { "would be deleted" } else { "are deleted" };
        self.say(format_args!("{removed} generations of {volumes} volumes {verb}, {kept} kept"));
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

    pub(super) fn damaged_record(&self, record: &v1::VerifyRecord) {
        let (kind, id) = (kind_name(record.kind()), hex(&record.id));
        let reason = &record.reason;
        if self.json {
            return self.data(json!({
                "message_type": "damaged_record",
                "kind": kind,
                "id": id,
                "pack": record.pack,
                "offset_bytes": record.pack.map(|_| record.offset_bytes),
                "reason": reason,
            }));
        }
        match record.pack {
            Some(pack) => {
                self.data(format_args!("{kind} {id} in pack {pack:08x} at {}: {reason}", record.offset_bytes))
            }
            None => self.data(format_args!("{kind} {id}: {reason}")),
        }
    }

    pub(super) fn damaged_pack(&self, pack: &v1::VerifyPack) {
        let v1::VerifyPack { pack, reason } = pack;
        if self.json {
            return self.data(json!({"message_type": "damaged_pack", "pack": pack, "reason": reason}));
        }
        self.data(format_args!("pack {pack:08x}: {reason}"));
    }

    pub(super) fn verified(&self, summary: &v1::VerifySummary) {
        if self.json {
            return self.data(json::verify_summary(summary));
        }
        if std::io::stderr().is_terminal() {
            let _ = write!(anstream::stderr().lock(), "\r\x1b[K");
        }
        let v1::VerifySummary { generations, chunks_checked: chunks, map_nodes_checked: nodes, .. } =
            *summary;
        self.data(format_args!(
            "{generations} generations: {chunks} chunks ({}) and {nodes} map nodes read back, {} records and {} packs \
             left out",
            size(summary.bytes_checked),
            summary.chunks_skipped,
            summary.packs_skipped,
        ));
        self.data(format_args!(
            "damaged: {} records, {} packs outside of records; generations that need them: {}",
            summary.damaged_records, summary.damaged_packs, summary.damaged_generations
        ));
    }
}

fn kind_name(kind: v1::RecordKind) -> &'static str {
    match kind {
        v1::RecordKind::Chunk => "chunk",
        v1::RecordKind::MapNode => "map node",
        v1::RecordKind::Manifest => "manifest",
        v1::RecordKind::Tombstone => "tombstone",
        v1::RecordKind::Unspecified => "record",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A size for people, in powers of 1024.
pub(super) fn size(bytes: u64) -> String {
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
