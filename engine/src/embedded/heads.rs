//! Heads: private devices that are written and then become a volume in one step.
//!
//! Of a head moments can be kept while it is written on: private snapshots, which become snapshots of the volume in the
//! same step. What dies before that step leaves nothing but private devices, and those go at the next open.

use std::collections::HashSet;

use uuid::Uuid;

use super::names::check_snapshot_name;
use super::volume::{Kind, Volume};
use super::volumes::{check_multiple, check_new_volume, find_volume, refuse_taken};
use super::{EmbeddedError, EmbeddedPool, now_ms};
use crate::format::{DeviceId, SECTOR_BYTES};
use crate::registry::{Change, Entry, Plan, Role, State};

impl EmbeddedPool {
    /// Makes a private writable device: empty, or a snapshot of `like`. It goes at the next [`open`](Self::open)
    /// unless it is published. It has no external origin, whatever `like` has: what it does not map reads as zero.
    ///
    /// # Errors
    /// [`EmbeddedError::Size`] when the size is no multiple of a sector, [`EmbeddedError::ClockExhausted`]; what pool
    /// and registry say.
    pub fn create_head(&self, size_bytes: u64, like: Option<DeviceId>) -> Result<Volume, EmbeddedError> {
        check_multiple(size_bytes, SECTOR_BYTES)?;
        self.inner.transact(|state| {
            if like.is_some() {
                self.inner.check_clock(1)?;
            }
            let mut plan = Plan::default();
            let mut head = None;
            for device in self.inner.fresh_ids(state, 1)? {
                let uuid = Uuid::new_v4();
                let (created_at_ms, role) = (now_ms(), Role::Head);
                let entry = Entry { device, uuid, size_bytes, created_at_ms, role, origin: None };
                plan.create.push((device, like));
                head = Some(Volume::of(state, &entry));
                plan.changes.push(Change::Put(entry));
            }
            Ok((plan, head.ok_or(EmbeddedError::IdsExhausted)?))
        })
    }

    /// Changes the size of a head, which then has what it maps beyond a smaller end still.
    ///
    /// # Errors
    /// [`EmbeddedError::Size`] when the size is no multiple of a sector, [`EmbeddedError::WrongKind`],
    /// [`EmbeddedError::Stale`]; what the registry says.
    pub fn resize_head(&self, head: &Volume, size_bytes: u64) -> Result<Volume, EmbeddedError> {
        check_multiple(size_bytes, SECTOR_BYTES)?;
        let mut books = self.inner.books.lock();
        let entry = Entry { size_bytes, ..find_head(books.registry.state(), head)?.clone() };
        let resized = Volume::of(books.registry.state(), &entry);
        books.registry.record(vec![Change::Put(entry)])?;
        Ok(resized)
    }

    /// Takes a private read-only snapshot of a head as it is now. It goes at the next [`open`](Self::open) unless it is
    /// published together with the head.
    ///
    /// # Errors
    /// [`EmbeddedError::WrongKind`], [`EmbeddedError::Stale`], [`EmbeddedError::ClockExhausted`]; what pool and registry
    /// say.
    pub fn snapshot_head(&self, head: &Volume) -> Result<Volume, EmbeddedError> {
        let mut taken = self.take(|state| {
            let entry = find_head(state, head)?;
            Ok(vec![(entry, Role::Candidate { of: entry.uuid })])
        })?;
        taken.pop().ok_or_else(|| EmbeddedError::Stale { name: head.name.clone(), device: head.device })
    }

    /// Makes a head a volume of this name, and snapshots taken of it that volume's snapshots of the names beside them:
    /// all in one commit. All that was written to them is durable then.
    ///
    /// # Errors
    /// [`EmbeddedError::Name`], [`EmbeddedError::Exists`], [`EmbeddedError::WrongKind`], [`EmbeddedError::Stale`];
    /// what pool and registry say. Then all are as they were.
    pub fn publish_head(
        &self,
        head: &Volume,
        as_volume: &str,
        snapshots: &[(Volume, String)],
    ) -> Result<Volume, EmbeddedError> {
        check_new_volume(as_volume)?;
        for (_, name) in snapshots {
            check_snapshot_name(name)
                .map_err(|source| EmbeddedError::Name { name: name.to_owned(), source })?;
        }
        self.inner.transact(|state| {
            let entry = find_head(state, head)?;
            refuse_taken(state, as_volume)?;
            let role = Role::Volume { name: as_volume.to_owned() };
            let entry = Entry { role, created_at_ms: now_ms(), ..entry.clone() };
            let volume = Volume::of(state, &entry);
            let mut names = HashSet::new();
            let mut changes = Vec::with_capacity(snapshots.len() + 1);
            for (snapshot, name) in snapshots {
                let taken = find_current(state, snapshot)?;
                if taken.role != (Role::Candidate { of: entry.uuid }) {
                    return Err(wrong_kind(snapshot, "a snapshot of the head"));
                }
                if !names.insert(name) {
                    return Err(EmbeddedError::Exists { name: format!("{as_volume}@{name}") });
                }
                let role = Role::Snapshot { of: entry.uuid, name: name.clone() };
                changes.push(Change::Put(Entry { role, ..taken.clone() }));
            }
            changes.push(Change::Put(entry));
            Ok((Plan { create: Vec::new(), changes }, volume))
        })
    }

    /// Gives a volume the content and size of a head. The volume keeps its name, identity and snapshots, but no external
    /// origin; its former device is deleted in the same commit, or becomes trash in it when it is large.
    ///
    /// # Errors
    /// [`EmbeddedError::NoSuchVolume`], [`EmbeddedError::WrongKind`], [`EmbeddedError::Stale`]; what pool and registry
    /// say.
    pub fn replace_volume(&self, volume: &str, head: &Volume) -> Result<Volume, EmbeddedError> {
        self.inner.transact(|state| {
            let old = find_volume(state, volume)?;
            let new = find_head(state, head)?;
            let origin = new.origin.clone();
            let entry = Entry { device: new.device, size_bytes: new.size_bytes, origin, ..old.clone() };
            let volume = Volume::of(state, &entry);
            Ok((
                Plan { create: Vec::new(), changes: vec![Change::Remove(old.device), Change::Put(entry)] },
                volume,
            ))
        })
    }

    /// Deletes a head or candidate that is not needed any more.
    ///
    /// # Errors
    /// [`EmbeddedError::WrongKind`] for anything else, [`EmbeddedError::Stale`]; what pool and registry say.
    pub fn drop_transient(&self, volume: &Volume) -> Result<(), EmbeddedError> {
        self.inner.transact(|state| {
            let entry = find_current(state, volume)?;
            if !entry.role.is_transient() {
                return Err(wrong_kind(volume, "a head or candidate"));
            }
            Ok((Plan { create: Vec::new(), changes: vec![Change::Remove(entry.device)] }, ()))
        })
    }
}

/// What the registry knows now of a device that was looked up before. One that is being deleted is gone.
pub(super) fn find_current<'a>(state: &'a State, volume: &Volume) -> Result<&'a Entry, EmbeddedError> {
    state
        .devices
        .get(&volume.device)
        .filter(|entry| entry.role != Role::Trash)
        .ok_or_else(|| EmbeddedError::Stale { name: volume.name.clone(), device: volume.device })
}

fn find_head<'a>(state: &'a State, head: &Volume) -> Result<&'a Entry, EmbeddedError> {
    let entry = find_current(state, head)?;
    if entry.role == Role::Head { Ok(entry) } else { Err(wrong_kind(head, "a head")) }
}

pub(super) fn wrong_kind(volume: &Volume, wanted: &'static str) -> EmbeddedError {
    let name = if volume.kind == Kind::Unknown { format!("#{}", volume.device) } else { volume.name.clone() };
    EmbeddedError::WrongKind { name, wanted }
}
