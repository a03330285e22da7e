//! Thin pools of LVM: `lvm:VG/POOL`.
//!
//! Metadata, metadata snapshots and the content of snapshots are as those of any pool of the kernel. Volumes are made, named,
//! activated and removed by LVM's commands only ([`command`]): its own metadata say what there is, the registry says what those
//! volumes of ours are for that LVM shows as `thinbak_...` with the tag `thinbak` ([`sync`]). The transaction id is LVM's, and
//! nothing is suspended or frozen around a command: LVM suspends by itself. A device that LVM says it made is not relied on
//! before it was seen in the pool's metadata, as young as it must be: LVM takes one that has the id already for its own.
//!
//! The pool is open only while somebody works with it: its devices, held open, keep the volume group from being deactivated.

mod care;
mod command;
mod devices;
mod driver;
mod first;
mod name;
mod recover;
mod replace;
mod report;
mod sync;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use thinbak_engine::DeviceId;
use thinbak_proto::{Failed, FailureKind, v1::PoolInfo};
use uuid::Uuid;

use self::{
    command::CommandError,
    report::{Group, Logical},
};
pub(in crate::pools) use self::{first::prepare, name::LvmPlace};
use super::{
    Inner, KernelPool,
    book::Book,
    lease::Turn,
    lock::HostLock,
    look::{self, Found},
    mapper::Mapper,
    open_device,
    reread::Reread,
};
use crate::pools::running::now_ms;

/// How long others are waited for that have the pool suspended, as every command of LVM has, or are just closing it.
const PATIENCE: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// A thin pool of LVM, open for this process alone.
pub(in crate::pools) struct LvmPool {
    place: LvmPlace,
    /// LVM's uuids of the volume group and the pool.
    group_uuid: String,
    pool_uuid: String,
    kernel: KernelPool,
    /// Volumes of ours as LVM names them, by identity, as they were last seen.
    own: Mutex<HashMap<Uuid, Own>>,
    /// Tags of volumes, as they were last seen.
    tags: Mutex<HashMap<DeviceId, Vec<String>>>,
    /// Held from a look at LVM's metadata until the registry is brought to what it said.
    turn: Mutex<()>,
}

/// A volume of ours.
#[derive(Debug, Clone)]
struct Own {
    name: String,
    uuid: String,
}

impl LvmPool {
    /// Finds the pool, takes it for this process, and clears away what a dead process left.
    pub(in crate::pools) fn open(place: LvmPlace, state_dir: &Path) -> Result<Self, Failed> {
        let mapper = Arc::new(Mapper::open()?);
        let group = look_at(&place)?;
        let pool_uuid = pool_of(&group, &place)?.uuid.clone();
        let (_, found) = find_target(&mapper, &place, &group.uuid, &pool_uuid)?;
        let name = place.to_string();
        let lock = lock(&found, &name)?;
        let metadata = Arc::new(open_device(found.line.metadata, "metadata", &name)?);
        let data = open_device(found.line.data, "data", &name)?;
        let mut book = Book::open(book_path(state_dir, &group.uuid, &pool_uuid))?;
        book.change(|book| {
            book.pool = report::identity(&group.uuid, &pool_uuid);
            Ok(())
        })?;
        let inner = Inner {
            spec: format!("lvm:{name}"),
            name,
            is_lvms: true,
            found,
            mapper,
            metadata: Arc::new(Reread::new(metadata)),
            data,
            book: Mutex::new(book),
            switching: Mutex::default(),
            turn: Turn::default(),
            roots: Mutex::default(),
            _lock: lock,
        };
        let kernel = KernelPool { inner: Arc::new(inner) };
        let (own, tags, turn) = (Mutex::default(), Mutex::default(), Mutex::default());
        let pool = Self { place, group_uuid: group.uuid, pool_uuid, kernel, own, tags, turn };
        pool.recover()?;
        Ok(pool)
    }

    /// Whether it is still the pool that was opened.
    pub(in crate::pools) fn is_current(&self) -> bool {
        let found = find_target(&self.kernel.inner.mapper, &self.place, &self.group_uuid, &self.pool_uuid);
        found.is_ok_and(|(_, found)| self.is_same(&found))
    }

    /// The first thin volume of a pool gives its device another name and uuid.
    fn is_same(&self, found: &Found) -> bool {
        let key = |found: &Found| (found.number, found.line.metadata, found.line.data, found.line.block_size);
        key(found) == key(&self.kernel.inner.found)
    }

    /// What LVM says now, and the registry brought to it.
    fn refresh(&self) -> Result<Group, Failed> {
        let _turn = self.turn.lock();
        let group = look_at(&self.place)?;
        if group.uuid != self.group_uuid || pool_of(&group, &self.place)?.uuid != self.pool_uuid {
            let message = format!("pool {}: it was removed and made anew", self.place);
            return Err(Failed::new(FailureKind::Refused, message).with_hint("run it again"));
        }
        *self.own.lock() = sync::thin_volumes(&group, &self.pool_uuid)
            .filter(|logical| logical.is_own())
            .map(|logical| (logical.identity, Own { name: logical.name.clone(), uuid: logical.uuid.clone() }))
            .collect();
        *self.tags.lock() = sync::thin_volumes(&group, &self.pool_uuid)
            .filter_map(|logical| Some((logical.device?, logical.tags.clone())))
            .collect();
        let owners = || -> HashMap<DeviceId, Uuid> {
            let book = self.kernel.inner.book.lock();
            book.contents().devices.iter().map(|entry| (entry.device, entry.uuid)).collect()
        };
        let before = owners();
        self.kernel.inner.book.lock().change(|book| {
            sync::sync(book, &group, &self.pool_uuid, now_ms());
            Ok(())
        })?;
        // LVM gives ids again: what is known of one is of the device that had it.
        let after = owners();
        let is_known =
            |device: &DeviceId| before.get(device).is_some_and(|owner| after.get(device) == Some(owner));
        self.kernel.inner.roots.lock().retain(|device, _| is_known(device));
        Ok(group)
    }
}

/// What is told of a pool without opening it.
pub(in crate::pools) fn look(place: &LvmPlace, state_dir: &Path) -> Result<PoolInfo, Failed> {
    let mapper = Mapper::open()?;
    let group = look_at(place)?;
    let pool_uuid = &pool_of(&group, place)?.uuid;
    let (target, found) = find_target(&mapper, place, &group.uuid, pool_uuid)?;
    let book = Book::read(&book_path(state_dir, &group.uuid, pool_uuid))?;
    let name = place.to_string();
    let info = look::info(&name, &found, &look::status(&mapper, &target)?, book.as_ref());
    let (own, volumes): (Vec<_>, Vec<_>) =
        sync::thin_volumes(&group, pool_uuid).partition(|logical| logical.is_own());
    Ok(PoolInfo {
        kind: "lvm".to_owned(),
        uuid: report::identity(&group.uuid, pool_uuid).to_string(),
        volumes: volumes.len() as u64,
        snapshots: own.len() as u64,
        ..info
    })
}

/// The thin pools of LVM on this host; none where none is active, or where they are not for us.
pub(in crate::pools) fn pools_of_host() -> Vec<LvmPlace> {
    pools_where(|_, _| true)
}

/// Those of them that thinbak has worked with.
pub(in crate::pools) fn pools_with_books(state_dir: &Path) -> Vec<LvmPlace> {
    if !state_dir.join("lvm").is_dir() {
        return Vec::new();
    }
    pools_where(|group, pool| book_path(state_dir, &group.uuid, &pool.uuid).exists())
}

fn pools_where(is_wanted: impl Fn(&Group, &Logical) -> bool) -> Vec<LvmPlace> {
    let Ok(mapper) = Mapper::open() else { return Vec::new() };
    let is_pool = |name: &str| {
        let info = mapper.info(name).ok().flatten().filter(|info| info.uuid.starts_with("LVM-"));
        info.is_some_and(|info| look::found(&mapper, name, &info).ok().flatten().is_some())
    };
    if !mapper.devices().unwrap_or_default().iter().any(|(name, _)| is_pool(name)) {
        return Vec::new();
    }
    let groups = command::report(None).map_err(Failed::from).and_then(|said| report::parse(&said));
    let groups = groups.unwrap_or_else(|error| {
        tracing::warn!(%error, "the pools of LVM cannot be listed");
        Vec::new()
    });
    let pools = groups.iter().flat_map(|group| {
        let pools = group.volumes.iter().filter(|logical| logical.is_thin_pool && is_wanted(group, logical));
        pools.map(|pool| LvmPlace { group: group.name.clone(), pool: pool.name.clone() })
    });
    pools.collect()
}

/// The volumes of the group of a place.
fn look_at(place: &LvmPlace) -> Result<Group, Failed> {
    let group = &place.group;
    let missing = |what: String| {
        Failed::new(FailureKind::NotFound, format!("pool lvm:{place}: {what}"))
            .with_hint("thinbak pool list shows the thin pools of this host")
    };
    let said = match command::report(Some(group)) {
        Ok(said) => said,
        Err(CommandError::Said { .. }) if command::has_group(group).is_ok_and(|has| !has) => {
            return Err(missing(format!("there is no volume group {group}")));
        }
        Err(error) => return Err(error.into()),
    };
    let found = report::parse(&said)?.into_iter().find(|found| found.name == *group);
    found.ok_or_else(|| missing(format!("there is no volume {} in group {group}", place.pool)))
}

fn pool_of<'a>(group: &'a Group, place: &LvmPlace) -> Result<&'a Logical, Failed> {
    let missing = |what: String| Failed::new(FailureKind::NotFound, format!("pool lvm:{place}: {what}"));
    let found = group.volumes.iter().find(|logical| logical.name == place.pool);
    match found {
        Some(found) if found.is_thin_pool => Ok(found),
        Some(found) if !found.pool.is_empty() => {
            Err(missing(format!("{place} is a thin volume of pool {}, no pool", found.pool))
                .with_hint(format!("the volume is named as lvm:{}/{}", place.path(&found.pool), place.pool)))
        }
        Some(_) => Err(missing(format!("{place} is no thin pool"))
            .with_hint("thinbak backs up thin volumes: lvs -S lv_layout=pool shows the pools")),
        None => Err(missing(format!("there is no volume {} in group {}", place.pool, place.group))
            .with_hint("thinbak pool list shows the thin pools of this host")),
    }
}

/// The device that has the pool's target, and its name: `VG-POOL-tpool`, or `VG-POOL` before the first thin volume.
fn find_target(
    mapper: &Mapper,
    place: &LvmPlace,
    group_uuid: &str,
    pool_uuid: &str,
) -> Result<(String, Found), Failed> {
    let wanted = format!("LVM-{}{}", group_uuid.replace('-', ""), pool_uuid.replace('-', ""));
    let plain = place.device(&place.pool);
    let until = Instant::now() + PATIENCE;
    loop {
        let mut suspended = false;
        for name in [format!("{plain}-tpool"), plain.clone()] {
            let Some(info) = mapper.info(&name)?.filter(|info| info.uuid.starts_with(&wanted)) else {
                continue;
            };
            let Some(found) = look::found(mapper, &name, &info)? else { continue };
            if !info.suspended {
                return Ok((name, found));
            }
            suspended = true;
        }
        if !suspended {
            let message = format!("pool lvm:{place}: it is not active");
            return Err(Failed::new(FailureKind::Failed, message)
                .with_hint(format!("activate it with: lvchange -ay {place}")));
        }
        if Instant::now() >= until {
            return Err(Failed::new(FailureKind::Busy, format!("pool lvm:{place}: it is suspended"))
                .with_hint(format!("if nobody works on it: dmsetup resume {plain}-tpool")));
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Somebody of this process may be just closing it.
fn lock(found: &Found, name: &str) -> Result<HostLock, Failed> {
    let until = Instant::now() + PATIENCE;
    loop {
        match HostLock::take(found.line.metadata, name) {
            Err(failed) if failed.kind == FailureKind::Busy && Instant::now() < until => {
                thread::sleep(BETWEEN_LOOKS);
            }
            taken => return taken,
        }
    }
}

/// By LVM's uuids: volume groups and pools can be renamed.
fn book_path(state_dir: &Path, group_uuid: &str, pool_uuid: &str) -> PathBuf {
    state_dir.join("lvm").join(format!("{group_uuid}-{pool_uuid}.json"))
}
