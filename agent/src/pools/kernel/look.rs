//! Finding pools among the devices of the host, and what can be told of them without opening them.

use std::{fs, path::Path, sync::Arc, time::Duration};

use devicemapper::Device;
use thinbak_engine::{
    PoolStatus, PoolTable, Role,
    format::{BLOCK_BYTES, MAX_METADATA_BLOCKS},
};
use thinbak_proto::{Failed, FailureKind, v1::PoolInfo};

use super::{
    book::{Book, Contents},
    book_path,
    mapper::{Info, Mapper},
    open_device,
    reread::Reread,
    snapshots::time,
    text::{PoolLine, parse_status},
};
use crate::pools::{info, settings};

/// An active thin-pool target.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) number: Device,
    pub(super) uuid: String,
    pub(super) sectors: u64,
    pub(super) line: PoolLine,
    pub(super) event_nr: u32,
}

impl Found {
    /// Whether both are one pool; it may have grown.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let key = |found: &Self| (found.number, found.uuid.clone(), found.line.metadata, found.line.data);
        key(self) == key(other) && self.line.block_size == other.line.block_size
    }
}

/// The pool of this name, which must be active and not LVM's.
pub(super) fn find(mapper: &Mapper, name: &str) -> Result<Found, Failed> {
    let missing = |what: String| Failed::new(FailureKind::NotFound, format!("pool dm:{name}: {what}"));
    let Some(info) = mapper.info(name)? else {
        let failed = missing(format!("there is no device-mapper device {name}"));
        return Err(failed.with_hint("thinbak pool list shows the thin pools of this host"));
    };
    if info.uuid.starts_with("LVM-") {
        let message = format!("pool dm:{name}: it is LVM's, which would not know of what is made in it");
        return Err(Failed::new(FailureKind::Refused, message)
            .with_hint("a thin pool of LVM is named as lvm:VG/POOL; dm: is for pools made with dmsetup"));
    }
    if info.suspended {
        return Err(Failed::new(FailureKind::Busy, format!("pool dm:{name}: it is suspended"))
            .with_hint(format!("if nobody works on it: dmsetup resume {name}")));
    }
    found(mapper, name, &info)?.ok_or_else(|| missing("the device is no thin pool, or not active".to_owned()))
}

/// What a device is as a pool; `None` if it is none.
pub(super) fn found(mapper: &Mapper, name: &str, info: &Info) -> Result<Option<Found>, Failed> {
    let targets = mapper.table(name)?;
    let [(_, sectors, kind, line)] = targets.as_slice() else { return Ok(None) };
    if kind != "thin-pool" {
        return Ok(None);
    }
    let line = PoolLine::parse(line).ok_or_else(|| {
        Failed::new(FailureKind::Failed, format!("pool dm:{name}: its table cannot be understood: {line}"))
    })?;
    let (number, uuid) = (info.number, info.uuid.clone());
    Ok(Some(Found { number, uuid, sectors: *sectors, line, event_nr: info.event_nr }))
}

/// The status of a pool.
pub(super) fn status(mapper: &Mapper, name: &str) -> Result<PoolStatus, Failed> {
    let targets = mapper.status(name)?;
    let line = targets.first().map(|(.., line)| line.as_str()).unwrap_or_default();
    parse_status(line).ok_or_else(|| {
        Failed::new(FailureKind::Failed, format!("pool dm:{name}: its status cannot be understood: {line}"))
    })
}

/// What is told of a pool. It is not opened: this works whoever has it, and whatever its state.
pub(in crate::pools) fn look(name: &str, state_dir: &Path) -> Result<PoolInfo, Failed> {
    let mapper = Mapper::open()?;
    let found = find(&mapper, name)?;
    let book = Book::read(&book_path(state_dir, &found, name))?;
    let metadata = open_device(found.line.metadata, "metadata", name);
    let clock = metadata.and_then(|metadata| time(&Reread::new(Arc::new(metadata))));
    let info = info(name, &found, &status(&mapper, name)?, book.as_ref());
    // Whatever its state: of a pool whose metadata cannot be read it is not known.
    Ok(PoolInfo { snapshot_clock: clock.map_or(0, u64::from), ..info })
}

/// The thin pools of this host but LVM's; none where there is no device-mapper, or not for us.
pub(in crate::pools) fn pools_of_host() -> Vec<String> {
    let Ok(mapper) = Mapper::open() else { return Vec::new() };
    let mut names: Vec<String> =
        mapper.devices().unwrap_or_default().into_iter().map(|(name, _)| name).collect();
    names.retain(|name| find(&mapper, name).is_ok());
    names.sort();
    names
}

pub(super) fn info(name: &str, found: &Found, status: &PoolStatus, book: Option<&Contents>) -> PoolInfo {
    let volumes = book.map(|book| book.devices.as_slice()).unwrap_or_default();
    let count = |wanted: fn(&Role) -> bool| volumes.iter().filter(|entry| wanted(&entry.role)).count() as u64;
    let table = PoolTable { no_space_timeout: no_space_timeout(), ..found.line.table };
    let block_size = found.line.block_size;
    PoolInfo {
        name: name.to_owned(),
        kind: "dm".to_owned(),
        place: name.to_owned(),
        uuid: book.map(|book| book.pool.to_string()).unwrap_or_default(),
        volumes: count(|role| matches!(role, Role::Volume { .. })),
        snapshots: count(|role| matches!(role, Role::Snapshot { .. } | Role::Base { .. })),
        settings: Some(settings::to_wire(table, block_size)),
        events: found.event_nr.into(),
        table_line: table_line(found),
        warnings: warnings(status),
        ..info::of_status(status, found.sectors, block_size)
    }
}

fn table_line(found: &Found) -> String {
    let PoolLine { metadata, data, block_size, table } = &found.line;
    format!("0 {} thin-pool {metadata} {data} {} {table}", found.sectors, block_size.sectors())
}

/// How long writes to a full pool wait: the same for all pools.
fn no_space_timeout() -> Duration {
    let path = "/sys/module/dm_thin_pool/parameters/no_space_timeout";
    let seconds = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

fn warnings(status: &PoolStatus) -> Vec<String> {
    let mut warnings = Vec::new();
    if status.metadata_total >= MAX_METADATA_BLOCKS {
        let bytes = MAX_METADATA_BLOCKS * BLOCK_BYTES as u64;
        warnings.push(format!("the metadata device cannot grow: no more than {bytes} bytes can be used"));
    }
    warnings.extend(info::warnings_of(status));
    warnings
}
