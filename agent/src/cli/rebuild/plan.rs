//! What a rebuild restores, and what it cannot.

use thinbak_proto::{
    Failed, FailureKind,
    v1::{Generation, ListGenerationsRequest, VolumeName, generation_selector::Which},
};

use super::super::{Context, args::PoolRebuild, shape::selector, stop::Stop};
use crate::{
    output::{Column, human},
    repository_client::RepositoryConnection,
    shape::{self, PoolShape, Shape, VolumeShape},
};

/// A pool as it was, and what there is of it.
pub(super) struct Plan {
    pub(super) shape: Shape,
    /// When that was stored, by the server's clock.
    stored_ms: u64,
    /// Its volumes.
    pub(super) parts: Vec<Part>,
}

/// A volume.
pub(super) struct Part {
    pub(super) volume: VolumeShape,
    /// HOST/POOL/VOLUME.
    pub(super) server_name: String,
    /// Those to restore, ascending; none: the repository has none.
    pub(super) generations: Vec<Generation>,
    /// What is not as it was.
    notes: Vec<String>,
}

impl Part {
    /// How much the newest maps.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.generations.last().map_or(0, |newest| newest.mapped_bytes)
    }
}

impl Plan {
    pub(super) async fn make(
        connection: &RepositoryConnection,
        rebuild: &PoolRebuild,
    ) -> Result<Self, Failed> {
        let from = &rebuild.from;
        let host = super::super::host_name();
        let (shape, stored) = shape::fetch(connection, &from.volume, host, selector(from)).await?;
        let not_after = match from.which {
            Some(Which::AtOrBeforeMs(time)) => time,
            _ => u64::MAX,
        };
        let mut parts = Vec::new();
        for volume in shape.volumes.iter().filter(|volume| !volume.is_snapshot) {
            parts.push(part(connection, &shape, volume, rebuild.generations, not_after).await?);
        }
        if parts.iter().all(|part| part.generations.is_empty()) {
            let message = format!("the repository has no generation of a volume of pool {}", from.volume);
            return Err(Failed::new(FailureKind::NotFound, message));
        }
        Ok(Self { shape, stored_ms: stored.created_at_ms, parts })
    }

    /// The volume that a part begins as a snapshot of: the one that it was a snapshot of, where both have the same size now.
    pub(super) fn relative(&self, part: &Part) -> Option<&str> {
        let of = part.volume.snapshot_of.as_ref()?;
        let of = self.parts.iter().find(|other| other.volume.name == *of)?;
        let size = |part: &Part| part.generations.last().map(|newest| newest.size_bytes);
        let is_alike = size(of).is_some() && size(of) == size(part) && part.generations.len() == 1;
        (is_alike && of.volume.name != part.volume.name).then_some(of.volume.name.as_str())
    }

    /// Its parts, each after the one that it shares blocks with.
    pub(super) fn in_order(&self) -> Vec<&Part> {
        let mut ordered: Vec<&Part> = Vec::with_capacity(self.parts.len());
        let mut left: Vec<&Part> = self.parts.iter().collect();
        while !left.is_empty() {
            let waits = |part: &Part| {
                let of = self.relative(part);
                of.is_some_and(|of| left.iter().any(|other| other.volume.name == of))
            };
            let (later, mut now): (Vec<_>, Vec<_>) = left.iter().copied().partition(|part| waits(part));
            if now.is_empty() {
                // A document that is in a circle.
                ordered.extend(later);
                break;
            }
            ordered.append(&mut now);
            left = later;
        }
        ordered
    }

    pub(super) fn show(&self, context: &Context) -> Result<(), Stop> {
        if context.output.is_json() {
            let volumes = self.parts.iter().map(|part| {
                serde_json::json!({
                    "volume": part.volume.name,
                    "size_bytes": part.volume.size_bytes,
                    "mapped_bytes": part.mapped_bytes(),
                    "generations": part.generations.iter().map(|one| one.number).collect::<Vec<_>>(),
                    "notes": part.notes,
                })
            });
            let document = serde_json::json!({
                "message_type": "plan",
                "pool": self.shape.pool,
                "stored_at_ms": self.stored_ms,
                "volumes": volumes.collect::<Vec<_>>(),
                "snapshots_not_restored": self.snapshots(),
            });
            return Ok(context.output.json_line(&document)?);
        }
        let columns = [
            Column::Left("VOLUME"),
            Column::Right("SIZE"),
            Column::Right("MAPPED"),
            Column::Left("GENERATIONS"),
            Column::Left("NOTES"),
        ];
        let rows = self.parts.iter().map(|part| {
            let numbers: Vec<_> = part.generations.iter().map(|one| one.number.to_string()).collect();
            vec![
                part.volume.name.clone(),
                human::bytes(part.volume.size_bytes),
                human::bytes(part.mapped_bytes()),
                if numbers.is_empty() { "-".to_owned() } else { numbers.join(",") },
                part.notes.join("; "),
            ]
        });
        context.output.table(&columns, rows.collect())?;
        let snapshots = self.snapshots();
        if !snapshots.is_empty() {
            let names = snapshots.join(", ");
            context.output.warning(&format!("snapshots of the pool are not in the repository: {names}"));
        }
        Ok(())
    }

    /// Those of the former pool: only volumes are backed up.
    fn snapshots(&self) -> Vec<&str> {
        let snapshots = self.shape.volumes.iter().filter(|volume| volume.is_snapshot);
        snapshots.map(|volume| volume.name.as_str()).collect()
    }
}

async fn part(
    connection: &RepositoryConnection,
    shape: &Shape,
    volume: &VolumeShape,
    newest: u32,
    not_after: u64,
) -> Result<Part, Failed> {
    let server_name = format!("{}/{}/{}", shape.host, shape.pool.name, volume.name);
    let found = generations(connection, &server_name, newest, not_after).await?;
    let is_same = found.last().is_none_or(|last| last.volume_uuid == volume.uuid.to_string());
    let mut notes = Vec::new();
    let generations = match (found.is_empty(), is_same) {
        (false, true) => found,
        (true, _) => {
            notes.push("was never backed up".to_owned());
            Vec::new()
        }
        (false, false) => {
            notes.push("the repository has another volume of this name".to_owned());
            Vec::new()
        }
    };
    if let Some(last) = generations.last().filter(|last| last.size_bytes != volume.size_bytes) {
        notes.push(format!("had {} when it was backed up", human::bytes(last.size_bytes)));
    }
    if volume.read_only {
        notes.push("was read-only".to_owned());
    }
    if let Some(origin) = &volume.external_origin {
        notes.push(format!("was over {origin}; that is a part of its content now"));
    }
    if let Some(of) = &volume.snapshot_of {
        notes.push(format!("snapshot of {of}"));
    }
    Ok(Part { volume: volume.clone(), server_name, generations, notes })
}

/// The newest generations of a volume up to a moment, ascending.
async fn generations(
    connection: &RepositoryConnection,
    name: &str,
    newest: u32,
    not_after: u64,
) -> Result<Vec<Generation>, Failed> {
    let mut client = connection.repository();
    let mut request = ListGenerationsRequest {
        volume: Some(VolumeName { name: name.to_owned(), host: String::new() }),
        // The server counts from its newest.
        newest: if not_after == u64::MAX { newest } else { 0 },
        ..ListGenerationsRequest::default()
    };
    let mut found = Vec::new();
    loop {
        let page = match client.list_generations(request.clone()).await.map_err(Failed::from) {
            Ok(page) => page.into_inner(),
            Err(failed) if failed.kind == FailureKind::NotFound => break,
            Err(failed) => return Err(failed),
        };
        found.extend(page.generations.into_iter().filter(|one| one.created_at_ms <= not_after));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    found.sort_by_key(|generation| generation.number);
    let beyond = found.len().saturating_sub(usize::try_from(newest).unwrap_or(usize::MAX));
    if newest > 0 {
        found.drain(..beyond);
    }
    Ok(found)
}

/// How a pool of the kernel is made that can hold what this one held.
pub(super) fn command(was: &PoolShape, to: &str) -> String {
    let kib = was.block_bytes / 1024;
    match to.strip_prefix("lvm:").and_then(|place| place.split_once('/')) {
        Some((group, pool)) => {
            format!("lvcreate --type thin-pool -L {}b --chunksize {kib}k -n {pool} {group}", was.data_bytes)
        }
        None => format!(
            "dmsetup create, with a thin-pool table of {} sectors and blocks of {} sectors",
            was.data_bytes / 512,
            was.block_bytes / 512
        ),
    }
}
