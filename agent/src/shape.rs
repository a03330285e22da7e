//! What a pool looks like beside the content of its volumes: enough to make it anew.
//!
//! Each backup stores it as a generation of HOST/POOL/.shape, where it has changed since the last one: a JSON document, padded
//! with blanks to whole sectors. It holds no mappings: those are worth nothing to another data device.

mod fetch;
mod metadata;
mod store;

use serde::{Deserialize, Serialize};
use thinbak_engine::{Kind, Volume, format::SECTOR_BYTES};
use thinbak_proto::{
    Failed, FailureKind,
    v1::{PoolDiscards, PoolInfo, PoolSettings},
};
use uuid::Uuid;

pub(crate) use self::{fetch::fetch, metadata::Dumps, store::store};
use crate::pools::PoolParts;

/// The version that is written, and the newest that is understood.
const FORMAT: u32 = 1;
/// A document is no larger: 64 MiB are some 200,000 volumes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// A pool of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shape {
    format: u32,
    /// The first part of its volumes' names in the repository.
    pub(crate) host: String,
    pub(crate) pool: PoolShape,
    /// Volumes and snapshots, by device id.
    pub(crate) volumes: Vec<VolumeShape>,
    /// The volume group as `vgcfgbackup` wrote it; empty where LVM is not involved.
    pub(crate) volume_group: String,
}

/// The pool itself. Sizes in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PoolShape {
    pub(crate) name: String,
    /// `dir`, `dm` or `lvm`.
    pub(crate) kind: String,
    pub(crate) place: String,
    pub(crate) uuid: Uuid,
    pub(crate) block_bytes: u64,
    pub(crate) data_bytes: u64,
    pub(crate) metadata_bytes: u64,
    pub(crate) zero: bool,
    /// As in the table of the kernel's target.
    pub(crate) discards: Discards,
    pub(crate) error_when_full: bool,
    pub(crate) low_water_bytes: u64,
    /// 0: without limit.
    pub(crate) no_space_timeout_seconds: u64,
}

/// What becomes of discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Discards {
    Passdown,
    Nopassdown,
    Ignore,
}

/// A volume or snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeShape {
    /// VOLUME or VOLUME@SNAP.
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) device: u64,
    pub(crate) size_bytes: u64,
    pub(crate) created_at_ms: u64,
    /// Whether it is a snapshot under the name of its volume.
    pub(crate) is_snapshot: bool,
    pub(crate) read_only: bool,
    /// The volume of the pool that it was made a snapshot of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_of: Option<String>,
    /// What is read where it maps nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) external_origin: Option<String>,
}

impl Shape {
    /// Of a pool as it is.
    pub(crate) fn of(host: &str, uuid: Uuid, info: &PoolInfo, parts: PoolParts) -> Self {
        let mut volumes: Vec<_> =
            parts.parts.into_iter().map(|(volume, of)| volume_shape(&volume, of)).collect();
        volumes.sort_by_key(|volume| volume.device);
        let volume_group = parts.volume_group;
        Self { format: FORMAT, host: host.to_owned(), pool: pool_shape(uuid, info), volumes, volume_group }
    }

    /// As it is stored.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Failed> {
        let failed = |error: serde_json::Error| {
            Failed::new(FailureKind::Failed, format!("write the shape of pool {}: {error}", self.pool.name))
        };
        let mut bytes = serde_json::to_vec_pretty(self).map_err(failed)?;
        bytes.push(b'\n');
        let len = bytes.len().next_multiple_of(usize::try_from(SECTOR_BYTES).unwrap_or(512));
        bytes.resize(len, b' ');
        if bytes.len() as u64 > MAX_BYTES {
            let message = format!("the shape of pool {} takes more than {MAX_BYTES} bytes", self.pool.name);
            return Err(Failed::new(FailureKind::Failed, message));
        }
        Ok(bytes)
    }

    /// What was stored.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Failed> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let failed = |what: String| Failed::new(FailureKind::Failed, format!("the shape of the pool {what}"));
        let version: Version =
            serde_json::from_slice(bytes).map_err(|error| failed(format!("cannot be read: {error}")))?;
        if version.format > FORMAT {
            return Err(failed(format!("is of version {}; this thinbak knows {FORMAT}", version.format))
                .with_hint("use a newer thinbak"));
        }
        serde_json::from_slice(bytes).map_err(|error| failed(format!("cannot be read: {error}")))
    }

    /// What two documents of the same shape agree in. LVM counts its changes, and thinbak's own snapshots come and go: that
    /// alone makes no other shape.
    fn identity(&self) -> Result<Uuid, Failed> {
        let volume_group = without_changes(&self.volume_group);
        let bytes = Self { volume_group, ..self.clone() }.encode()?;
        Ok(derived("thinbak shape", &[&bytes]))
    }
}

/// A uuid made of a digest.
fn derived(context: &str, parts: &[&[u8]]) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn volume_shape(volume: &Volume, snapshot_of: Option<String>) -> VolumeShape {
    VolumeShape {
        name: volume.name.clone(),
        uuid: volume.uuid,
        device: volume.device.get().into(),
        size_bytes: volume.size_bytes,
        created_at_ms: volume.created_at_ms,
        is_snapshot: matches!(volume.kind, Kind::Snapshot { .. }),
        read_only: volume.read_only,
        snapshot_of,
        external_origin: volume.origin.as_ref().map(|origin| origin.path.display().to_string()),
    }
}

fn pool_shape(uuid: Uuid, info: &PoolInfo) -> PoolShape {
    let settings = info.settings.unwrap_or_default();
    PoolShape {
        name: info.name.clone(),
        kind: info.kind.clone(),
        place: info.place.clone(),
        uuid,
        block_bytes: info.block_bytes,
        data_bytes: info.data_total_blocks.saturating_mul(info.block_bytes),
        metadata_bytes: info.metadata_total_blocks.saturating_mul(thinbak_engine::format::BLOCK_BYTES as u64),
        zero: settings.zero(),
        discards: match settings.discards() {
            PoolDiscards::Passdown => Discards::Passdown,
            PoolDiscards::Nopassdown => Discards::Nopassdown,
            PoolDiscards::Ignore => Discards::Ignore,
        },
        error_when_full: settings.error_when_full(),
        low_water_bytes: settings.low_water_bytes(),
        no_space_timeout_seconds: settings.no_space_timeout_seconds(),
    }
}

impl PoolShape {
    /// As a pool is made with.
    pub(crate) fn settings(&self) -> PoolSettings {
        let discards = match self.discards {
            Discards::Passdown => PoolDiscards::Passdown,
            Discards::Nopassdown => PoolDiscards::Nopassdown,
            Discards::Ignore => PoolDiscards::Ignore,
        };
        PoolSettings {
            zero: Some(self.zero),
            discards: Some(discards.into()),
            error_when_full: Some(self.error_when_full),
            low_water_bytes: Some(self.low_water_bytes),
            no_space_timeout_seconds: Some(self.no_space_timeout_seconds),
            read_only: None,
        }
    }
}

/// The text of a volume group without its counters, its times, and the volumes that thinbak keeps for itself.
fn without_changes(text: &str) -> String {
    const COUNTERS: [&str; 6] =
        ["seqno", "creation_time", "transaction_id", "description", "creation_host", "contents"];
    let mut kept = String::new();
    let mut own: u32 = 0;
    for line in text.lines() {
        let line = line.trim();
        if own > 0 || (line.starts_with("thinbak_") && line.ends_with('{')) {
            own = own.saturating_add(u32::from(line.ends_with('{')));
            own = own.saturating_sub(u32::from(line.starts_with('}')));
            continue;
        }
        let word = line.split([' ', '=']).next().unwrap_or_default();
        if line.starts_with('#') || COUNTERS.contains(&word) {
            continue;
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(volume_group: &str) -> Shape {
        let info = PoolInfo { name: "vg/tp".to_owned(), block_bytes: 65536, ..PoolInfo::default() };
        let parts = PoolParts { parts: Vec::new(), volume_group: volume_group.to_owned() };
        Shape::of("host", Uuid::from_u128(7), &info, parts)
    }

    const GROUP: &str = "# Generated by LVM2\ncontents = \"Text Format Volume Group\"\nvg {\n\tid = \"a\"\n\tseqno = 7\n\
        \tlogical_volumes {\n\t\ttp {\n\t\t\tsegment1 {\n\t\t\t\ttransaction_id = 3\n\t\t\t}\n\t\t}\n\
        \t\tthinbak_0123 {\n\t\t\tid = \"x\"\n\t\t\tsegment1 {\n\t\t\t\tdevice_id = 5\n\t\t\t}\n\t\t}\n\
        \t\tweb {\n\t\t\tsegment1 {\n\t\t\t\tdevice_id = 1\n\t\t\t}\n\t\t}\n\t}\n}\n";

    #[test]
    fn what_lvm_counts_and_what_is_thinbaks_own_makes_no_other_shape() {
        let first = shape(GROUP);
        let later =
            GROUP.replace("seqno = 7", "seqno = 9").replace("transaction_id = 3", "transaction_id = 5");
        let later = later.replace("thinbak_0123", "thinbak_4567").replace("device_id = 5", "device_id = 8");
        assert_eq!(first.identity().unwrap(), shape(&later).identity().unwrap());
        let without = GROUP.split_once("\t\tthinbak_").unwrap().0.to_owned()
            + GROUP.split_once("\t\tweb").map(|_| "").unwrap();
        assert_ne!(first.identity().unwrap(), shape(&without).identity().unwrap());
        for changed in [GROUP.replace("web {", "www {"), GROUP.replace("device_id = 1", "device_id = 2")] {
            assert_ne!(first.identity().unwrap(), shape(&changed).identity().unwrap());
        }
    }

    #[test]
    fn a_document_is_whole_sectors_and_reads_as_what_was_written() {
        let shape = shape(GROUP);
        let bytes = shape.encode().unwrap();
        assert!(bytes.len().is_multiple_of(512));
        assert_eq!(Shape::decode(&bytes).unwrap(), shape);
    }

    #[test]
    fn a_newer_document_and_a_torn_one_are_refused() {
        let mut shape = shape("");
        let torn = shape.encode().unwrap();
        assert!(Shape::decode(torn.get(..100).unwrap()).is_err());
        shape.format = 2;
        let failed = Shape::decode(&shape.encode().unwrap()).unwrap_err();
        assert!(failed.message.contains("version 2") && failed.hint.is_some(), "{failed:?}");
    }
}
